"""The maximum of many by a tournament of pairs, level by level; the gradient takes the reverse
path."""

from __future__ import annotations

from protocols.comparison.compare import negative
from protocols.shares.arithmetic import remask, select
from protocols.shares.masked import Masked, MaskedBit, concatenate


def tournament(x: Masked) -> tuple[Masked, list[MaskedBit]]:
    """The maximum over the first axis, and the bits [first < second] of each level's pairs.

    4 rounds per level. A level pairs neighbours; an unpaired one goes to the next level.
    """
    bits = 64 if x.early is None else x.early.bits
    levels = []
    while x.shape[0] > 1:
        pairs = x.shape[0] // 2
        left, right = x.select(slice(0, 2 * pairs, 2)), x.select(slice(1, 2 * pairs, 2))
        larger = right - left
        # Both are among the inputs, so their difference is within what the early form can hold.
        behind = negative(left - right)
        levels.append(behind)
        best = left + remask(select(behind, larger))
        if x.shape[0] % 2:
            best = concatenate([best, x.select(slice(2 * pairs, None))])
        x = best.narrowed(bits)
    return x.moved(x.shape[1:], lambda words: words[0]), levels


def route(grad: Masked, levels: list[MaskedBit], count: int) -> Masked:
    """The gradient of `tournament`: grad where the maximum came from, zero elsewhere.

    grad: [...]. Returns [count, ...]. 1 round and 8 bytes opened for each pair of a level.
    """
    sizes = [count]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    flow = grad.reshape(1, *grad.shape)
    for bits, size in zip(reversed(levels), reversed(sizes[:-1]), strict=True):
        pairs = size // 2
        top = flow.select(slice(0, pairs))
        right = remask(select(bits, top))
        both = _interleaved(top - right, right)
        flow = concatenate([both, flow.select(slice(pairs, None))]) if size % 2 else both
    return flow


def _interleaved(left: Masked, right: Masked) -> Masked:
    pairs, *rest = left.shape
    joined = concatenate([left.reshape(pairs, 1, *rest), right.reshape(pairs, 1, *rest)], 1)
    return joined.reshape(2 * pairs, *rest)
