"""Rounds of evaluators, dealer and owners that come and go: equal to plain federated averaging."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from mpc_train.errors import ArtifactError, OwnersError
from mpc_train.federated.plain import plain_rounds
from mpc_train.federated.rounds import messages
from mpc_train.federated.rounds.desk import Desk
from mpc_train.federated.rounds.kept import Kept, Memory
from mpc_train.federated.rounds.messages import Arrived
from mpc_train.federated.rounds.result import digest_of
from mpc_train.federated.rules import Global
from mpc_train.federated.sizes import limits_of
from mpc_train.results.outcome import read_outcome
from parties.agreement.visitors import Heard
from tests.support.federated import House, federated_job, plain_owners, tables_of

UNIT = 2.0**-20
"""A unit of updates with the clip 4."""


def expected(job: Any, tables: Any, present: Any = ()) -> np.ndarray:
    return np.asarray(plain_rounds(job, plain_owners(job, tables), present).weights)


def model_of(house: House, name: str) -> np.ndarray:
    found = load_file(house.folder / name / "model.safetensors")
    parts = [found[key].reshape(-1) for key, _ in house.job.plain.tensors]
    return np.concatenate(parts).astype(np.float64)


@pytest.mark.parametrize("dealer", ["registry", "dan"])
def test_rounds_are_plain_federated_averaging(tmp_path: Path, dealer: str) -> None:
    """Owners that evaluate, one that deals, and others; each ends with the same model."""
    path = tmp_path / "job.toml"
    federated_job(tmp_path)
    path.write_text(path.read_text().replace('dealer = "registry"', f'dealer = "{dealer}"'))
    from mpc_train.admission.load import load_job

    job = load_job(path)
    tables = tables_of(job)
    house = House(job, tmp_path, tables)
    house.run()
    plain = expected(job, tables)
    models = {name: model_of(house, name) for name in job.owners if name in job.nodes}
    models |= {name: model.weights for name, model in house.models.items()}
    assert set(models) == set(job.owners)
    for found in models.values():
        # An element is off by half a unit a round, which later rounds carry on.
        assert np.abs(found - plain).max() < 20 * UNIT
    assert limits_of(job).fraction_bits == 20
    (first, *others) = house.models.values()
    assert all(np.array_equal(first.weights, other.weights) for other in others)
    for name in set(job.owners) & set(job.nodes):
        with safe_open(house.folder / name / "model.safetensors", "np") as file:
            assert file.metadata()["weights"] == digest_of(first)
    assert digest_of(Global(first.weights + 2.0**-40)) != digest_of(first)
    for name in job.owners:
        assert [told.counted for told in house.told[name]] == [True] * 3
        assert all(0 <= told.measured["accuracy"] <= 1 for told in house.told[name])


def test_one_round_is_exact_to_the_scale(tmp_path: Path) -> None:
    job = federated_job(tmp_path, rounds="1")
    tables = tables_of(job)
    house = House(job, tmp_path, tables)
    house.run()
    (model, *_) = house.models.values()
    assert np.abs(model.weights - expected(job, tables)).max() <= 0.5 * UNIT + 1e-12


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": '"fedprox"', "proximal": "0.5"},
        {"rule": '"fedadam"', "server_rate": "0.1"},
        {"rule": '"fedyogi"', "server_rate": "0.1"},
        # A bias before a norm has a gradient of nothing but rounding, which Adam makes a step of.
        {"optimizer": '"adam"', "module": "wide"},
        {"sizes": '"secret"'},
    ],
    ids=lambda settings: next(iter(settings.values())),
)
def test_other_rules(tmp_path: Path, settings: dict[str, str]) -> None:
    job = federated_job(tmp_path, **settings)
    tables = tables_of(job)
    house = House(job, tmp_path, tables)
    house.run()
    (model, *_) = house.models.values()
    assert np.abs(model.weights - expected(job, tables)).max() < 1e-3
    other = federated_job(tmp_path, module=settings.get("module", "network"))
    if "sizes" not in settings:
        assert np.abs(model.weights - expected(other, tables)).max() > 1e-3


@pytest.mark.parametrize("name", ["ann", "dan"])
@pytest.mark.parametrize("module", ["network", "wide"])
def test_an_update_of_a_thousand_times_the_norm_moves_nothing(
    tmp_path: Path, name: str, module: str
) -> None:
    job = federated_job(tmp_path, module=module, rounds="2")
    tables = tables_of(job)
    scale = int(limits_of(job).most_square ** 0.5)

    def hostile(words: np.ndarray) -> np.ndarray:
        long = words * (1000 * scale // max(1, int(np.linalg.norm(words))))
        assert np.linalg.norm(long.astype(float)) > 900 * scale
        return long

    house = House(job, tmp_path, tables, hostile={name: hostile})
    house.run()
    others = [one for one in job.owners if one != name]
    plain = expected(job, tables, [others] * 2)
    assert np.abs(house.models["cas"].weights - plain).max() < 20 * UNIT
    assert [told.counted for told in house.told[name]] == [False, False]
    assert [told.counted for told in house.told["bob"]] == [True, True]
    assert [told.owners for told in house.told["cas"]] == [3, 3]


def test_words_that_wrap_around_move_nothing(tmp_path: Path) -> None:
    job = federated_job(tmp_path, rounds="1")
    tables = tables_of(job)

    def hostile(words: np.ndarray) -> np.ndarray:
        found = np.zeros_like(words)
        found[2] = 1 << 32  # its square is 0
        return found

    house = House(job, tmp_path, tables, hostile={"dan": hostile})
    house.run()
    plain = expected(job, tables, [["ann", "bob", "cas"]])
    assert np.abs(house.models["dan"].weights - plain).max() < UNIT


@pytest.mark.slow
def test_an_owner_that_misses_rounds_comes_back(tmp_path: Path) -> None:
    job = federated_job(tmp_path, rounds="4", deadline_s="2")
    tables = tables_of(job)
    house = House(job, tmp_path, tables, absent={"dan": [2, 3]})
    house.run()
    three = ["ann", "bob", "cas"]
    plain = expected(job, tables, [job.owners, three, three, job.owners])
    for model in house.models.values():
        assert np.abs(model.weights - plain).max() < 30 * UNIT
    assert [told.counted for told in house.told["dan"]] == [True, None, None, True]
    assert [told.owners for told in house.told["ann"]] == [4, 3, 3, 4]


def test_too_few_owners_end_the_run_with_their_names(tmp_path: Path) -> None:
    job = federated_job(tmp_path, least_owners="4", deadline_s="1")
    house = House(job, tmp_path, tables_of(job), absent={"dan": [2]})
    with pytest.raises(OwnersError, match=r"round 2: 3 of 4 .* missing: dan"):
        house.run()
    # Round 1 is kept, and nothing of round 2.
    assert [len(one.tokens()) for one in house.shelves.values()] == [1, 1]


def test_the_first_weights_are_known_after_rounds(tmp_path: Path) -> None:
    """An owner whose evaluators begin anew begins with them, and not with what it has trained."""
    job = federated_job(tmp_path)
    owner = plain_owners(job, tables_of(job))["ann"]
    first = owner.initial()
    owner.train(first.copy(), 1)
    owner.measured(first + 1)
    np.testing.assert_array_equal(owner.initial(), first)


def test_a_run_goes_on_after_the_last_opened_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter, found = Desk.__enter__, []

    def entered(desk: Desk) -> Desk:
        found.append(desk._kept.opened)
        return enter(desk)

    monkeypatch.setattr(Desk, "__enter__", entered)
    job = federated_job(tmp_path, least_owners="4", deadline_s="1")
    tables = tables_of(job)
    first = House(job, tmp_path, tables, absent={"dan": [2]})
    with pytest.raises(OwnersError):
        first.run()
    (token,) = first.shelves["ann"].tokens()
    assert first.shelves["bob"].tokens() == (token,)
    second = House(job, tmp_path, tables, shelves=first.shelves, resume=token, number=2)
    summaries = second.run()
    assert summaries["ann"]["resumed_after"] == 1
    # An owner that asks at once hears which rounds were opened, and not that the run begins anew.
    assert found == [0, 0, 1, 1]
    plain = expected(job, tables)
    assert np.abs(second.models["dan"].weights - plain).max() < 20 * UNIT
    assert np.abs(model_of(second, "bob") - plain).max() < 20 * UNIT
    # No round is opened twice, and the statement that all sign lists each once.
    outcomes = {second.programs[name].outcome() for name in job.nodes}
    (outcome,) = outcomes
    opened = {one.clause: one.times for one in read_outcome(outcome).openings}
    assert opened == {"train.mode": 3, "train.federated.clip": 3}
    second.programs["ann"].check_outcome(outcome)
    listed = [
        fields["step"]
        for name, kind, fields in second.records
        if name == "ann" and fields.get("output") == "global_update" and "values" in fields
    ]
    assert listed == [2, 3]


def test_what_was_stored_and_not_opened_is_computed_anew(tmp_path: Path) -> None:
    job = federated_job(tmp_path, rounds="2")
    tables = tables_of(job)
    first = House(job, tmp_path, tables)
    first.run()
    early, late = first.shelves["ann"].tokens()
    first.shelves["bob"].discard(late)  # bob had not stored it: nobody has seen it
    second = House(job, tmp_path, tables, shelves=first.shelves, resume=early, number=2)
    second.run()
    assert late not in second.shelves["ann"].tokens()
    assert np.array_equal(second.models["cas"].weights, first.models["cas"].weights)


def test_a_missing_round_is_named(tmp_path: Path) -> None:
    job = federated_job(tmp_path, rounds="2")
    first = House(job, tmp_path, tables_of(job))
    first.run()
    early, late = first.shelves["ann"].tokens()
    first.shelves["ann"].discard(early)
    second = House(job, tmp_path, tables_of(job), shelves=first.shelves, resume=late, number=2)
    with pytest.raises(ArtifactError, match="round 1 of the run is kept 0 times"):
        second.run()


def test_an_update_that_begins_before_another_evaluator_is_there_counts() -> None:
    """An evaluator that is later than the first must not forget what it has heard meanwhile."""
    kept = Kept(Memory(), bytes(32))
    desk = Desk(cast(Any, None), 4, ("cas",), kept, lambda one: 2 * one.update, leads=False)
    name = bytes(range(16))
    said = memoryview(messages.BEGIN + messages.ROUND.pack(1) + name)
    heard = Heard("cas", bytes(16), 7, said, 0.0, cast(Any, None))
    assert desk._answer(heard) == messages.answer(2 * name)
    desk.open_round(1)
    arrived = Arrived("cas", name)
    assert desk.holds([arrived, Arrived("cas", bytes(16))]) == (True, False)
    assert desk.take(arrived) is None


def test_the_first_evaluator_takes_updates_of_its_round_alone() -> None:
    """Neither that of a round that is over, nor words after the round has closed."""
    kept = Kept(Memory(), bytes(32))
    desk = Desk(cast(Any, None), 4, ("cas",), kept, lambda one: 2 * one.update, leads=True)
    name = bytes(range(16))

    def ask(said: bytes) -> bytes:
        return desk._answer(Heard("cas", bytes(16), 7, memoryview(said), 0.0, cast(Any, None)))

    def begin(number: int) -> bytes:
        return ask(messages.BEGIN + messages.ROUND.pack(number) + name)

    late, piece = messages.refusal("late"), messages.PIECE + messages.PLACE.pack(7, 0) + bytes(32)
    assert begin(2) == late
    desk.open_round(2)
    assert [begin(1), begin(3)] == [late, late]
    assert begin(2) == messages.answer(2 * name)
    assert ask(piece) == messages.answer(b"")
    assert ask(piece) == messages.refusal("malformed")
    assert desk.gather(0, lambda: None) == (Arrived("cas", name),)
    assert [begin(2), ask(piece)] == [late, late]
