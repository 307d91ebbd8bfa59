"""Arrays that have a shape and no memory, so that the real program can be run for its costs alone.

A `Blank` is a NumPy array over address space that is never touched: its elements read as zero, and
whatever computes with it computes the shape and the type of the result, and nothing else. `Meter`
counts what would have been computed, and how much memory would have been held. Small arrays stay
real ones: they cost nothing, and the program may branch on them.

NumPy's own functions return blanks for blanks (NEP 13, NEP 18). Where arrays come from nowhere,
`installed` replaces NumPy's constructors by ones that make blanks in the threads of a dry run
(`measured`), and are the original ones in all other threads.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np

from mpc_train.errors import JobError
from protocols.arrays import Shape

SMALL_BYTES = 4096
"""Arrays of up to this many bytes are real."""
MAX_BYTES = 1 << 44
"""Address space of the largest blank, of which no page is ever used; less where the system gives
less."""

Array = np.ndarray[Any, np.dtype[Any]]


class Meter:
    """What one role would have computed and held.

    live, peak: bytes of arrays now, and the most so far. moved: bytes that operations read and
    wrote. products: multiply-adds of matrix products. points: multiplications on the curve.
    """

    __slots__ = ("live", "moved", "peak", "points", "products")

    def __init__(self) -> None:
        self.live = self.peak = self.moved = self.products = self.points = 0

    def hold(self, size: int) -> Held:
        """Count bytes as held until the result is gone."""
        self.live += size
        self.peak = max(self.peak, self.live)
        return Held(self, size)


class Held:
    """Bytes that a meter counts for as long as this object lives."""

    __slots__ = ("_meter", "_size")

    def __init__(self, meter: Meter, size: int) -> None:
        self._meter, self._size = meter, size

    def __del__(self) -> None:
        self._meter.live -= self._size


class _Here(threading.local):
    meter: Meter | None = None


_here = _Here()


@contextmanager
def measured(meter: Meter) -> Iterator[None]:
    """In this thread, large arrays are blanks and `meter` counts them."""
    before, _here.meter = _here.meter, meter
    try:
        yield
    finally:
        _here.meter = before


@contextmanager
def real() -> Iterator[None]:
    """In this thread, arrays are real ones until the end of this context."""
    before, _here.meter = _here.meter, None
    try:
        yield
    finally:
        _here.meter = before


def meter_here() -> Meter | None:
    """The meter of this thread, None outside a dry run."""
    return _here.meter


class _Space:
    """Address space without memory, made when it is first needed."""

    def __init__(self) -> None:
        self._bytes: Array | None = None

    def octets(self) -> Array:
        if self._bytes is None:
            # What can only be read needs no memory, so the system promises as much as one asks for.
            flags, size = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, MAX_BYTES
            while self._bytes is None:
                try:
                    space = mmap.mmap(-1, size, flags=flags, prot=mmap.PROT_READ)
                    self._bytes = _original["frombuffer"](space, np.uint8)
                except (OSError, ValueError):
                    if size < 1 << 30:
                        raise
                    size >>= 1
        return self._bytes


_space = _Space()


class Blank(np.ndarray[Any, np.dtype[Any]]):
    """An array without memory. held: what the meter counts for it, or the blank that
    it is a part of."""

    held: Any = None

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any
    ) -> Any:
        meter = _here.meter
        if meter is not None:
            meter.moved += sum(x.nbytes for x in inputs if isinstance(x, np.ndarray))
        if method == "at":
            return None
        if out is not None:
            return out[0] if len(out) == 1 else out
        inputs = tuple(x if np.isscalar(x) else np.asanyarray(x) for x in inputs)
        shape = _shape_of(ufunc, method, inputs, options)
        results = _result_types(ufunc, method, inputs, options)
        found = tuple(made(shape, dtype) for dtype in results)
        if meter is not None:
            meter.moved += sum(x.nbytes for x in found)
        return found[0] if len(found) == 1 else found

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        known = _FUNCTIONS.get(func)
        if known is not None:
            return known(*args, **kwargs)
        return super().__array_function__(func, (Blank,), args, kwargs)

    def __getitem__(self, index: Any) -> Any:
        if _is_basic(index):
            return super().__getitem__(index)
        return made(np.broadcast_to(np.bool_(True), self.shape)[_real(index)].shape, self.dtype)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Do nothing: there is nothing to write to."""

    def reshape(self, *shape: Any, **options: Any) -> Any:
        target = shape[0] if len(shape) == 1 and not np.isscalar(shape[0]) else shape
        if self.flags.c_contiguous:
            return super().reshape(target)
        view = self.view()
        try:
            view.shape = target
        except AttributeError:  # it cannot be done without a copy
            rest = prod(size for size in target if size != -1)
            sizes = [self.size // max(rest, 1) if size == -1 else size for size in target]
            return made(tuple(sizes), self.dtype)
        return view

    def ravel(self, order: Any = "C") -> Any:
        return self.reshape(-1)

    def flatten(self, order: Any = "C") -> Any:
        return made((self.size,), self.dtype)

    def copy(self, order: Any = "C") -> Any:
        return made(self.shape, self.dtype)

    def astype(  # type: ignore[override]
        self, dtype: Any, *_: Any, copy: bool = True, **__: Any
    ) -> Any:
        if not copy and self.dtype == dtype:
            return self
        return made(self.shape, dtype)

    def argsort(self, *_: Any, **__: Any) -> Any:
        return np.arange(self.size).reshape(self.shape)

    def take(  # type: ignore[override]
        self, places: Any, axis: int | None = None, *_: Any, **__: Any
    ) -> Any:
        return self[(slice(None),) * axis + (places,)] if axis else self.reshape(-1)[places]

    def repeat(  # type: ignore[override]
        self, repeats: Any, axis: int | None = None
    ) -> Any:
        zero = np.broadcast_to(np.bool_(True), self.shape)
        return made(np.repeat(zero, repeats, axis).shape, self.dtype)

    def tobytes(self, order: Any = "C") -> bytes:
        return b""


def made(shape: Shape, dtype: Any) -> Array:
    """An array of zeros for a result: blank if it is large."""
    kind = np.dtype(dtype)
    size = prod(shape) * kind.itemsize
    meter = _here.meter
    if size <= SMALL_BYTES or meter is None:
        return np.zeros(shape, kind) if meter is None else _original["zeros"](shape, kind)
    if size > _space.octets().nbytes:
        raise JobError(f"an array of {size / 1e12:,.0f} TB, which no machine holds")
    array = Blank(shape, kind, buffer=_space.octets().data)
    array.held = meter.hold(size)
    return array


def zeros_real(shape: Shape, dtype: Any) -> Array:
    """An array that is real however large it is."""
    found: Array = _original["zeros"](shape, dtype)
    return found


def is_blank(*values: Any) -> bool:
    return any(isinstance(value, Blank) for value in values)


def _is_basic(index: Any) -> bool:
    """Whether an index gives a view."""
    if type(index) is tuple:
        return not any(isinstance(one, (np.ndarray, list, tuple)) for one in index)
    return not isinstance(index, (np.ndarray, list))


def _real(index: Any) -> Any:
    """An index whose arrays are ordinary ones, which read as zero where they were blank."""
    if isinstance(index, tuple):
        return tuple(_real(one) for one in index)
    return index.view(np.ndarray) if isinstance(index, Blank) else index


def _shape_of(ufunc: np.ufunc, method: str, inputs: Sequence[Any], options: Any) -> Shape:
    shapes = [np.shape(x) for x in inputs]
    if method == "outer":
        return sum(shapes, ())
    if method == "accumulate":
        return shapes[0]
    if method == "reduce":
        zero = np.broadcast_to(np.bool_(True), shapes[0])
        axis, kept = options.get("axis", 0), options.get("keepdims", False)
        return np.asarray(np.any(zero, axis=axis, keepdims=kept)).shape
    if ufunc is np.matmul:
        return _product_shape(*shapes)
    return np.broadcast_shapes(*shapes)


def _product_shape(x: Shape, y: Shape) -> Shape:
    if len(x) == 1 or len(y) == 1:
        return (*x[:-1], *y[:-2], *y[-1:]) if len(y) > 1 else x[:-1]
    return (*np.broadcast_shapes(x[:-2], y[:-2]), x[-2], y[-1])


def _result_types(
    ufunc: np.ufunc, method: str, inputs: Sequence[Any], options: Any
) -> list[np.dtype[Any]]:
    if options.get("dtype") is not None:
        return [np.dtype(options["dtype"])]
    ones = [np.ones((1, 1), x.dtype) if isinstance(x, np.ndarray) else x for x in inputs]
    if method == "reduce":
        return [ufunc.reduce(ones[0].reshape(-1)).dtype]
    with np.errstate(all="ignore"):
        found = ufunc(*ones)
    return [x.dtype for x in (found if isinstance(found, tuple) else (found,))]


def _joined(arrays: Sequence[Any], axis: int | None = 0, **_: Any) -> Array:
    empties = [np.broadcast_to(np.bool_(True), np.shape(x)) for x in arrays]
    if axis is None:
        return made((sum(x.size for x in empties),), np.result_type(*arrays))
    shape = list(empties[0].shape)
    shape[axis] = sum(x.shape[axis] for x in empties)
    return made(tuple(shape), np.result_type(*(np.asanyarray(x).dtype for x in arrays)))


def _chosen(condition: Any, *values: Any) -> Any:
    if not values:
        return np.nonzero(np.asarray(condition).view(np.ndarray))
    shape = np.broadcast_shapes(*(np.shape(x) for x in (condition, *values)))
    return made(shape, np.result_type(*(x if np.isscalar(x) else x.dtype for x in values)))


def _packed(array: Any, axis: int | None = None, bitorder: str = "big") -> Array:
    shape = list(array.shape)
    if axis is None:
        shape, axis = [array.size], 0
    shape[axis] = -(-shape[axis] // 8)
    return made(tuple(shape), np.uint8)


def _like(array: Any, *values: Any, dtype: Any = None, **_: Any) -> Array:
    return made(np.shape(array), array.dtype if dtype is None else dtype)


def _spread(array: Any, shape: Any, subok: bool = False) -> Any:
    target = (shape,) if np.isscalar(shape) else tuple(shape)
    if np.broadcast_shapes(array.shape, target) != target:
        raise ValueError(f"{array.shape} cannot be broadcast to {target}")
    if array.shape == target:
        return array.view()
    spread = Blank(target, array.dtype, buffer=_space.octets().data, strides=(0,) * len(target))
    spread.held = array
    return spread


def _nothing(*_: Any, **__: Any) -> None:
    """For functions that only write."""


_MORE_AXES = "ABCDEFGH"
"""Letters for the axes that an ellipsis stands for."""


def _contracted(subscripts: str, *operands: Any, **_: Any) -> Array:
    inputs, output = subscripts.replace(" ", "").split("->")
    sizes: dict[str, int] = {}
    ellipsis = ""
    for letters, operand in zip(inputs.split(","), operands, strict=True):
        more = _MORE_AXES[len(letters.replace("...", "")) - operand.ndim :]
        if "..." in letters and len(more) > len(ellipsis):
            ellipsis = more
        for letter, size in zip(letters.replace("...", more), operand.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    output = output.replace("...", ellipsis)
    meter = _here.meter
    if meter is not None:
        meter.products += prod(sizes.values())
    return made(tuple(sizes[letter] for letter in output), np.result_type(*operands))


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.concatenate: _joined,
    np.where: _chosen,
    np.packbits: _packed,
    np.broadcast_to: _spread,
    np.empty_like: _like,
    np.zeros_like: _like,
    np.ones_like: _like,
    np.full_like: _like,
    np.copyto: _nothing,
    np.put_along_axis: _nothing,
    np.einsum: _contracted,
    np.argmax: lambda array, axis=None: made(
        np.asarray(np.any(np.broadcast_to(np.bool_(True), array.shape), axis=axis)).shape, np.int64
    ),
}


def _constructor(name: str) -> Callable[..., Any]:
    """NumPy's constructor of this name, which makes blanks in a dry run."""
    original = _original[name]

    def construct(shape: Any, *arguments: Any, **options: Any) -> Any:
        if _here.meter is None:
            return original(shape, *arguments, **options)
        at = 1 if name == "full" else 0
        dtype = arguments[at] if len(arguments) > at else options.get("dtype")
        if dtype is None:
            dtype = np.asarray(arguments[0]).dtype if name == "full" else np.float64
        sizes = tuple(int(size) for size in (shape if np.iterable(shape) else (shape,)))
        if prod(sizes) * np.dtype(dtype).itemsize <= SMALL_BYTES:
            # Nobody may see what stands in memory: kernels do not fill it here.
            usual = _original["zeros"] if name == "empty" else original
            return usual(shape, *arguments, **options)
        return made(sizes, dtype)

    return construct


def _converter(name: str) -> Callable[..., Any]:
    """NumPy's conversion of this name, which keeps blanks."""
    original = _original[name]

    def convert(value: Any, dtype: Any = None, *arguments: Any, **options: Any) -> Any:
        if not isinstance(value, Blank) or _here.meter is None:
            return original(value, dtype, *arguments, **options)
        same = dtype is None or value.dtype == dtype
        copies = name == "array" and options.get("copy", True)
        if same and not copies and (name == "asarray" or value.flags.c_contiguous):
            return value
        return made(value.shape, value.dtype if dtype is None else dtype)

    return convert


def _from_buffer(buffer: Any, dtype: Any = float, count: int = -1, offset: int = 0) -> Any:
    whole = buffer.obj if isinstance(buffer, memoryview) else None
    if _here.meter is None or not isinstance(whole, Blank):
        return _original["frombuffer"](buffer, dtype, count, offset)
    return whole.reshape(-1).view(np.uint8)[: buffer.nbytes].view(dtype)


_original: dict[str, Any] = {
    name: getattr(np, name)
    for name in (
        *("empty", "zeros", "ones", "full"),
        *("asarray", "ascontiguousarray", "array", "frombuffer"),
    )
}
_replaced = {
    **{name: _constructor(name) for name in ("empty", "zeros", "ones", "full")},
    **{name: _converter(name) for name in ("asarray", "ascontiguousarray", "array")},
    "frombuffer": _from_buffer,
}
_lock = threading.Lock()


@contextmanager
def installed() -> Iterator[None]:
    """NumPy's constructors know blanks; one dry run of a process at a time."""
    with _lock:
        for name, function in _replaced.items():
            setattr(np, name, function)
        try:
            yield
        finally:
            for name in _replaced:
                setattr(np, name, _original[name])
