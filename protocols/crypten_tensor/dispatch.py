"""Autograd functions for `MaskedTensor`, in place of CrypTen's own.

CrypTen differentiates through a registry of functions by name. The functions below replace entries
that are wrong in CrypTen 0.4.1, that cost needless truncations or rounds, or that need more than
its tensor offers. `install` puts them into the registry, once per process.

* linear: one node for x·Wᵀ + b; the weight gradient comes out in the weight's own layout.
* relu: the comparison's bit is kept; backward is one selection.
* sum, mean: backward broadcasts; CrypTen multiplies by a tensor of ones.
* binary_cross_entropy_with_logits, cross_entropy: the gradient p − y, taken directly. The value of
  the loss is not computed, because nobody may see it unless the job lists it.
* mse_loss: the gradient 2(x − y)/n.

Gradients keep the public factor 1/n separate from their words, so that they do not lose precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np

from protocols.crypten_tensor.importing import crypten
from protocols.crypten_tensor.tensor import MaskedTensor, detach, record
from protocols.roles.role import Words

_Function: Any = crypten.gradients.AutogradFunction


class Linear(_Function):
    """y = x Wᵀ + b for x[n, in], W[out, in], b[out]."""

    @staticmethod
    def forward(
        ctx: Any, x: MaskedTensor, weight: MaskedTensor, bias: MaskedTensor | None = None
    ) -> MaskedTensor:
        ctx.save_multiple_for_backward((x, weight, bias is not None))
        y = x.matmul(weight.t())
        return y if bias is None else y.add(bias)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> tuple[MaskedTensor | None, ...]:
        x, weight, has_bias = ctx.saved_tensors
        grad.masked()  # once, for all three products
        to_x = grad.matmul(weight) if x.requires_grad else grad
        to_weight = grad.t().matmul(x) if weight.requires_grad else grad
        return (to_x, to_weight, grad.sum(0)) if has_bias else (to_x, to_weight)


class ReLU(_Function):
    @staticmethod
    def forward(ctx: Any, x: MaskedTensor) -> MaskedTensor:
        result = x.relu()
        ctx.save_for_backward(result.bit)
        return result

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        (positive,) = ctx.saved_tensors
        return grad.select(positive)


class Sum(_Function):
    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, dim: Any = None, keepdim: bool = False) -> MaskedTensor:
        ctx.save_multiple_for_backward((x.shape, dim, keepdim, Fraction(1)))
        return x.sum(dim, keepdim)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        shape, dim, keepdim, factor = ctx.saved_tensors
        return _kept_axes(grad, len(shape), dim, keepdim).mul(factor).expand(*shape)


class Mean(Sum):
    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, dim: Any = None, keepdim: bool = False) -> MaskedTensor:
        result = x.mean(dim, keepdim)
        factor = Fraction(max(result.nelement(), 1), max(x.nelement(), 1))
        ctx.save_multiple_for_backward((x.shape, dim, keepdim, factor))
        return result


class Uncomputed(MaskedTensor):
    """A loss with a gradient but without a value, and everything computed from it: the value would
    be wrong, so it cannot be opened."""

    is_computed = False

    def get_plain_text(self, dst: int | None = None) -> Any:
        raise NotImplementedError(
            "the value of this loss is not computed, only its gradient: open predictions, and "
            "compute the loss in the clear, or use MSELoss"
        )


class _DirectGradient(_Function):
    """A loss whose gradient is known in closed form and whose value stays uncomputed."""

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        (gradient,) = ctx.saved_tensors
        # The usual case, a public number, costs nothing; anything else is a product.
        return gradient.mul(grad.factor if grad.is_number else grad)

    @staticmethod
    def keep(ctx: Any, target: MaskedTensor, gradient: MaskedTensor) -> MaskedTensor:
        if target.requires_grad:
            raise NotImplementedError("this loss has no gradient for its target; use detach()")
        ctx.mark_non_differentiable(target)
        ctx.save_for_backward(gradient)
        return Uncomputed(0.0)


class BinaryCrossEntropyWithLogits(_DirectGradient):
    @staticmethod
    def forward(
        ctx: Any, logit: MaskedTensor, target: MaskedTensor, skip_forward: bool = True
    ) -> MaskedTensor:
        gradient = logit.sigmoid().sub(target).mul(Fraction(1, target.nelement()))
        return _DirectGradient.keep(ctx, target, gradient)


class CrossEntropy(_DirectGradient):
    """pred: logits [n, classes]; target: one-hot or soft labels of the same shape."""

    @staticmethod
    def forward(
        ctx: Any, pred: MaskedTensor, target: MaskedTensor, skip_forward: bool = True
    ) -> MaskedTensor:
        gradient = pred.softmax(-1).sub(target).mul(Fraction(1, target.shape[0]))
        return _DirectGradient.keep(ctx, target, gradient)


class MeanSquaredError(_DirectGradient):
    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, target: MaskedTensor) -> MaskedTensor:
        gradient = x.sub(target).mul(Fraction(2, target.nelement()))
        return _DirectGradient.keep(ctx, target, gradient)


class Sigmoid(_Function):
    @staticmethod
    def forward(ctx: Any, x: MaskedTensor) -> MaskedTensor:
        y = x.sigmoid()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        (y,) = ctx.saved_tensors
        return grad.mul(y.mul(y.neg().add(1)))


class Tanh(_Function):
    @staticmethod
    def forward(ctx: Any, x: MaskedTensor) -> MaskedTensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        (y,) = ctx.saved_tensors
        return grad.mul(y.mul(y).neg().add(1))


class Variance(_Function):
    @staticmethod
    def forward(
        ctx: Any, x: MaskedTensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False
    ) -> MaskedTensor:
        result = x.var(dim, unbiased, keepdim)
        rows = x.nelement() // max(result.nelement(), 1) - bool(unbiased)
        ctx.save_multiple_for_backward((x, dim, keepdim, Fraction(2, rows)))
        return result

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        x, dim, keepdim, factor = ctx.saved_tensors
        mean = x.mean() if dim is None else x.mean(dim, keepdim=True)
        grad = _kept_axes(grad, x.dim(), dim, keepdim)
        return x.sub(mean).mul(grad).mul(factor)


class Indexed(_Function):
    """Elements by a public index; elements that occur several times get the sum of their
    gradients."""

    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, index: Any) -> MaskedTensor:
        ctx.save_multiple_for_backward((tuple(x.shape), index))
        return x[index]

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        shape, index = ctx.saved_tensors

        def placed(words: Words) -> Words:
            out = np.zeros(shape, np.int64)
            np.add.at(out, index, words)
            return out

        return grad.linear_map(lambda value: value.linear(shape, placed))


class Cat(_Function):
    @staticmethod
    def forward(ctx: Any, tensors: list[MaskedTensor], dim: int = 0) -> MaskedTensor:
        ctx.save_multiple_for_backward(([t.shape[dim] for t in tensors], dim % tensors[0].dim()))
        return MaskedTensor.cat(tensors, dim)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> tuple[MaskedTensor, ...]:
        sizes, dim = ctx.saved_tensors
        ends = np.cumsum(sizes)
        return tuple(
            grad[(*[slice(None)] * dim, slice(end - size, end))]
            for size, end in zip(sizes, ends, strict=True)
        )


class Stack(_Function):
    @staticmethod
    def forward(ctx: Any, tensors: list[MaskedTensor], dim: int = 0) -> MaskedTensor:
        ctx.save_multiple_for_backward((len(tensors), dim % (tensors[0].dim() + 1)))
        return MaskedTensor.stack(tensors, dim)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> tuple[MaskedTensor, ...]:
        count, dim = ctx.saved_tensors
        return tuple(grad[(*[slice(None)] * dim, place)] for place in range(count))


class Permute(_Function):
    @staticmethod
    def forward(ctx: Any, x: MaskedTensor, *dims: Any) -> MaskedTensor:
        given = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
        ctx.save_for_backward([axis % x.dim() for axis in given])
        return x.permute(given)

    @staticmethod
    def backward(ctx: Any, grad: MaskedTensor) -> MaskedTensor:
        (axes,) = ctx.saved_tensors
        return grad.permute([int(place) for place in np.argsort(axes)])


def _kept_axes(grad: MaskedTensor, axes: int, dim: Any, keepdim: bool) -> MaskedTensor:
    """A gradient with the axes restored that a sum along `dim` of a tensor with `axes` axes
    removed."""
    if dim is None or keepdim:
        return grad
    dims = [dim] if isinstance(dim, int) else list(dim)
    for axis in sorted(axis % axes for axis in dims):
        grad = grad.unsqueeze(axis)
    return grad


def _cross_entropy_loss(self: Any, x: Any, y: Any) -> Any:
    """CrypTen's function drops axes of length 1, and so misreads a single row or a single class."""
    if x.dim() != 2 or x.size() != y.size():
        raise ValueError(
            f"CrossEntropyLoss: logits {tuple(x.size())} and targets {tuple(y.size())}; both must "
            "be [rows, classes], targets as one-hot rows"
        )
    return x.cross_entropy(y, skip_forward=self.skip_forward)


OVERRIDES: dict[str, type] = {
    "var": Variance,
    "indexed": Indexed,
    "cat": Cat,
    "stack": Stack,
    "permute": Permute,
    "linear": Linear,
    "relu": ReLU,
    "sum": Sum,
    "mean": Mean,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "binary_cross_entropy_with_logits": BinaryCrossEntropyWithLogits,
    "cross_entropy": CrossEntropy,
    "mse_loss": MeanSquaredError,
}


@contextmanager
def computing() -> Iterator[None]:
    """Inside, CrypTen's tensors may compute with a role (`tensor.attach`), which ends with it."""
    install()
    try:
        # Words wrap around by design, but NumPy warns about it for single words.
        with np.errstate(over="ignore"):
            yield
    finally:
        detach()


def install() -> None:
    """Put the functions of this module into CrypTen's registry."""
    for name, function in OVERRIDES.items():
        record(name, function)
    crypten.nn.CrossEntropyLoss.forward = _cross_entropy_loss


install()
