"""How many rows go through a trained model at a time, so that memory does not grow with their
number."""

from collections.abc import Sequence

from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import is_newton
from mpc_train.networks.footprint import metric_bytes, row_bytes

CHUNK_BYTES = 256 << 20
"""The bytes that one chunk of rows may take at an evaluator during evaluation."""
LEVELS = 129
"""The number of thresholds of an AUC of many rows."""
PAIR_BYTES, MAX_PAIRED_ROWS, PAIRS_AT_ONCE = 272, 2048, 1 << 19
"""An AUC of up to this many rows compares pairs, this many at once."""


def chunk_rows(job: Job, metrics: Sequence[str] = ()) -> int:
    """How many rows are evaluated at a time: at least a batch, for which training has the
    memory."""
    fit = CHUNK_BYTES // evaluated_bytes(job, metrics)
    return max(fit, 1, 0 if is_newton(job) else job.train.batch_size)


def evaluated_bytes(job: Job, metrics: Sequence[str]) -> int:
    of_metrics = metric_bytes(metrics, job.outputs, job.reveal.bins, LEVELS)
    return max(*row_bytes(job.graph), of_metrics)
