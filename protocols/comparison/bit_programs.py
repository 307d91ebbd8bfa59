"""Sums of products of bits as programs of ANDs and XORs for the kernel `bit_program`.

A row is a plane of packed bits, named by its kind and its index. A term is a product: one hidden
row, of which a node holds a share, and any number of public rows. `compiled` writes sums of terms
in Horner's form, so that a sum over all subsets of n factors takes about 2^n lines rather than
n · 2^n.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PUBLIC, MASKS, DEALT, BELOW = range(4)
"""Rows of opened bits, of the shares of their masks, of dealt bits, of earlier shares."""
ONCE = 4
"""Added to one of these kinds: rows that repeat for each of several thresholds."""
OUT, SCRATCH = 8, 9
"""Rows of the result, and scratch rows."""
NOTHING = -1
SCRATCH_ROWS = 8

Row = tuple[int, int]
"""(kind, index)."""
Term = tuple[Row | None, tuple[Row, ...]]
"""(hidden, public): the product of a hidden row, None for none, and public rows."""
Program = NDArray[np.int32]
"""Lines (add, kind, row, kind a, row a, kind b, row b): row = a & b, or row ^= a & b if add.

If b is NOTHING, a itself.
"""


def compiled(sums: Sequence[tuple[int, Sequence[Term]]], written: Sequence[int] = ()) -> Program:
    """The program that sets row `index` of the result to the sum of `terms`, for each pair.

    written: rows of the result that already have a value, to which the sum is added.
    """
    writer = _Writer({(OUT, row) for row in written})
    for index, terms in sums:
        writer.add((OUT, index), list(terms), 0)
    return np.array(writer.lines, np.int32).reshape(-1, 7)


class _Writer:
    def __init__(self, written: set[Row]) -> None:
        self.lines: list[tuple[int, ...]] = []
        self._written = written

    def add(self, target: Row, terms: list[Term], depth: int) -> None:
        """Lines that add a sum to a row; scratch rows from `depth` on are free."""
        while terms:
            for row, public in terms:
                if len(public) + (row is not None) <= 1:
                    self._line(target, *[row] if row is not None else public)
            terms = [term for term in terms if len(term[1]) + (term[0] is not None) > 1]
            if not terms:
                return
            counts = Counter(factor for _, public in terms for factor in public)
            factor = max(counts, key=lambda found: (counts[found], found))
            inside = [
                (row, tuple(f for f in public if f != factor))
                for row, public in terms
                if factor in public
            ]
            terms = [term for term in terms if factor not in term[1]]
            if len(inside) == 1 and len(inside[0][1]) + (inside[0][0] is not None) == 1:
                row, rest = inside[0]
                self._line(target, row if row is not None else rest[0], factor)
            else:
                assert depth < SCRATCH_ROWS
                scratch = (SCRATCH, depth)
                self._written.discard(scratch)
                self.add(scratch, inside, depth + 1)
                self._line(target, scratch, factor)

    def _line(self, target: Row, a: Row, b: Row = (NOTHING, 0)) -> None:
        self.lines.append((int(target in self._written), *target, *a, *b))
        self._written.add(target)
