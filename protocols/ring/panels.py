"""Exact matrix products modulo 2^64 by multiplications of 32-bit halves, on any vector unit.

Few vector units multiply 64-bit words: AVX2 and NEON do not, and LLVM replaces each such product by
many instructions. With x = x₀ + 2^32 x₁ and y likewise,

    Σ x · y = Σ x₀ y₀ + 2^32 · (Σ x₀ y₁ + Σ x₁ y₀)    modulo 2^64

where x₀ y₀ is a multiplication of halves into a word, and of the rest only 32 bits count: one
multiplication of a vector of halves by another whose neighbouring halves are exchanged gives x₀ y₁
and x₁ y₀. Two sums are kept, of words and of halves, and put together at the end, so a vector of
words costs two multiplications.

The right operand is copied into panels of a few columns, one step of the sum after the other. Which
instructions run and which addresses they touch depends on shapes alone, never on a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.extending import intrinsic as _intrinsic

from protocols.arrays import Words

LANES = 8 if binding.get_host_cpu_features().get("avx512f") else 4
"""Words of a vector."""
ROWS, VECTORS = 2, 2
"""Rows and vectors of a block of the result: with its operands it fills the sixteen registers."""
COLUMNS = VECTORS * LANES
DEPTH = 256
"""Steps of a panel, which stays in the nearest cache."""

_HALF, _WORD = ir.IntType(32), ir.IntType(64)
_HALVES, _WORDS = ir.VectorType(_HALF, 2 * LANES), ir.VectorType(_WORD, LANES)
_BLOCK = [(row, vector) for row in range(ROWS) for vector in range(VECTORS)]
_instruction: Any = _intrinsic  # called in compiled code only, where its type is another


def sum_of_products(pairs: Sequence[tuple[Words, Words]], negative: bool = False) -> Words:
    """Σ x @ y modulo 2^64 over pairs of int64[m, k] and int64[k, n], or its negative.

    A new array in row-major order.
    """
    out = np.zeros((pairs[0][0].shape[0], pairs[0][1].shape[1]), np.int64)
    for x, y in pairs:
        _kernel()(np.ascontiguousarray(x), y, negative, out)
    return out


def warm() -> None:
    """Compile what is here."""
    _kernel()


def _lanes(kind: Any, values: Sequence[int]) -> Any:
    return ir.Constant(ir.VectorType(kind, len(values)), list(values))


def _at(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    moved = builder.add(address, ir.Constant(_WORD, offset)) if offset else address
    return builder.inttoptr(moved, kind.as_pointer())


def _spread(builder: Any, word: Any) -> Any:
    """A vector of copies of a word."""
    nothing = ir.Constant(_WORDS, ir.Undefined)
    first = builder.insert_element(nothing, word, ir.Constant(_HALF, 0))
    return builder.shuffle_vector(first, nothing, _lanes(_HALF, [0] * LANES))


def _step(builder: Any, rows: Sequence[Any], panel: Any, words: Any, halves: Any) -> Any:
    """The two sums with one more step. rows: addresses of its words on the left; panel: of those on
    the right."""
    low = _lanes(_WORD, [2**32 - 1] * LANES)
    right, exchanged = [], []
    for vector in range(VECTORS):
        y = builder.load(_at(builder, panel, 8 * LANES * vector, _WORDS), align=8)
        split = builder.bitcast(y, _HALVES)
        swap = _lanes(_HALF, [lane ^ 1 for lane in range(2 * LANES)])
        exchanged.append(builder.shuffle_vector(split, split, swap))
        right.append(builder.and_(y, low))
    left = [_spread(builder, builder.load(_at(builder, row, 0, _WORD), align=8)) for row in rows]
    more_words, more_halves = {}, {}
    for row, vector in _BLOCK:
        lower = builder.mul(builder.and_(left[row], low), right[vector])
        crossed = builder.mul(builder.bitcast(left[row], _HALVES), exchanged[vector])
        more_words[row, vector] = builder.add(words[row, vector], lower)
        more_halves[row, vector] = builder.add(halves[row, vector], crossed)
    return more_words, more_halves


@_instruction
def _multiply(typing: Any, left: Any, stride: Any, panel: Any, steps: Any, out: Any) -> Any:
    """out[ROWS, COLUMNS] = Σ over at least one step of the words of ROWS rows, `stride` bytes
    apart, with those of a panel[steps, COLUMNS]; all three are addresses."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, stride, panel, steps, out = arguments
        starts = [left]
        for _ in range(1, ROWS):
            starts.append(builder.add(starts[-1], stride))
        before = builder.block
        loop, end = builder.append_basic_block("step"), builder.append_basic_block("end")
        builder.branch(loop)

        builder.position_at_end(loop)
        step = builder.phi(_WORD)
        step.add_incoming(ir.Constant(_WORD, 0), before)
        words = {place: builder.phi(_WORDS) for place in _BLOCK}
        halves = {place: builder.phi(_HALVES) for place in _BLOCK}
        offset = builder.mul(step, ir.Constant(_WORD, 8))
        rows = [builder.add(start, offset) for start in starts]
        at = builder.add(panel, builder.mul(step, ir.Constant(_WORD, 8 * COLUMNS)))
        more_words, more_halves = _step(builder, rows, at, words, halves)
        for sums, more, kind in ((words, more_words, _WORDS), (halves, more_halves, _HALVES)):
            for place in _BLOCK:
                sums[place].add_incoming(ir.Constant(kind, None), before)
                sums[place].add_incoming(more[place], loop)
        after = builder.add(step, ir.Constant(_WORD, 1))
        step.add_incoming(after, loop)
        builder.cbranch(builder.icmp_unsigned("<", after, steps), loop, end)

        builder.position_at_end(end)
        for number, place in enumerate(_BLOCK):
            crossed = builder.bitcast(more_halves[place], _WORDS)
            moved = builder.shl(crossed, _lanes(_WORD, [32] * LANES))
            upper = builder.and_(crossed, _lanes(_WORD, [2**64 - 2**32] * LANES))
            total = builder.add(more_words[place], builder.add(moved, upper))
            builder.store(total, _at(builder, out, 8 * LANES * number, _WORDS), align=8)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


def add_product(x, y, negative, out):  # type: ignore[no-untyped-def]
    """out += x y, or −= x y; rows of x are contiguous."""
    rows, depth = x.shape
    columns = y.shape[1]
    panel = np.empty((DEPTH, COLUMNS), np.int64)
    block = np.empty((ROWS, COLUMNS), np.int64)
    edge = np.zeros((ROWS, DEPTH), np.int64)
    sign = np.int64(-1) if negative else np.int64(1)
    for first in range(0, depth, DEPTH):
        steps = min(DEPTH, depth - first)
        for j in range(0, columns, COLUMNS):
            width = min(COLUMNS, columns - j)
            for k in range(steps):
                for c in range(width):
                    panel[k, c] = y[first + k, j + c]
                for c in range(width, COLUMNS):
                    panel[k, c] = 0
            for i in range(0, rows, ROWS):
                height = min(ROWS, rows - i)
                left, stride = x.ctypes.data + i * x.strides[0] + 8 * first, x.strides[0]
                if height < ROWS:
                    edge[:height, :steps] = x[i:, first : first + steps]
                    left, stride = edge.ctypes.data, edge.strides[0]
                _multiply(left, stride, panel.ctypes.data, steps, block.ctypes.data)
                for r in range(height):
                    for c in range(width):
                        out[i + r, j + c] += sign * block[r, c]


@cache
def _kernel() -> Any:
    """Compile, or take from numba's cache."""
    rows = types.Array(types.int64, 2, "C", readonly=True)
    words = types.Array(types.int64, 2, "A", readonly=True)
    kind = types.void(rows, words, types.boolean, types.Array(types.int64, 2, "C"))
    return njit(kind, cache=True, nogil=True, boundscheck=False)(add_product)
