"""Rows' gradients clipped over shares, row by row, and summed with noise that is nobody's.

What the optimizer gets in a private training, in the place of a batch's gradients: the sum over
rows of gradients whose norm is at most `clip` each, plus noise of all nodes. Neither a norm nor
whether a row was clipped is opened. `mpc_train.privacy.clip_plan` names the steps and shows why a
row is never larger.

Rounds: 22 more than without, nearly all of them for one number of each row. Opened: about 1 kB for
a row, 20 bytes for each element of a gradient at outputs, and 11 for each hidden input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from mpc_train.privacy.clip_plan import (
    FACTOR_BITS,
    INPUT_PRECISION,
    LOST,
    UPWARDS,
    ClipPlan,
)
from mpc_train.training.optimizers.gradients import Gradient, Gradients, take_gradients
from protocols.arrays import Words
from protocols.comparison.compare import below, negative, relu
from protocols.crypten_tensor.per_row import RowGradient
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.functions.inverse_root import times_inverse_root
from protocols.noise.banded import Past
from protocols.noise.summands import noisy
from protocols.ring import products
from protocols.ring.rational import ROOT_BITS, root_range
from protocols.shares.arithmetic import (
    bilinear,
    matmul,
    multiply,
    remask,
    round_off,
    select,
    truncate,
)
from protocols.shares.masked import Additive, Masked, concatenate, public


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of one training: deviation: σ in units of the summands, before their public factor.
    bands: how far noise depends on that of steps before (`protocols.noise.banded`)."""

    deviation: Fraction
    bands: int = 1
    pasts: dict[str, Past] = field(default_factory=dict, init=False, repr=False, compare=False)

    def on(self, name: str, gradient: Gradient) -> Gradient:
        """The gradient of this parameter with noise. Each step asks once for each."""
        past = None if self.bands == 1 else self.pasts.setdefault(name, Past(self.bands))
        return with_noise(gradient, self.deviation, past)


@dataclass(frozen=True, slots=True)
class NoisySums:
    """Gradients of rows that their owners have clipped: sums over the batch, with noise.

    Adds no round and no byte.
    """

    noise: Noise

    def __call__(self, parameters: Mapping[str, MaskedTensor]) -> Gradients:
        found = take_gradients(parameters)
        return {name: self.noise.on(name, gradient) for name, gradient in found.items()}


@dataclass(frozen=True, slots=True)
class ClippedSums:
    """Gradients of rows that are clipped here: sums over the batch, with noise.

    noise: in the units of g. factor: what the public factor of gradients has to be, that of the
    mean over the batch and the loss's own.
    """

    plan: ClipPlan
    noise: Noise
    factor: Fraction

    def __call__(self, parameters: Mapping[str, MaskedTensor]) -> Gradients:
        rows = take_rows(parameters)
        layers = layers_of(rows, self.factor, self.plan.given)
        factor = factors(self.plan, layers)
        scaled = {id(layer.g): self._scaled(layer.g, factor) for layer in layers}
        found: Gradients = {}
        for name, row in rows.items():
            g = scaled[id(row.at_outputs.masked())]
            bits = self.plan.fraction_bits + self.plan.kept
            summands = g.sum(0).shares()
            if row.inputs is not None:
                summands = matmul(g.transpose(), row.inputs.masked())
                bits += self.plan.fraction_bits
            summands = summands.reshape(*parameters[name].shape)
            found[name] = self.noise.on(name, Gradient(summands, self.factor, bits))
        return found

    def _scaled(self, g: Masked, factor: Masked) -> Masked:
        """4: φ·g with `kept` of the bits of φ."""
        return truncate(multiply(g, factor.reshape(-1, 1)), FACTOR_BITS - self.plan.kept)


@dataclass(frozen=True, slots=True, eq=False)
class RowsOfLayer:
    """x [rows, inputs] and g [rows, outputs] of a layer at scale 2^f. x: None if g is the gradient
    itself, of a convolution or of a bias alone. given: whether owners bound x (`ClipPlan`)."""

    x: Masked | None
    g: Masked
    has_bias: bool
    given: bool = False


def take_rows(parameters: Mapping[str, MaskedTensor]) -> dict[str, RowGradient]:
    """The gradients of all parameters by rows; they are dropped. ValueError for one without."""
    found = {}
    for name, parameter in parameters.items():
        gradient = parameter.grad
        if not isinstance(gradient, RowGradient):
            raise ValueError(f"parameter {name} has no gradient by rows")
        found[name] = gradient
        parameter._reset_gradients()
    return found


def layers_of(
    rows: Mapping[str, RowGradient], factor: Fraction, given: str = ""
) -> list[RowsOfLayer]:
    """Weights and biases that belong together, in the order of their names, which need not be that
    in which a row passes them. given: the weight whose inputs owners bound.

    ValueError unless all are at the usual scale with this public factor, in which the norm of one
    can be added to that of another.
    """
    found: dict[int, RowsOfLayer] = {}
    for name, row in rows.items():
        g, tensors = row.at_outputs.masked(), [row.at_outputs]
        x = None if row.inputs is None else row.inputs.masked()
        if row.inputs is not None:
            tensors.append(row.inputs)
        factors = [tensor.factor for tensor in tensors]
        scales = {tensor.bits for tensor in tensors}
        if factors != [factor, *[Fraction(1)] * (len(factors) - 1)] or scales != {
            row.at_outputs.fraction_bits
        }:
            raise ValueError(f"the gradient of {name} has another scale than its clipping")
        before = found.get(id(g))
        if before is not None and x is not None and before.x is not None:
            raise ValueError(f"the gradient of {name} is that of two weights")
        found[id(g)] = RowsOfLayer(
            x if before is None or x is not None else before.x,
            g,
            x is None or (before is not None and before.has_bias),
            name == given or (before is not None and before.given),
        )
    return list(found.values())


def factors(plan: ClipPlan, layers: list[RowsOfLayer]) -> Masked:
    """φ [rows]: 2^16 · min(1, clip / norm) or less; 0 for a row that is left out."""
    f, role = plan.fraction_bits, layers[0].g.role
    rows = layers[0].g.shape[0]
    # 1
    hidden = [layer.x for layer in layers if layer.x is not None and not layer.given]
    wild = _coarse_squares([*hidden, *(layer.g for layer in layers)], plan)
    steady = negative(remask(wild).shift(-plan.coarse_most).narrowed(64))
    # 2
    one = 1 << 2 * f
    inputs = [_inputs(layer, one, 2 * f - INPUT_PRECISION) for layer in layers]
    outputs = [
        truncate(_squares(layer.g), 2 * f - plan.output_precision).shift(UPWARDS)
        for layer in layers
    ]
    total: Additive | None = None
    for a, b in zip(inputs, outputs, strict=True):
        product = multiply(a, b)
        total = product if total is None else total + product
    assert total is not None
    excess = INPUT_PRECISION + plan.output_precision - plan.norm_bits
    norm = (truncate(total, excess) if excess else remask(total)).shift(UPWARDS)
    limits = [1 << plan.input_bits + INPUT_PRECISION] * len(inputs)
    limits += [1 << plan.output_bits + plan.output_precision] * len(outputs)
    limits += [plan.most_norm]
    compared = concatenate([part.reshape(1, rows) for part in (*inputs, *outputs, norm)])
    bounds = np.array(limits, np.int64).reshape(-1, 1)
    small = negative(compared.shift(-np.broadcast_to(bounds, compared.shape)).narrowed(64))
    held = small.shares().sum(0) + steady.shares()
    kept = below(remask(held).narrowed(64), (len(limits) + 1,)).reshape(rows).negate()
    # 3
    least = plan.least_norm
    above, _ = relu(norm.shift(-least).narrowed(64))
    where = root_range(least, plan.most_norm + least)
    scale = plan.reached * (1 << plan.norm_bits // 2)
    ones = public(role, np.full((rows,), 1 << FACTOR_BITS, np.int64))
    found = truncate(times_inverse_root(ones, above.shift(least), where, scale), ROOT_BITS)
    return remask(select(kept, found.shift(-LOST)))


def with_noise(gradient: Gradient, deviation: Fraction, past: Past | None = None) -> Gradient:
    """The gradient's summands with noise on their own grid; deviation: σ, before its factor. past:
    noise of the steps before, which it follows."""
    variance = (deviation * (1 << gradient.bits)) ** 2
    return Gradient(noisy(gradient.summands, variance, past), gradient.factor, gradient.bits)


def _inputs(layer: RowsOfLayer, one: int, shift: int) -> Masked:
    """a: ‖x‖², with the 1 for the bias, rounded upwards."""
    if layer.x is None:
        role, rows = layer.g.role, layer.g.shape[0]
        return public(role, np.full((rows,), (one >> shift) + UPWARDS, np.int64))
    squares = _squares(layer.x)
    if layer.has_bias:
        squares = squares.shift(one)
    return truncate(squares, shift).shift(UPWARDS)


def _squares(x: Masked) -> Additive:
    """‖x‖² of each row, exactly, modulo 2^64. No communication."""
    return bilinear("squares of rows", _row_products, x, x, (x.shape[0],))


def _coarse_squares(parts: list[Masked], plan: ClipPlan) -> Additive:
    """1: the sum of squares of each row's elements, each rounded to a multiple of 2^coarse."""
    joined = concatenate(parts, 1) if len(parts) > 1 else parts[0]
    rounded = round_off(joined.shares(), plan.coarse, exact=True).lift()
    return _squares(rounded)


def _row_products_of(x: Words, y: Words) -> Words:
    products: Words = np.einsum("rk,rk->r", x, y)
    return products


_row_products = products.summed(_row_products_of)
