"""Kinds of models, as `[model]` names them, and what they have in common."""

KINDS = ("linear", "logistic", "poisson", "gamma")
"""Those that are regressions."""
LOGARITHMIC = ("poisson", "gamma")
"""Those with a logarithmic link."""
NUMBERS = ("linear", *LOGARITHMIC)
"""Those that predict a number."""
DISPERSED = ("linear", "gamma")
"""Those with a dispersion: standard errors follow from the sum of squared residuals as well."""
