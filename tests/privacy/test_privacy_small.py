"""All values of all randomness of small instances: every view occurs equally often.

`enumeration` runs a primitive in a small ring with every choice of masks; two secrets with the same
multiset of views cannot be told apart. At the end, two leaks that this finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from protocols.comparison import less_than
from protocols.comparison import plan as comparison_plan
from protocols.comparison.compare import below, negative
from protocols.comparison.plan import Joint, Plan, plan
from protocols.roles.role import Mask, Role
from protocols.shares.arithmetic import multiply, remask, select, truncate
from protocols.shares.masked import Early, Masked
from tests.support.enumeration import InsecureEnumeration, Window, view_distribution
from tests.support.loopback import combine_masked, secret, shares_of


def _with_value(program: Callable[..., Any], value: int, role: Role, lanes: int) -> Any:
    return program(role, lanes, value)


def distributions(
    program: Callable[[Role, int, int], Any],
    secrets: Sequence[int],
    corrupted: Sequence[int],
    windows: Sequence[Window],
    evaluators: int = 2,
    expected: Callable[[int], set[int]] | None = None,
    result_bits: int = 64,
) -> list[dict[int, int]]:
    found = []
    for value in secrets:
        results, counts, random_bits = view_distribution(
            partial(_with_value, program, value),
            evaluators,
            corrupted,
            windows=windows,
            seed=5,
        )
        assert sum(counts.values()) >= 1 << random_bits
        if expected is not None:
            plain = combine_masked(results) & ((1 << result_bits) - 1 if result_bits < 64 else -1)
            assert set(np.unique(plain)) == expected(value)
        found.append(counts)
    return found


def constant(role: Role, lanes: int, value: int) -> Masked:
    return secret(role, np.full(lanes, value), 0)


RING = 4


def small_product(role: Role, lanes: int, value: int) -> Any:
    x, y = constant(role, lanes, value % 16), constant(role, lanes, value // 16)
    return shares_of(remask(multiply(x, y)))


def test_all_views_of_a_product() -> None:
    """x·y modulo 2^4, all masks; every view occurs equally often."""
    found = distributions(
        small_product,
        [0, 1, 0x5F, 0xF7, 0x88, 0xFF],
        (1,),
        [(RING, 0)] * 4,
        expected=lambda v: {(v % 16) * (v // 16) % 16},
        result_bits=RING,
    )
    assert all(counts == found[0] for counts in found)


def test_all_views_of_a_product_three_evaluators() -> None:
    windows = [(2, 0)] * 4
    for corrupted in ((1,), (2,), (1, 2)):
        found = distributions(small_product, [0, 0x33, 0x21], corrupted, windows, evaluators=3)
        assert all(counts == found[0] for counts in found)


def small_truncation(top: int) -> Callable[[Role, int, int], Any]:
    def program(role: Role, lanes: int, value: int) -> Any:
        return shares_of(truncate(constant(role, lanes, value << top).shares(), 61))

    return program


@pytest.mark.parametrize(
    ("evaluators", "corrupted", "width", "dealt"),
    [(2, (1,), 5, (4, 2, 2)), (3, (1, 2), 5, (4, 2, 2)), (3, (2,), 4, (2, 1, 1))],
)
def test_all_views_of_a_truncation(
    evaluators: int, corrupted: tuple[int, ...], width: int, dealt: tuple[int, ...]
) -> None:
    """Z_2^width at the top of the ring, one or two fractional bits, every value that fits."""
    top, cut = 64 - width, width - 3
    found = distributions(
        small_truncation(top),
        range(-(1 << (width - 2)), 1 << (width - 2)),
        corrupted,
        [(width, top), (width, top), *((bits, 0) for bits in dealt)],
        evaluators=evaluators,
        expected=lambda v: {(v >> cut) % 8, ((v >> cut) + (v % (1 << cut) > 0)) % 8},
        result_bits=3,
    )
    assert all(counts == found[0] for counts in found)


def small_form(role: Role, lanes: int, value: int, bits: int) -> Masked:
    """A value modulo 2^bits, as a truncation would give it."""
    x = constant(role, lanes, value)
    early = Early(bits, x.delta, x.lam if role.is_dealer else None)
    return Masked(role, x.shape, x.delta, x.lam, True, early)


def small_sign(bits: int) -> Callable[[Role, int, int], Any]:
    def program(role: Role, lanes: int, value: int) -> Any:
        return shares_of(remask(negative(small_form(role, lanes, value, bits)).shares()))

    return program


def small_thresholds(bits: int, thresholds: Sequence[int]) -> Callable[[Role, int, int], Any]:
    def program(role: Role, lanes: int, value: int) -> Any:
        found = below(small_form(role, lanes, value, bits), thresholds)
        return [shares_of(remask(found.select(i).shares())) for i in range(len(thresholds))]

    return program


def small_relu(role: Role, lanes: int, value: int) -> Any:
    x = constant(role, lanes, value << 60)
    low = small_form(role, lanes, value, 3)
    return shares_of(remask(select(negative(low), x)))


def by(monkeypatch: pytest.MonkeyPatch, way: Plan | Joint) -> None:
    """Compare in this way rather than in the cheapest one."""
    monkeypatch.setattr(less_than, "best", lambda *arguments: way)


def together(bits: int, thresholds: tuple[int, ...]) -> Joint:
    """The way that has most bits in common, whatever it costs."""
    found = comparison_plan._joint(bits, thresholds, 1)
    assert found is not None
    return found[1]


def test_all_views_of_a_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three digits of one bit in one node; all values modulo 2^4."""
    by(monkeypatch, plan(3, (3, 1)))
    found = distributions(
        small_sign(4),
        range(-8, 8),
        (1,),
        [(4, 0), (2, 0), (2, 0)],
        expected=lambda v: {int(v < 0)},
        result_bits=2,
    )
    assert all(counts == found[0] for counts in found)


def test_all_views_of_a_digit() -> None:
    """One digit of three bits: a table and a root."""
    found = distributions(
        small_sign(4),
        range(-8, 8, 3),
        (1,),
        [(4, 0), (2, 0), (2, 0)],
        expected=lambda v: {int(v < 0)},
        result_bits=2,
    )
    assert all(counts == found[0] for counts in found)


@pytest.mark.parametrize("counts", [(3, 1), (2, 1)])
def test_all_views_of_a_sign_three_evaluators(
    counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    by(monkeypatch, plan(counts[0], counts))
    bits = counts[0] + 1
    ends = 1 << counts[0]
    windows = [(bits, 0), (1, 0), (1, 0)]
    found = distributions(small_sign(bits), (-ends, -1, 0, ends - 1), (1, 2), windows, 3)
    assert all(counts == found[0] for counts in found)


def test_all_views_of_two_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each for itself, but for the tables."""
    by(monkeypatch, plan(2, (2, 1)))
    windows = [(3, 0), (1, 0), (1, 0), (1, 0)]
    found = distributions(small_thresholds(3, (0, 1)), range(-3, 4), (1,), windows)
    assert all(counts == found[0] for counts in found)


@pytest.mark.parametrize(("bits", "thresholds"), [(3, (0, 1)), (3, (-2, 0)), (4, (0, 2))])
def test_all_views_of_thresholds_with_common_bits(
    bits: int, thresholds: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Common upper bits, common lower bits, and both."""
    by(monkeypatch, together(bits - 1, thresholds))
    windows = [(bits, 0), (1, 0), *[(1, 0)] * len(thresholds)]
    ends = 1 << (bits - 1)
    secrets = (-ends + max(thresholds), *thresholds, -1, ends + min(thresholds) - 1)
    found = distributions(small_thresholds(bits, thresholds), secrets, (1,), windows)
    assert all(counts == found[0] for counts in found)


def test_all_views_of_a_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    by(monkeypatch, plan(2, (2, 1)))
    windows = [(3, 60), (3, 0), (3, 0), (3, 60), (3, 60)]
    found = distributions(
        small_relu, (-4, -1, 0, 3), (1,), windows, expected=lambda v: {min(v, 0) << 60}
    )
    assert all(counts == found[0] for counts in found)


def test_leak_of_a_wrap_bit_is_counted() -> None:
    """The same in the small ring, where the distributions themselves differ."""

    def program(role: Role, lanes: int, value: int) -> Any:
        x = constant(role, lanes, value << 59)
        mask = role.mask(x.shape)
        opened = role.open(x.shares().shift(1 << 62).part, mask)
        nothing = Mask(np.zeros(x.shape, np.int64))
        top = (mask.words.view(np.uint64) >> np.uint64(63)).view(np.int64)
        m = role.deal(top, x.shape)
        role.open(opened.map(lambda c: np.where(c < 0, 0, m)), nothing)

    windows = [(5, 59), (5, 59), (1, 0)]
    assert len({str(d) for d in distributions(program, (-8, 0, 7), (1,), windows)}) > 1


def test_leak_of_shared_leaf_masks_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One mask for the leaves of two thresholds, everything else as it should be."""
    by(monkeypatch, plan(2, (2, 1)))
    drawn = InsecureEnumeration.planes

    def shared(self: Any, i: int, shape: tuple[int, ...], source: Any) -> Any:
        lanes = self.lanes // 8
        if len(shape) == 2 and shape[0] == 2 and shape[-1] == 2 * lanes:
            half = drawn(self, i, (*shape[:-1], lanes), source)
            return np.concatenate([half, half], axis=-1)
        return drawn(self, i, shape, source)

    monkeypatch.setattr(InsecureEnumeration, "planes", shared)
    windows = [(3, 0), (1, 0), (1, 0), (1, 0)]
    found = distributions(small_thresholds(3, (0, 1)), range(-3, 4), (1,), windows)
    assert any(counts != found[0] for counts in found)
