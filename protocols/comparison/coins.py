"""Secret coins: bits that are 1 with a public probability, and that nobody knows.

A coin is [A ⊕ L < T] for whole numbers of k bits and a public T: 1 with probability T / 2^k. The
evaluators draw A together (`Role.common`), and only the dealer knows the mask L, so that a coin has
exactly this probability

* to any N − 1 evaluators, who know A and to whom L is uniform; what they see opened is masked;
* to the dealer, who knows L and the masks, and to whom A is uniform.

The dealer and an evaluator together know the coins, like all other secrets.

1. Digits. The dealer hands out XOR shares of the one-hot words W = 1 << L_j of 4-bit digits. With
   its public digit A_j an evaluator reads XOR shares of [A_j ⊕ L_j < T_j], the parity of those bits
   v of W for which A_j ⊕ v < T_j, and of [A_j ⊕ L_j = T_j], bit A_j ⊕ T_j of W.
2. Then as in `less_than`: nodes of four digits, and an opened root.

k is 4 if that expresses the probability exactly, otherwise 8, 12, or 16, with the nearest multiple
of 2^-16. For k = 4: 1 round, 1 bit opened, 10 bytes from the dealer; for k = 16: 2 rounds, 7 bits,
18 bytes. A coin does not depend on data: its rounds are shared with other openings of the program
before it needs the coin.
"""

from __future__ import annotations

from fractions import Fraction
from math import prod

import numpy as np

from protocols.arrays import Octets, Shape
from protocols.comparison.compare import from_digits
from protocols.errors import RangeError
from protocols.roles.role import Role
from protocols.shares.masked import MaskedBit

DIGIT_BITS = 4
BASE = 1 << DIGIT_BITS
MAX_DIGITS = 4


def coins(role: Role, shape: Shape, probability: Fraction) -> MaskedBit:
    """Fresh coins of `shape`, each 1 with `nearest(probability)`."""
    threshold, digits = _threshold(probability)
    size = prod(shape)
    role.issue("coins", threshold, digits, *shape)
    # 1
    drawn = role.mask_bits((digits, size))
    table = None
    if role.is_dealer:
        hot = np.left_shift(np.uint16(1), drawn.octets & (BASE - 1), dtype=np.uint16)
        table = hot.view(np.uint8).reshape(digits, size, 2)
    words = role.deal_bits(table, (digits, size, 2)).view(np.uint16).reshape(digits, size)
    parts = [threshold >> DIGIT_BITS * j & (BASE - 1) for j in range(digits)]

    def leaves(common: Octets) -> Octets:
        mine = common & (BASE - 1)
        rows = [
            *(
                np.bitwise_count(w & _LOWER[t][a]) & 1
                for w, t, a in zip(words, parts, mine, strict=True)
            ),
            *(w >> (a ^ t) & 1 for w, t, a in zip(words, parts, mine, strict=True)),
        ]
        return np.packbits(np.stack(rows).astype(np.uint8), axis=-1, bitorder="little")

    # 2
    return from_digits(role, role.common((digits, size)).map(leaves), digits, shape)


def nearest(probability: Fraction) -> Fraction:
    """The probability of coins for a requested one, within 2^-17 of it."""
    threshold, digits = _threshold(probability)
    return Fraction(threshold, BASE**digits)


def _threshold(probability: Fraction) -> tuple[int, int]:
    """(T, digits); RangeError if a coin would be constant."""
    digits = 1
    while digits < MAX_DIGITS and (probability * BASE**digits).denominator > 1:
        digits += 1
    threshold = round(probability * BASE**digits)
    if not 0 < threshold < BASE**digits:
        raise RangeError(
            f"a coin of probability {float(probability):g}; it must be between 2^-16 and 1 - 2^-16"
        )
    return threshold, digits


def _lower(threshold: int, known: int) -> int:
    """The bits v of a one-hot word for which known ⊕ v < threshold."""
    return sum(1 << v for v in range(BASE) if known ^ v < threshold)


_LOWER = np.array([[_lower(t, a) for a in range(BASE)] for t in range(BASE)], np.uint16)
