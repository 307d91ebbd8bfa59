"""Extremes and rounding down against NumPy."""

import numpy as np
import pytest
from pytest import MonkeyPatch

from protocols.errors import RangeError
from protocols.functions.scaling import extremes, floor_quotient
from protocols.roles.role import Role
from protocols.shares import arithmetic
from protocols.shares.masked import Masked
from tests.support.lockstep import compute
from tests.support.loopback import secret


@pytest.mark.parametrize("owners", [1, 2, 5, 20])
def test_extremes(owners: int) -> None:
    values = np.random.default_rng(owners).integers(-(1 << 40), 1 << 40, (2, 3, owners))

    def program(role: Role, which: int) -> Masked:
        x = secret(role, values)
        return extremes(x.select(0), x.select(1))[which]

    np.testing.assert_array_equal(compute(lambda role: program(role, 0)), values[0].min(-1))
    np.testing.assert_array_equal(compute(lambda role: program(role, 1)), values[1].max(-1))


@pytest.mark.parametrize("bits", [1, 7, 20, 45, 61, 62])
def test_floor_is_exact(bits: int) -> None:
    draw = np.random.default_rng(bits).integers(-(1 << 62), 1 << 62, 60)
    edges = np.array([0, 1, -1, 1 << bits, (1 << bits) - 1, -(1 << bits), -(1 << bits) - 1])
    values = np.concatenate([draw, edges[np.abs(edges.astype(object)) < 1 << 62]]).astype(np.int64)

    def program(role: Role) -> Masked:
        return floor_quotient(secret(role, values).shares(), bits)

    np.testing.assert_array_equal(compute(program), values >> bits)


def test_floor_does_not_go_by_a_number_in_place_of_its_own(monkeypatch: MonkeyPatch) -> None:
    """Leaving more bits out of other truncations makes them worse, and this one not."""
    monkeypatch.setattr(arithmetic, "ROUNDING_BITS", 1)
    values = np.arange(-3000, 3000, dtype=np.int64) // 3 << 39

    def program(role: Role) -> Masked:
        return floor_quotient(secret(role, values).shares(), 40)

    np.testing.assert_array_equal(compute(program), values >> 40)


def test_floor_by_an_impossible_number_of_bits() -> None:
    with pytest.raises(RangeError, match="1 to 62"):
        compute(lambda role: floor_quotient(secret(role, np.array([1])).shares(), 63))
