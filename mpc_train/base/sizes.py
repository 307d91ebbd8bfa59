"""The first check of a job: whether the other checks can handle its sizes and spelling.

A job comes from elsewhere and is examined before this node's rules are applied. This module takes
time in proportion to the bytes of the job, which a contract limits. After it, no number has an
exponent that would fill memory when written out, no whole number exceeds 64 bits, and no text is
long or contains terminal control characters. The checks of each section bound what follows from
these numbers (rows, steps, weights, values between layers) by multiplication, without creating any
of it. Arrays are created only after the rules have allowed the job.
"""

from decimal import Decimal
from typing import Any

import msgspec

from mpc_train.base.printing import escaped, hidden
from mpc_train.base.problem import JobProblem, number

MAX_TEXT = 1_000
"""The longest name, level, path or text in a job, in characters."""
MAX_WHOLE = 2**63 - 1
MAX_ENTRIES = 100_000
"""The longest list in a job."""

_UNBOUNDED = ("model.network.weights",)
"""Base64 of weights: limited by the shapes that they must fill."""


def check_sizes(part: msgspec.Struct, key: str = "") -> None:
    """Raise JobProblem at the first number, text or list that is too large.

    part: a job, or the value at `key` of one.
    """
    _check(key, part)


def _check(key: str, value: Any) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, Decimal):
        number(key, value)
    elif isinstance(value, int):
        if not -MAX_WHOLE <= value <= MAX_WHOLE:
            raise JobProblem(key, "a whole number of more than 63 bits")
    elif isinstance(value, str):
        _check_text(key, value)
    elif isinstance(value, tuple | list):
        _check_length(key, value)
        for index, item in enumerate(value):
            _check(f"{key}[{index}]", item)
    elif isinstance(value, dict):
        _check_length(key, value)
        for name, item in value.items():
            _check_text(key, name)
            if key not in _UNBOUNDED:
                _check(f"{key}.{name}", item)
    elif isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            _check(f"{key}.{field}" if key else field, getattr(value, field))


def _check_length(key: str, value: Any) -> None:
    if len(value) > MAX_ENTRIES:
        raise JobProblem(key, f"{len(value)} entries, at most {MAX_ENTRIES}")


def _check_text(key: str, text: str) -> None:
    if len(text) > MAX_TEXT:
        raise JobProblem(key, f"a text of {len(text)} characters, at most {MAX_TEXT}")
    unseen = hidden(text)
    if unseen is not None:
        raise JobProblem(
            key, f"{escaped(text[:80])}: contains {unseen}, which is invisible; remove it"
        )
