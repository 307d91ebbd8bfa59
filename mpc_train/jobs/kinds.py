"""Kinds of models, as `[model]` names them, by common properties."""

KINDS = ("linear", "logistic", "poisson", "gamma")
"""Kinds that are regressions."""
LOGARITHMIC = ("poisson", "gamma")
"""Kinds with a logarithmic link."""
NUMBERS = ("linear", *LOGARITHMIC)
"""Kinds that predict a number."""
DISPERSED = ("linear", "gamma")
"""Kinds with a dispersion: standard errors also depend on the sum of squared residuals."""
