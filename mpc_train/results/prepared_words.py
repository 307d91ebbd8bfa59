"""Text about what `[prepare]` does, and where, for people who sign a job."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mpc_train.jobs.pipeline import Term
from mpc_train.owners.cells import CELL_BITS, MIN_SPREAD_BITS, joined_bits

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

MAX_NAMES = 12


def described(job: Job) -> list[str]:
    """Lines on what each owner does alone, what is done over shares, and who learns the
    parameters."""
    pipeline = job.pipeline
    terms = pipeline.terms
    lines = [f"{pipeline.width} inputs: {some(pipeline.names)}"]
    alone = [
        _step("clipped", (term for term in terms if term.clip is not None)),
        _step("logarithm", (term for term in terms if term.log is not None)),
        _step("powers", (term for term in terms if term.power > 1)),
        _step("one input per level", (term for term in terms if term.part == "level"), True),
        _step("the number of a level", (term for term in terms if term.part == "index")),
        _step("missing cells marked", (term for term in terms if term.part == "missing"), True),
        _step(
            "constant for missing cells",
            (term for term in terms if term.fill is not None and term.part == "number"),
        ),
        _step(
            "a separate number for missing cells",
            (term for term in terms if term.fill is not None and term.part == "index"),
        ),
    ]
    said = "; ".join(step for step in alone if step)
    if said:
        lines.append(f"by each owner alone: {said}")
    shared = [
        _step("mean 0, variance 1", (term for term in terms if term.shared == "standard")),
        _step("from 0 to 1", (term for term in terms if term.shared == "minmax")),
        _step("mean for missing cells", (term for term in terms if term.filled)),
    ]
    if pipeline.interactions:
        shared.append(f"products {some(pipeline.names[len(terms) :])}")
    said = "; ".join(step for step in shared if step)
    if said:
        lines.append(f"over shares: {said}")
    if pipeline.secret:
        where = "are sealed with the model" if job.seals_model else "stay in shares with the model"
        whose = "" if job.has_own_statistics else " of the model's training"
        lines.append(f"nobody learns means, deviations and extremes{whose}; they {where}")
    if job.has_noisy_statistics:
        lines.append("they come from sums with noise, in the budget of [privacy]")
    elif pipeline.scaled and job.seals_model:
        lines.append(
            "a scaled input is 0, and recipients are told, if its training values are equal or "
            f"closer than {_closest(job)}"
        )
    elif pipeline.scaled and job.has_own_statistics:
        lines.append(
            f"a scaled input is 0 if its training values are equal or closer than {_closest(job)}, "
            "which nobody is told"
        )
    return lines


def _closest(job: Job) -> str:
    declared = f"2^-{CELL_BITS - MIN_SPREAD_BITS} of half the declared range"
    if job.data.partition == "rows":
        return declared
    joined = 2 * joined_bits(job.rows) - MIN_SPREAD_BITS
    return f"{declared} or than 2^-{joined} of the spread of its owner's records"


def _step(what: str, terms: Iterable[Term], by_column: bool = False) -> str:
    names = list(dict.fromkeys(term.column if by_column else term.name for term in terms))
    return f"{what}: {some(names)}" if names else ""


def some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    rest = len(listed) - MAX_NAMES
    shown = ", ".join(listed[:MAX_NAMES])
    return f"{shown} and {rest} more" if rest > 0 else shown
