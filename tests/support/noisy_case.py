"""Jobs with secret statistics and a budget, and what is computed from noisy sums in the clear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from mpc_train.jobs.job import Job
from mpc_train.jobs.pipeline import Pipeline
from mpc_train.jobs.schedule import training_of
from mpc_train.owners.local import Local, local_terms, sums
from mpc_train.privacy.statistics import StatisticsPlan
from protocols.arrays import Reals
from tests.support.preparation_case import JOB, prepared_job, tables
from tests.support.private import PRIVACY

PREPARE = """
scale = "standard"
missing = "mean"
interactions = [["smoker", "region=south"]]
"""


NARROW = "".join(
    f"\n[prepare.columns.{name}]\nclip = [0, 16]\n" for name in ("age", "income", "visits")
)
"""Numbers that nothing scales have to be within `data.limit`."""


def noisy_job(folder: Path, prepare: str = PREPARE, privacy: str = PRIVACY) -> Job:
    prepare += "" if "scale" in prepare else NARROW
    text = JOB.replace("epochs = 2", "epochs = 2\nguard = false")
    return prepared_job(folder, prepare, text + privacy)


def sums_of(job: Job, plan: StatisticsPlan) -> list[Reals]:
    """What each owner brings."""
    found = []
    for owner, table in zip(job.owners, tables(), strict=True):
        mine = training_of(job, owner) - job.first_row(owner)
        found.append(sums(job.pipeline, local_terms(job.pipeline, table), mine, plan.bits))
    return found


def by_hand(
    pipeline: Pipeline,
    plan: StatisticsPlan,
    number: Reals,
    first: Reals,
    second: Reals,
    whole: Callable[[float], float] = round,
) -> dict[str, Reals]:
    """Centers, inverses and fills in the units of u, from sums in the units of v, float64. whole:
    over shares a noisy count is rounded to either of its neighbours."""
    secret, scaled, filled = (list(p) for p in (pipeline.secret, pipeline.scaled, pipeline.filled))
    count = np.full(len(secret), float(plan.rows))
    for place, value in zip(filled, number, strict=True):
        count[secret.index(place)] = min(max(whole(value), plan.least), plan.rows)
    mean = np.clip(first / count, -1, 1)
    reach = np.array([2.0 ** pipeline.terms[place].reach for place in secret])
    at = [secret.index(place) for place in scaled]
    variance = np.clip(second, 0, plan.rows) / plan.rows
    variance -= count[at] / plan.rows * mean[at] ** 2
    inverse = 1 / np.sqrt(np.clip(variance, float(plan.least_deviation) ** 2, 1))
    return {
        "prepare.center": (mean * reach)[at],
        "prepare.inverse": inverse / reach[at],
        "prepare.fill": (mean * reach)[[secret.index(place) for place in filled]],
    }


def exact_sums(pipeline: Pipeline, whole: Local, rows: np.ndarray) -> tuple[Reals, Reals, Reals]:
    """Of the training rows, in the units of v, without rounding: numbers, sums, squares."""
    number, first, second = [], [], []
    for index in pipeline.secret:
        v = whole.values[rows, index] / 2.0 ** pipeline.terms[index].reach
        if index in pipeline.filled:
            there = whole.present[rows, pipeline.filled.index(index)]
            v = v * there
            number.append(there.sum())
        first.append(v.sum())
        if index in pipeline.scaled:
            second.append((v * v).sum())
    return np.array(number), np.array(first), np.array(second)


def plan_of(
    rows: int, bits: int = 16, least: int = 10, floor: Fraction = Fraction(1, 32)
) -> StatisticsPlan:
    return StatisticsPlan(bits, Fraction(25), rows, least, floor)


def words_of(values: Sequence[float], bits: int) -> np.ndarray:
    return np.array([round(value * 2**bits) for value in values], np.int64)
