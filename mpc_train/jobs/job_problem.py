"""One thing wrong in a job, and the number check that every section needs."""

from decimal import Decimal

from mpc_train.jobs.strict_toml import canonical_decimal


class JobProblem(ValueError):
    """One thing wrong in a job, at `key` (like `data.features[3].scale`)."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def number(key: str, value: Decimal) -> Decimal:
    """Return `value` if it is finite and spelt canonically."""
    try:
        return canonical_decimal(value)
    except ValueError as error:
        raise JobProblem(key, str(error)) from error
