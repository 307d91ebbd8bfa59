"""The first look at a job: whether it is of a size and a spelling that the other checks can take.

A job comes from elsewhere and is looked at before this node's rules are asked. What this module
does takes time in proportion to the bytes of the job, which a contract bounds; and after it no
number has an exponent that would fill memory when it is written out, no whole number is beyond 64
bits, no text is long or holds what steers a terminal. What the job would make of these numbers
(rows, steps, weights, values between layers) is bounded by the checks of each section, by
multiplication and without making any of it. Arrays are made once the rules have allowed the job.
"""

from decimal import Decimal
from typing import Any

import msgspec

from mpc_train.base.printing import escaped, hidden
from mpc_train.base.problem import JobProblem, number

MAX_TEXT = 1_000
"""Longest name, level, path or text in a job, in characters."""
MAX_WHOLE = 2**63 - 1
MAX_ENTRIES = 100_000
"""Longest list in a job."""

_UNBOUNDED = ("model.network.weights",)
"""Base64 of weights: bounded by the shapes that they have to fill."""


def check_sizes(part: msgspec.Struct, key: str = "") -> None:
    """Raise JobProblem at the first number, text or list that is out of all proportion.

    part: a job, or what stands at `key` of one.
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
            key, f"{escaped(text[:80])}: holds {unseen}, which does not show; take it out"
        )
