"""One thing wrong in a job, and the checks that every section needs."""

from collections.abc import Iterable
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


def no_duplicates(key: str, names: Iterable[str]) -> None:
    """Raise JobProblem at the first name that stands there twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise JobProblem(key, f"{name!r} stands there twice")
        seen.add(name)
