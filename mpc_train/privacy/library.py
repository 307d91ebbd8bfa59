"""Google's dp-accounting, which converts noise and zCDP to (ε, δ): the only module that imports it.

It is imported when a job has `[privacy]`, because it takes seconds.
"""

from collections.abc import Iterable
from fractions import Fraction
from functools import cache
from math import sqrt
from typing import Any

from mpc_train.errors import ConfigError

ORDERS = tuple(1 + 0.01 * 1.01**k for k in range(1390))
"""Rényi orders up to about 10,000, close enough that the best of them costs less than a ten
thousandth of ε more than the best order. A finite list of orders can only overstate ε."""


def load_library() -> Any:
    """The package `dp_accounting`; raises ConfigError where it is not installed."""
    try:
        import dp_accounting as library
        import dp_accounting.rdp
    except ImportError as error:
        raise ConfigError(
            "a job with [privacy] needs dp-accounting, which is not installed here: "
            'pip install "mpc-train[privacy]"'
        ) from error
    return library


def epsilon_of(rhos: Iterable[Fraction], delta: Fraction) -> float:
    """The ε at this δ of mechanisms that are ρ-zCDP, composed.

    Raises ConfigError where the library is not installed.
    """
    library = load_library()
    accountant = library.rdp.RdpAccountant(ORDERS)
    for rho in rhos:
        accountant.compose(library.ZCDpEvent(float(rho)))
    return float(accountant.get_epsilon(float(delta)))


def epsilon_of_gaussian(multiplier: Fraction, square: Fraction, delta: Fraction) -> float:
    """The exact ε at this δ of continuous Gaussian mechanisms together (Balle and Wang, ICML 2018).

    multiplier: the standard deviation of their noise. square: the sum of their squared
    sensitivities, in the same unit. ConfigError where the library is not installed.
    """
    deviation = sqrt(multiplier**2 / square)
    return float(load_library().get_epsilon_gaussian(deviation, float(delta)))


@cache
def least_multiplier(epsilon: Fraction, delta: Fraction, square: Fraction, unit: int) -> int:
    """The least whole number k for which Gaussian mechanisms with noise of standard deviation
    k / unit are (epsilon, delta)-differentially private together; square: the sum of their squared
    sensitivities.

    Raises OverflowError if none below 2^64 is.
    """

    def suffices(k: int) -> bool:
        return epsilon_of_gaussian(Fraction(k, unit), square, delta) <= epsilon

    above = 1
    while not suffices(above):
        above *= 2
        if above > 1 << 64:
            raise OverflowError("no noise suffices")
    below = above // 2
    while above - below > 1:
        middle = (above + below) // 2
        if suffices(middle):
            above = middle
        else:
            below = middle
    return above
