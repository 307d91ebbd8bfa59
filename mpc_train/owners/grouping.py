"""Puts the rows of one group (a patient, a household) into the same part of the split, at their
owner.

The job says how many of an owner's rows are for training, for early stopping, and held out. The
owner orders its rows so that no group lies in two parts: it takes groups in a keyed public order as
long as they fit. Nobody else learns the groups, their sizes or their parts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_ORDERS = 64
"""How many orders are tried before the sizes count as impossible."""


class GroupError(ValueError):
    """Groups cannot be divided as the job says."""


def check_most_rows(groups: Sequence[str], most: int) -> None:
    """Raise GroupError if a group has more than `most` rows: the guarantee of `[privacy]` would not
    hold for it."""
    largest = max(Counter(groups).values(), default=0)
    if largest > most:
        raise GroupError(
            f"has up to {largest} rows with the same identifier, but privacy.most_rows = {most}; "
            "agree on a larger number, or remove rows"
        )


def grouped_order(groups: Sequence[str], parts: Sequence[int], seed: int) -> NDArray[np.int64]:
    """The rows in the order of the parts, of parts[k] rows each; their sum is len(groups).

    groups: the group of each row. Raises GroupError if no order that was tried fills the parts
    exactly.
    """
    sizes = Counter(groups)
    for attempt in range(MAX_ORDERS):
        place = _placed(sizes, parts, seed, attempt)
        if place is not None:
            return np.argsort([place[group] for group in groups], kind="stable").astype(np.int64)
    largest = max(sizes.values())
    raise GroupError(
        f"{len(sizes)} groups of up to {largest} rows cannot be divided into parts of "
        f"{', '.join(map(str, parts))} rows; change data.test_fraction a little, or remove rows"
    )


def _placed(
    sizes: Counter[str], parts: Sequence[int], seed: int, attempt: int
) -> dict[str, int] | None:
    """The part of each group, or None. Small parts are filled first, from the end."""
    left = list(parts)
    found: dict[str, int] = {}
    for group in sorted(sizes, key=lambda name: _key(name, seed, attempt)):
        fits = [part for part in reversed(range(len(left))) if left[part] >= sizes[group]]
        if not fits:
            return None
        found[group] = fits[0]
        left[fits[0]] -= sizes[group]
    return found


def _key(group: str, seed: int, attempt: int) -> bytes:
    label = f"mpc-train/v1/group/{seed}/{attempt}/".encode()
    return hashlib.sha256(label + group.encode()).digest()
