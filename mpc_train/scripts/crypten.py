"""CrypTen for scripts, over this platform's protocols: `from mpc_train.scripts import crypten`.

What is offered is CrypTen's own (`cryptensor`, `nn`, `optim`, autograd) but for what needs its
communicator: `init` has nothing to do, a party's rank is its place among the evaluators, and
`print` prints at one party. Everything else of CrypTen's is missing here, above all its protocols,
providers, generators and pickles.

A script is run by `launch.py --script`: by all evaluators and, without any value that is opened, by
the dealer, whose rank is the number of evaluators, as that of CrypTen's trusted third party is.
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
    """Share the values that the party of rank `src` passes: as in CrypTen, by default the first.

    What another party passes has the shape and is not looked at; it may be None where `shape` is
    given. Values that all know need no sharing: compute with them as they are.
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
    """Do nothing: the launcher has brought the parties together. Raises RuntimeError where it has
    not."""
    runtime()


def print(*values: Any, dst: int = 0, **options: Any) -> None:
    """Print at the party of rank `dst` alone."""
    if Communicator().get_rank() == dst:
        _print(*values, **options)


def __getattr__(name: str) -> Any:
    raise AttributeError(
        f"crypten.{name} is not offered over masked sharing; there are cat, communicator, "
        "cryptensor, enable_grad, init, is_encrypted_tensor, nn, no_grad, optim, print, stack"
    )
