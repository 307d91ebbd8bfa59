"""The four kinds of regression, and the bounds of their rows: public, in rational numbers.

    family     mean          residual       weight       dispersion
    linear     z             y - z          1            mean of squared residuals
    logistic   σ(z)          y - σ(z)       σ(1 - σ)     1
    poisson    exp(z)        y - exp(z)     exp(z)       1
    gamma      exp(z)        y/exp(z) - 1   1            mean of squared residuals (Pearson's)

z is the linear predictor, y the label. The score of a coefficient is the sum of residual · input,
its expected information the sum of weight · input². Weights are those of Newton's method, except
for gamma, where they are Fisher's, as in R and statsmodels. Dispersions are divided by the degrees
of freedom.

Logarithmic links move z outside a stated range to its nearer end.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from mpc_train.jobs.kinds import DISPERSED
from protocols.ring.rational import exponential

FamilyName = Literal["linear", "logistic", "poisson", "gamma"]


@dataclass(frozen=True, slots=True)
class Family:
    """One of the four families. least, most: the range of a linear predictor that is
    exponentiated."""

    name: FamilyName
    least: Fraction = Fraction(-4)
    most: Fraction = Fraction(4)

    @property
    def weights_vary(self) -> bool:
        """Whether weights depend on the coefficients."""
        return self.name in ("logistic", "poisson")

    @property
    def has_dispersion(self) -> bool:
        return self.name in DISPERSED

    @property
    def logarithmic(self) -> bool:
        return self.name in ("poisson", "gamma")

    def most_residual(self, label: Fraction, predictor: Fraction) -> Fraction:
        """The bound of a residual, for labels and linear predictors up to these bounds."""
        if self.name == "linear":
            return label + predictor
        if self.name == "logistic":
            return Fraction(2)
        if self.name == "poisson":
            return label + exponential(self.most)
        return label * exponential(-self.least) + 1

    def most_weight(self) -> Fraction:
        if self.name == "logistic":
            return Fraction(9, 32)
        return exponential(self.most) if self.name == "poisson" else Fraction(1)
