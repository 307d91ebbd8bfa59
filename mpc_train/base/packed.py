"""Messages of peers in MessagePack."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

if TYPE_CHECKING:
    from protocols.channel import Buffer

T = TypeVar("T")


def decoded(data: Buffer, kind: type[T], error: Exception) -> T:
    """A message of this kind. Raises `error` if it is malformed."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as cause:
        raise error from cause
