"""Plain values on their way into tensors: numbers, arrays, indices, and rows that are shared in."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import torch

from protocols.arrays import Shape, Words
from protocols.ring.fixed_point import encode
from protocols.roles.role import Role
from protocols.shares.inputs import OutsideSource, from_dealer, from_evaluator, from_outside
from protocols.shares.masked import Masked

Source = int | Literal["dealer", "outside"] | OutsideSource
"""Who provides a tensor: an evaluator by its index, the dealer, or an owner that does neither."""


def spelled(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}".encode() + value.tobytes()
    if isinstance(value, (tuple, list)):
        return b"(" + b",".join(map(spelled, value)) + b")"
    return repr(value).encode()


def as_scalar(other: Any) -> Fraction | None:
    """A public number or tensor without axes, exactly; None for anything else."""
    if isinstance(other, (int, float, Fraction)):
        return Fraction(other)
    if torch.is_tensor(other) and other.dim() == 0:
        return Fraction(other.item())
    return None


def as_array(tensor: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    if torch.is_tensor(tensor):
        if tensor.is_complex():
            raise TypeError("complex numbers cannot be shared")
        return tensor.detach().to(torch.float64).numpy()
    return np.asarray(tensor, np.float64)


def as_index(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(as_index, index))
    return index.numpy() if torch.is_tensor(index) else index


def shared_in(
    role: Role, tensor: Any, src: Source, shape: Sequence[int] | None, bits: int
) -> Masked:
    if shape is None:
        if tensor is None:
            raise ValueError("a tensor that another party provides needs its shape")
        shape = np.shape(tensor)
    target: Shape = tuple(int(size) for size in shape)

    def words() -> Words:
        if bits == 0 and isinstance(tensor, np.ndarray) and tensor.dtype == np.int64:
            return tensor.reshape(target)
        return encode(as_array(tensor), bits).reshape(target)

    if isinstance(src, OutsideSource) or src == "outside":
        return from_outside(role, target, src if isinstance(src, OutsideSource) else None)
    if src == "dealer":
        return from_dealer(role, target, words() if role.is_dealer else None)
    if not 0 <= src < role.evaluators:
        raise ValueError(f"src={src}: evaluators are 0 to {role.evaluators - 1}")
    return from_evaluator(role, src, target, words() if role.index == src else None)
