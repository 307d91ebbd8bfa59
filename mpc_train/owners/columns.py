"""Which columns an owner provides, and which of the model's terms are made from them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpc_train.jobs.pipeline import Pipeline

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job


@dataclass(frozen=True, slots=True)
class Part:
    """An owner's part of the model's inputs. terms: places among the pipeline's terms; scaled,
    filled: places among its scaled and its filled terms; label, weight: whether the owner provides
    it."""

    terms: tuple[int, ...]
    scaled: tuple[int, ...]
    filled: tuple[int, ...]
    label: bool
    outputs: int
    weight: bool = False

    @property
    def width(self) -> int:
        """How many words per row the owner secret-shares."""
        labels = self.outputs if self.label else 0
        terms = len(self.terms) + len(self.scaled) + len(self.filled)
        return terms + labels + self.weight


def columns_of(job: Job, owner: str) -> tuple[str, ...]:
    """The features that an owner provides, in the job's order, and label and weight if it has
    them."""
    names = job.columns
    if job.data.partition == "rows":
        return names
    mine = set(job.data.columns[owner])
    return tuple(name for name in names if name in mine)


def part_of(job: Job, owner: str) -> Part:
    """The part of the inputs and the label that comes from an owner."""
    names, pipeline = set(columns_of(job, owner)), job.pipeline

    def mine(places: Iterable[int]) -> tuple[int, ...]:
        return tuple(i for i, j in enumerate(places) if pipeline.terms[j].column in names)

    return Part(
        mine(range(len(pipeline.terms))),
        mine(pipeline.scaled),
        mine(pipeline.filled),
        job.label.name in names,
        job.outputs,
        job.weight in names,
    )


def pipeline_over(pipeline: Pipeline, columns: Collection[str]) -> Pipeline:
    """The terms made from these columns; all terms of the pipeline if these are all its columns."""
    terms = tuple(term for term in pipeline.terms if term.column in columns)
    return pipeline if terms == pipeline.terms else Pipeline(terms)
