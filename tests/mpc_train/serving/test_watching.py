"""A service that watches drift, whole, in one process."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.checks import check_serve
from mpc_train.evaluation import noise
from mpc_train.evaluation.histograms import OUTPUTS
from mpc_train.jobs.serve import Drift
from mpc_train.owners.local import Local
from mpc_train.serving.forward import REAL, asked_shapes, asked_values
from mpc_train.serving.monitoring.record import Model, Record
from mpc_train.serving.offered import Offered
from mpc_train.serving.program import Counts, NoDesk
from mpc_train.shared.share import ModelShare
from parties.errors import AuditError
from protocols.shares.reveal import RevealGate
from tests.mpc_train.serving.test_program import (
    CLASSES,
    house_of,
    in_the_clear,
    job_of,
    right,
    rows_of,
    without,
)
from tests.support.house import Asker, House, in_no_time, only_units_of
from tests.support.served import counting, shares_of, some_weights


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_serve, "MIN_WINDOW", 16)


class Desk(NoDesk):
    """What an evaluator is told of windows."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str, int, Counts | None]] = []

    def releasing(self, model: Offered, rows: int) -> None:
        self.said.append(("before", model.digest, rows, None))

    def released(
        self, model: Offered, rows: int, counts: Counts | None, training: Counts | None
    ) -> None:
        self.said.append(("after", model.digest, rows, counts))

    @property
    def released_counts(self) -> list[Counts | None]:
        return [counts for word, _, _, counts in self.said if word == "after"]


def binned(job: Any, *rows: Local) -> dict[str, tuple[int, ...]]:
    """In the clear: how many rows have a probability between each two tenths."""
    found = np.zeros(10, np.int64)
    for each in rows:
        chance = 1 / (1 + np.exp(-in_the_clear(job, each)[:, 0]))
        found += np.bincount((chance * 10).astype(int), minlength=10)
    return {OUTPUTS: tuple(found.tolist())}


@pytest.mark.parametrize("evaluators", [2, 3])
def test_real_rows_are_counted_and_lost_ones_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluators: int
) -> None:
    in_no_time(monkeypatch)
    monkeypatch.setattr(noise, "discrete_laplace", lambda scale: 0)
    job = job_of(tmp_path, evaluators, drift=Drift(48, Decimal(1), ("ann",)))
    desks = {name: Desk() for name in job.evaluators}
    house = house_of(job, desks=dict(desks))
    (model,) = house.models
    clinic = Asker("clinic", house)
    rows = [rows_of(count, count) for count in (3, 12, 9, 5, 2, 4)]
    parts = [clinic.asks(model, each) for each in rows]
    # The last evaluator never hears its part of the third question.
    parts[2] = without(house.names[-1], parts[2])
    house.serve(*([each] for each in parts))
    for turn, each in enumerate(rows):
        if turn != 2:
            right(clinic, model, turn + 1, each)
    assert clinic.answer(model, 3, 9) == [f"{house.names[-1]}: unavailable"]
    # 15 real rows of 48 in the first window; 11 in the second one.
    for desk in desks.values():
        assert [each[:3] for each in desk.said] == [
            ("before", model.digest, 48),
            ("after", model.digest, 48),
        ] * 2
        assert desk.released_counts == [binned(job, *rows[:2]), binned(job, *rows[3:])]
    assert house.used_twice() == 0


def test_counts_of_few_real_rows_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "discrete_laplace", lambda scale: 0)
    job = job_of(tmp_path, drift=Drift(32, Decimal(1), ("ann",)))
    assert job.reveal.least_group == 10
    desk = Desk()
    house = house_of(job, desks={"ann": desk})
    (model,) = house.models
    clinic = Asker("clinic", house)
    house.serve(*([clinic.asks(model, rows_of(count))] for count in (4, 5, 5, 5)))
    assert desk.released_counts == [None, binned(job, rows_of(5), rows_of(5))]


@pytest.mark.parametrize("counted", [False, True], ids=["an older share", "with counts"])
def test_windows_are_compared_with_the_training_rows_if_the_share_has_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: bool
) -> None:
    monkeypatch.setattr(noise, "discrete_laplace", lambda scale: 0)
    job = job_of(tmp_path, drift=Drift(16, Decimal(1), ("ann",)))
    shares = shares_of(job, some_weights(job))
    if counted:
        shares = counting(shares, {OUTPUTS: (100,) + (0,) * 9})
    shares = [ModelShare.from_bytes(share.to_bytes()) for share in shares]
    record = Record(tmp_path / "ann.drift.json", lambda _, model: seen.append(model))
    seen: list[Model] = []

    class Recording(NoDesk):
        def released(
            self, model: Offered, rows: int, counts: Counts | None, training: Counts | None
        ) -> None:
            record.add(model.digest, model.job, rows, counts, training)

    house = House([shares], desks={"ann": Recording()})
    (model,), clinic = house.models, Asker("clinic", house)
    house.serve(*([clinic.asks(model, rows_of(16, seed))] for seed in (3, 3)))
    first, second = seen[-1].windows
    if counted:
        assert first.against == second.against == "training rows"
        assert first.shifts[OUTPUTS].says == second.shifts[OUTPUTS].says != "no shift"
    else:
        assert (first.against, second.against) == ("", "the first window of 16 rows")
        assert second.shifts[OUTPUTS].index == 0


def test_noise_is_added_by_every_evaluator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []

    def discrete_laplace(scale: Any) -> int:
        drawn.append(scale)
        return 7

    monkeypatch.setattr(noise, "discrete_laplace", discrete_laplace)
    job = job_of(tmp_path, drift=Drift(16, Decimal("0.5"), ("ann",)))
    desk = Desk()
    house = house_of(job, desks={"ann": desk})
    (model,) = house.models
    house.serve([Asker("clinic", house).asks(model, rows_of(16))])
    (counts,) = desk.released_counts
    exact = binned(job, rows_of(16))[OUTPUTS]
    assert counts == {OUTPUTS: tuple(number + 14 for number in exact)}
    assert len(drawn) == 20 and set(drawn) == {2}


def test_counts_that_could_not_be_noted_do_not_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_units_of(16, monkeypatch)

    class Full(NoDesk):
        def releasing(self, model: Offered, rows: int) -> None:
            raise AuditError("the disk is full")

    revealed: list[str] = []
    to_everybody = RevealGate.to_everybody

    def noticed(self: RevealGate, *given: Any) -> Any:
        revealed.append(given[0])
        return to_everybody(self, *given)

    monkeypatch.setattr(RevealGate, "to_everybody", noticed)
    desks = {name: Full() for name in ("ann", "bob")}
    house = house_of(job_of(tmp_path, drift=Drift(16, Decimal(1), ("ann",))), desks=dict(desks))
    with pytest.raises(AuditError):
        house.serve([Asker("clinic", house).asks(house.models[0], rows_of(16))])
    assert len(revealed) <= 1  # the dealer's, which makes the material ahead


def test_a_session_begins_a_window_and_models_have_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "discrete_laplace", lambda scale: 0)
    watched = job_of(tmp_path / "one", drift=Drift(32, Decimal(1), ("ann",)))
    other = job_of(tmp_path / "other", text=CLASSES, drift=Drift(16, Decimal(1), ("bob",)))
    plain = job_of(tmp_path / "plain", rows_a_day=999)
    desk = Desk()
    house = house_of(plain, watched, other, desks={"ann": desk})
    model = house.models[1]
    clinic = Asker("clinic", house)
    house.serve([clinic.asks(model, rows_of(16))], [clinic.asks(house.models[0], rows_of(16))])
    assert desk.said == []
    house.seed = 2
    steps = [[clinic.asks(model, rows_of(16, seed))] for seed in (5, 6)]
    house.serve(*steps, [clinic.asks(house.models[2], rows_of(11))])
    first, second = desk.released_counts
    assert first == binned(watched, rows_of(16, 5), rows_of(16, 6))
    assert second is not None and sum(second[OUTPUTS]) == 11 and len(second[OUTPUTS]) == 3


def test_without_drift_nothing_is_different(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    assert REAL not in asked_shapes(job, 16) and REAL not in asked_values(job, rows_of(2))
    with_drift = job_of(tmp_path, drift=Drift(100, Decimal(1), ("ann",)))
    assert asked_shapes(with_drift, 16)[REAL] == ((16, 1), 0)
    assert asked_values(with_drift, rows_of(2))[REAL].tolist() == [[1.0], [1.0]]
