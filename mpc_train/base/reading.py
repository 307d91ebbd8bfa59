"""The form of a revealed metric."""

from typing import Any

Reading = float | None | list[Any]
"""None: refused or undefined. A confusion matrix has a row of counts for each true class; a
calibration has for each bin its mean probability and the share of positives, or None."""

MAX_FIGURES = 10_000
"""The most numbers in one metric: a confusion matrix of a hundred classes."""
MAX_DEPTH = 3
MOST = 2.0**60
"""No metric gives numbers beyond this."""


def is_reading(value: Any) -> bool:
    """Whether a received value is a metric: a number, None, or lists of these within the size
    limit."""
    return 0 <= _figures(value, MAX_DEPTH) <= MAX_FIGURES


def _figures(value: Any, depth: int) -> int:
    """How many numbers a metric has; less than 0 if the value is not a metric."""
    if isinstance(value, list):
        counts = [_figures(part, depth - 1) for part in value] if depth else [-1]
        return -1 if min(counts, default=0) < 0 else sum(counts)
    if value is None:
        return 1
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return 1 if is_number and abs(value) < MOST else -1
