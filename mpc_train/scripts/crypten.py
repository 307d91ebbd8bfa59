"""CrypTen for scripts, over this platform's protocols: `from mpc_train.scripts import crypten`.

This module offers CrypTen's functions (`cryptensor`, `nn`, `optim`, autograd), except those that
need its communicator: `init` does nothing, a party's rank is its index among the evaluators, and
`print` prints at one party. The rest of CrypTen is missing here, in particular its protocols,
providers, generators and pickles.

`launch.py --script` runs a script at all evaluators and at the dealer. The dealer sees no opened
value. Its rank is the number of evaluators, like that of CrypTen's trusted third party.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np

from protocols.crypten_tensor.tensor import crypten as _crypten
from protocols.crypten_tensor.tensor import runtime

CrypTensor = _crypten.CrypTensor
cat = _crypten.cat
enable_grad = _crypten.enable_grad
is_encrypted_tensor = _crypten.is_encrypted_tensor
nn = _crypten.nn
no_grad = _crypten.no_grad
optim = _crypten.optim
stack = _crypten.stack

_print = builtins.print


def cryptensor(
    tensor: Any, *, src: int = 0, shape: Sequence[int] | None = None, requires_grad: bool = False
) -> Any:
    """Share the values of the party with rank `src`; as in CrypTen, the first one by default.

    The other parties pass anything of the same shape, or None if they give `shape`. Values that all
    parties know need no sharing: compute with them directly.
    """
    parties = runtime().role.evaluators
    if type(src) is not int or not 0 <= src < parties:
        raise ValueError(f"cryptensor: src={src!r}; parties are 0 to {parties - 1}")
    if isinstance(tensor, CrypTensor):
        raise TypeError("cryptensor: this is a shared tensor already")
    if tensor is not None and shape is not None and np.shape(tensor) != tuple(shape):
        raise ValueError(f"cryptensor: values of shape {np.shape(tensor)}, not {tuple(shape)}")
    return _crypten.cryptensor(tensor, src=src, shape=shape, requires_grad=requires_grad)


class Communicator:
    """Who this party is. rank: 0 … world size − 1 at evaluators, the world size at the dealer."""

    def get_rank(self) -> int:
        role = runtime().role
        return role.evaluators if role.index is None else role.index

    def get_world_size(self) -> int:
        return runtime().role.evaluators


class communicator:
    """`crypten.communicator.get()`."""

    @staticmethod
    def get() -> Communicator:
        return Communicator()


def init(*_: Any, **__: Any) -> None:
    """Do nothing: the launcher has connected the parties. RuntimeError without a launcher."""
    runtime()


def print(*values: Any, dst: int = 0, **options: Any) -> None:
    """Print only at the party with rank `dst`."""
    if Communicator().get_rank() == dst:
        _print(*values, **options)


def __getattr__(name: str) -> Any:
    raise AttributeError(
        f"crypten.{name} is not offered over masked sharing; there are cat, communicator, "
        "cryptensor, enable_grad, init, is_encrypted_tensor, nn, no_grad, optim, print, stack"
    )
