"""All gradients of a step as one vector: what clipping and adaptive optimizers work on.

Every element-wise stage of an optimizer runs once for the whole model, so that its rounds do not
depend on the number of tensors and a comparison has one digit table. Gradients come as summands
with a public factor (the mean over the batch) and more bits than a weight; the factor of each
tensor becomes an integer mantissa before one truncation of them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod

import numpy as np

from mpc_train.training.optimizers.folding import brought_together
from protocols.arrays import Shape, Words
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.ring.rational import HEADROOM_BITS
from protocols.roles.deferred import Deferred, combine
from protocols.shares.masked import Additive, Masked

BUNDLED_ELEMENTS = 1 << 12
"""Tensors of at most this many elements are worth a copy, to be rounded together with others."""


@dataclass(frozen=True, slots=True, repr=False)
class Gradient:
    """The gradient of one parameter: summands · factor / 2^bits."""

    summands: Additive
    factor: Fraction
    bits: int

    def __repr__(self) -> str:
        return f"Gradient(shape={self.summands.shape})"

    @property
    def words_per_unit(self) -> Fraction:
        """The summands' words for a gradient of 1."""
        return (1 << self.bits) / self.factor


Gradients = dict[str, Gradient]
Seen = Callable[[Masked | Additive, int], None]
"""Called with words of a step, and with the magnitude up to which results of them are exact."""


def unseen(words: Masked | Additive, limit: int) -> None:
    """Does nothing, for runs without a guard."""


def shown(seen: Seen, gradients: Gradients, wholes: Sequence[int], limit: int) -> None:
    """Show the summands of gradients, each of which will be multiplied by its public integer.

    Before the multiplication they fit; afterwards too large ones have already wrapped around.
    """
    for gradient, whole in zip(gradients.values(), wholes, strict=True):
        if whole:
            seen(gradient.summands, limit // abs(whole))


def exact_limit(bits: int) -> int:
    """The largest magnitude of the truncation by `bits` of a word that fits.

    A word that does not fit (`arithmetic.round_off`) gives a larger result, unless it wrapped
    around into the range.
    """
    return max((1 << (HEADROOM_BITS - bits)) - 2, 1)


Take = Callable[[Mapping[str, MaskedTensor]], Gradients]
"""Takes the gradients off parameters: what a rule gets to see of a batch."""


def take_gradients(parameters: Mapping[str, MaskedTensor]) -> Gradients:
    """The gradients of all parameters; ValueError for a parameter without one."""
    found: Gradients = {}
    for name, parameter in parameters.items():
        gradient = parameter.grad
        if gradient is None:
            raise ValueError(f"parameter {name} has no gradient")
        found[name] = Gradient(gradient.summands(), gradient.factor, gradient.bits)
        parameter._reset_gradients()
    return found


def joined(
    gradients: Gradients,
    words_per_unit: Fraction,
    limit: Fraction,
    seen: Seen = unseen,
    result_bits: int = HEADROOM_BITS,
) -> tuple[Additive, int]:
    """Summands [elements] and a shift: shifted right, they have `words_per_unit` for 1.

    limit: the bound of a gradient's magnitude. seen: called with the gradients; shifted, they must
    stay below 2^result_bits. RangeError if they do not fit (`brought_together`).
    """
    finenesses = [gradient.words_per_unit for gradient in gradients.values()]
    wholes, shift = brought_together(finenesses, words_per_unit, limit)
    shown(seen, gradients, wholes, 1 << min(HEADROOM_BITS, result_bits + shift))
    parts = zip(gradients.values(), wholes, strict=True)
    return join([gradient.summands.scale(whole) for gradient, whole in parts]), shift


def join(parts: Sequence[Additive]) -> Additive:
    """The summands of all elements as one vector. Local."""
    first = parts[0]
    found: Deferred[list[Words]] = first.part.map(lambda words: [words])
    for part in parts[1:]:
        found = combine(lambda before, words: [*before, words], found, part.part)
    has_dealt = any(part.has_dealt for part in parts)
    dealt = None
    if first.role.is_dealer and has_dealt:
        dealt = _flat([np.zeros(p.shape, np.int64) if p.dealt is None else p.dealt for p in parts])
    size = sum(prod(part.shape) for part in parts)
    return Additive(first.role, (size,), found.map(_flat), dealt, has_dealt)


def together(parts: Sequence[Additive]) -> Additive:
    """`join`, except that a single tensor is returned unchanged."""
    return parts[0] if len(parts) == 1 else join(parts)


def _flat(parts: list[Words]) -> Words:
    return np.concatenate([part.reshape(-1) for part in parts])


def pieces(shapes: Mapping[str, Shape]) -> dict[str, slice]:
    """The place of each tensor in the vector of all."""
    found, start = {}, 0
    for name, shape in shapes.items():
        found[name] = slice(start, start + prod(shape))
        start += prod(shape)
    return found


def shapes_of(parameters: Mapping[str, MaskedTensor]) -> dict[str, Shape]:
    return {name: tuple(parameter.shape) for name, parameter in parameters.items()}


def bundles(gradients: Gradients) -> list[list[str]]:
    """Names of tensors that are rounded together: small ones of one factor and number of bits."""
    found: dict[object, list[str]] = {}
    for name, gradient in gradients.items():
        small = prod(gradient.summands.shape) <= BUNDLED_ELEMENTS
        found.setdefault((gradient.factor, gradient.bits) if small else name, []).append(name)
    return list(found.values())


def taken_apart(vector: Masked, shapes: Mapping[str, Shape]) -> dict[str, Masked]:
    """The tensors that `together` combined."""
    if len(shapes) == 1:
        return dict.fromkeys(shapes, vector)
    return {name: _piece(vector, shapes[name], where) for name, where in pieces(shapes).items()}


def _piece(vector: Masked, shape: Shape, where: slice) -> Masked:
    return vector.moved(shape, lambda words: words[where].reshape(shape))


def subtract(parameters: Mapping[str, MaskedTensor], change: Masked) -> None:
    """Subtract `change` [elements], at the scale of the weights, from all parameters."""
    for name, where in pieces(shapes_of(parameters)).items():
        parameter = parameters[name]
        mine = _piece(change, tuple(parameter.shape), where)
        parameter.copy_(parameter.with_value(parameter.masked() - mine))


def weights(parameters: Mapping[str, MaskedTensor]) -> Additive:
    """Summands of all weights as one vector, at their own scale."""
    return join([parameter.masked().shares() for parameter in parameters.values()])
