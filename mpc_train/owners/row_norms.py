"""Rows that their owner clips to a norm, where that alone bounds what a row can do, and weights.

The gradient of a logistic regression is a row's inputs times its residual, which is at most 1, and
the sums of Newton steps are bounded by inputs and labels (`mpc_train.privacy.newton`). So
an owner scales down its own training rows that are too long, before they leave it as shares. It has
to: nobody else sees them. An owner that runs other software can provide a longer row. What that row
gives away is the owner's own; other rows keep their noise and their bound.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpc_train.jobs.schedule import training_of
from mpc_train.privacy.clip_plan import clipped_by_owners, input_norm
from mpc_train.privacy.newton import label_bound
from protocols.arrays import Reals

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job


def clipped(job: Job, owner: str, features: Reals, first: int) -> Reals:
    """`features` [rows, terms] of an owner, from its row `first` on, with training rows clipped."""
    if not job.privacy or not job.trains or not clipped_by_owners(job):
        return features
    mine = training_of(job, owner) - job.first_row(owner) - first
    return clipped_rows(job, features, mine[(mine >= 0) & (mine < len(features))])


def weights_of(job: Job, weights: Reals) -> Reals:
    """How many times each row's loss counts, as it is shared: with `[privacy]` in parts of the
    largest declared weight, within 0 and 1 whatever was read."""
    if not job.privacy:
        return weights
    parts: Reals = np.clip(weights / float(job.most_weight), 0, 1)
    return parts


def clipped_labels(job: Job, owner: str, labels: Reals, first: int) -> Reals:
    """`labels` [rows] of an owner, from its row `first` on, with those of training rows moved to
    the job's bound."""
    if not job.privacy or not job.trains or job.privacy.clip_label is None:
        return labels
    mine = training_of(job, owner) - job.first_row(owner) - first
    return bounded_labels(job, labels, mine[(mine >= 0) & (mine < len(labels))])


def bounded_labels(job: Job, labels: Reals, rows: NDArray[np.int64]) -> Reals:
    """A copy of `labels` in which those of these rows are at most the job's bound in magnitude."""
    most = float(label_bound(job))
    found = labels.copy()
    found[rows] = np.clip(found[rows], -most, most)
    return found


def clipped_rows(job: Job, features: Reals, rows: NDArray[np.int64]) -> Reals:
    """A copy of `features` [rows, terms] in which these rows have at most the job's norm, also when
    they are rounded to words."""
    unit = 2.0**-job.fraction_bits
    most = float(input_norm(job)) * (1 - 1e-9) - unit * sqrt(features.shape[1])
    found = features.copy()
    norms = np.sqrt(np.einsum("rk,rk->r", features[rows], features[rows]))
    found[rows] *= np.minimum(1, most / np.maximum(norms, most))[:, None]
    return found
