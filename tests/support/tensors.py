"""CrypTen's tensors at a role of a test, as the program of a run has them."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from protocols.arrays import Reals
from protocols.crypten_tensor import dispatch
from protocols.crypten_tensor.tensor import MaskedTensor, attach, detach
from protocols.roles.role import Role


@contextmanager
def attached(role: Role, fraction_bits: int) -> Iterator[None]:
    """Tensors belong to `role` within the block."""
    dispatch.install()
    attach(role, fraction_bits)
    try:
        with np.errstate(over="ignore"):  # words wrap around
            yield
    finally:
        detach()


def shared_in(role: Role, *values: Reals, src: int = 0) -> list[MaskedTensor]:
    """Each value as a tensor, shared in by evaluator `src`, who alone has it."""
    return [
        MaskedTensor(value if role.index == src else None, src=src, shape=value.shape)
        for value in values
    ]
