"""Fit the piecewise quadratics of `protocols/functions/spline_tables.py` and print that module.

    python tests/vectors/make_splines.py > protocols/functions/spline_tables.py

Each function gets the fewest pieces, from left to right, whose quadratic (interpolation at three
Chebyshev points, then shifted to balance the error) stays within the bound. Knots are multiples of
2^-10 and coefficients are written as integers at scale 2^-44, so that the fixed-point constants
follow from integers alone, whatever the floating-point library of a machine.
"""

from collections.abc import Callable
from math import erf

import numpy as np

SCALE = 1 << 44
KNOT = 1 << 10

HEADER = '''"""Piecewise quadratics, written by tests/vectors/make_splines.py: do not edit by hand.

Each table: the error bound, the knots at scale 2^-10 and for each piece the coefficients of
1, x and x^2 at scale 2^-44. Piece k holds from knot k to knot k + 1; outside, `below` and
`above` hold, at scale 2^-44.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SplineTable:
    """A function on [knots[0], knots[-1]] as piecewise quadratics in x."""

    bound: float
    knots: tuple[int, ...]
    pieces: tuple[tuple[int, int, int], ...]
    below: int
    above: int
    slope: int = 0
    """Added for each unit of x above the last knot, at scale 2^-44."""

'''


def fit(function: Callable, left: float, right: float) -> tuple[np.ndarray, float]:
    nodes = np.cos((2 * np.arange(3) + 1) * np.pi / 6)
    at = (left + right) / 2 + (right - left) / 2 * nodes
    coefficients = np.polynomial.polynomial.polyfit(at, function(at), 2)
    grid = np.linspace(left, right, 400)
    error = np.polynomial.polynomial.polyval(grid, coefficients) - function(grid)
    coefficients[0] -= (error.max() + error.min()) / 2
    return coefficients, (error.max() - error.min()) / 2


def spline(
    function: Callable, left: float, right: float, bound: float, relative: bool
) -> tuple[list, list]:
    """Knots and pieces; `relative`: the error counts against the function's value on its piece."""
    knots, pieces = [round(left * KNOT)], []
    end = round(right * KNOT)
    while knots[-1] < end:
        low, high = knots[-1] + 1, end
        while low < high:
            middle = (low + high + 1) // 2
            _, error = fit(function, knots[-1] / KNOT, middle / KNOT)
            allowed = bound * float(function(middle / KNOT)) if relative else bound
            low, high = (middle, high) if error <= allowed else (low, middle - 1)
        coefficients, _ = fit(function, knots[-1] / KNOT, low / KNOT)
        knots.append(low)
        pieces.append(tuple(round(float(c) * SCALE) for c in coefficients))
    return knots, pieces


def show(
    name: str,
    function: Callable,
    left: float,
    right: float,
    bound: float,
    below: float,
    above: float,
    relative: bool = False,
    slope: float = 0,
) -> None:
    knots, pieces = spline(function, left, right, bound * 0.98, relative)
    print(f"\n{name} = SplineTable(")
    print(f"    bound=2**{np.log2(bound):g},")
    print(f"    knots={tuple(knots)},".replace(", ", ", "))
    print("    pieces=(")
    for piece in pieces:
        print(f"        {piece},")
    print("    ),")
    print(f"    below={round(below * SCALE)},")
    print(f"    above={round(above * SCALE)},")
    if slope:
        print(f"    slope={round(slope * SCALE)},")
    print(")")


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * np.vectorize(lambda value: 0.5 * (1 + erf(value / 2**0.5)))(x)


if __name__ == "__main__":
    print(HEADER, end="")
    show("SIGMOID", sigmoid, -10, 10, 2**-14, 0, 1)
    show("TANH", np.tanh, -5.25, 5.25, 2**-14, -1, 1)
    show("EXP", np.exp, -11, 0, 2**-14, 0, 1)
    show("RECIPROCAL", lambda x: 1 / x, 1, 1024, 2**-14, 1, 0)
    show("RSQRT", lambda x: 1 / np.sqrt(x), 0.25, 1024, 2**-12, 2, 0)
    show("ROOT", lambda x: 1 / np.sqrt(x), 1, 64, 2**-10.8, 1, 0.125, relative=True)
    show("LOG", np.log, 1, 1024, 2**-10, 0, np.log(1024))
    show("SOFTPLUS", lambda x: np.log1p(np.exp(-x)), 0, 9, 2**-14, np.log(2), 0)
    show("SMOOTH_RELU", softplus, -10, 10, 2**-14, 0, 0, slope=1)
    show("GELU", gelu, -4.25, 4.25, 2**-14, 0, 0, slope=1)
    show("SILU", lambda x: x * sigmoid(x), -12.75, 12.75, 2**-14, 0, 0, slope=1)
    show("ELU", np.expm1, -11, 0, 2**-14, -1, 0, slope=1)
