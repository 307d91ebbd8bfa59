"""The plaintext twin's join: tables of several owners' columns as one, in the clear.

Rows have the order of their tokens, which is that of a run in which holders learn which rows are
joined. If nobody does, a run has its own order, which nobody can repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mpc_train.admission.load import resolved
from mpc_train.owners.columns import part_of
from mpc_train.owners.table import Table

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job


def joined(job: Job, tables: Sequence[Table]) -> tuple[Job, Table]:
    """The job resolved for the joined rows, and these rows as the table of one owner.

    tables: in the order of `job.owners`, each with its tokens.
    """
    keys = []
    for table in tables:
        if table.tokens is None:
            raise ValueError("a table to be joined needs its identifiers' tokens")
        keys.append({token.tobytes(): row for row, token in enumerate(table.tokens)})
    both = sorted(set.intersection(*(set(one) for one in keys)))
    features = np.empty((len(both), len(job.pipeline.terms)))
    present = np.empty((len(both), len(job.pipeline.filled)))
    labels, weights = np.empty(0), np.empty(0)
    raw = np.full(features.shape, np.nan) if all(one.raw is not None for one in tables) else None
    for owner, table, rows_of in zip(job.owners, tables, keys, strict=True):
        rows, part = np.array([rows_of[key] for key in both], np.int64), part_of(job, owner)
        features[:, list(part.terms)] = table.features[rows]
        present[:, list(part.filled)] = table.present[rows]
        if raw is not None and table.raw is not None:
            raw[:, list(part.terms)] = table.raw[rows]
        if part.label:
            labels = table.labels[rows]
        if part.weight:
            weights = table.weights[rows]
    return resolved(job, len(both)), Table(features, labels, present, weights=weights, raw=raw)
