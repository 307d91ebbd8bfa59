"""What client and server say to each other, and the words for what went wrong.

A message is a MessagePack map of at most 4 KiB, whose field `t` is its type, and, where the type
says so, a second part: a description, a key, a ciphertext or an answer. A request for up to 4,096
records:

    client                              server
    Ask, with the public key            Go
    Give 0, with a ciphertext           Got 0
    …                                   …
    Give n - 1, with a ciphertext       Got n - 1, then Answer 0 … k - 1, with an answer each

The client sends at most `WINDOW` ciphertexts ahead of what the server has got. `Refused` ends the
request, or answers a `Show`. The connection authenticates both ends and encrypts what is said
(`commands.serving`).
"""

from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from mpc_train.errors import QueryError
from mpc_train.homomorphic.parameters import MAX_COLUMNS, MAX_OUTPUTS, OURS, Parameters

WINDOW = 4
MAX_HEAD_BYTES = 4096

_Name = Annotated[str, Meta(max_length=64)]
_Column = Annotated[int, Meta(ge=0, lt=MAX_COLUMNS)]
_Output = Annotated[int, Meta(ge=0, lt=MAX_OUTPUTS)]

MEANINGS: dict[str, str] = {
    "malformed": "it got a message that it cannot read; do both ends run the same release?",
    "order": "it got a message that is not due; do both ends run the same release?",
    "size": "a ciphertext or key has another length; do both ends run the same release?",
    "ciphertext": "a ciphertext or key is malformed",
    "other-key": "a ciphertext is of another key than that of the request",
    "other-scale": "a ciphertext has another scale; do both ends run the same release?",
    "count": "it got another number of ciphertexts than the model has columns",
    "weak-parameters": "the parameters give less than 128-bit security",
    "other-parameters": "the parameters are not those of its release",
    "unknown-model": "it serves no model of this name to this client; its operator lists models "
    "and their clients",
    "changed": "the model has changed since it was described; ask again, and compare",
    "quota": "the rows of this client for today are spent (4,096 for each request, however many "
    "are used)",
    "busy": "it answers as many requests as it can, or one of this client already; try again",
    "unavailable": "it cannot count rows now; its own log says why",
    "model": "the model cannot be served",
    "internal": "an error occurred there; its own log says where",
}
"""What a client is told when its request is refused, by code."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="t"):
    """Base of all messages."""


class Show(Message, frozen=True, tag="show"):
    """Client: describe this model."""

    model: _Name


class Shown(Message, frozen=True, tag="shown"):
    """Server: the description, in the second part."""


class Ask(Message, frozen=True, tag="ask"):
    """Client: a request begins; the public key is in the second part. description: the digest."""

    model: _Name
    description: Annotated[bytes, Meta(min_length=32, max_length=32)]
    parameters: Parameters = OURS


class Go(Message, frozen=True, tag="go"):
    """Server: the request is admitted."""


class Give(Message, frozen=True, tag="give"):
    """Client: the ciphertext of a column, in the second part."""

    column: _Column


class Got(Message, frozen=True, tag="got"):
    """Server: it has computed with this column."""

    column: _Column


class Answer(Message, frozen=True, tag="answer"):
    """Server: the answer of an output, in the second part."""

    output: _Output


class Refused(Message, frozen=True, tag="refused"):
    """Server: the request has ended, for this reason of `MEANINGS`."""

    code: Annotated[str, Meta(max_length=32)]


ToServer = Show | Ask | Give
ToClient = Shown | Go | Got | Answer | Refused

_WITH_PART = (Shown, Ask, Give, Answer)
_TO_SERVER = msgspec.msgpack.Decoder(ToServer)
_TO_CLIENT = msgspec.msgpack.Decoder(ToClient)

Parts = tuple[bytes, ...]
_M = TypeVar("_M")


def encode(message: Message, blob: bytes = b"") -> Parts:
    """The parts of a message."""
    head = msgspec.msgpack.encode(message)
    return (head, blob) if isinstance(message, _WITH_PART) else (head,)


def read_at_server(parts: Sequence[bytes]) -> tuple[ToServer, bytes]:
    """The message of a client, and its second part. Raises QueryError."""
    return _read(_TO_SERVER, parts)


def read_at_client(parts: Sequence[bytes]) -> tuple[ToClient, bytes]:
    """The message of a server, and its second part. Raises QueryError."""
    return _read(_TO_CLIENT, parts)


def _read(decoder: msgspec.msgpack.Decoder[_M], parts: Sequence[bytes]) -> tuple[_M, bytes]:
    if not parts or len(parts[0]) > MAX_HEAD_BYTES:
        raise QueryError("a message is malformed")
    try:
        found = decoder.decode(parts[0])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise QueryError("a message is malformed") from error
    if len(parts) != (2 if isinstance(found, _WITH_PART) else 1):
        raise QueryError("a message has another number of parts")
    return found, parts[1] if len(parts) == 2 else b""
