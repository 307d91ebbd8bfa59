"""Products with 1 / sqrt(x) over the whole range of x, and what they cost."""

from fractions import Fraction

import numpy as np
import pytest

from protocols.errors import RangeError
from protocols.functions.inverse_root import times_inverse_root
from protocols.ring.rational import ROOT_BITS, root, root_range
from protocols.roles.role import Role
from protocols.shares.arithmetic import truncate
from tests.support.loopback import combine_masked, run_roles, secret, shares_of

RELATIVE = 2.0**-10.8 + 2.0**-11
"""The spline, and v rounded to a multiple of 2^-10 at its lowest, 1."""


@pytest.mark.parametrize("evaluators", [2, 3])
@pytest.mark.parametrize(("least", "most"), [(1, 63), (16, 2**40), (2**9, 2**54)])
def test_the_quotient_is_right_all_over_its_range(evaluators: int, least: int, most: int) -> None:
    where = root_range(least, most)
    generator = np.random.default_rng(3)
    exponents = generator.uniform(np.log2(least), np.log2(most), 400)
    x = np.clip(np.exp2(exponents), least, most).astype(np.int64)
    x[:4] = least, most, least + 1, most - 1
    # A quotient of up to 2^16, and a factor with 2^20 of it at most.
    ratio = generator.uniform(-1, 1, x.size)
    factor = np.rint(ratio * np.sqrt(x)).astype(np.int64)
    scale = Fraction(1 << 15)

    def program(role: Role) -> tuple:
        z = times_inverse_root(secret(role, factor), secret(role, x, 1), where, scale)
        return shares_of(truncate(z, ROOT_BITS))

    found = combine_masked(run_roles(program, evaluators))
    exact = factor / np.sqrt(x) * float(scale)
    # The factor is rounded to a unit before the root multiplies it, the result once more.
    allowed = np.abs(exact) * (RELATIVE + 2.0**-12) + 2
    assert (np.abs(found - exact) <= allowed).all()
    # A wrong octave would be off by a factor of eight; the typical error is far below the bound.
    assert np.abs(found - exact).mean() <= allowed.mean() / 2


def test_nine_rounds_however_many_octaves() -> None:
    def program(role: Role) -> int:
        x = secret(role, np.array([1 << 30, 1 << 40]))
        factor = secret(role, np.array([5, 1 << 20]))
        role.finish()
        before = role.rounds
        z = times_inverse_root(factor, x, root_range(1 << 10, 1 << 50), Fraction(1, 8))
        z.part.map(lambda words: words)
        role.finish()
        if not role.is_dealer:
            z.part.get()
        return role.rounds - before

    assert run_roles(program, 2)[:2] == [9, 9]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(RangeError):
        root_range(0, 5)
    with pytest.raises(RangeError):
        root_range(1, 1 << 62)


def test_public_roots_are_exact() -> None:
    assert root(Fraction(49, 4)) == Fraction(7, 2)
    two = root(Fraction(2))
    assert abs(two * two - 2) < Fraction(1, 1 << 58)
    assert root(Fraction(0)) == 0
    tiny = Fraction(3, 1 << 90)
    assert abs(root(tiny) ** 2 / tiny - 1) < Fraction(1, 1 << 58)
