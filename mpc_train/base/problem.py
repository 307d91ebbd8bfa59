"""A fault in a job, and the checks that every section needs."""

import contextlib
from collections.abc import Iterable, Iterator
from decimal import Decimal

from mpc_train.base.strict_toml import canonical_decimal


class JobProblem(ValueError):
    """A fault in a job, at `key` (like `data.features[3].scale`), with the other faults that were
    found."""

    def __init__(self, key: str, message: str, others: "tuple[JobProblem, ...]" = ()) -> None:
        super().__init__(message)
        self.key = key
        self.others = others

    @property
    def said(self) -> list[tuple[str, str]]:
        """Key and message of every fault that was found, each once."""
        found = [(problem.key, str(problem)) for problem in (self, *self.others)]
        return list(dict.fromkeys(found))


class Problems:
    """Collects the problems of checks that do not depend on one another."""

    def __init__(self) -> None:
        self._found: list[JobProblem] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Keep the problem that the block raises, and continue after it."""
        try:
            yield
        except JobProblem as problem:
            self._found += (problem, *problem.others)
        except Exception:
            # A check may stumble over a fault that an earlier one has found.
            if not self._found:
                raise

    def check(self) -> None:
        """Raise JobProblem with all faults that were found, if any."""
        if self._found:
            first, *others = self._found
            raise JobProblem(first.key, str(first), tuple(others))


def number(key: str, value: Decimal) -> Decimal:
    """Return `value` if it is finite and spelt canonically."""
    try:
        return canonical_decimal(value)
    except ValueError as error:
        raise JobProblem(key, str(error)) from error


def interval(key: str, ends: tuple[Decimal, Decimal]) -> tuple[Decimal, Decimal]:
    """Return the ends, spelt canonically, if the first is below the second."""
    least, most = (number(key, end) for end in ends)
    if least >= most:
        raise JobProblem(key, "write [least, largest]")
    return least, most


def no_duplicates(key: str, names: Iterable[str]) -> None:
    """Raise JobProblem at the first name that appears twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise JobProblem(key, f"{name!r} appears twice")
        seen.add(name)
