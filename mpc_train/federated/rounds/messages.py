"""What owners that run no node say to evaluators of a federated job, and what evaluators say to one
another.

question   an owner → evaluators: one octet and what follows
    s  what is going on?                                → first evaluator
    b  an update begins: round (32 bits), a name (128 bits) that the owner has drawn for this update
       → all; each answers with the root of its share of a mask, which it and the dealer know
    p  a piece of the masked update: number of that question (64 bits), offset (64 bits), bytes
                                                               → first evaluator
    k  the key of a round's sum: round (32 bits)        → all
    g  a piece of a round's masked sum: round (32 bits), offset (64 bits)   → first evaluator
answer     0, then what was asked; or 1 and a word of REFUSALS
closed     first evaluator → the others: whose updates are there; and back, which of them they hold
           as well; then who takes part, to all nodes
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Annotated

import msgspec
from msgspec import Meta

from mpc_train.base.packed import decoded
from mpc_train.errors import QueryError
from protocols.arrays import Words
from protocols.channel import Buffer
from protocols.errors import FrameError
from protocols.names import MAX_NAME_BYTES, MAX_ROLE_NAMES
from protocols.roles.streams import KEY_BYTES, one_time

MASK_LABEL = "mpc-train federated mask root v1, {} {}"
"""Of an evaluator's share of the mask of an update, by owner and by the name of the update. The
owner alone chooses that name, so that nobody can make it use a mask twice."""
UPDATE_BYTES = 16
PIECE_BYTES = 1 << 20
PIECE_WORDS = PIECE_BYTES // 8
"""A stream gives the same words in pieces of this size as in one."""
STATE, BEGIN, PIECE, KEY, GET = b"s", b"b", b"p", b"k", b"g"
_TAG = "mpc-train federated {} v1"
CLOSED, HELD, CHOSEN = (_TAG.format(word).encode() for word in ("closed", "held", "chosen"))
STORED, RELEASED, OVER = (_TAG.format(word).encode() for word in ("stored", "released", "over"))
PADDED, SUM, PAD = (_TAG.format(word).encode() for word in ("padded", "sum", "pad"))
MAX_CLOSED_BYTES = 1 << 18
REFUSALS = {
    "late": "the round is over, or has not begun",
    "unknown": "the evaluators do not know this update or this round",
    "malformed": "the question is malformed",
}
ROUND = Struct(">I")
PLACE = Struct(">QQ")
FETCH = Struct(">IQ")

Name = Annotated[str, Meta(max_length=MAX_NAME_BYTES)]
Count = Annotated[int, Meta(ge=0, lt=1 << 40)]


class Arrived(msgspec.Struct, frozen=True, array_like=True):
    """An update that is there. update: its name, which its owner has drawn."""

    owner: Name
    update: Annotated[bytes, Meta(min_length=UPDATE_BYTES, max_length=UPDATE_BYTES)]


class Record(msgspec.Struct, frozen=True, array_like=True):
    """What is public of a round. counted: the owners whose updates are in the sum. left_out: those
    that took part, and whose updates were too large. rows: how often those that count do
    together: Σ rows, or with equal weights their number; 0 where it is secret."""

    round: Annotated[int, Meta(ge=1)]
    counted: Annotated[tuple[Name, ...], Meta(max_length=MAX_ROLE_NAMES)]
    left_out: Annotated[tuple[Name, ...], Meta(max_length=MAX_ROLE_NAMES)]
    rows: Count


class State(msgspec.Struct, frozen=True, array_like=True):
    """opened: the last round whose model the owners may have. gathering: the round for which
    updates are awaited, 0 for none now. run: the session that opened the first round, by which a
    run is told from another of the same job; empty before that."""

    opened: Annotated[int, Meta(ge=0)]
    gathering: Annotated[int, Meta(ge=0)]
    run: Annotated[bytes, Meta(max_length=32)]


Closed = Annotated[tuple[Arrived, ...], Meta(max_length=MAX_ROLE_NAMES)]
Chosen = Annotated[tuple[Arrived, ...], Meta(max_length=MAX_ROLE_NAMES)]


def encoded(message: object) -> bytes:
    return msgspec.msgpack.encode(message)


def closed_from(peer: str, data: Buffer) -> tuple[Arrived, ...]:
    """Raises FrameError."""
    return decoded(data, Closed, FrameError(f"{peer} sent a malformed list of updates"))


def held_from(peer: str, data: Buffer, count: int) -> tuple[bool, ...]:
    """Raises FrameError."""
    octets = bytes(data)
    if len(octets) != count or set(octets) - {0, 1}:
        raise FrameError(f"{peer} sent a malformed list of the updates that it holds")
    return tuple(octet == 1 for octet in octets)


def record_from(peer: str, data: Buffer) -> Record:
    """Raises QueryError."""
    return decoded(data, Record, QueryError(f"{peer} sent a malformed record of a round"))


def state_from(peer: str, data: Buffer) -> State:
    """Raises QueryError."""
    return decoded(data, State, QueryError(f"{peer} sent a malformed state"))


def mask_label(arrived: Arrived) -> str:
    return MASK_LABEL.format(arrived.owner, arrived.update.hex())


def masked(words: Words, roots: Sequence[bytes]) -> Iterator[bytes]:
    """At an owner: its words under the mask of these roots, in pieces of PIECE_BYTES."""
    streams = [one_time(root) for root in roots]
    for start in range(0, words.size, PIECE_WORDS):
        piece = words[start : start + PIECE_WORDS].copy()
        for stream in streams:
            stream.add_words(piece)
        yield piece.astype("<i8", copy=False).tobytes()


def lift(pad: bytes, total: Words) -> None:
    """At an owner: take the pad of an evaluator off a round's sum, in its place.

    `Rounds` has put it on, once; it may be taken off as often as somebody fetches the sum.
    """
    one_time(pad).add_words(total)


def root_from(peer: str, data: memoryview) -> bytes:
    """What an evaluator answers when an update begins. Raises QueryError."""
    if len(data) != KEY_BYTES:
        raise QueryError(f"{peer} sent a malformed root of a mask")
    return bytes(data)


def answer(data: bytes | memoryview) -> bytes:
    return b"\0" + bytes(data)


def refusal(code: str) -> bytes:
    return b"\1" + code.encode()


def is_refusal(data: memoryview) -> bool:
    return bytes(data[:1]) != b"\0"


def answered(peer: str, data: memoryview) -> memoryview:
    """What an evaluator answers. Raises QueryError, whose code is its word if it refuses."""
    if bytes(data[:1]) == b"\0":
        return data[1:]
    code = bytes(data[1:33]).decode("ascii", "replace")
    if bytes(data[:1]) != b"\1" or code not in REFUSALS:
        raise QueryError(f"{peer} sent a malformed answer")
    raise QueryError(f"{peer}: {REFUSALS[code]}", code)


def key_answer(record: Record, pad: bytes) -> bytes:
    return ROUND.pack(len(pad)) + pad + encoded(record)


def key_from(peer: str, data: memoryview, has_pad: bool) -> tuple[bytes, Record]:
    """An evaluator's part of the key of a round's sum. Raises QueryError."""
    expected = KEY_BYTES if has_pad else 0
    if len(data) < ROUND.size or ROUND.unpack(data[: ROUND.size]) != (expected,):
        raise QueryError(f"{peer} sent a malformed key")
    start = ROUND.size + expected
    return bytes(data[ROUND.size : start]), record_from(peer, data[start:])
