"""Computes values now, so that their sources can be freed."""

from collections.abc import Iterable

from protocols.arrays import Words
from protocols.roles.deferred import Deferred
from protocols.roles.role import Role
from protocols.shares.masked import Masked


def computed(*values: Masked) -> None:
    """Exchange what is pending and compute these values, so that their sources can be freed.

    For rows processed in chunks: a sum that is only requested at the end keeps the intermediate
    values of all chunks until then.
    """
    let_go(values[0].role, [value.delta for value in values])


def let_go(role: Role, awaited: Iterable[Deferred[Words]]) -> None:
    """Exchange what is pending and compute `awaited`; a dealer waits for nothing."""
    role.finish()
    if not role.is_dealer:
        for words in awaited:
            words.get()
