"""Exact matrix products modulo 2^64 on the tile unit of x86 processors (Intel AMX).

A word is eight 8-bit limbs, and modulo 2^64

    x · y = Σ_d 2^(8d) · Σ_(i+j=d) x_i · y_j        for d = 0 … 7,

36 products of bytes. One tile instruction multiplies 16×64 by 64×16 unsigned bytes and adds the
result to 32-bit counters. For d >= 4 only 32 bits of the sum count; below that a sum over
`MAX_DEPTH` blocks stays under 2^32: no carry is ever lost.

Operands are first rewritten as tiles: 1 KiB each, eight limbs of a block one after the other.
For a left operand a tile is [16 rows][64 steps of the sum]; for a right one it is
[16 quads of steps][16 columns][4 steps], as the instruction wants it.

`grant` must have returned True before anything else here is called. Which instructions run and
which addresses they touch depends on shapes alone, never on a value.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
"""

from __future__ import annotations

import ctypes
import platform
import sys
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic
from numpy.typing import NDArray

from protocols.arrays import Words

LIMBS, SIDE, STEPS = 8, 16, 64
TILE_BYTES = SIDE * STEPS

MAX_DEPTH = 16
"""Blocks of 64 steps in one sum; up to 256 no counter overflows: 4 · 255² · 2^14 < 2^32."""
MAX_BLOCKS = 128
"""Blocks of an operand in work at once: 1 MiB as tiles, half of a usual second-level cache."""

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


def grant() -> bool:
    """Ask the operating system for the tile registers; False where there are none.

    Linux hands them out on request only, once a process, since they enlarge its saved state.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    features = binding.get_host_cpu_features()
    if not all(features.get(name) for name in ("amx-tile", "amx-int8", "avx512vbmi")):
        return False
    answer = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)
    return bool(answer == 0)


def warm() -> None:
    """Compile what is here, if this processor can run it."""
    if grant():
        _kernels()


def sum_of_products(pairs: Sequence[tuple[Words, Words]], negative: bool = False) -> Words:
    """Σ x @ y modulo 2^64 over pairs of int64[m, k] and int64[k, n], or its negative; a new array.

    Made piece by piece, so that the tiles of a piece stay in the second-level cache.
    """
    m, n = pairs[0][0].shape[0], pairs[0][1].shape[1]
    kernels = _kernels()
    out = np.empty((m, n), np.int64)
    for number, piece in enumerate(_pieces(pairs)):
        depth = sum(_blocks(x.shape[1]) for x, _ in piece)
        side = max(2, MAX_BLOCKS // depth // 2 * 2) * SIDE
        for i in range(0, m, side):
            top = min(m, i + side)
            for j in range(0, n, side):
                end = min(n, j + side)
                left, right = _scratch.tiles(_panels(top - i), _panels(end - j), depth)
                at = 0
                for x, y in piece:
                    if j == 0:
                        _tile_left(x[i:top], left, at)
                    _tile_right(y[:, j:end], right, at)
                    at += _blocks(x.shape[1])
                part = out[i:top, j:end]
                kernels.multiply(left, right, _CONFIGURATION, negative, number > 0, part)
    return out


def _pieces(
    pairs: Sequence[tuple[Words, Words]],
) -> list[list[tuple[Words, Words]]]:
    """The same sum as sums of at most `MAX_DEPTH` steps each, nearly equal in length."""
    if sum(_blocks(x.shape[1]) for x, _ in pairs) <= MAX_DEPTH:
        return [list(pairs)]
    pieces = []
    for x, y in pairs:
        count = -(-_blocks(x.shape[1]) // MAX_DEPTH)
        length = -(-_blocks(x.shape[1]) // count) * STEPS
        for k in range(0, x.shape[1], length):
            pieces.append([(x[:, k : k + length], y[k : k + length])])
    return pieces


def _blocks(steps: int) -> int:
    return -(-steps // STEPS)


def _panels(length: int) -> int:
    """Panels of 16 rows or columns; an even number, since products are made two by two."""
    return 2 * -(-length // (2 * SIDE))


class _Scratch(threading.local):
    """Room for the tiles of both operands, kept from call to call: fresh pages cost more."""

    def __init__(self) -> None:
        self._room = np.empty(0, np.uint8)

    def tiles(self, left: int, right: int, depth: int) -> tuple[Any, Any]:
        block = depth * LIMBS * TILE_BYTES
        size = (left + right) * block + STEPS
        if self._room.size < size:
            self._room = np.empty(size, np.uint8)
        begin = -self._room.ctypes.data % STEPS  # tiles start at cache lines
        middle, end = begin + left * block, begin + (left + right) * block
        return (
            self._room[begin:middle].reshape(left, depth, LIMBS * TILE_BYTES),
            self._room[middle:end].reshape(right, depth, LIMBS * TILE_BYTES),
        )


_scratch = _Scratch()


def _tile_left(x: Words, tiles: NDArray[np.uint8], at: int) -> None:
    if x.shape[1] % STEPS:
        # Padding of the sum: zero on this side is enough.
        tiles[:, at + x.shape[1] // STEPS] = 0
    if x.strides[1] == 8:
        _kernels().tile(x, _ROWS_LEFT, at, tiles)
    elif x.strides[0] == 8:
        _kernels().tile(x.T, _COLUMNS_LEFT, at, tiles)
    else:
        _kernels().tile(np.ascontiguousarray(x), _ROWS_LEFT, at, tiles)


def _tile_right(y: Words, tiles: NDArray[np.uint8], at: int) -> None:
    if y.strides[1] == 8:
        _kernels().tile(y, _COLUMNS_RIGHT, at, tiles)
    elif y.strides[0] == 8:
        _kernels().tile(y.T, _ROWS_RIGHT, at, tiles)
    else:
        _kernels().tile(np.ascontiguousarray(y), _COLUMNS_RIGHT, at, tiles)


_BYTE, _LONG = ir.IntType(8), ir.IntType(64)
_ADDRESS = _BYTE.as_pointer()
_BYTES_64, _LONGS_8 = ir.VectorType(_BYTE, 64), ir.VectorType(_LONG, 8)
_INDEX = ir.IntType(32)

_COLUMNS_LEFT, _ROWS_LEFT, _COLUMNS_RIGHT, _ROWS_RIGHT = range(4)
"""How an operand lies in memory, the sum running along its rows or down its columns, and whether
it becomes left or right tiles."""


_instruction: Any = _intrinsic  # called in compiled code only, where its type is another


def _emit(builder: Any, name: str, kinds: Sequence[Any], arguments: Sequence[Any]) -> None:
    kind = ir.FunctionType(ir.VoidType(), kinds)
    builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _register(number: int) -> Any:
    return ir.Constant(_BYTE, number)


def _pointer(builder: Any, address: Any, offset: int = 0) -> Any:
    moved = builder.add(address, ir.Constant(_LONG, offset)) if offset else address
    return builder.inttoptr(moved, _ADDRESS)


@_instruction
def _configure(typing: Any, address: Any) -> Any:
    """Set the shapes of the tile registers from 64 bytes at `address`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(builder, arguments[0])
        _emit(builder, "llvm.x86.ldtilecfg", [_ADDRESS], [pointer])
        return context.get_dummy_value()

    return types.void(types.intp), generate


@_instruction
def _release(typing: Any) -> Any:
    """Give the tile registers back: a thread that holds none is cheaper to switch."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _emit(builder, "llvm.x86.tilerelease", [], [])
        return context.get_dummy_value()

    return types.void(), generate


@_instruction
def _clear(typing: Any) -> Any:
    """Set the four counters to zero."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        for counter in range(4):
            _emit(builder, "llvm.x86.tilezero", [_BYTE], [_register(counter)])
        return context.get_dummy_value()

    return types.void(), generate


@_instruction
def _accumulate(typing: Any, left_0: Any, left_1: Any, right_0: Any, right_1: Any) -> Any:
    """Add the four products of two left and two right tiles to the counters."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        for register, address in zip(range(4, 8), arguments, strict=True):
            parts = [_register(register), _pointer(builder, address), ir.Constant(_LONG, STEPS)]
            _emit(builder, "llvm.x86.tileloadd64", [_BYTE, _ADDRESS, _LONG], parts)
        for counter, left, right in ((0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7)):
            parts = [_register(number) for number in (counter, left, right)]
            _emit(builder, "llvm.x86.tdpbuud", [_BYTE] * 3, parts)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


@_instruction
def _store(typing: Any, address: Any) -> Any:
    """Write the four counters to 4 KiB at `address`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        for counter in range(4):
            pointer = _pointer(builder, arguments[0], TILE_BYTES * counter)
            parts = [_register(counter), pointer, ir.Constant(_LONG, STEPS)]
            _emit(builder, "llvm.x86.tilestored64", [_BYTE, _ADDRESS, _LONG], parts)
        return context.get_dummy_value()

    return types.void(types.intp), generate


def _shuffle(builder: Any, first: Any, second: Any, lanes: Sequence[int]) -> Any:
    mask = ir.Constant(ir.VectorType(_INDEX, len(lanes)), list(lanes))
    return builder.shuffle_vector(first, second, mask)


def _limbs(builder: Any, base: Any, near: Any, far: Any) -> list[Any]:
    """Eight vectors of eight words, at base + (j & 1)·near + (j >> 1)·far, as one vector a limb:
    byte 8·j + w of vector i is limb i of word w of vector j."""
    vectors = []
    for j in range(8):
        address = base
        if j & 1:
            address = builder.add(address, near)
        if j >> 1:
            address = builder.add(address, builder.mul(far, ir.Constant(_LONG, j >> 1)))
        pointer = builder.inttoptr(address, _BYTES_64.as_pointer())
        loaded = builder.load(pointer, align=8)
        by_limb = [8 * word + limb for limb in range(8) for word in range(8)]
        vectors.append(builder.bitcast(_shuffle(builder, loaded, loaded, by_limb), _LONGS_8))
    # An 8×8 transposition of 64-bit lanes, by exchanging blocks of 1, 2 and 4.
    for step in (1, 2, 4):
        low = [lane if not lane & step else 8 + lane - step for lane in range(8)]
        high = [lane + step if not lane & step else 8 + lane for lane in range(8)]
        for j in range(8):
            if not j & step:
                a, b = vectors[j], vectors[j + step]
                vectors[j] = _shuffle(builder, a, b, low)
                vectors[j + step] = _shuffle(builder, a, b, high)
    return [builder.bitcast(vector, _BYTES_64) for vector in vectors]


def _splitter(order: Sequence[int], stride: int, pieces: int) -> Any:
    """An instruction that writes 64 words as eight limbs, 1 KiB apart: the bytes of each limb in
    `order`, in `pieces` equal parts `stride` bytes apart."""
    length = STEPS // pieces

    @_instruction
    def split(typing: Any, base: Any, near: Any, far: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            base, near, far, out = arguments
            kind = ir.VectorType(_BYTE, length).as_pointer()
            for limb, vector in enumerate(_limbs(builder, base, near, far)):
                for piece in range(pieces):
                    part = order[piece * length : (piece + 1) * length]
                    address = ir.Constant(_LONG, limb * TILE_BYTES + piece * stride)
                    pointer = builder.inttoptr(builder.add(out, address), kind)
                    builder.store(_shuffle(builder, vector, vector, part), pointer, align=1)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4), generate

    return split


# 1×64 words of a row: 64 steps of one row of a left tile.
_split_rows_left = _splitter(range(64), 0, 1)
# 8×8 words, the sum down the columns: 8 steps each of 8 rows of a left tile.
_split_columns_left = _splitter([8 * k + m for m in range(8) for k in range(8)], 64, 8)
# 4×16 words, the sum down the columns: one row of a right tile.
_split_columns_right = _splitter([16 * k + n for n in range(16) for k in range(4)], 0, 1)
# 8×8 words, the sum along the rows: half of two rows of a right tile.
_split_rows_right = _splitter(
    [8 * n + 4 * q + k for q in range(2) for n in range(8) for k in range(4)], 64, 2
)


def tile(x, kind, at, tiles):  # type: ignore[no-untyped-def]
    """Write x, whose rows are contiguous, as tiles [panel, block, limb], from block `at` on."""
    rows, columns = x.shape
    height = 1 if kind == _ROWS_LEFT else 4 if kind == _COLUMNS_RIGHT else 8
    width = 64 // height
    base, row_bytes = x.ctypes.data, x.strides[0]
    out, panel_bytes = tiles.ctypes.data, tiles.strides[0]
    edge = np.zeros((8, 64), np.int64)
    for i in range(0, rows, height):
        for j in range(0, columns, width):
            source, stride = base + i * row_bytes + 8 * j, row_bytes
            if i + height > rows or j + width > columns:
                edge[:] = 0
                for r in range(i, min(rows, i + height)):
                    for c in range(j, min(columns, j + width)):
                        edge[r - i, c - j] = x[r, c]
                source, stride = edge.ctypes.data, 512
            if kind == _ROWS_LEFT:
                place = (i >> 4) * panel_bytes + (at + (j >> 6)) * 8192 + (i & 15) * 64
                _split_rows_left(source, 64, 128, out + place)
            elif kind == _COLUMNS_LEFT:
                place = (j >> 4) * panel_bytes + (at + (i >> 6)) * 8192 + (j & 15) * 64 + (i & 63)
                _split_columns_left(source, stride, 2 * stride, out + place)
            elif kind == _COLUMNS_RIGHT:
                place = (j >> 4) * panel_bytes + (at + (i >> 6)) * 8192 + (i >> 2 & 15) * 64
                _split_columns_right(source, 64, stride, out + place)
            else:
                place = (i >> 4) * panel_bytes + (at + (j >> 6)) * 8192
                place += (j >> 2 & 15) * 64 + (i >> 3 & 1) * 32
                _split_rows_right(source, stride, 2 * stride, out + place)


def multiply_tiles(left, right, configuration, negative, more, out):  # type: ignore[no-untyped-def]
    """out = Σ left · right over the tiles, or its negative; with `more` it is added to out."""
    rows, columns = out.shape
    depth = left.shape[1]
    panel = depth * 8192
    counters = np.empty((8, 4, 256), np.uint32)
    block = np.empty((4, 256), np.int64)
    _configure(configuration.ctypes.data)
    for i in range(0, left.shape[0], 2):
        for j in range(0, right.shape[0], 2):
            x, y = left.ctypes.data + i * panel, right.ctypes.data + j * panel
            for d in range(8):
                _clear()
                for k in range(depth):
                    for limb in range(d + 1):
                        a = x + k * 8192 + limb * 1024
                        b = y + k * 8192 + (d - limb) * 1024
                        _accumulate(a, a + panel, b, b + panel)
                _store(counters.ctypes.data + d * 4096)
            for t in range(4):
                for e in range(256):
                    word = np.int64(counters[0, t, e])
                    for d in range(1, 8):
                        word += np.int64(counters[d, t, e]) << (8 * d)
                    block[t, e] = -word if negative else word
                top, side = (i + (t >> 1)) * 16, (j + (t & 1)) * 16
                for r in range(min(16, rows - top)):
                    for c in range(min(16, columns - side)):
                        word = block[t, r * 16 + c]
                        out[top + r, side + c] = word + out[top + r, side + c] if more else word
    _release()


class _Kernels(NamedTuple):
    tile: Any
    multiply: Any


@cache
def _kernels() -> _Kernels:
    """Compile, or take from numba's cache; at the first use, since only a processor with tile
    registers can."""
    words = types.Array(types.int64, 2, "A", readonly=True)
    out = types.Array(types.int64, 2, "A")
    tiles = types.Array(types.uint8, 3, "C")
    integer, octets = types.int64, types.Array(types.uint8, 1, "C")
    options: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": False}
    return _Kernels(
        njit(types.void(words, integer, integer, tiles), **options)(tile),
        njit(types.void(tiles, tiles, octets, types.boolean, types.boolean, out), **options)(
            multiply_tiles
        ),
    )


def _configuration() -> NDArray[np.uint8]:
    """Palette 1, and for each of the eight tile registers 16 rows of 64 bytes."""
    found = np.zeros(64, np.uint8)
    found[0] = 1
    found[16:32].view(np.uint16)[:] = 64
    found[48:56] = 16
    return found


_CONFIGURATION = _configuration()
