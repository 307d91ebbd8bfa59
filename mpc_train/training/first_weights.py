"""The initial weights of a job's model.

The weights are public: every node derives the same integers from the job's seed. So the first
forward pass multiplies by public weights; from the first update on they are masked.
"""

from __future__ import annotations

import hashlib
from math import isqrt, prod
from typing import TYPE_CHECKING

import numpy as np

from mpc_train.networks.carried import weights_of
from protocols.arrays import Words

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job


def initial_weights(job: Job) -> dict[str, Words]:
    """The initial weights of a job, int64 at scale 2^f, the same at every node and on every
    machine.

    Uniform in ±1/sqrt(inputs), like torch.nn.Linear's, from SHAKE-256 of seed and name by integer
    arithmetic only. A job's own network has its own weights. Raises ModelError if its code is not
    installed here, or differs from the job's.
    """
    model = job.model
    if model.network is not None:
        return weights_of(model.network, model.module, job.train.seed, job.fraction_bits)
    return {
        name: uniform_words(
            shape, isqrt((1 << 2 * job.fraction_bits) // _inputs(job, name)), job.train.seed, name
        )
        for name, shape in job.shapes.items()
    }


def _inputs(job: Job, name: str) -> int:
    return job.shapes[name.replace("bias", "weight")][1]


def uniform_words(shape: tuple[int, ...], bound: int, seed: int, name: str) -> Words:
    """Integers uniform in [−bound, bound], bound < 2^31, from a public seed."""
    label = f"mpc-train/v1/initial/{seed}/{name}".encode()
    raw = np.frombuffer(hashlib.shake_256(label).digest(4 * prod(shape)), "<u4")
    wide = raw.astype(np.uint64) * np.uint64(2 * bound + 1)
    words: Words = (wide >> np.uint64(32)).astype(np.int64) - bound
    return words.reshape(shape)
