"""Keys that wrap the keys of stored objects, behind one small interface.

A key service never hands out a key that wraps. It keeps old versions for as long as objects need
them: `rotate` makes a new one current, and only the current one wraps. The id of a key names one
key for good: a key that is made anew under an old name has another id.
"""

from typing import Protocol

from parties.errors import RetiredKeyError, WrappedKeyError
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

    def check_rotation(self) -> None:
        """Raise KeyServiceError where `rotate` would fail, as far as that can be told."""

    def retire(self, needed: frozenset[str]) -> tuple[str, ...]:
        """Destroy keys that are neither current nor among the ids `needed`; return their ids."""


def own_part(uri: str, prefix: str, key_id: str) -> str:
    """What follows `prefix`, with which all ids of a service begin, in the id of one of its keys.

    Raises RetiredKeyError for the id of a key of another service.
    """
    if not key_id.startswith(prefix):
        raise RetiredKeyError(
            f"{uri} does not have the key {key_id}: it belongs to another service, which [vault] "
            "key has to name in order to open what it wrapped"
        )
    return key_id.removeprefix(prefix)


def does_not_open(uri: str, key_id: str) -> WrappedKeyError:
    """The error for a wrapped key that does not verify."""
    return WrappedKeyError(
        f"{uri}: the file key does not open with {key_id}: it was altered, or belongs to another "
        "object"
    )
