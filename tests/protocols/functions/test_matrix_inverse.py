"""The inverse of a secret matrix: how exact, how many rounds, and what a singular one gives."""

from fractions import Fraction

import numpy as np
import pytest

from protocols.errors import RangeError
from protocols.functions.matrix_inverse import inverse
from protocols.functions.matrix_inverse_plan import InversePlan, inverse_plan
from protocols.roles.role import Role
from tests.support.loopback import (
    InsecureLoopback,
    combine_masked,
    run_roles,
    secret,
    shares_of,
)


def correlation(size: int, condition: float, seed: int) -> np.ndarray:
    """A correlation matrix, its eigenvalues spread evenly on a logarithmic scale."""
    generator = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(generator.normal(size=(size, size)))
    matrix = turn @ np.diag(np.geomspace(1 / condition, 1, size)) @ turn.T
    length = np.sqrt(np.diag(matrix))
    found: np.ndarray = matrix / length / length[:, None]
    return found


def over_shares(matrix: np.ndarray, plan: InversePlan, evaluators: int = 2) -> np.ndarray:
    words = np.rint(matrix * 2.0**plan.matrix_bits).astype(np.int64)
    found = run_roles(lambda role: shares_of(inverse(secret(role, words), plan)), evaluators)
    return combine_masked(found) / 2.0**plan.inverse_bits


@pytest.mark.parametrize(
    ("size", "condition", "evaluators"), [(1, 1, 2), (2, 10, 3), (6, 300, 2), (31, 5000, 2)]
)
def test_the_inverse_of_a_correlation_matrix(size: int, condition: int, evaluators: int) -> None:
    matrix = correlation(size, condition, size)
    room = 1 << (size - 1).bit_length()
    plan = inverse_plan(size, Fraction(1, room << 13))
    found = over_shares(matrix / room, plan, evaluators) / room
    exact = np.linalg.inv(matrix)
    # The smallest part ends 2^-10 from 1 at least; rounding of T is told apart by its eigenvalues.
    rounding = 2.0**-plan.matrix_bits * size * room * np.linalg.norm(exact, 2)
    allowed = (2.0**-10 + rounding) * np.linalg.norm(exact, 2)
    assert np.linalg.norm(found - exact, 2) <= allowed
    assert (np.abs(np.diag(found) / np.diag(exact) - 1) < 2e-3).all()


def test_a_singular_matrix_stays_within_the_public_bound() -> None:
    matrix = np.full((4, 4), 0.25) / 4 + np.diag([0.1, 0.1, 0, 0])
    plan = inverse_plan(4, Fraction(1, 1 << 15))
    found = over_shares(matrix, plan)
    assert np.isfinite(found).all() and np.abs(found).max() < 2.0**plan.growth
    # Where there is something to invert, it is inverted.
    direction = np.array([1, -1, 0, 0]) / 2**0.5
    assert direction @ matrix @ found @ direction == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("size", [3, 9])
def test_rounds_do_not_depend_on_the_size(size: int) -> None:
    plan = inverse_plan(size, Fraction(1, 1 << 15))

    def program(role: Role) -> int:
        matrix = secret(role, np.eye(size, dtype=np.int64) << (plan.matrix_bits - 2))
        role.finish()
        before = role.rounds
        found = inverse(matrix, plan)
        if not role.is_dealer:
            found.delta.get()
        role.finish()
        return role.rounds - before

    assert run_roles(program, 2)[:2] == [plan.rounds] * 2 == [38, 38]


@pytest.mark.parametrize("value", [1, 3])
def test_bytes_do_not_depend_on_the_matrix(value: int) -> None:
    """Two truncations of each element in a step, one in the first."""
    net, plan = InsecureLoopback(), inverse_plan(4, Fraction(1, 1 << 15))
    words = np.eye(4, dtype=np.int64) * value << (plan.matrix_bits - 3)
    run_roles(lambda role: shares_of(inverse(secret(role, words), plan)), 2, net=net)
    sent = sum(len(payload) for _, payload in net.transcript["p0", "p1"])
    assert sent == words.nbytes + 3272


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(RangeError):
        inverse_plan(4, Fraction(1, 1 << 40))
    with pytest.raises(ValueError, match="planned for 4"):
        run_roles(
            lambda role: inverse(secret(role, np.eye(3, dtype=np.int64)), inverse_plan(4, HALF)), 2
        )


HALF = Fraction(1, 2)
