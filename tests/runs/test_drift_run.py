"""A service of real processes says whether the rows that it is asked have shifted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.asking.client import SharedService
from mpc_train.errors import QueryRefusedError
from mpc_train.evaluation.histograms import OUTPUTS
from mpc_train.owners.local import Local
from tests.runs.test_resume import free_address
from tests.support.patience import wait_until
from tests.support.serving_study import ServingStudy, newest

pytestmark = pytest.mark.slow
DRIFT = 'drift = { every_rows = 256, epsilon = "20", to = ["ann"] }'
"""Two questions of up to 128 rows; noise of about 0.1 rows in each count."""
NOISE = 4


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, homes: Path) -> Iterator[ServingStudy]:
    folder = tmp_path_factory.mktemp("drift")
    shutil.copytree(homes, folder / "homes")
    made = ServingStudy(folder, free_address())
    try:
        made.train("one.model", 1_000_000, 0.1, DRIFT)
        made.serve("one.model")
        yield made
    finally:
        made.close()


def record(house: ServingStudy) -> Any:
    path = house.homes / "ann" / "ann.drift.json"
    if not path.exists():
        return None
    (model,) = json.loads(path.read_bytes())["models"].values()
    return model


def windows(house: ServingStudy) -> list[Any]:
    found = record(house)
    return [] if found is None else found["windows"]


def asked(house: ServingStudy, service: SharedService, *questions: np.ndarray) -> None:
    """Each is answered, if need be by a service that starts again."""
    for rows in questions:

        def answered(rows: np.ndarray = rows) -> bool:
            try:
                service.ask(newest(service), Local(rows, np.ones((len(rows), 0))))
            except QueryRefusedError as error:
                assert error.code == "unavailable", error
                return False
            return True

        wait_until(answered, "an answer")


def test_rows_of_others_are_noticed(house: ServingStudy) -> None:
    rng = np.random.default_rng(4)
    usual, few = rng.normal(0, 1, (128, 2)), rng.normal(0, 1, (20, 2))
    weight = house.weights["one.model"]["weight"][0]
    other = usual + 6 * weight / (weight @ weight)  # logits are higher by 6
    with house.client() as service:
        asked(house, service, usual, few)
        wait_until(lambda: len(windows(house)) == 1, "the baseline")
        asked(house, service, usual, few)
        wait_until(lambda: len(windows(house)) == 2, "a second window")
        asked(house, service, other, few)
        wait_until(lambda: len(windows(house)) == 3, "a third window")
        # In the middle of a window an evaluator is killed: the next one begins anew.
        asked(house, service, usual)
        house.kill("bob")
        house.again("bob")
        asked(house, service, few)
        wait_until(lambda: house.running["bob"].poll() is None, "bob")
        assert len(windows(house)) == 3
        asked(house, service, usual)
        wait_until(lambda: len(windows(house)) == 4, "a window of the next session")
    first, like, shifted, last = windows(house)
    assert first["shifts"] == {} and record(house)["baseline"] == first
    assert like["shifts"][OUTPUTS]["says"] == "no shift"
    assert shifted["shifts"][OUTPUTS]["says"] == "shifted"
    assert last["shifts"][OUTPUTS]["says"] == "no shift"
    for window in (first, like, shifted, last):
        assert window["rows"] == 256  # padded
        assert abs(sum(window["counts"][OUTPUTS].values()) - 148) <= NOISE  # real
    assert record(house)["releases"] == 4 and record(house)["epsilon"] == "20"
    # Only where the job says so is there a record.
    assert not (house.homes / "bob" / "bob.drift.json").exists()
    assert house.used_twice() == 0
    assert house.leaks() == set()
