"""What the numbers of an array are called: jobs and tables have to agree on it."""

from collections.abc import Sequence
from math import prod


def element_names(name: str, shape: Sequence[int]) -> tuple[str, ...]:
    """The columns that an array's numbers are called by, in C order."""
    return tuple(f"{name}_{number}" for number in range(prod(shape)))
