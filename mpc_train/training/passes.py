"""Rows through a trained model, chunk by chunk, so that memory does not grow with their number.

A chunk has as many rows as `footprint.CHUNK_BYTES` has room for, by the network's own sizes and
those of the metrics: a small model takes all rows in one or two, and so few rounds. It has no fewer
than a batch, which training has had room for. The caller of the chunks lets the intermediate values
of one go before the next (`memory.computed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpc_train.training.chunk_sizes import chunk_rows
from protocols.crypten_tensor.tensor import MaskedTensor, crypten

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

Model = Callable[[MaskedTensor], MaskedTensor]


def chunks(
    job: Job,
    model: Model,
    inputs: MaskedTensor,
    labels: MaskedTensor,
    rows: NDArray[np.int64],
    metrics: Sequence[str] = (),
) -> Iterator[tuple[MaskedTensor, MaskedTensor]]:
    """Outputs and labels of these rows, chunk by chunk, without a record for gradients.

    metrics: what is made of each chunk, which takes memory as well.
    """
    count = -(-len(rows) // chunk_rows(job, metrics))
    for some in np.array_split(rows, count):
        with crypten.no_grad():
            outputs = model(inputs[some])
        yield outputs, labels[some]
        del outputs  # before the next pass
