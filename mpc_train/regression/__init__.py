"""Generalised linear models by Newton steps over shares, with standard errors."""
