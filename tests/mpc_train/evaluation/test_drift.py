"""Counts of what a model is asked, over shares, and how stable they are."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import log
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mpc_train.errors import JobError
from mpc_train.evaluation import noise
from mpc_train.evaluation.drift import by_chance, counts, read, released, report, stability
from mpc_train.evaluation.histograms import OUTPUTS, Histogram, histograms
from mpc_train.jobs.job import Job
from mpc_train.jobs.prepare import ColumnSteps
from mpc_train.owners.local import Local, local_terms
from mpc_train.serving.forward import FEATURES, PRESENT, asked_shapes, asked_values
from protocols.arrays import Reals, Words
from protocols.ring.fixed_point import encode
from protocols.roles.role import Role
from tests.support.jobs import job_toml, loaded
from tests.support.lockstep import compute, run_lockstep
from tests.support.loopback import combine_masked, secret, shares_of
from tests.support.preparation_case import (
    JOB,
    PREPARE,
    SCHEMA,
    pooled,
    prepared_job,
    tables,
    with_gaps,
)
from tests.support.tensors import attached

F = 20
BINNED = SCHEMA.replace("range = [0, 120]", "range = [0, 120]\nbins = [30, 45, 60, 75]")
BINNED = BINNED.replace("1000000]", "1000000]\nbins = [500, 20000, 50000, 300000]")
BINNED = BINNED.replace("range = [0, 60]", "range = [0, 60]\nbins = [1, 3, 6]")
AGES, INCOMES, VISITS = [30, 45, 60, 75], [20000, 50000], [1, 3, 6]


def job_of(folder: Path, prepare: str = PREPARE, schema: str = BINNED) -> Job:
    return prepared_job(folder, prepare, JOB, schema)


def brought(job: Job, local: Local) -> dict[str, Words]:
    values = asked_values(job, local)
    shapes = asked_shapes(job, len(local.values))
    return {name: encode(values[name], bits) for name, (_, bits) in shapes.items()}


def counted(
    job: Job,
    words: dict[str, Words],
    outputs: Reals,
    real: Words | None = None,
    evaluators: int = 2,
) -> dict[str, list[int]]:
    found = histograms(job)

    def program(role: Role) -> Any:
        shared = {name: secret(role, each) for name, each in words.items()}
        z = secret(role, encode(outputs, F))
        weights = None if real is None else secret(role, real)
        return counts(job, found, shared[FEATURES], shared.get(PRESENT), z, weights)

    numbers = compute(program, evaluators)
    assert (numbers % (1 << F) == 0).all()
    by_name, start = {}, 0
    for one in found:
        by_name[one.name] = (numbers[start : start + len(one.bins)] >> F).tolist()
        start += len(one.bins)
    assert start == len(numbers)
    return by_name


def in_bins(values: Reals, edges: Sequence[float]) -> list[int]:
    """A value at an edge is in the bin above it."""
    places = np.searchsorted(edges, values, side="right")
    return [int(count) for count in np.bincount(places, minlength=len(edges) + 1)]


@pytest.mark.parametrize("evaluators", [2, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_rows_are_counted_as_in_the_clear(tmp_path: Path, padded: bool, evaluators: int) -> None:
    job, table = job_of(tmp_path), pooled(tables())
    local = local_terms(job.pipeline, pooled(tables()))
    rng = np.random.default_rng(3)
    outputs = rng.normal(0, 2, (table.rows, 1))
    real = rng.integers(0, 2, table.rows) if padded else None
    kept = np.ones(table.rows, bool) if real is None else real == 1
    found = counted(job, brought(job, local), outputs, real, evaluators)

    def cells(name: str) -> Reals:
        return with_gaps(table, name)[kept]

    def there(name: str) -> Reals:
        return cells(name)[~np.isnan(cells(name))]

    def gone(name: str) -> int:
        return int(np.isnan(cells(name)).sum())

    # The edge of 500 is below the clip, and that of 300000 above: they divide nothing.
    assert found["age"] == [*in_bins(there("age"), AGES), gone("age")]
    assert found["income"] == [*in_bins(there("income"), INCOMES), gone("income")]
    assert found["visits"] == [*in_bins(there("visits"), VISITS), 0]  # none is missing
    assert found["smoker"] == [*in_bins(there("smoker"), [0.5]), gone("smoker")]
    levels = np.bincount(there("region").astype(int), minlength=4).tolist()
    assert found["region"] == [*levels, gone("region")]
    chance = 1 / (1 + np.exp(-outputs[kept, 0]))
    assert (
        np.abs(np.subtract(found[OUTPUTS], in_bins(chance, [k / 10 for k in range(1, 10)]))).max()
        <= 1
    )
    assert len({sum(each) for each in found.values()}) == 1
    names = {one.name: one.bins for one in histograms(job)}
    assert names["income"] == ("below 20000", "20000 to 50000", "50000 and above", "missing")
    assert names["region"] == ("north", "south", "east", "other", "(none of these)")


def test_unscaled_columns_and_levels_by_number(tmp_path: Path) -> None:
    """Words at the job's scale, an index as for an Embedding, a constant for what is missing."""
    prepare = """
missing = "mean"

[prepare.columns.age]
fill = 50

[prepare.columns.income]
scale = "minmax"
"""
    job, table = job_of(tmp_path, prepare), pooled(tables())
    by_number = {**job.prepare.columns, "region": ColumnSteps(encoding="index")}
    steps = msgspec.structs.replace(job.prepare, columns=by_number)
    job = msgspec.structs.replace(job, prepare=steps)  # whose network is not looked at here
    local = local_terms(job.pipeline, pooled(tables()))
    found = counted(job, brought(job, local), np.zeros((table.rows, 1)))
    age = np.where(np.isnan(with_gaps(table, "age")), 50, with_gaps(table, "age"))
    assert found["age"] == in_bins(age, AGES)
    income = with_gaps(table, "income")
    edges = [500, 20000, 50000, 300000]
    gone = np.isnan(income)
    assert found["income"] == [*in_bins(income[~gone], edges), gone.sum()]
    region = with_gaps(table, "region")
    numbers = np.where(np.isnan(region), 4, region).astype(int)
    assert found["region"] == np.bincount(numbers, minlength=5).tolist()
    assert found[OUTPUTS] == [0] * 5 + [table.rows] + [0] * 4


def small(folder: Path, kind: str, classes: int = 0) -> Job:
    return loaded(
        folder, job_toml(["a", "b"], kind, model=f"classes = {classes}" if classes else "")
    )


def test_outputs_of_several_classes(tmp_path: Path) -> None:
    job = small(tmp_path, "softmax", 3)
    (one,) = histograms(job)
    assert one == Histogram(OUTPUTS, ("class 0", "class 1", "class 2"))
    outputs = np.random.default_rng(1).normal(0, 1, (30, 3))
    words = {FEATURES: np.zeros((30, 2), np.int64)}
    expected = np.bincount(outputs.argmax(1), minlength=3).tolist()
    assert counted(job, words, outputs)[OUTPUTS] == expected
    real = np.arange(30) % 2
    expected = np.bincount(outputs[real == 1].argmax(1), minlength=3).tolist()
    assert counted(job, words, outputs, real)[OUTPUTS] == expected


def test_outputs_that_are_numbers(tmp_path: Path) -> None:
    text = JOB.replace('label = "ill"', 'label = { name = "visits", center = 10, scale = 5 }')
    text = text.replace('kind = "logistic"', 'kind = "linear"').replace("PREPARE", "")
    job = loaded(
        tmp_path, text, BINNED.replace('missing = ["", "NA"]', "").replace('missing = [""]', "")
    )
    last = histograms(job)[-1]
    assert (last.name, last.bins[0], last.bins[-1]) == (OUTPUTS, "below 1", "6 and above")
    visits = np.arange(10.0)
    features = np.zeros((10, len(job.pipeline.terms)), np.int64)
    found = counted(job, {FEATURES: features}, (visits[:, None] - 10) / 5)
    assert found[OUTPUTS] == in_bins(visits, VISITS)


def test_without_bins_only_levels_and_outputs_are_counted(tmp_path: Path) -> None:
    job = job_of(tmp_path, schema=SCHEMA)
    assert [one.name for one in histograms(job)] == ["smoker", "region", OUTPUTS]


@pytest.mark.parametrize(
    ("bins", "says"),
    [
        ("[]", "1 to 64 edges"),
        ("[30, 30]", "in order, from the smallest"),
        ("[45, 30]", "in order, from the smallest"),
        ("[0, 30]", "between the ends of the range, 0 and 120"),
        ("[30, 120]", "between the ends of the range, 0 and 120"),
        ("[nan]", "finite"),
    ],
)
def test_bins_that_are_none(tmp_path: Path, bins: str, says: str) -> None:
    with pytest.raises(JobError, match=says):
        job_of(tmp_path, schema=BINNED.replace("[30, 45, 60, 75]", bins))


def test_a_column_without_numbers_has_no_bins(tmp_path: Path) -> None:
    wrong = SCHEMA.replace("other = true", "other = true\nbins = [1]")
    with pytest.raises(JobError, match="of kind category does not have this"):
        job_of(tmp_path, schema=wrong)


# What leaves

TWO = (
    Histogram("a", ("below 1", "1 and above"), 0, (1 << F,)),
    Histogram("b", ("x", "y"), 1, (0,)),
)
TOTAL = [30, 70, 99, 1]


def words_of(least: int, evaluators: int = 2, epsilon: Fraction = Fraction(1)) -> Words:
    def program(role: Role) -> Any:
        with attached(role, F):
            total = secret(role, np.array(TOTAL, np.int64) << F)
            return shares_of(released(total, TWO, least, epsilon, F))

    return combine_masked(run_lockstep(program, evaluators))


@pytest.mark.parametrize("evaluators", [2, 3])
def test_counts_leave_with_noise_of_every_evaluator(
    monkeypatch: pytest.MonkeyPatch, evaluators: int
) -> None:
    scales = []

    def drawn(scale: Fraction) -> int:
        scales.append(scale)
        return 1

    monkeypatch.setattr(noise, "discrete_laplace", drawn)
    words = words_of(100, evaluators, Fraction(1, 2))
    # A row changes a count of each of the two histograms: 2 / ε for each of 4 counts.
    assert scales == [Fraction(4)] * 4 * evaluators
    found = read(words, TWO, F)
    assert found == {
        "a": (30 + evaluators, 70 + evaluators),
        "b": (99 + evaluators, 1 + evaluators),
    }


def test_too_few_rows_leave_nothing() -> None:
    words = words_of(101)
    assert words.tolist() == [0] * 5
    assert read(words, TWO, F) is None
    assert words_of(100)[0] == 1


# The index


def test_the_index_is_that_of_its_formula() -> None:
    training, asked = [100, 300, 600], [200, 300, 500]
    p, q = (np.array(each) / 1000 for each in (training, asked))
    expected = sum((b - a) * log(b / a) for a, b in zip(p, q, strict=True))
    assert stability(training, asked) == pytest.approx(expected, rel=0.01)
    assert stability(training, [10 * each for each in training]) == pytest.approx(0, abs=1e-5)
    assert stability([500, 500, 0], [0, 500, 500]) > 1  # empty bins have an index
    assert stability([500, 500, -3], [500, 500, -8]) == pytest.approx(0)
    with pytest.raises(ValueError, match="different bins"):
        stability([1, 2], [1, 2, 3])
    assert report({"a": training}, {"a": asked}) == {"a": stability(training, asked)}


@pytest.mark.parametrize("deviation", [0.0, 15.0])
def test_what_chance_alone_gives(deviation: float) -> None:
    rng = np.random.default_rng(5)
    parts = np.array([0.1, 0.2, 0.3, 0.4])

    def drawn(rows: int) -> list[int]:
        found = rng.multinomial(rows, parts) + rng.normal(0, deviation, 4)
        return np.rint(found).astype(int).tolist()

    pairs = [(drawn(2000), drawn(800)) for _ in range(300)]
    actual = np.mean([stability(*pair) for pair in pairs])
    expected = np.mean([by_chance(*pair, deviation) for pair in pairs])
    assert 0.5 * expected < actual < 1.5 * expected
