"""An owner's rows as its job takes them: a typed table, and of it what the model's inputs need."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mpc_train.jobs.job import Job
from mpc_train.preparation.local import check_cells, local_terms
from mpc_train.tables.cells import CellError, Mask, Reals
from mpc_train.tables.load import Report, load
from mpc_train.tables.source import Source
from mpc_train.tables.typed import TypedTable


@dataclass(frozen=True, repr=False)
class Table:
    """One owner's rows, in the order of its source.

    features: float64[B, terms], what the owner makes of its columns alone (`preparation.local`).
    labels: float64[B]; the class number for a classifier, the centred and scaled label for a
    linear model. present: float64[B, filled terms] of 0 and 1.
    """

    features: NDArray[np.float64]
    labels: NDArray[np.float64]
    present: NDArray[np.float64] = field(default_factory=lambda: np.ones((0, 0)))

    @property
    def rows(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Table(rows={self.rows}, features={self.features.shape[1]})"


def load_table(source: Source, job: Job, owner: str, progress: Report | None = None) -> Table:
    """Read `owner`'s table for `job`; raises DataError for anything that does not fit."""

    def check(name: str, values: Reals, missing: Mask) -> None:
        check_cells(job, name, values, missing)
        if name == job.label.name and not job.classes:
            _check_label(job, values)

    typed = load(
        source,
        job.schema,
        names=[*(feature.name for feature in job.features), job.label.name],
        rows=job.data.rows[owner],
        check=check,
        progress=progress,
    )
    return table_of(job, typed)


def table_of(job: Job, typed: TypedTable) -> Table:
    """The rows of a typed table, which holds the job's features and its label."""
    local = local_terms(job.pipeline, typed)
    labels = typed.column(job.label.name)
    return Table(
        local.values,
        np.array(labels) if job.classes else _scaled_label(job, labels),
        local.present,
    )


def _scaled_label(job: Job, values: Reals) -> Reals:
    scaled: Reals = (values - float(job.label.center)) / float(job.label.scale)
    return scaled


def _check_label(job: Job, values: Reals) -> None:
    limit = job.data.limit
    outside = np.abs(_scaled_label(job, values)) > float(limit)
    if outside.any():
        raise CellError(
            int(np.argmax(outside)),
            f"after centring and scaling beyond ±{limit} (data.limit); correct the cell, or the "
            "job's center and scale",
        )
