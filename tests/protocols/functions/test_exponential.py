"""exp with a relative error over its range, and what it costs."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import RangeError
from protocols.functions.exponential import exponential_bits, relative_exp
from protocols.roles.role import Role
from protocols.shares.arithmetic import truncate
from tests.support.loopback import combine_masked, run_roles, secret, shares_of

F, KEPT = 20, 28


def over_shares(x: np.ndarray, least: Fraction, most: Fraction, evaluators: int = 2) -> np.ndarray:
    words = np.rint(x * 2.0**F).astype(np.int64)

    def program(role: Role) -> tuple:
        z = relative_exp(secret(role, words), F, least, most)
        return shares_of(truncate(z, exponential_bits(most) - KEPT))

    return combine_masked(run_roles(program, evaluators)) / 2.0**KEPT


@pytest.mark.parametrize(
    ("evaluators", "least", "most"), [(2, -4, 4), (3, -1, 3), (2, -8, 2), (2, 0, Fraction(1, 2))]
)
def test_digits_of_small_and_large_values(evaluators: int, least: int, most: Fraction) -> None:
    low, high = Fraction(least), Fraction(most)
    x = np.linspace(float(low) - 2, float(high) + 2, 1501)
    found = over_shares(x, low, high, evaluators)
    exact = np.exp(np.clip(x, float(low), float(high)))
    # x is rounded to half a unit, b once more, and the result to a unit.
    assert (np.abs(found / exact - 1) <= 2.0**-19 + 2.0**-KEPT / exact).all()


@settings(max_examples=15, deadline=None)
@given(
    st.integers(-16, 10),
    st.integers(1, 12),
    st.lists(st.floats(-20, 20), min_size=1, max_size=9),
)
def test_any_range(low: int, pieces: int, values: list[float]) -> None:
    least = Fraction(low, 2)
    most = least + Fraction(pieces, 2)
    x = np.array(values)
    found = over_shares(x, least, most)
    exact = np.exp(np.clip(x, float(least), float(most)))
    assert (np.abs(found / exact - 1) <= 2.0**-19 + 2.0**-KEPT / exact).all()


def test_eight_rounds_however_many_pieces() -> None:
    def program(role: Role) -> int:
        x = secret(role, np.array([1 << 20, -(1 << 21)]))
        role.finish()
        before = role.rounds
        z = relative_exp(x, F, Fraction(-4), Fraction(4))
        if not role.is_dealer:
            z.part.get()
        role.finish()
        return role.rounds - before

    assert run_roles(program, 2)[:2] == [8, 8]


@pytest.mark.parametrize(
    ("bits", "least", "most"), [(23, -1, 1), (20, 1, 1), (20, Fraction(1, 3), 1)]
)
def test_what_does_not_fit_is_refused(bits: int, least: Fraction, most: int) -> None:
    def program(role: Role) -> None:
        relative_exp(secret(role, np.array([1])), bits, Fraction(least), Fraction(most))

    with pytest.raises(RangeError):
        run_roles(program, 2)
