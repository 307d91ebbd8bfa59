"""The forward pass of a model in shares: rows as an asker shares them in, outputs over shares.

Rows come as an owner's do in training: what can be done locally is done (`owners.local`), and the
secret statistics of the model are applied over shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mpc_train.networks.network import Network
from mpc_train.owners.cells import WORD_BITS, cells, halves
from mpc_train.preparation.fitted import Parameters
from mpc_train.preparation.rows import Rows, prepared
from mpc_train.preparation.sharing import with_coarse
from protocols.arrays import Reals
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.shares.masked import Masked

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.owners.local import Local

FEATURES, FINE, PRESENT = "features", "fine", "present"
REAL = "real"
"""1 for a row that is asked, 0 for one that only pads a question; where rows are counted."""


def asked_shapes(job: Job, rows: int) -> dict[str, tuple[tuple[int, int], int]]:
    """By name, in order: the shape of each matrix that an asker shares in, and its scale in
    bits."""
    pipeline = job.pipeline
    widths = {
        FEATURES: (len(pipeline.terms), job.fraction_bits),
        FINE: (len(pipeline.scaled), 0),
        PRESENT: (len(pipeline.filled), 0),
        REAL: (int(job.drift is not None), 0),
    }
    return {name: ((rows, width), bits) for name, (width, bits) in widths.items() if width}


def asked_values(job: Job, local: Local) -> dict[str, Reals]:
    """The values of `asked_shapes`, at the asker."""
    found = {
        FEATURES: with_coarse(job, local.values),
        FINE: halves(cells(job.pipeline, local.values), WORD_BITS)[1],
        PRESENT: local.present.astype(np.float64),
        REAL: np.ones((len(local.values), 1)),
    }
    return {name: found[name] for name in asked_shapes(job, len(local.values))}


def network_of(job: Job, tensors: Mapping[str, Masked]) -> Network:
    """The job's network with these tensors, ready to answer."""
    blank = {name: np.zeros(shape, np.int64) for name, shape in job.shapes.items()}
    network = Network(job.graph, blank)
    for name, x in tensors.items():
        network.tensors[name] = MaskedTensor(x)
    network.training = False
    return network


def answered(
    job: Job, network: Network, parameters: Parameters, asked: Mapping[str, Masked]
) -> Masked:
    """The network's outputs, [rows, outputs] at scale 2^f, for rows as in `asked_shapes`."""
    rows = Rows(asked[FEATURES], asked.get(FINE), asked.get(PRESENT))
    inputs = MaskedTensor(prepared(job.pipeline, rows, parameters, job.fraction_bits))
    return network.evaluated(inputs).masked()
