"""Differential privacy: how much noise a budget demands, and what each output costs of it."""
