"""The column names of an array's numbers, on which jobs and tables must agree."""

from collections.abc import Sequence
from math import prod


def element_names(name: str, shape: Sequence[int]) -> tuple[str, ...]:
    """The column names of an array's numbers, in C order."""
    return tuple(f"{name}_{number}" for number in range(prod(shape)))
