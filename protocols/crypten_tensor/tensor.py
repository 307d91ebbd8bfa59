"""CrypTen's tensor over masked sharing: `crypten.cryptensor` makes a `MaskedTensor`.

`attach` gives this process its role; from then on `crypten.cryptensor`, `crypten.nn`, CrypTen's
autograd and its losses run over the protocols of this package. None of CrypTen's own protocols,
providers, generators or communicators is used, and no `crypten.init` is needed.

    attach(role, fraction_bits=20)
    x = crypten.cryptensor(rows, src=0, shape=(128, 784))     # evaluator 0 brings the rows
    y = model(x)                                              # crypten.nn modules

A tensor holds words in Z_2^64 that stand for the real number word · factor / 2^bits. Products only
add up `bits`; means and learning rates only change `factor`. A truncation happens when an
operation needs the usual scale again (`masked`), once for a tensor however often it is used, so
that a chain of linear operations costs one truncation in all.

CrypTen keeps global state: one party a process. Plaintext does not come back through this type:
`get_plain_text` raises, outputs leave through `protocols.shares.reveal`. Where all parties have
agreed on a script, `attach` is given a way of opening what it opens.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from protocols.arrays import Words
from protocols.comparison.compare import maximum, negative
from protocols.crypten_tensor.backward import backpropagate
from protocols.crypten_tensor.importing import crypten
from protocols.crypten_tensor.routing import dispatched, offer, route
from protocols.crypten_tensor.values import (
    Source,
    as_array,
    as_index,
    as_scalar,
    shared_in,
    spelled,
)
from protocols.errors import RangeError, RevealError
from protocols.functions import splines
from protocols.ring.fixed_point import check_fraction_bits, decode, encode
from protocols.ring.rational import HEADROOM_BITS, mantissa
from protocols.roles.role import Role
from protocols.shares import arithmetic
from protocols.shares.arithmetic import Rounded
from protocols.shares.masked import Additive, Masked, MaskedBit, concatenate, public

FACTOR_BITS = 20
"""A public real factor is multiplied in with a mantissa of at most this many bits."""
MAX_BITS = HEADROOM_BITS - 12
"""A factor that would leave a tensor with more fractional bits is multiplied in after truncation:
magnitudes up to 2^12 always fit."""

Value = Masked | Additive
Opened = Callable[[Masked], Words | None]


@dataclass(frozen=True, slots=True)
class Runtime:
    """The role of this process, the scale of its job, and how tensors are opened, if they are."""

    role: Role
    fraction_bits: int
    opened: Opened | None = None


_runtime: Runtime | None = None


def attach(role: Role, fraction_bits: int, opened: Opened | None = None) -> None:
    """Make `role` the one that CrypTen's tensors of this process compute with.

    opened: opens a masked value to all evaluators, None at the dealer; left out, `get_plain_text`
    raises RevealError.
    """
    global _runtime
    _runtime = Runtime(role, check_fraction_bits(fraction_bits), opened)
    crypten.set_default_cryptensor_type("masked")


def detach() -> None:
    """Forget the role; tensors made with it keep it, new ones cannot be made."""
    global _runtime
    _runtime = None


def attached() -> Runtime | None:
    """What is attached at present, for a program that runs several nodes in turn (`reattach`)."""
    return _runtime


def reattach(state: Runtime | None) -> None:
    """Go on with what `attached` returned."""
    global _runtime
    _runtime = state


def runtime() -> Runtime:
    if _runtime is None:
        raise RuntimeError("no role is attached: call protocols.crypten_tensor.tensor.attach first")
    return _runtime


def runtime_or_none() -> Runtime | None:
    """The same, or None where no role is attached."""
    return _runtime


def _agree(public_value: Any) -> None:
    """In a script, let the checksum of operations hold a public value: a number, words, an index.

    A job's public values follow from the job. A script's may be drawn or read by each party for
    itself, and where they differ every result is wrong: the next frame shows it (DesyncError).
    """
    if _runtime is not None and _runtime.opened is not None:
        _runtime.role.issue("public", zlib.crc32(spelled(public_value)))


@crypten.register_cryptensor("masked")
class MaskedTensor(crypten.CrypTensor):
    """A secret-shared tensor with CrypTen's interface.

    tensor: real values (a torch tensor, array, number or list), or int64 words as a `Masked` or
    `Additive` made by the protocols. src: who provides the values: the index of an evaluator,
    "dealer", an `OutsideSource` (at the dealer "outside") for an owner that does neither, or None
    for public values. shape: needed at the nodes that provide nothing (`tensor=None`); what another
    node passes as `tensor` has the shape and is not looked at. bits: fractional bits of the words;
    with 0, a NumPy array of int64 is shared word by word.
    """

    value: Value | None
    is_computed = True
    """False of a loss whose gradient alone is known (`dispatch.Uncomputed`)."""
    keeps_rows = False
    """Whether the gradient of this weight, and of the bias beside it, stays a `RowGradient`."""
    is_number: bool = False
    """Whether the value is a public 1, so that `factor`, known to all roles, is the number."""
    bits: int
    factor: Fraction
    fraction_bits: int
    bit: MaskedBit | None = None
    rounding: Rounded | None = None

    # What CrypTen keeps for autograd. Most tensors that `with_value` makes take no part in it.
    requires_grad = False
    grad: Any = None
    grad_fn: Any = None
    ctx: Any = None
    grad_expected = grad_received = 0
    children: Sequence[Any] = ()

    def __init__(
        self,
        tensor: Any = None,
        device: Any = None,
        *,
        src: Source | None = None,
        shape: Sequence[int] | None = None,
        requires_grad: bool = False,
        bits: int | None = None,
        factor: Fraction = Fraction(1),
    ) -> None:
        if torch.is_tensor(tensor) and tensor.requires_grad:
            requires_grad, tensor = True, tensor.detach()
        super().__init__(requires_grad=requires_grad)
        self.factor = factor
        if isinstance(tensor, list) and not tensor:
            # The empty tensor that CrypTen makes at every cat and stack: it stands for nothing.
            self.value, self.bits, self.fraction_bits = None, 0, 0
            return
        state = runtime()
        self.fraction_bits = state.fraction_bits
        self.bits = state.fraction_bits if bits is None else bits
        if isinstance(tensor, (Masked, Additive)):
            self.value = tensor
        elif src is None:
            if tensor is None:
                raise ValueError("a public tensor needs its values")
            scalar = as_scalar(tensor)
            if scalar is not None:
                # A public number is one with a factor: the factor is known to all roles.
                self.value = public(state.role, np.array(1 << self.bits, np.int64))
                self.factor = factor * scalar
                self.is_number = True
                _agree(scalar)
            else:
                words = encode(as_array(tensor), self.bits)
                _agree(words)
                self.value = public(state.role, words)
        else:
            self.value = shared_in(state.role, tensor, src, shape, self.bits)

    # CrypTen looks every attribute up among its autograd functions first. Here only the names of
    # those functions are looked up, by the descriptors of `routing`: the state of a tensor
    # is read far more often than a function is called.
    __getattribute__ = object.__getattribute__

    def __getattr__(self, name: str) -> Any:
        return dispatched(self, name)  # functions in place, such as add_

    def __repr__(self) -> str:
        return f"MaskedTensor(shape={tuple(self.shape)})"

    def with_value(
        self, value: Value, bits: int | None = None, factor: Fraction | None = None
    ) -> MaskedTensor:
        """A tensor of other words, by default of the same scale."""
        made: MaskedTensor = object.__new__(type(self))
        made.value = value
        made.bits = self.bits if bits is None else bits
        made.factor = self.factor if factor is None else factor
        made.fraction_bits = self.fraction_bits
        return made

    def linear_map(self, function: Callable[[Any], Value]) -> MaskedTensor:
        """`function` applied to the words, for a function that keeps the scale."""
        return self.with_value(function(self.value))

    def masked(self) -> Masked:
        """The words as a masked value at scale 2^f, truncating once if there are more bits."""
        value = self.value
        if value is None:
            raise ValueError("an empty tensor has no value")
        if self.bits > self.fraction_bits:
            rounded = self.rounded()
            value = rounded.lift() if isinstance(rounded, Rounded) else rounded
        elif isinstance(value, Additive):
            value = arithmetic.remask(value)
        self.value, self.bits = value, min(self.bits, self.fraction_bits)
        return value

    def rounded(self) -> Masked | Rounded:
        """The words for a comparison or selection, which need one opening of a truncation."""
        excess = self.bits - self.fraction_bits
        if excess <= 0:
            return self.masked()
        if self.rounding is None:
            self.rounding = arithmetic.round_off(self.summands(), excess)
        return self.rounding

    def summands(self) -> Additive:
        """The words as summands, without truncation."""
        value = self.value
        if value is None:
            raise ValueError("an empty tensor has no value")
        return value if isinstance(value, Additive) else value.shares()

    # CrypTen's interface: shape and identity

    def size(self, dim: int | None = None) -> Any:
        shape = torch.Size(() if self.value is None else self.value.shape)
        return shape if dim is None else shape[dim]

    @property
    def shape(self) -> torch.Size:
        return torch.Size(() if self.value is None else self.value.shape)

    def dim(self) -> int:
        return len(self.shape)

    def nelement(self) -> int:
        return self.shape.numel()

    numel = nelement

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def data(self) -> torch.Tensor:
        """Raises TypeError: what is done to a copy in the clear would be lost without a word."""
        raise TypeError(
            "data: there are no values here; use the tensor itself, under crypten.no_grad()"
        )

    @data.setter
    def data(self, other: MaskedTensor) -> None:
        self.copy_(other)

    def get_plain_text(self, dst: int | None = None) -> torch.Tensor:
        """The real numbers, float64, at every evaluator; NaN at the dealer, which may not see them.

        Raises RevealError, except where all parties have agreed on a script that opens tensors.
        """
        opened = runtime().opened
        if opened is None:
            raise RevealError(
                "tensors are not opened one by one: list the output in the job's [reveal] section"
            )
        if dst is not None:
            raise NotImplementedError("get_plain_text: opens to all evaluators; leave out dst")
        words = opened(self.masked())
        if words is None:
            return torch.full(tuple(self.shape), torch.nan, dtype=torch.float64)
        return torch.as_tensor(decode(words, self.bits) * float(self.factor))

    def shallow_copy(self) -> MaskedTensor:
        copied = self.with_value(self.value)  # type: ignore[arg-type]
        copied.is_number = self.is_number
        return copied

    clone = shallow_copy

    def copy_(self, other: MaskedTensor) -> MaskedTensor:
        if self.value is not None and self.shape != other.shape:
            raise ValueError(
                f"in place: a result of shape {tuple(other.shape)} does not fit a tensor of shape "
                f"{tuple(self.shape)}"
            )
        self.value, self.bits, self.factor = other.value, other.bits, other.factor
        self.rounding = other.rounding
        self.is_number = other.is_number
        if not other.is_computed:
            self.__class__ = type(other)
        return self

    @staticmethod
    def rand(*sizes: int, device: Any = None) -> MaskedTensor:
        raise RangeError("random tensors come from no party: masked sharing has no use for them")

    @staticmethod
    def cat(tensors: Sequence[MaskedTensor], dim: int = 0) -> MaskedTensor:
        """Tensors one after the other along `dim`, brought to one scale first."""
        first = tensors[0]
        if any((t.bits, t.factor) != (first.bits, first.factor) for t in tensors):
            tensors = [t.plain_factor().in_full() for t in tensors]
        template = next((t for t in tensors if not t.is_computed), tensors[0])
        made = template.with_value(concatenate([t.masked() for t in tensors], dim))
        made.bits, made.factor = tensors[0].bits, tensors[0].factor
        return made

    @staticmethod
    def stack(tensors: Sequence[MaskedTensor], dim: int = 0) -> MaskedTensor:
        """Tensors of one shape side by side, along a new axis."""
        place = dim % (tensors[0].dim() + 1)
        return MaskedTensor.cat([t.unsqueeze(place) for t in tensors], place)

    # Linear operations: local

    def neg(self) -> MaskedTensor:
        return self.linear_map(lambda value: -value)

    def add(self, other: Any) -> MaskedTensor:
        scalar = None if isinstance(other, MaskedTensor) else as_scalar(other)
        if scalar is not None:
            _agree(scalar)
            base = self.in_full() if self.factor else self.plain_factor()
            words = round(scalar / base.factor * (1 << base.bits))
            if abs(words) >= 1 << HEADROOM_BITS:
                raise RangeError(f"a public summand does not fit next to a factor of {self.factor}")
            return base.linear_map(lambda value: value.shift(words))
        left, right = _aligned(self, self._like(other))
        a, b = left.value, right.value
        result = left if right.is_computed else right
        if isinstance(a, Masked) and isinstance(b, Masked):
            return result.with_value(a + b)
        return result.with_value(left.summands() + right.summands())

    def sub(self, other: Any) -> MaskedTensor:
        return self.add(other.neg() if isinstance(other, MaskedTensor) else -other)

    def mul(self, other: Any) -> MaskedTensor:
        if isinstance(other, MaskedTensor):
            product = arithmetic.multiply(self.masked(), other.masked())
            result = self if other.is_computed else other
            return result.with_value(product, self.bits + other.bits, self._factor_with(other))
        scalar = as_scalar(other)
        if scalar is not None:
            _agree(scalar)
            assert self.value is not None
            scaled = self.with_value(self.value, factor=self.factor * scalar)
            scaled.is_number = self.is_number
            return scaled
        words = encode(as_array(other), self.fraction_bits)
        _agree(words)
        return self.with_value(self.masked().scale(words), self.bits + self.fraction_bits)

    def div(self, other: Any) -> MaskedTensor:
        if isinstance(other, MaskedTensor):
            return self.mul(other.reciprocal())
        scalar = as_scalar(other)
        if scalar is not None:
            return self.mul(1 / scalar)
        return self.mul(1 / torch.as_tensor(other, dtype=torch.float64))

    def matmul(self, other: Any) -> MaskedTensor:
        other = self._like(other)
        product = arithmetic.matmul(self.masked(), other.masked())
        result = self if other.is_computed else other
        return result.with_value(product, self.bits + other.bits, self._factor_with(other))

    def sum(self, dim: Any = None, keepdim: bool = False) -> MaskedTensor:
        axis = tuple(dim) if isinstance(dim, (list, tuple)) else dim
        return self.linear_map(lambda value: value.sum(axis, keepdim))

    def mean(self, dim: Any = None, keepdim: bool = False) -> MaskedTensor:
        total = self.sum(dim, keepdim)
        return total.mul(Fraction(max(total.nelement(), 1), max(self.nelement(), 1)))

    def reshape(self, *shape: Any) -> MaskedTensor:
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        return self.linear_map(lambda value: value.reshape(*sizes))

    view = reshape

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> MaskedTensor:
        return self.reshape(*torch.empty(self.shape).flatten(start_dim, end_dim).shape)

    def t(self) -> MaskedTensor:
        if self.dim() > 2:
            raise ValueError(f"t: for at most two axes, not {self.dim()}; use transpose or permute")
        return self.linear_map(lambda value: value.transpose())

    def transpose(self, first: int, second: int) -> MaskedTensor:
        axes = list(range(self.dim()))
        axes[first], axes[second] = axes[second], axes[first]
        return self.linear_map(lambda value: value.transpose(*axes))

    def permute(self, *dims: Any) -> MaskedTensor:
        given = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
        axes = [axis % self.dim() for axis in given]
        return self.linear_map(lambda value: value.transpose(*axes))

    def squeeze(self, dim: int | None = None) -> MaskedTensor:
        blank = torch.empty(self.shape)
        return self.reshape(*(blank.squeeze() if dim is None else blank.squeeze(dim)).shape)

    def unsqueeze(self, dim: int) -> MaskedTensor:
        return self.reshape(*torch.empty(self.shape).unsqueeze(dim).shape)

    def expand(self, *sizes: Any) -> MaskedTensor:
        target = torch.empty(self.shape).expand(*sizes).shape
        return self.linear_map(lambda value: value.broadcast_to(tuple(target)))

    def __getitem__(self, index: Any) -> MaskedTensor:
        index = as_index(index)
        if self.requires_grad and crypten.CrypTensor.AUTOGRAD_ENABLED:
            # Python calls this past CrypTen's dispatch, so no gradient would ever come back.
            made: MaskedTensor = dispatched(self, "indexed")(index)
            return made
        _agree(index)
        return self.linear_map(lambda value: value.select(index))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a tensor without axes has no length")
        return self.shape[0]

    # Functions

    def _ltz(self) -> MaskedTensor:
        if not self.is_computed:
            raise NotImplementedError("the value of this loss is not computed, only its gradient")
        bits = negative(self.positive_factor().rounded())
        return MaskedTensor(bits.shares(), bits=0)

    def ne(self, other: Any) -> MaskedTensor:
        """One where the two differ, zero elsewhere, word by word; two comparisons at one time."""
        difference = self.sub(other)
        return difference._ltz().add(difference.neg()._ltz())

    def eq(self, other: Any) -> MaskedTensor:
        return self.ne(other).neg().add(1)

    # In the class itself: Python takes a refusal in a comparison for "no comparison", and then
    # compares identities without a word.
    __eq__ = eq
    __ne__ = ne
    __hash__ = object.__hash__

    # CrypTen leaves these out, and NumPy would compute with a tensor as if it were one number.
    __array_ufunc__ = None

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """torch.cat and torch.stack, and a plain tensor to the left of an operator."""
        if name := _OF_TORCH.get(function):
            return getattr(crypten, name)(*args, **(kwargs or {}))
        if (name := _REFLECTED.get(function)) and isinstance(args[1], cls):
            return getattr(args[1], name)(args[0])
        raise NotImplementedError(
            f"{getattr(function, '__name__', function)}: PyTorch's function is not offered for "
            "shared tensors; write them to the left, or use a method of theirs"
        )

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a shared tensor is no array; get_plain_text() opens it")

    def __pow__(self, p: Any) -> MaskedTensor:
        return self.pow(p)

    def __rtruediv__(self, other: Any) -> MaskedTensor:
        return self.reciprocal().mul(other)

    def var(self, dim: Any = None, unbiased: bool = True, keepdim: bool = False) -> MaskedTensor:
        """The variance over all elements or along axes, divided by n − 1, or n if not unbiased.

        CrypTen's own has the meaning of `unbiased` the wrong way round.
        """
        deviation = self.sub(self.mean() if dim is None else self.mean(dim, keepdim=True))
        total = deviation.square().sum() if dim is None else deviation.square().sum(dim, keepdim)
        rows = self.nelement() // max(total.nelement(), 1) - bool(unbiased)
        if rows < 1:
            raise ValueError("var: a single element has no variance; pass unbiased=False")
        return total.mul(Fraction(1, rows))

    def backward(self, grad_input: Any = None, top_node: bool = True) -> None:
        """Set `grad` of the leaves that this tensor was computed from, or add to it.

        The graph is used up, as PyTorch's is. Raises RuntimeError where nothing asks for a
        gradient, and where a part of the graph is used up: CrypTen's version is silent about both,
        and about gradients of tensors that also serve where there is none.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "backward: nothing that this was computed from requires a gradient; model.train(), "
                "requires_grad=True, and no crypten.no_grad() around the computation"
            )
        with crypten.no_grad():
            if grad_input is None:
                if self.nelement() != 1:
                    raise RuntimeError("backward: of a number only, or with a gradient to begin at")
                grad_input = MaskedTensor(torch.ones(self.shape))
            backpropagate(self, grad_input)

    def relu(self) -> MaskedTensor:
        """max(x, 0); the bit stays with the result for the backward pass."""
        source = self.positive_factor()
        value = source.rounded()
        positive = negative(value).negate()
        chosen = arithmetic.remask(arithmetic.select(positive, value))
        result = source.with_value(chosen, min(source.bits, source.fraction_bits))
        result.bit = positive
        return result

    def select(self, bit: MaskedBit) -> MaskedTensor:
        """The elements where the secret bit is one, zero elsewhere. 1 round once masked."""
        chosen = arithmetic.remask(arithmetic.select(bit, self.rounded()))
        return self.with_value(chosen, min(self.bits, self.fraction_bits))

    def sigmoid(self) -> MaskedTensor:
        return self._function(splines.sigmoid)

    def tanh(self) -> MaskedTensor:
        return self._function(splines.tanh)

    def pow(self, p: int) -> MaskedTensor:
        """The power by a whole number, by squaring; 1 / x^-p for negative ones."""
        if int(p) != p:
            raise TypeError("pow: whole exponents only")
        exponent = int(p)
        if exponent < 0:
            return self.reciprocal().pow(-exponent)
        if exponent == 0:
            return MaskedTensor(torch.ones(self.shape))
        result: MaskedTensor | None = None
        square = self
        while True:
            if exponent & 1:
                result = square if result is None else result.mul(square)
            exponent >>= 1
            if not exponent:
                return result  # type: ignore[return-value]
            square = square.mul(square)

    def reciprocal(self, input_in_01: bool = False) -> MaskedTensor:
        """1 / x for 2^-9 <= |x| < 2^10, within 2^-15 of it and a few 2^-f; 0 nearer to 0."""
        source = self.plain_factor().in_full()
        x = source.masked()
        sign = negative(x)

        def signed(value: Masked) -> Masked:
            return arithmetic.remask(value.shares() - arithmetic.select(sign, value).scale(2))

        one = public(x.role, np.full(x.shape, 1 << self.fraction_bits, np.int64))
        return source.with_value(signed(splines.divide(one, signed(x), self.fraction_bits)))

    def inv_sqrt(self) -> MaskedTensor:
        """1 / sqrt(x) for 1/4 <= x <= 1024; elsewhere a wrong number, see `splines.rsqrt`."""
        return self._function(splines.rsqrt)

    def softmax(self, dim: int = -1) -> MaskedTensor:
        if dim not in (-1, self.dim() - 1):
            raise ValueError(f"softmax: along the last axis only, not {dim}")
        return self._function(splines.softmax)

    def max(self, dim: int | None = None, keepdim: bool = False, one_hot: bool = True) -> Any:
        """The maximum over all elements, or (maximum, one-hot argmax) along the last axis."""
        source = self.positive_factor()
        if dim is None:
            flat = source.reshape(-1)
            top, _ = maximum(flat.masked())
            return flat.with_value(top.reshape())
        if dim not in (-1, self.dim() - 1):
            raise ValueError(f"max: along the last axis only, not {dim}")
        top, winner = maximum(source.masked())
        result = source.with_value(top if keepdim else top.reshape(*self.shape[:-1]))
        return result, MaskedTensor(winner.shares(), bits=0)

    def _function(self, function: Callable[[Masked, int], Masked]) -> MaskedTensor:
        source = self.plain_factor().in_full()
        return source.with_value(function(source.masked(), self.fraction_bits))

    def _factor_with(self, other: MaskedTensor) -> Fraction:
        """The product's factor; nearly always one of them is 1, and fractions are slow."""
        mine, theirs = self.factor, other.factor
        return mine if theirs == 1 else theirs if mine == 1 else mine * theirs

    def plain_factor(self) -> MaskedTensor:
        """The same numbers with factor 1: the factor is multiplied into the words."""
        if self.factor == 1:
            return self
        whole, shift = mantissa(self.factor, FACTOR_BITS)
        if self.bits + shift > MAX_BITS:
            self.masked()
        plain = self.with_value(self.summands().scale(whole), self.bits + shift, Fraction(1))
        if plain.bits > MAX_BITS:
            plain.masked()
        return plain

    def positive_factor(self) -> MaskedTensor:
        """The same numbers with a factor above 0, so that the words have their signs and order."""
        if self.factor > 0:
            return self
        if self.factor == 0:
            return self.plain_factor()
        flipped = self.linear_map(lambda value: -value)
        flipped.factor = -self.factor
        return flipped

    def in_full(self) -> MaskedTensor:
        """The same numbers with at least the usual fractional bits; bits of comparisons have 0."""
        return _widened(self, max(self.bits, self.fraction_bits))

    def _like(self, other: Any) -> MaskedTensor:
        return other if isinstance(other, MaskedTensor) else MaskedTensor(other)


_OF_TORCH = {torch.cat: "cat", torch.stack: "stack"}
_REFLECTED = {
    torch.Tensor.add: "__radd__",
    torch.Tensor.sub: "__rsub__",
    torch.Tensor.mul: "__rmul__",
    torch.Tensor.div: "__rtruediv__",
}


offer(MaskedTensor)


def record(name: str, function: Any) -> None:
    """Offer an autograd function as the method `name` of tensors, with its gradient.

    Takes the place of CrypTen's function of that name.
    """
    function.name = name
    crypten.gradients.FUNCTION_REGISTRY[name] = function
    route(MaskedTensor, name)


def _aligned(x: MaskedTensor, y: MaskedTensor) -> tuple[MaskedTensor, MaskedTensor]:
    """Both at one factor and one number of bits, by multiplication with public integers."""
    if x.factor != y.factor:
        x, y = x.plain_factor(), y.plain_factor()
    if x.bits < y.bits:
        return _widened(x, y.bits), y
    return x, _widened(y, x.bits)


def _widened(x: MaskedTensor, bits: int) -> MaskedTensor:
    if x.bits == bits:
        return x
    value = x.value
    assert value is not None
    return x.with_value(value.scale(1 << (bits - x.bits)), bits)
