"""Noise of federated rounds: how much there is, whose, and that rounds are otherwise the same."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from fractions import Fraction
from functools import partial
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from scipy import stats

from mpc_train.federated.adding import add_up, entered
from mpc_train.federated.limits import Limits
from mpc_train.federated.rules import Global
from mpc_train.federated.sizes import limits_of, variance_of, weights_of
from mpc_train.jobs.job import Job
from mpc_train.privacy import accounting
from mpc_train.privacy.words import lines, priced, table
from mpc_train.results.report import describe
from protocols.arrays import Words
from protocols.noise import summands
from protocols.roles.role import Role
from protocols.shares.arithmetic import remask
from protocols.shares.masked import Masked
from tests.support.federated import PRIVACY, House, federated_job, plain_owners, tables_of
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, shares_of

pytest.importorskip("dp_accounting")

UNIT = 2.0**-20
"""A unit of updates with the clip 4."""


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Words]]:
    """What each node adds, by thread, round after round."""
    kept: dict[str, list[Words]] = defaultdict(list)
    own_part, lock = summands.own_part, threading.Lock()

    def keeping(role: Role, count: int, variance: Fraction) -> Words:
        words = own_part(role, count, variance)
        with lock:
            kept["dealer" if role.index is None else f"evaluator-{role.index}"].append(words.copy())
        return words

    monkeypatch.setattr(summands, "own_part", keeping)
    return kept


def with_noise(job: Job, tables: Any, noise: list[Words]) -> Global:
    """Plain federated averaging, with this noise in the sum of each round, in words."""
    owners = plain_owners(job, tables)
    weights, limits = weights_of(job), limits_of(job)
    model = Global(next(iter(owners.values())).initial())
    for number, words in enumerate(noise, 1):
        total = words * 2.0**-limits.fraction_bits
        for name, owner in owners.items():
            update, _ = owner.update(model.weights, number)
            norm = float(np.linalg.norm(update))
            total = total + weights[name] * update * min(1.0, float(job.federated.clip) / norm)
        model.move(job.federated, total / sum(weights.values()))
    return model


def total_of(drawn: dict[str, list[Words]]) -> list[Words]:
    return [sum(parts) for parts in zip(*drawn.values(), strict=True)]


@pytest.mark.parametrize("weighting", ["rows", "equal"])
def test_less_its_noise_a_run_is_plain_federated_averaging(
    tmp_path: Path, weighting: str, drawn: dict[str, list[Words]]
) -> None:
    job = federated_job(tmp_path, privacy=PRIVACY, rounds="2", weighting=f'"{weighting}"')
    tables = tables_of(job)
    house = House(job, tmp_path, tables)
    house.run()
    assert {name: len(parts) for name, parts in drawn.items()} == {
        "dealer": 2,
        "evaluator-0": 2,
        "evaluator-1": 2,
    }
    noise = total_of(drawn)
    expected = with_noise(job, tables, noise)
    models = list(house.models.values())
    assert all(np.array_equal(models[0].weights, one.weights) for one in models)
    assert np.abs(models[0].weights - expected.weights).max() < 20 * UNIT
    with safe_open(tmp_path / "ann" / "model.safetensors", "np") as file:
        assert json.loads(file.metadata()["privacy"])["spent"] == 8
    # Without it this is another model.
    plain = with_noise(job, tables, [0 * one for one in noise])
    assert np.abs(plain.weights - models[0].weights).max() > 1000 * UNIT


def test_secret_sizes_and_equal_weights_leave_nothing_of_sizes(tmp_path: Path) -> None:
    job = federated_job(
        tmp_path, privacy=PRIVACY, rounds="1", weighting='"equal"', sizes='"secret"'
    )
    tables = tables_of(job, {name: 9 + place for place, name in enumerate(job.owners)})
    house = House(job, tmp_path, tables)
    house.run()
    (told,) = house.told["dan"]
    assert told.owners == 4 and told.counted
    sums = [fields for name, _, fields in house.records if fields.get("output") == "global_update"]
    assert {fields["values"] for fields in sums if "values" in fields} == {limits_of(job).size}


def test_a_round_that_was_opened_is_not_opened_with_other_noise(
    tmp_path: Path, drawn: dict[str, list[Words]]
) -> None:
    """The first round was, and stays; the second one was not stored everywhere, nobody has seen it,
    and it gets fresh noise."""
    job = federated_job(tmp_path, privacy=PRIVACY, rounds="2")
    tables = tables_of(job)
    first = House(job, tmp_path, tables)
    first.run()
    early, late = first.shelves["ann"].tokens()
    first.shelves["bob"].discard(late)
    second = House(
        job, tmp_path, tables, shelves=first.shelves, resume=early, number=2, begun=first.begun
    )
    second.run()
    opened, unseen, anew = total_of(drawn)
    assert (unseen != anew).any()
    expected = with_noise(job, tables, [opened, anew])
    assert np.abs(second.models["dan"].weights - expected.weights).max() < 20 * UNIT
    # The owners know it for the same run, by the session that opened its first round.
    assert first.begun["cas"].entered[-1] == (second.sid, first.sid)


def test_all_rounds_together_cost_the_budget(tmp_path: Path) -> None:
    """σ against the formula of zero-concentrated privacy, which the library's conversion beats."""
    for neighbours, times in (("zeroed", 1), ("replaced", 2)):
        privacy = PRIVACY.replace("zeroed", neighbours)
        job = federated_job(tmp_path, privacy=privacy, rounds="30")
        weight = max(weights_of(job).values())
        assert accounting.sensitivity(job) == times * weight * 4
        variance = variance_of(job)
        assert variance is not None
        change = times * weight * limits_of(job).most_norm
        rho = 30 * change**2 / (2 * float(variance))
        simple = rho + 2 * sqrt(rho * log(1e5))
        assert 8 <= simple < 9.5
        multiplier = float(accounting.noise_multiplier(job))
        assert multiplier <= accounting.multiplier_bound(job) < 1.2 * multiplier
        equal = federated_job(tmp_path, privacy=privacy, rounds="30", weighting='"equal"')
        assert variance_of(equal) == variance / weight**2
    assert variance_of(federated_job(tmp_path)) is None


def test_what_is_promised_is_said(tmp_path: Path) -> None:
    job = federated_job(tmp_path, privacy=PRIVACY)
    said = " ".join(lines(job))
    for words in (
        "ε = 8 and δ = 0.00001 for one owner, with all its rows",
        "all rows of the owner had contributed nothing",
        "which owners take part in a round, are the same in both and are not protected",
        f"norm 4 and counts at most {max(weights_of(job).values())} times, for its rows,",
        "over 3 rounds",
        "against owners together with one evaluator",
    ):
        assert words in said
    # What people read before they sign says how much noise that is, and speaks of no bands.
    told = " ".join(describe(job).split())
    assert "The standard deviation of the noise is at least" in told and "bands" not in told
    found = priced(job)
    assert found is not None
    assert found["mechanisms"] == 3 and found["clip"] == "4" and found["spent"] == 8
    assert found["spent_training_computed"] <= 8
    assert [cost["outputs"] for cost in found["costs"]] == [
        ["global_update", "federated"],
        ["within_clip"],
    ]
    assert any("the bit does not tell of its rows" in line for line in table(job))


def test_a_secret_number_of_rows_beyond_the_job_s_does_not_count() -> None:
    """An owner that says that it has more rows than any owner may have, or less than one."""
    limits, said = Limits(Fraction(4), 3), [1, 9, 0, -1, 10, 1 << 32, -(1 << 63), 4]
    updates = [np.array([number, 1, -1]) for number in range(len(said))]

    def program(role: Role) -> Any:
        zeros = np.zeros(3, np.int64)

        def enter(words: Words) -> Masked:
            return entered(role, words.shape, words if role.is_first else zeros[: len(words)])

        def bits_of(start: int, bits: Masked) -> tuple[bool, ...]:
            kept.append(shares_of(bits))
            return (True, True, *[False] * 5, True)

        kept: list[Any] = []
        enters = [partial(enter, one) for one in updates]
        rows = [partial(enter, np.array([one])) for one in said]
        found = add_up(role, limits, enters, rows, bits_of, most_rows=9)
        assert found.total is not None and found.rows == 0
        return kept[0], shares_of(remask(found.total))

    with np.errstate(over="ignore"):
        bits, total = (combine_masked(part) for part in zip(*run_lockstep(program, 2), strict=True))
    assert bits.tolist() == [1, 1, 0, 0, 0, 0, 0, 1]
    assert total.tolist() == [0 * 1 + 1 * 9 + 7 * 4, 14, -14, 14]


@pytest.mark.slow
@pytest.mark.parametrize("evaluators", [2, 3])
def test_the_noise_of_a_sum_has_the_law_that_the_accounting_counts(
    tmp_path: Path, evaluators: int, drawn: dict[str, list[Words]]
) -> None:
    """The opened total, less the exact one, against normal laws: what all know nothing of, and what
    is left for the dealer, and for all evaluators but one, who know their own parts."""
    variance = variance_of(federated_job(tmp_path, privacy=PRIVACY))
    assert variance is not None
    size, limits = 40_000, Limits(Fraction(4), 40_000)
    updates = [limits.rounded(np.random.default_rng(k).normal(size=size))[0] for k in range(2)]
    rows = [16, 28]

    def program(role: Role) -> Any:
        zeros = np.zeros(size, np.int64)
        enters = [
            lambda one=one: entered(role, (size,), one if role.is_first else zeros)
            for one in updates
        ]
        found = add_up(role, limits, enters, rows, lambda *_: (True, True), variance=variance)
        assert found.total is not None
        return shares_of(remask(found.total))

    with np.errstate(over="ignore"):
        total = combine_masked(run_lockstep(program, evaluators, 7))
        noise = total - sum(n * one for n, one in zip(rows, updates, strict=True))
    (dealer,) = drawn["dealer"]
    parts = [drawn[f"evaluator-{index}"][0] for index in range(evaluators)]
    np.testing.assert_array_equal(noise, dealer + sum(parts))
    for left, share in (
        (noise, 2),
        (noise - dealer, 1),
        (noise - sum(parts[1:]), 1 + 1 / evaluators),
    ):
        scaled = left / sqrt(float(variance) * share)
        # Of a normal law: mean and variance within five standard errors, and the whole shape.
        assert abs(scaled.mean()) < 5 / sqrt(size)
        assert abs(scaled.var() - 1) < 5 * sqrt(2 / size)
        assert stats.kstest(scaled, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 5 / sqrt(size)
