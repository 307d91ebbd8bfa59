"""Keys that wrap the keys of stored objects, behind one small interface.

A key service never hands out a key that wraps. It keeps old versions for as long as objects need
them: `rotate` makes a new one current, and only the current one wraps.
"""

from typing import Protocol

from protocols.sealing.stored import KeyWrapper


class KeyService(KeyWrapper, Protocol):
    """Raises KeyServiceError from every method."""

    @property
    def uri(self) -> str:
        """What names this service in a node's file; holds no secret."""

    @property
    def current(self) -> str:
        """The id of the key that wraps now, as `wrap` returns it."""

    def rotate(self) -> str:
        """Make a new key the current one; return its id."""

    def retire(self, needed: frozenset[str]) -> tuple[str, ...]:
        """Destroy keys that are neither current nor among the ids `needed`; return their ids."""
