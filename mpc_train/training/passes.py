"""Rows through a trained model, chunk by chunk, so that memory does not grow with their number.

A chunk has as many rows as fit `chunk_sizes.CHUNK_BYTES`, by the sizes of the network and of the
metrics: a small model takes all rows in one or two chunks, with few rounds. It has at least the
rows of a batch, for which training had the memory. The caller frees the intermediate values of one
chunk before the next (`protocols.shares.computed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpc_train.training.chunk_sizes import chunk_rows
from protocols.crypten_tensor.tensor import MaskedTensor, crypten

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

Model = Callable[[MaskedTensor], MaskedTensor]


def parts(job: Job, rows: NDArray[np.int64], metrics: Sequence[str]) -> Iterable[NDArray[np.int64]]:
    """The rows of each chunk, in order."""
    return np.array_split(rows, -(-len(rows) // chunk_rows(job, metrics)))


def chunks(
    job: Job,
    model: Model,
    inputs: MaskedTensor,
    labels: MaskedTensor,
    rows: NDArray[np.int64],
    metrics: Sequence[str] = (),
) -> Iterator[tuple[MaskedTensor, MaskedTensor]]:
    """The outputs and labels of these rows, chunk by chunk, without recording gradients.

    metrics: what is computed from each chunk, which also takes memory.
    """
    for some in parts(job, rows, metrics):
        with crypten.no_grad():
            outputs = model(inputs[some])
        yield outputs, labels[some]
        del outputs  # before the next pass
