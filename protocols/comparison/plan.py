"""How a comparison is divided into digits and nodes: what is opened, dealt and computed, and when.

A tree over the bits of a number, all leaves at one depth. A leaf is a digit of d bits, a node joins
digits to a longer one. Each level of nodes costs a round. A leaf needs the 2^d − 1 products of the
bits of its mask from the dealer; a node needs those products of its factors' masks that some public
factor multiplies. The cheapest tree follows from the numbers of bits and elements alone, so that
all nodes find the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from protocols.comparison.bit_programs import (
    BELOW,
    DEALT,
    MASKS,
    ONCE,
    OUT,
    PUBLIC,
    Program,
    Row,
    Term,
    compiled,
)

MOST = 6
"""The most bits of a digit and digits of a node: their products grow as 2^n."""

OPENED_WEIGHT = 3
"""The cost of an opened bit, in dealt bits: two evaluators send it and draw a mask for it."""

ROUND_BITS = 1 << 20
"""The cost of a round, in dealt bits: as many as a wide-area link carries during its latency."""

Counts = tuple[int, ...]
"""Digits at each level, from the leaves up; the last is 1."""
Subset = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One level: the programs that make planes of digits from those of the level below.

    Planes: lt of all digits, then eq of all, from the least significant one. opened: the planes
    below that are opened, none for leaves, which start from bits that are public already.
    dealt: rows from the dealer. products: the dealer's program for them; constant: the program for
    the part that it keeps and adds to the mask at the root. shared: the program for shares; public:
    the program for products of opened bits only, which the first evaluator adds. top: the plane
    below that enters the top digit's lt unopened.
    """

    outputs: int
    opened: NDArray[np.intp]
    dealt: int
    products: Program
    constant: Program
    shared: Program
    public: Program


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Leaves of `bits` bits and the nodes above; plane 0 is lt, plane 1 eq if requested."""

    bits: int
    leaves: Level
    nodes: tuple[Level, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a plan for one element, in dealt bits: its tables and, above them, its nodes."""

    tables: int
    nodes: int


def split(count: int, parts: int) -> list[int]:
    """`count` divided into `parts` parts that differ by at most one, the larger ones first."""
    size, larger = divmod(count, parts)
    return [size + 1] * larger + [size] * (parts - larger)


@cache
def plan(bits: int, counts: Counts, with_eq: bool = False, rooted: bool = True) -> Plan:
    """The comparison of `bits` bits by a tree of `counts`.

    with_eq: whether equality is also requested. rooted: the result goes unchanged to the root, so
    that the constants of the top digits' lt can stay with the dealer.
    """
    leaves = _leaves(split(bits, counts[0]), with_eq)
    return Plan(bits, leaves, nodes_plan(counts, with_eq, rooted))


@cache
def nodes_plan(counts: Counts, with_eq: bool = False, rooted: bool = True) -> tuple[Level, ...]:
    """The levels above existing leaves: counts[0] digits."""
    return tuple(_nodes(split(below, above), with_eq, rooted) for below, above in pairwise(counts))


@cache
def cost(bits: int, counts: Counts, with_eq: bool = False, rooted: bool = True) -> Cost:
    """The cost of `plan` with the same arguments, without making it."""
    nodes = 0
    for below, above in pairwise(counts):
        for j, size in enumerate(split(below, above)):
            if size > 1:
                nodes += _node_cost(size, j > 0 or with_eq, rooted and j == above - 1)
    return Cost(sum(2**size - 1 for size in split(bits, counts[0])), nodes)


def _node_cost(size: int, with_eq: bool, kept: bool) -> int:
    partial = 2**size - 2 * size  # of some eq and one lt, not all of a term
    partial += 2**size - size - 2 if with_eq else 2 ** (size - 1) - size
    dealt = partial + (not kept) + with_eq
    return dealt + OPENED_WEIGHT * (2 * size - 1 - (not with_eq))


@cache
def cheapest(
    bits: int, rounds: int, repeats: int = 1, with_eq: bool = False, rooted: bool = True
) -> tuple[int, Counts] | None:
    """The cheapest tree with `rounds` levels of nodes and its cost, None if there is none.

    repeats: how many numbers are compared with one, sharing its tables.
    """
    found = []
    for counts in _shapes(bits, rounds):
        found_cost = cost(bits, counts, with_eq, rooted)
        found.append((found_cost.tables + repeats * found_cost.nodes, counts))
    return min(found, default=None)


def _shapes(bits: int, rounds: int) -> list[Counts]:
    most = 1 if rounds == 0 else -(-bits // 2)
    shapes: list[Counts] = [(count,) for count in range(-(-bits // MOST), most + 1)]
    for left in reversed(range(rounds)):
        shapes = [
            (*shape, above)
            for shape in shapes
            for above in range(-(-shape[-1] // MOST), shape[-1] // 2 + 1)
            if (above == 1) == (left == 0)
        ]
    return shapes


def _leaves(sizes: Sequence[int], with_eq: bool) -> Level:
    """Digits of public bits E = ¬Δ under masks λ, so that E ⊕ λ says that Δ and λ are equal.

    At the first difference E = 1 means Δ = 0, hence λ = 1 and Δ < λ:
    lt = sum_i E_i·λ_i·prod_{m > i} (E_m ⊕ λ_m),  eq = prod_i (E_i ⊕ λ_i).
    The dealt rows are the bits of λ and then the products of those of one digit.
    """
    bits, digits = sum(sizes), len(sizes)
    rows: dict[Subset, int] = {(bit,): bit for bit in range(bits)}
    starts = np.cumsum([0, *sizes])
    spans = [range(starts[j], starts[j + 1]) for j in range(digits)]
    for span in spans:
        for size in range(2, len(span) + 1):
            for subset in combinations(span, size):
                rows[subset] = len(rows)
    products = [
        (row, [((OUT, rows[subset[:-1]]), ((OUT, subset[-1]),))])
        for subset, row in rows.items()
        if len(subset) > 1
    ]
    shared: list[tuple[int, list[Term]]] = []
    public: list[tuple[int, list[Term]]] = []
    for j, span in enumerate(spans):
        less: list[Term] = []
        for i in span:
            higher = [m for m in span if m > i]
            for hidden in _subsets(higher):
                rest = tuple((PUBLIC, m) for m in higher if m not in hidden)
                less.append(((ONCE + DEALT, rows[i, *hidden]), ((PUBLIC, i), *rest)))
        shared.append((j, less))
        if j > 0 or with_eq:
            terms: list[Term] = []
            for hidden in _subsets(list(span)):
                rest = tuple((PUBLIC, m) for m in span if m not in hidden)
                if hidden:
                    terms.append(((ONCE + DEALT, rows[hidden]), rest))
                else:
                    public.append((digits + j, [(None, rest)]))
            shared.append((digits + j, terms))
    return Level(
        2 * digits,
        np.empty(0, np.intp),
        len(rows),
        compiled(products),
        compiled([]),
        compiled(shared),
        compiled(public, [row for row, _ in public]),
    )


def _nodes(groups: Sequence[int], with_eq: bool, rooted: bool) -> Level:
    """Nodes over digits: lt = lt_top ⊕ sum_j lt_j·prod_{i > j} eq_i,  eq = prod_i eq_i.

    All but the top digit's lt are opened as v = V ⊕ ρ, and
    prod_{v in T} (V_v ⊕ ρ_v) = sum over U ⊆ T of prod_{v in T∖U} V_v · prod_{v in U} ρ_v.
    """
    below, above = sum(groups), len(groups)
    work = _Expansion()
    start = 0
    for j, size in enumerate(groups):
        digits = list(range(start, start + size))
        start += size
        top = digits[-1]
        needs_eq = j > 0 or with_eq
        if size == 1:
            work.pass_on(j, top)
            if needs_eq:
                work.pass_on(above + j, below + top)
            continue
        equal = {
            digit: work.open(below + digit)
            for digit in reversed(digits)
            if needs_eq or digit != digits[0]
        }
        less = {digit: work.open(digit) for digit in digits[:-1]}
        work.pass_on(j, top)
        work.add(
            j,
            [
                (*(equal[digit] for digit in reversed(digits) if digit > low), less[low])
                for low in digits[:-1]
            ],
            keep=rooted and j == above - 1,
        )
        if needs_eq:
            work.add(above + j, [tuple(equal[digit] for digit in reversed(digits))], keep=False)
    return work.level(2 * above)


@cache
def products_plan(sizes: tuple[int, ...]) -> Level:
    """The products of opened bits, one for each group of `sizes` of them in turn.

    Of a single group, whose product goes to the root, the dealer keeps the constant.
    """
    work = _Expansion()
    for index, size in enumerate(sizes):
        term = tuple(work.open(0) for _ in range(size))
        work.add(index, [term], keep=len(sizes) == 1)
    return work.level(len(sizes))


class _Expansion:
    """Collects sums of products of masked bits, and the mask products that they need."""

    def __init__(self) -> None:
        self._opened: list[int] = []
        self._passed: list[tuple[int, list[Term]]] = []
        self._sums: list[tuple[int, list[Subset], bool]] = []

    def open(self, row: int) -> int:
        """Open a plane of the level below; returns the number of its masked bit."""
        self._opened.append(row)
        return len(self._opened) - 1

    def pass_on(self, output: int, row: int) -> None:
        """Add a plane of the level below to an output, unopened."""
        self._passed.append((output, [((BELOW, row), ())]))

    def add(self, output: int, terms: list[Subset], keep: bool) -> None:
        """Add products of masked bits. keep: the products of masks only stay at the dealer."""
        self._sums.append((output, terms, keep))

    def level(self, outputs: int) -> Level:
        partial = {
            subset
            for _, terms, _ in self._sums
            for term in terms
            for size in range(2, len(term))
            for subset in combinations(term, size)
        }
        ordered = sorted(partial, key=lambda subset: (len(subset), subset))
        rows = {subset: row for row, subset in enumerate(ordered)}

        def product(subset: Subset) -> Term:
            """A product of masks, at the dealer."""
            head = subset[:-1]
            first: Row = (MASKS, head[0]) if len(head) == 1 else (OUT, rows[head])
            return first, ((MASKS, subset[-1]),)

        def shares(subset: Subset) -> Row:
            return (MASKS, subset[0]) if len(subset) == 1 else (DEALT, rows[subset])

        products = [(row, [product(subset)]) for subset, row in rows.items()]
        kept: list[Term] = []
        shared = [*self._passed]
        public: list[tuple[int, list[Term]]] = []
        dealt = len(rows)
        for output, terms, keep in self._sums:
            # No public bit multiplies the products of all masks of a term: one row for their sum.
            whole = [product(term) for term in terms]
            if keep:
                kept += [(_as_dealt(first), rest) for first, rest in whole]
            else:
                products.append((dealt, whole))
                shared.append((output, [((DEALT, dealt), ())]))
                dealt += 1
            for term in terms:
                for hidden in _subsets(list(term))[:-1]:
                    rest = tuple((PUBLIC, v) for v in term if v not in hidden)
                    if hidden:
                        shared.append((output, [(shares(hidden), rest)]))
                    else:
                        public.append((output, [(None, rest)]))
        return Level(
            outputs,
            np.array(self._opened, np.intp),
            dealt,
            compiled(products),
            compiled([(0, kept)]),
            compiled(_merged(shared)),
            compiled(_merged(public), [row for row, _ in public]),
        )


def _as_dealt(row: Row | None) -> Row | None:
    """A row of the dealer's products, after they are made."""
    return (DEALT, row[1]) if row is not None and row[0] == OUT else row


def _merged(sums: Sequence[tuple[int, list[Term]]]) -> list[tuple[int, list[Term]]]:
    merged: dict[int, list[Term]] = {}
    for output, terms in sums:
        merged.setdefault(output, []).extend(terms)
    return list(merged.items())


def _subsets(things: Sequence[int]) -> list[Subset]:
    """All subsets, the empty one first and the whole last, elements in the order given."""
    return [subset for size in range(len(things) + 1) for subset in combinations(things, size)]


@dataclass(frozen=True, slots=True)
class Joint:
    """Several thresholds of one value whose differences are multiples of 2^low and below 2^high.

    The bits below `low` are those of Δ for every threshold, and the bits from `high` on are those
    of Δ less the largest one, or one more: these are compared once and twice, only the middle for
    every threshold. Plans for no bits are None.
    """

    low: int
    high: int
    lower: Plan | None
    middle: Plan
    upper: Plan | None
    join: Join


@dataclass(frozen=True, slots=True, eq=False)
class Join:
    """The programs that put lower, middle and upper bits together for each threshold.

    With a public carry C, E = eq of the upper part that C selects, under the mask
    (1 − C)·ρ0 ⊕ C·ρ1:  lt = lt_upper ⊕ E·(lt_middle ⊕ eq_middle·lt_lower).

    Public rows: C, 1 − C, the opened E, and of the middle lt and eq; once: lt of the lower part.
    Masks: of the middle's lt and eq; once: ρ0, ρ1 and that of the lower part. Below, once: both
    lt of the upper part. Without an upper part, C and E are missing, and the middle's lt is below
    instead of opened. Without a lower part, it and the middle's eq are missing.
    """

    dealt: int
    dealt_once: int
    products: Program
    products_once: Program
    constant: Program
    shared: Program
    public: Program


CARRY, NO_CARRY, UPPER, MIDDLE_LT, MIDDLE_EQ = ((PUBLIC, row) for row in range(5))
LOWER = (ONCE + PUBLIC, 0)


@cache
def join(with_lower: bool, with_upper: bool) -> Join:
    nothing = compiled([])
    if not with_upper:
        eq, lower, opened = (MASKS, 0), (ONCE + MASKS, 0), (PUBLIC, 0)
        terms: list[Term] = [((BELOW, 0), ()), (lower, (opened,)), (eq, (LOWER,))]
        constant = compiled([(0, [(eq, (lower,))])])
        products_of_opened = compiled([(0, [(None, (opened, LOWER))])], [0])
        return Join(0, 0, nothing, nothing, constant, compiled([(0, terms)]), products_of_opened)
    lt, eq, lower = (MASKS, 0), (MASKS, 1), (ONCE + MASKS, 2)
    shared: list[Term] = [(lt, (UPPER,))]
    public: list[Term] = [(None, (UPPER, MIDDLE_LT))]
    products: list[tuple[int, list[Term]]] = []
    once: list[tuple[int, list[Term]]] = []
    if with_lower:
        products.append((0, [(eq, (lower,))]))
        shared += [
            (lower, (UPPER, MIDDLE_EQ)),
            (eq, (UPPER, LOWER)),
            ((DEALT, 0), (UPPER,)),
        ]
        public.append((None, (UPPER, MIDDLE_EQ, LOWER)))
    for index, carry in enumerate((NO_CARRY, CARRY)):
        rho = (ONCE + MASKS, index)
        shared += [((ONCE + BELOW, index), (carry,)), (rho, (carry, MIDDLE_LT))]
        # What only the carry multiplies is one row.
        whole: list[Term] = [(lt, (rho,))]
        if with_lower:
            row = len(products)
            products.append((row, [(eq, (rho,))]))
            once.append((index, [(lower, (rho,))]))
            whole.append(((OUT, 0), (rho,)))
            shared += [
                (rho, (carry, MIDDLE_EQ, LOWER)),
                ((ONCE + DEALT, index), (carry, MIDDLE_EQ)),
                ((DEALT, row), (carry, LOWER)),
            ]
        shared.append(((DEALT, len(products)), (carry,)))
        products.append((len(products), whole))
    return Join(
        len(products),
        len(once),
        compiled(products),
        compiled(once),
        nothing,
        compiled([(0, shared)]),
        compiled([(0, public)], [0]),
    )


@cache
def best(bits: int, thresholds: tuple[int, ...], size: int) -> Plan | Joint:
    """The plan to compare `bits` bits of `size` masked numbers with each threshold.

    Few rounds for few elements, few bytes for many.
    """
    found: list[tuple[int, Plan | Joint]] = []
    for rounds in range(4):
        tree = cheapest(bits, rounds, len(thresholds))
        if tree is not None:
            found.append((tree[0] * size + ROUND_BITS * rounds, plan(bits, tree[1])))
        together = _joint(bits, thresholds, rounds)
        if together is not None:
            found.append((together[0] * size + ROUND_BITS * rounds, together[1]))
    return min(found, key=lambda candidate: candidate[0])[1]


def _joint(bits: int, thresholds: tuple[int, ...], rounds: int) -> tuple[int, Joint] | None:
    """The cost per element and the plan for `rounds`, including the join."""
    span = max(thresholds) - min(thresholds)
    differences = 0
    for threshold in thresholds:
        differences |= threshold - min(thresholds)
    low = (differences & -differences).bit_length() - 1
    high = min(span.bit_length(), bits)
    if rounds == 0 or span == 0 or (low == 0 and high == bits):
        return None
    count, with_lower, with_upper = len(thresholds), low > 0, high < bits
    parts: list[Plan | None] = []
    joined = join(with_lower, with_upper)
    opened = count * (with_lower + with_upper) + with_lower + 2 * with_upper
    total = count * joined.dealt + joined.dealt_once + OPENED_WEIGHT * opened
    for length, repeats, with_eq, rooted in (
        (low, 1, False, False),
        (high - low, count, with_lower, not with_upper),
        (bits - high, 2, True, False),
    ):
        if length == 0:
            parts.append(None)
            continue
        trees = (cheapest(length, deep, repeats, with_eq, rooted) for deep in range(rounds))
        least = min((tree for tree in trees if tree is not None), default=None)
        if least is None:
            return None
        cost_of, tree = least
        total += cost_of
        parts.append(plan(length, tree, with_eq, rooted))
    lower, middle, upper = parts
    assert middle is not None
    return total, Joint(low, high, lower, middle, upper, joined)
