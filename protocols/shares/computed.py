"""Have values computed now, so that what they came from can go."""

from collections.abc import Iterable

from protocols.arrays import Words
from protocols.roles.deferred import Deferred
from protocols.roles.role import Role
from protocols.shares.masked import Masked


def computed(*values: Masked) -> None:
    """Exchange what is pending and compute these values, so that what they came from can go.

    For rows that are worked on in chunks: a sum that is only asked for at the end keeps the
    intermediate values of all of them until then.
    """
    let_go(values[0].role, [value.delta for value in values])


def let_go(role: Role, awaited: Iterable[Deferred[Words]]) -> None:
    """Exchange what is pending and have `awaited` computed: a dealer awaits nothing."""
    role.finish()
    if not role.is_dealer:
        for words in awaited:
            words.get()
