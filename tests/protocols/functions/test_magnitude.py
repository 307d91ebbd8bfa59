"""Secret numbers of any size against NumPy, from a single unit to the ends of the ring."""

import numpy as np
import pytest

from protocols.functions.magnitude import exactly, inverse_root, magnitude, reciprocal, shifted
from protocols.ring.rational import MANTISSA_BITS
from protocols.roles.role import Role
from protocols.shares.arithmetic import remask
from protocols.shares.masked import Masked, concatenate
from tests.support.lockstep import compute
from tests.support.loopback import secret
from tests.support.magnitudes import check_shifts, shifts

ONE = float(1 << MANTISSA_BITS)


@pytest.mark.parametrize("evaluators", [2, 3, 5])
def test_every_octave_is_shifted_exactly(evaluators: int) -> None:
    ends = [(1 << k) + more for k in range(1, 40) for more in (-1, 0, 1)]
    values = np.array([0, *ends, (1 << 40) - 1])

    def program(role: Role) -> Masked:
        return concatenate([one.reshape(1, -1) for one in shifts(secret(role, values))])

    check_shifts(values, list(compute(program, evaluators)))


@pytest.mark.parametrize("exponent", [63, 64, 70, 200])
def test_multiples_of_the_ring_are_nothing(exponent: int) -> None:
    """Modulo 2^64, as whoever multiplies a number with such a factor needs it."""
    values = np.array([0, 1, 2, 3, -5], np.int64)

    def program(role: Role) -> Masked:
        x = secret(role, values)
        return remask(shifted(x, 4, magnitude(x, [0]), [0, exponent]))

    expected = [(int(v) << (exponent if v >= 0 else 0)) % (1 << 64) for v in values]
    assert [int(found) % (1 << 64) for found in compute(program)] == expected


def test_nothing_is_left_of_what_is_shifted_far_down() -> None:
    """And a zero stays one: constant columns are told by it."""
    values = np.array([0, 1, (1 << 43) - 1, -(1 << 43)], np.int64)

    def program(role: Role) -> Masked:
        x = secret(role, values)
        return remask(shifted(x, 43, magnitude(x, [1]), [-100, -50]))

    found = compute(program)
    assert found[0] == 0 and np.abs(found).max() <= 1


def test_a_level_needs_its_number() -> None:
    with pytest.raises(ValueError, match="for each level"):
        compute(lambda role: remask(magnitude(secret(role, np.array([1])), [4, 8]).chosen([1, 2])))


@pytest.mark.parametrize("evaluators", [2, 3])
def test_reciprocals_and_roots_are_exact_to_their_last_bits(evaluators: int) -> None:
    u = np.unique(np.concatenate([np.linspace(1, 2, 333)[:-1], [1 + 1 / ONE, 2 - 1 / ONE]]))

    def inverse(role: Role) -> Masked:
        return reciprocal(secret(role, np.rint(u * ONE).astype(np.int64)))

    found = compute(inverse, evaluators) / ONE
    np.testing.assert_allclose(found, ONE / np.rint(u * ONE), atol=2.0**-26, rtol=0)
    v = np.unique(np.concatenate([u, 2 * u]))

    def root(role: Role) -> Masked:
        return inverse_root(secret(role, np.rint(v * ONE).astype(np.int64)))

    found = compute(root, evaluators) / ONE
    np.testing.assert_allclose(found, (np.rint(v * ONE) / ONE) ** -0.5, atol=2.0**-26, rtol=0)


def test_rounding_keeps_zeros() -> None:
    """Unlike `truncate`, which rounds a number in the place of its own."""
    zeros = np.zeros(4000, np.int64)
    found = compute(lambda role: exactly(secret(role, zeros).shares(), 61))
    assert not found.any()


def test_docstrings_say_the_rounds() -> None:
    rounds: dict[str, int] = {}

    def counted(name: str, program: object) -> None:
        def run(role: Role) -> Masked:
            result = program(secret(role, np.array([3 << MANTISSA_BITS - 1])))  # type: ignore[operator]
            result.delta.get() if not role.is_dealer else None
            rounds[name] = max(rounds.get(name, 0), role.rounds)
            return result

        compute(run)

    counted("reciprocal", reciprocal)
    counted("root", inverse_root)
    assert rounds == {"reciprocal": 15, "root": 19}
