"""A service of real processes says whether the rows that it is asked have shifted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.asking.client import SharedService
from mpc_train.errors import QueryRefusedError
from mpc_train.evaluation.histograms import OUTPUTS
from mpc_train.jobs.schedule import split
from mpc_train.owners.local import Local
from mpc_train.shared.description import read_description
from tests.runs.test_resume import free_address
from tests.support.counted_study import in_bins
from tests.support.jobs import column, schema_toml
from tests.support.patience import wait_until
from tests.support.serving_study import ServingStudy, newest

pytestmark = pytest.mark.slow
DRIFT = 'drift = { every_rows = 256, epsilon = "20", to = ["ann"] }'
"""Two questions of up to 128 rows; noise of about 0.3 rows in each count."""
NOISE = 5
AGES, DOSES = [40, 50, 60], [0]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, homes: Path) -> Iterator[ServingStudy]:
    folder = tmp_path_factory.mktemp("drift")
    shutil.copytree(homes, folder / "homes")
    made = ServingStudy(folder, free_address())
    try:
        binned(made)
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


def binned(house: ServingStudy) -> None:
    """A job whose columns have bins: the study's features as a schema."""
    columns = column("age", range=[0, 120], bins=AGES), column("dose", range=[-8, 8], bins=DOSES)
    (house.folder / "schema.toml").write_text(schema_toml(*columns, column("ill", "boolean")))
    text = house._text
    declared = 'features = [{ name = "age", center = 50, scale = 10, range = [0, 120] }, "dose"]'
    assert declared in text
    house._text = text.replace(
        declared,
        'schema = "schema.toml"\nfeatures = [{ name = "age", center = 50, scale = 10 }, "dose"]',
    )


def trained_on(house: ServingStudy) -> dict[str, np.ndarray]:
    """The cells of the training rows."""
    job = read_description(house.folder / "one.model").job
    rows, _ = split(job)
    files = [house.csv(owner) for owner in job.owners]
    cells = np.concatenate([np.loadtxt(file, delimiter=",", skiprows=1) for file in files])
    return {"age": cells[rows, 0], "dose": cells[rows, 1]}


def test_rows_are_compared_with_training_rows(house: ServingStudy) -> None:
    rng = np.random.default_rng(4)
    cells = trained_on(house)
    pool = np.column_stack([(cells["age"] - 50) / 10, cells["dose"]])
    usual, few = pool[rng.integers(0, len(pool), 128)], pool[rng.integers(0, len(pool), 20)]
    older = usual + np.array([3, 0])  # by thirty years; doses are alike
    with house.client() as service:
        asked(house, service, usual, few)
        wait_until(lambda: len(windows(house)) == 1, "a window")
        asked(house, service, older, few)
        wait_until(lambda: len(windows(house)) == 2, "a second window")
        # In the middle of a window an evaluator is killed: the next one begins anew.
        asked(house, service, usual)
        house.kill("bob")
        house.again("bob")
        asked(house, service, few)
        wait_until(lambda: house.running["bob"].poll() is None, "bob")
        assert len(windows(house)) == 2
        asked(house, service, usual)
        wait_until(lambda: len(windows(house)) == 3, "a window of the next session")
    like, shifted, last = windows(house)
    found = record(house)
    assert found["baseline"] is None
    for name, edges in (("age", AGES), ("dose", DOSES)):
        exact = in_bins(cells[name], edges)
        assert np.abs(np.subtract([*found["training"][name].values()], exact)).max() <= NOISE
    for window in (like, last):
        assert window["against"] == "training rows"
        for name in ("age", "dose"):
            assert window["shifts"][name]["index"] < 0.25, (name, window)
            assert window["shifts"][name]["says"] != "shifted"
    assert shifted["shifts"]["age"]["says"] == "shifted" and shifted["shifts"]["age"]["index"] > 1
    assert shifted["shifts"]["dose"]["says"] != "shifted"
    for window in (like, shifted, last):
        assert window["rows"] == 256  # padded
        assert abs(sum(window["counts"][OUTPUTS].values()) - 148) <= NOISE  # real
        for name, edges in (("age", AGES), ("dose", DOSES)):
            index = plain_index(cells[name], [*window["counts"][name].values()], edges)
            # Half a row is added to each bin, and noise to each count.
            assert abs(window["shifts"][name]["index"] - index) < 0.1 + 0.3 * index
    assert found["releases"] == 3 and found["epsilon"] == "20"
    # Only where the job says so is there a record.
    assert not (house.homes / "bob" / "bob.drift.json").exists()
    assert house.used_twice() == 0
    assert house.leaks() == set()


def plain_index(training: np.ndarray, asked: list[int], edges: Sequence[float]) -> float:
    """The population stability index of the cells themselves, by its formula."""
    p = np.array(in_bins(training, edges)) / len(training)
    q = np.maximum(asked, 0) / max(1, sum(asked))
    p, q = np.maximum(p, 0.5 / len(training)), np.maximum(q, 0.5 / 148)
    return float(((q - p) * np.log(q / p)).sum())
