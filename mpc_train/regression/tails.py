"""Two-sided p-values of the normal and of Student's distribution, with their digits where small.

Student's: P(|T| > t) = I_x(ν / 2, 1 / 2) with x = ν / (ν + t²), the regularised incomplete beta
function by its continued fraction (DLMF 8.17.22), evaluated by Lentz's method.
"""

from __future__ import annotations

from math import erfc, exp, lgamma, log, sqrt

TINY, ENOUGH, MOST_TERMS = 1e-300, 1e-15, 10_000


def normal_p(z: float) -> float:
    """P(|Z| > |z|) for a standard normal Z."""
    return erfc(abs(z) / sqrt(2))


def student_p(t: float, freedom: float) -> float:
    """P(|T| > |t|) for Student's T with `freedom` > 0 degrees of freedom."""
    if t == 0:
        return 1.0
    x = freedom / (freedom + t * t)
    a, b = freedom / 2, 0.5
    # The fraction converges quickly on one side of the mean; on the other its mirror does.
    if x < (a + 1) / (a + b + 2):
        return _beta(a, b, x, 1 - x)
    return 1 - _beta(b, a, t * t / (freedom + t * t), x)


def _beta(a: float, b: float, x: float, rest: float) -> float:
    """I_x(a, b) for x below (a + 1) / (a + b + 2); rest = 1 - x."""
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log(rest)) / a
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d, c = 1 / _away(1 + even * d), _away(1 + even / c)
        fraction *= c * d
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = 1 / _away(1 + odd * d), _away(1 + odd / c)
        fraction *= c * d
        if abs(c * d - 1) < ENOUGH:
            break
    return front * fraction


def _away(value: float) -> float:
    """The value, kept away from 0."""
    return value if abs(value) > TINY else TINY
