"""Exact matrix products modulo 2^64 on any vector unit, by words or by 32-bit halves of them.

Few vector units multiply 64-bit words: that of AVX-512 does, which costs one multiplication for a
vector of words. AVX2 and NEON do not, and LLVM replaces each such product by many instructions.
With x = x₀ + 2^32 x₁ and y likewise,

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

_FEATURES = binding.get_host_cpu_features()
LANES = 8 if _FEATURES.get("avx512f") else 4
"""Words of a vector."""
WHOLE = bool(_FEATURES.get("avx512dq"))
"""Whether vectors of words are multiplied."""
ROWS, VECTORS = (4, 2) if LANES == 8 else (2, 2)
"""Rows and vectors of a block of the result: with its operands it fills the registers, of which
AVX-512 has 32 and others sixteen."""
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
        _kernel()(np.ascontiguousarray(x), y, negative, WHOLE, out)
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


def _step(builder: Any, rows: Sequence[Any], panel: Any, sums: Sequence[Any]) -> list[Any]:
    """The sums with one more step. rows: addresses of its words on the left; panel: of those on
    the right."""
    right = [
        builder.load(_at(builder, panel, 8 * LANES * vector, _WORDS), align=8)
        for vector in range(VECTORS)
    ]
    left = [_spread(builder, builder.load(_at(builder, row, 0, _WORD), align=8)) for row in rows]
    if len(sums) == 1:
        (words,) = sums
        added = {at: builder.mul(left[at[0]], right[at[1]]) for at in _BLOCK}
        return [{at: builder.add(words[at], product) for at, product in added.items()}]
    words, halves = sums
    low = _lanes(_WORD, [2**32 - 1] * LANES)
    swap = _lanes(_HALF, [lane ^ 1 for lane in range(2 * LANES)])
    split = [builder.bitcast(y, _HALVES) for y in right]
    exchanged = [builder.shuffle_vector(y, y, swap) for y in split]
    right = [builder.and_(y, low) for y in right]
    more_words, more_halves = {}, {}
    for row, vector in _BLOCK:
        lower = builder.mul(builder.and_(left[row], low), right[vector])
        crossed = builder.mul(builder.bitcast(left[row], _HALVES), exchanged[vector])
        more_words[row, vector] = builder.add(words[row, vector], lower)
        more_halves[row, vector] = builder.add(halves[row, vector], crossed)
    return [more_words, more_halves]


def _total(builder: Any, sums: Sequence[Any]) -> Any:
    """The vector of words that the sums of one place make."""
    if len(sums) == 1:
        return sums[0]
    words, halves = sums
    crossed = builder.bitcast(halves, _WORDS)
    moved = builder.shl(crossed, _lanes(_WORD, [32] * LANES))
    upper = builder.and_(crossed, _lanes(_WORD, [2**64 - 2**32] * LANES))
    return builder.add(words, builder.add(moved, upper))


def _block_product(*kinds: Any) -> Any:
    """The instruction for one block, which adds up vectors of these kinds."""

    def multiply(typing: Any, left: Any, stride: Any, panel: Any, steps: Any, out: Any) -> Any:
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
            sums = [{place: builder.phi(kind) for place in _BLOCK} for kind in kinds]
            offset = builder.mul(step, ir.Constant(_WORD, 8))
            rows = [builder.add(start, offset) for start in starts]
            at = builder.add(panel, builder.mul(step, ir.Constant(_WORD, 8 * COLUMNS)))
            found = _step(builder, rows, at, sums)
            for one, more, kind in zip(sums, found, kinds, strict=True):
                for place in _BLOCK:
                    one[place].add_incoming(ir.Constant(kind, None), before)
                    one[place].add_incoming(more[place], loop)
            after = builder.add(step, ir.Constant(_WORD, 1))
            step.add_incoming(after, loop)
            builder.cbranch(builder.icmp_unsigned("<", after, steps), loop, end)

            builder.position_at_end(end)
            for number, place in enumerate(_BLOCK):
                total = _total(builder, [more[place] for more in found])
                builder.store(total, _at(builder, out, 8 * LANES * number, _WORDS), align=8)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 5), generate

    return _instruction(multiply)


_multiply_words, _multiply_halves = _block_product(_WORDS), _block_product(_WORDS, _HALVES)


def add_product(x, y, negative, whole, out):  # type: ignore[no-untyped-def]
    """out += x y, or −= x y, by words or by halves; rows of x are contiguous."""
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
                if whole:
                    _multiply_words(left, stride, panel.ctypes.data, steps, block.ctypes.data)
                else:
                    _multiply_halves(left, stride, panel.ctypes.data, steps, block.ctypes.data)
                for r in range(height):
                    for c in range(width):
                        out[i + r, j + c] += sign * block[r, c]


@cache
def _kernel() -> Any:
    """Compile, or take from numba's cache."""
    rows = types.Array(types.int64, 2, "C", readonly=True)
    words = types.Array(types.int64, 2, "A", readonly=True)
    kind = types.void(rows, words, types.boolean, types.boolean, types.Array(types.int64, 2, "C"))
    return njit(kind, cache=True, nogil=True, boundscheck=False)(add_product)
