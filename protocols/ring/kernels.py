"""Tight loops over shares, compiled once per machine: one pass over memory for each.

Every kernel states its formula; the calling module says what it is for. All work on flat or
row-major arrays, modulo 2^64, and write into arrays that the caller provides. None draws
randomness, branches on a secret or uses one as an index: they branch only on opened values and
sizes.

numba compiles on the first import and keeps the result beside this file; `python -m
protocols.ring.kernels` does that at installation. Processes that start at once may compile twice,
and the cache is replaced atomically.

A packed array of b-bit words is the wire format of words modulo 2^b: b is rounded up to a multiple
of 4 and split into 64, 32, 16, 8 and 4 bits; the lowest parts of all words come first, then the
next ones, little endian; two 4-bit parts share a byte, the earlier in its low half.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_BYTES_OUT = types.Array(types.uint8, 1, "C")
_PLANES = types.Array(types.uint8, 2, "C", readonly=True)
_PLANES_OUT = types.Array(types.uint8, 2, "C")
_WORDS = types.Array(types.int64, 1, "C", readonly=True)
_WORDS_OUT = types.Array(types.int64, 1, "C")
_GRID = types.Array(types.int64, 2, "C", readonly=True)
_GRID_OUT = types.Array(types.int64, 2, "C")
_PROGRAM = types.Array(types.int32, 2, "C", readonly=True)
_INT = types.int64
_FLAG = types.boolean
BLOCK = 4096
"""Rows are processed in pieces that stay in the nearest cache."""
PACKED_BLOCK = 1024
"""Words, an even number, that are packed at a time."""

# An index that may be negative counts from the end in Python: loops with one are not vectorised.
_ONE = np.uint64(1)
_TWO = np.uint64(2)


def _kernel(*arguments: types.Type) -> Callable[[Any], Any]:
    """Compile for these argument types alone, or take it from the cache."""
    if __name__ == "__main__":
        return lambda function: function  # the copy that the importable module compiles counts
    return njit(types.void(*arguments), cache=True, nogil=True, boundscheck=False)


_inlined = njit(nogil=True, boundscheck=False)


def packed_size(count: int, bits: int) -> int:
    """Bytes of a packed array of `count` words modulo 2^bits."""
    return (count * ((bits + 3) & ~3) + 7) >> 3


@_inlined
def _scatter(words, first, count, bits, out):  # type: ignore[no-untyped-def]
    """Put words below 2^bits into a packed array of `count`, from place `first` on, an even one."""
    size = words.size
    width = (bits + 3) & ~3
    start = shift = 0
    if width & 64:
        part64 = out[8 * first : 8 * (first + size)].view(np.int64)
        for i in range(size):
            part64[i] = words[i]
    if width & 32:
        part32 = out[4 * first : 4 * (first + size)].view(np.uint32)
        for i in range(size):
            part32[i] = np.uint32(words[i])
        start = 4 * count
        shift = 32
    if width & 16:
        part16 = out[start + 2 * first : start + 2 * (first + size)].view(np.uint16)
        for i in range(size):
            part16[i] = np.uint16(words[i] >> shift)
        start += 2 * count
        shift += 16
    if width & 8:
        part8 = out[start + first : start + first + size]
        for i in range(size):
            part8[i] = np.uint8(words[i] >> shift)
        start += count
        shift += 8
    if width & 4:
        part4 = out[start + first // 2 : start + (first + size + 1) // 2]
        for i in range(np.uint64(size // 2)):
            low = (words[_TWO * i] >> shift) & 15
            high = (words[_TWO * i + _ONE] >> shift) & 15
            part4[i] = np.uint8(low | (high << 4))
        if size % 2:
            part4[size // 2] = np.uint8((words[size - 1] >> shift) & 15)


@_inlined
def _gather(packed, first, count, bits, words):  # type: ignore[no-untyped-def]
    """words = those of a packed array of `count` from place `first` on, padding bits included."""
    size = words.size
    width = (bits + 3) & ~3
    start = shift = 0
    for i in range(size):
        words[i] = 0
    if width & 64:
        part64 = packed[8 * first : 8 * (first + size)].view(np.int64)
        for i in range(size):
            words[i] = part64[i]
    if width & 32:
        part32 = packed[4 * first : 4 * (first + size)].view(np.uint32)
        for i in range(size):
            words[i] = np.int64(part32[i])
        start = 4 * count
        shift = 32
    if width & 16:
        part16 = packed[start + 2 * first : start + 2 * (first + size)].view(np.uint16)
        for i in range(size):
            words[i] |= np.int64(part16[i]) << shift
        start += 2 * count
        shift += 16
    if width & 8:
        part8 = packed[start + first : start + first + size]
        for i in range(size):
            words[i] |= np.int64(part8[i]) << shift
        start += count
        shift += 8
    if width & 4:
        part4 = packed[start + first // 2 : start + (first + size + 1) // 2]
        for i in range(np.uint64(size // 2)):
            pair = np.int64(part4[i])
            words[_TWO * i] |= (pair & 15) << shift
            words[_TWO * i + _ONE] |= (pair >> 4) << shift
        if size % 2:
            words[size - 1] |= (np.int64(part4[size // 2]) & 15) << shift


@_inlined
def _low_bits(bits):  # type: ignore[no-untyped-def]
    return np.int64((np.uint64(1) << np.uint64(bits)) - np.uint64(1))


@_kernel(_WORDS, _WORDS, _INT, _INT, _BYTES_OUT)
def pack_sum(x, y, low, bits, out):  # type: ignore[no-untyped-def]
    """out = packed ((x + y) >> low) mod 2^bits."""
    mask = _low_bits(bits)
    room = np.empty(PACKED_BLOCK, np.int64)
    for first in range(0, x.size, PACKED_BLOCK):
        a, b = x[first : first + PACKED_BLOCK], y[first : first + PACKED_BLOCK]
        block = room[: a.size]
        for i in range(a.size):
            block[i] = ((a[i] + b[i]) >> low) & mask
        _scatter(block, first, x.size, bits, out)


@_kernel(_WORDS, _BYTES, _INT, _BYTES_OUT)
def pack_difference(x, packed, bits, out):  # type: ignore[no-untyped-def]
    """out = packed (x − unpacked) mod 2^bits."""
    mask = _low_bits(bits)
    room = np.empty(PACKED_BLOCK, np.int64)
    for first in range(0, x.size, PACKED_BLOCK):
        a = x[first : first + PACKED_BLOCK]
        block = room[: a.size]
        _gather(packed, first, x.size, bits, block)
        for i in range(a.size):
            block[i] = (a[i] - block[i]) & mask
        _scatter(block, first, x.size, bits, out)


@_kernel(_BYTES, _INT, _WORDS_OUT)
def unpack(packed, bits, out):  # type: ignore[no-untyped-def]
    """out = the words of a packed array, modulo 2^bits whatever stands in the padding bits."""
    mask = _low_bits(bits)
    for first in range(0, out.size, PACKED_BLOCK):
        block = out[first : first + PACKED_BLOCK]
        _gather(packed, first, out.size, bits, block)
        for i in range(block.size):
            block[i] &= mask


@_kernel(_BYTES, _BYTES, _INT, _WORDS_OUT)
def unpack_sum(x, y, bits, out):  # type: ignore[no-untyped-def]
    """out = the sum of two packed arrays modulo 2^bits, ignoring their padding bits."""
    mask = _low_bits(bits)
    room = np.empty(PACKED_BLOCK, np.int64)
    for first in range(0, out.size, PACKED_BLOCK):
        block = out[first : first + PACKED_BLOCK]
        other = room[: block.size]
        _gather(x, first, out.size, bits, block)
        _gather(y, first, out.size, bits, other)
        for i in range(block.size):
            block[i] = (block[i] + other[i]) & mask


@_kernel(_BYTES, _INT, _INT, _WORDS_OUT)
def add_unpacked(packed, bits, sign, out):  # type: ignore[no-untyped-def]
    """out = (out + sign · unpacked) mod 2^bits, ignoring the padding bits."""
    mask = _low_bits(bits)
    room = np.empty(PACKED_BLOCK, np.int64)
    for first in range(0, out.size, PACKED_BLOCK):
        block = out[first : first + PACKED_BLOCK]
        other = room[: block.size]
        _gather(packed, first, out.size, bits, other)
        for i in range(block.size):
            block[i] = (block[i] + sign * other[i]) & mask


@_kernel(_WORDS, _INT, _WORDS_OUT, _WORDS_OUT)
def split(r, bits, u, m):  # type: ignore[no-untyped-def]
    """u = r >> bits (logical), m = msb(r)."""
    for i in range(r.size):
        word = np.uint64(r[i])
        u[i] = np.int64(word >> np.uint64(bits))
        m[i] = np.int64(word >> np.uint64(63))


@_kernel(_WORDS, _INT, _WORDS_OUT)
def rounded(c, bits, out):  # type: ignore[no-untyped-def]
    """out = ((c + 2^62) >> bits, logical) − 2^(62 − bits)."""
    centre = np.uint64(1) << np.uint64(62)
    offset = np.int64(centre >> np.uint64(bits))
    for i in range(c.size):
        out[i] = np.int64((np.uint64(c[i]) + centre) >> np.uint64(bits)) - offset


@_kernel(_WORDS, _WORDS, _WORDS_OUT)
def unless_top(c, m, out):  # type: ignore[no-untyped-def]
    """out = (1 − msb(c + 2^62)) · m."""
    centre = np.uint64(1) << np.uint64(62)
    for i in range(c.size):
        top = np.int64(np.uint64(c[i]) + centre) >> 63
        out[i] = m[i] & ~top


@_kernel(_WORDS, _WORDS, _INT, _WORDS_OUT)
def lifted(c, v, bits, out):  # type: ignore[no-untyped-def]
    """out = ((c + 2^62) >> bits, logical) − 2^(62 − bits) + 2^(64 − bits)·v."""
    centre = np.uint64(1) << np.uint64(62)
    offset = np.int64(centre >> np.uint64(bits))
    for i in range(c.size):
        low = np.int64((np.uint64(c[i]) + centre) >> np.uint64(bits)) - offset
        out[i] = low + (v[i] << (64 - bits))


@_kernel(_WORDS, _WORDS, _INT, _WORDS_OUT)
def mask_of_lifted(u, spread, bits, out):  # type: ignore[no-untyped-def]
    """out = u + 2^(64 − bits)·spread."""
    for i in range(u.size):
        out[i] = u[i] + (spread[i] << (64 - bits))


@_kernel(_WORDS, _WORDS, _WORDS, _WORDS, _WORDS, _FLAG, _WORDS_OUT)
def selected(beta, dx, mu, lam, cross, first, out):  # type: ignore[no-untyped-def]
    """out = β·((dx at the first) − lam) + (1 − 2β)·(dx·mu − cross)."""
    for i in range(beta.size):
        chosen = -beta[i]
        hidden = dx[i] * mu[i] - cross[i]
        mine = (dx[i] - lam[i]) if first else -lam[i]
        out[i] = (hidden ^ chosen) - chosen + (mine & chosen)


@_kernel(_WORDS, _WORDS, _WORDS, _WORDS, _WORDS, _WORDS, _WORDS, _INT, _FLAG, _WORDS_OUT)
def selected_rounded(  # type: ignore[no-untyped-def]
    beta, c, mu, u, m, mu_u, mu_m, bits, first, out
):
    """`selected` for x = d + w·m − u, where d = rounded(c) and w = 2^(64 − bits)·(1 − msb c):

    out = β·((d at the first) + w·m − u) + (1 − 2β)·(d·mu + w·mu_m − mu_u).
    """
    centre = np.uint64(1) << np.uint64(62)
    offset = np.int64(centre >> np.uint64(bits))
    for i in range(beta.size):
        z = np.uint64(c[i]) + centre
        d = np.int64(z >> np.uint64(bits)) - offset
        keep = ~(np.int64(z) >> 63)
        chosen = -beta[i]
        hidden = d * mu[i] + ((mu_m[i] & keep) << (64 - bits)) - mu_u[i]
        mine = ((m[i] & keep) << (64 - bits)) - u[i]
        if first:
            mine += d
        out[i] = (hidden ^ chosen) - chosen + (mine & chosen)


@_kernel(_WORDS, _WORDS, _INT, _INT, _PLANES_OUT)
def bit_planes(words, levels, flip, low, out):  # type: ignore[no-untyped-def]
    """Row j of out: bit low + j of (words[i] − levels[t]) ^ flip, eight of them a byte.

    The words of each level begin a new byte; out has as many columns for each. Padding: zero words.
    """
    rows, columns = out.shape
    width = columns // levels.size
    block = np.zeros(BLOCK, np.int64)
    octets = np.empty(BLOCK, np.uint8)
    eights = octets.view(np.uint64)
    for t in range(levels.size):
        for start in range(0, words.size, BLOCK):
            count = min(BLOCK, words.size - start)
            for i in range(count):
                block[i] = ((words[start + i] - levels[t]) ^ flip) >> low
            packed = (count + 7) // 8
            for i in range(count, 8 * packed):
                block[i] = 0
            first = t * width + start // 8
            for row in range(0, rows, 8):
                for i in range(8 * packed):
                    octets[i] = np.uint8(block[i] >> row)
                # The 8 × 8 bits of every word are transposed: byte j gets bit j of each byte.
                for i in range(packed):
                    x = eights[i]
                    y = (x ^ (x >> np.uint64(7))) & np.uint64(0x00AA00AA00AA00AA)
                    x ^= y ^ (y << np.uint64(7))
                    y = (x ^ (x >> np.uint64(14))) & np.uint64(0x0000CCCC0000CCCC)
                    x ^= y ^ (y << np.uint64(14))
                    y = (x ^ (x >> np.uint64(28))) & np.uint64(0x00000000F0F0F0F0)
                    eights[i] = x ^ y ^ (y << np.uint64(28))
                for j in range(min(8, rows - row)):
                    for i in range(packed):
                        out[row + j, first + i] = np.uint8(eights[i] >> np.uint64(8 * j))


@_kernel(_BYTES, _INT, _WORDS_OUT)
def unpack_bits(octets, size, out):  # type: ignore[no-untyped-def]
    """out = packed bits as words of 0 and 1, `size` of them before the next one begins a byte."""
    width = (size + 7) // 8
    for t in range(out.size // max(size, 1)):
        for i in range(size):
            out[t * size + i] = np.int64((octets[t * width + (i >> 3)] >> np.uint8(i & 7)) & 1)


@intrinsic
def _pointer(_, address):  # type: ignore[no-untyped-def]
    """The address of a row as a pointer, which costs less than a slice with its reference count."""

    def cast(context, builder, _, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), cast


@_kernel(_PROGRAM, *[_PLANES] * 8, _PLANES_OUT, _PLANES_OUT)
def bit_program(  # type: ignore[no-untyped-def]
    program,
    public,
    masks,
    dealt,
    below,
    public_once,
    masks_once,
    dealt_once,
    below_once,
    out,
    scratch,
):
    """Run a program of `bit_programs`, whose lines AND and XOR rows of these arrays.

    The four arrays in the middle have fewer columns, those of one threshold, and repeat. scratch:
    rows of BLOCK bytes, an argument so that it outlives the pointers into it.
    """
    columns = out.shape[1]
    period = columns
    if public_once.shape[0]:
        period = public_once.shape[1]
    if masks_once.shape[0]:
        period = masks_once.shape[1]
    if dealt_once.shape[0]:
        period = dealt_once.shape[1]
    if below_once.shape[0]:
        period = below_once.shape[1]
    arrays = np.array(
        [
            public.ctypes.data,
            masks.ctypes.data,
            dealt.ctypes.data,
            below.ctypes.data,
            public_once.ctypes.data,
            masks_once.ctypes.data,
            dealt_once.ctypes.data,
            below_once.ctypes.data,
            out.ctypes.data,
            scratch.ctypes.data,
        ]
    )
    widths = np.full(10, columns)
    widths[4:8] = period
    widths[9] = BLOCK
    place = np.empty(10, np.int64)
    for base in range(0, columns, max(period, 1)):
        for start in range(0, period, BLOCK):
            count = min(BLOCK, period - start)
            for kind in range(10):
                place[kind] = arrays[kind]
                if kind < 9:
                    place[kind] += start
                if kind < 4 or kind == 8:
                    place[kind] += base
            for line in range(program.shape[0]):
                add, kind, row = program[line, 0], program[line, 1], program[line, 2]
                target = carray(_pointer(place[kind] + row * widths[kind]), count, np.uint8)  # type: ignore[call-arg]
                kind, row = program[line, 3], program[line, 4]
                a = carray(_pointer(place[kind] + row * widths[kind]), count, np.uint8)
                kind, row = program[line, 5], program[line, 6]
                if kind < 0:
                    for i in range(count):
                        target[i] = target[i] ^ a[i] if add else a[i]
                    continue
                b = carray(_pointer(place[kind] + row * widths[kind]), count, np.uint8)
                if add:
                    for i in range(count):
                        target[i] ^= a[i] & b[i]
                else:
                    for i in range(count):
                        target[i] = a[i] & b[i]


@_kernel(_GRID, _GRID, _GRID, _FLAG, _GRID_OUT)
def weighted_bits(weights, beta, mu, first, out):  # type: ignore[no-untyped-def]
    """out[c, i] = sum over k of weights[c, k] · ((β at the first) + (1 − 2β)·mu)[k, i]."""
    share = np.empty(out.shape[1], np.int64)
    out[:] = 0
    for k in range(beta.shape[0]):
        for i in range(share.size):
            chosen = -beta[k, i]
            share[i] = (mu[k, i] ^ chosen) - chosen
            if first:
                share[i] += beta[k, i]
        for c in range(weights.shape[0]):
            weight = weights[c, k]
            for i in range(share.size):
                out[c, i] += weight * share[i]


@_kernel(_GRID, _GRID, _GRID_OUT)
def thin_product(x, y, out):  # type: ignore[no-untyped-def]
    """out = x y for a matrix x of few rows: y is read once, in its own order, for each of them."""
    depth, width = y.shape
    for row in range(x.shape[0]):
        for j in range(width):
            out[row, j] = 0
        whole = depth // 4 * 4
        for k in range(0, whole, 4):
            a, b, c, d = x[row, k], x[row, k + 1], x[row, k + 2], x[row, k + 3]
            for j in range(width):
                out[row, j] += a * y[k, j] + b * y[k + 1, j] + c * y[k + 2, j] + d * y[k + 3, j]
        for k in range(whole, depth):
            for j in range(width):
                out[row, j] += x[row, k] * y[k, j]


@_kernel(_GRID, _GRID, _GRID_OUT)
def thin_product_transposed(x, y, out):  # type: ignore[no-untyped-def]
    """out = x yᵀ for a matrix x of few rows."""
    for row in range(x.shape[0]):
        for i in range(y.shape[0]):
            total = np.int64(0)
            for k in range(y.shape[1]):
                total += x[row, k] * y[i, k]
            out[row, i] = total


_UNSIGNED = types.Array(types.uint64, 1, "C", readonly=True)
_PLACES = types.Array(types.int32, 1, "C", readonly=True)


@_kernel(_UNSIGNED, _UNSIGNED, _UNSIGNED, _PLACES, _UNSIGNED, _INT, _WORDS_OUT, _WORDS_OUT)
def cells(first, second, tops, guide, unsure, low, out, left):  # type: ignore[no-untyped-def]
    """One word of noise from every pair of uniform words, except where integers below do not decide
    (`protocols.noise.gaussian`, which names the steps).

    tops: upper halves of ascending thresholds. guide: for each value of the first 12 bits, how many
    of them lie below it. unsure: for each cell, a bound of what is rejected. left: [1 + words]; how
    many are not decided, and their places.
    """
    count = 0
    mask = (np.uint64(1) << np.uint64(low)) - np.uint64(1)
    for i in range(first.size):
        word = first[i]
        bucket = np.int64(word >> np.uint64(52))
        begin, end = np.int64(guide[bucket]), np.int64(guide[bucket + 1])
        while begin < end:
            middle = (begin + end) >> 1
            if tops[middle] <= word:
                begin = middle + 1
            else:
                end = middle
        other = second[i]
        test = (other & np.uint64(0x7FFFFFFFFFFFFFFF)) >> np.uint64(low)
        value = (begin << low) + np.int64(other & mask)
        negative = np.int64(other >> np.uint64(63))
        tied = begin > 0 and tops[begin - 1] == word
        if tied or test < unsure[begin] or (negative and value == 0):
            count += 1
            left[count] = i
        out[i] = (value ^ -negative) + negative
    left[0] = count


@_kernel(_WORDS, _WORDS, _INT, _GRID_OUT)
def scattered(words, places, bits, out):  # type: ignore[no-untyped-def]
    """For each word w and its public p, in each row of out[rows, 2^bits]: bits of p of its own say
    to which element w is added, and one more whether it is subtracted instead."""
    low = (1 << bits) - 1
    for i in range(words.size):
        word, place = words[i], places[i]
        for row in range(out.shape[0]):
            sign = -((place >> bits) & 1)
            out[row, place & low] += (word ^ sign) - sign
            place >>= bits + 1


def warm() -> None:
    """Compile everything that is not in the cache yet: these kernels, whose import has done it, the
    products by panels, and those by tiles, if the processor has them."""
    import_module("protocols.ring.panels").warm()
    import_module("protocols.ring.tiles").warm()


if __name__ == "__main__":
    import_module("protocols.ring.kernels").warm()
