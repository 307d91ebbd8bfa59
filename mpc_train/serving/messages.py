"""What clients, evaluators and the dealer of a service say to one another.

question   client → each evaluator: the model's digest (32 bytes), rows (32 bits), a random name
           (16 bytes) under which the client repeats it if it hears nothing, and at the last
           evaluator its summands as int64 words, by `forward.asked_shapes`, one after the
           other; the other evaluators draw theirs from a stream in common with the client.
           Of 0 rows, to the first evaluator alone: how many rows are left to this client today
answer     0, then this evaluator's summands of the answers, int64[rows, answers]; or 1, the rows
           left (64 bits) and a word of `offered.REFUSALS` in 16 bytes, the rows being 0 unless
           the word is "quota"; or 2, the rows left and 16 zeros
batch      first evaluator → others: what is computed next
again      first evaluator → others: a repeated question whose answer is sent again
order      first evaluator → dealer: how much is made next
missed     each evaluator → each other: units of which it has not heard all parts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import Struct
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta

from mpc_train.base.packed import decoded
from mpc_train.errors import QueryError
from mpc_train.serving.lanes import BUCKETS, WIDE_ROWS
from mpc_train.serving.monitoring.window import MOST_UNITS
from mpc_train.serving.offered import NAME_BYTES, REFUSALS
from parties.agreement.visitors import MAX_NUMBER
from protocols.errors import FrameError
from protocols.roles.streams import Stream

if TYPE_CHECKING:
    from protocols.arrays import Shape, Words
    from protocols.channel import Buffer

ROOT_LABEL = "mpc-train question root v1, question {}"
"""Of the stream that a client has in common with each evaluator but the last, for one question,
whose number this names."""
BATCH, ORDER = b"mpc-train batch v1", b"mpc-train order v1"
MISSED = b"mpc-train missed v1"
AGAIN = b"mpc-train again v1"
MAX_BATCH_BYTES = 1 << 16
_HEAD = Struct(">32sI16s")
HEAD_BYTES = _HEAD.size
"""Of a question, before its words."""
_DONE, _REFUSED, _LEFT = b"\0", b"\1", b"\2"
_SAID = Struct(">cQ16s")
"""Refusals and numbers of rows left, all of one length."""

Shapes = Mapping[str, tuple[tuple[int, int], int]]


class Refused(NamedTuple):
    """code: a word of REFUSALS. left: rows of today, if it is "quota"."""

    code: str
    left: int


Number = Annotated[int, Meta(ge=1, lt=MAX_NUMBER)]


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One question of a batch; visit, number: as of `agreement.visitors.Heard`. rows: as the first
    evaluator has heard it, padded."""

    client: str
    visit: Annotated[bytes, Meta(max_length=16)]
    number: Number
    rows: Annotated[int, Meta(ge=1, le=BUCKETS[-1])]


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """The questions that the next unit of a lane answers, their rows one after the other. None:
    nothing is computed; questions have stopped coming."""

    lane: Annotated[int, Meta(ge=0)]
    parts: Annotated[tuple[Part, ...], Meta(max_length=WIDE_ROWS)]


class Again(msgspec.Struct, frozen=True, array_like=True):
    """The question of a part was answered before, in the unit that `batch` names."""

    part: Part
    batch: Annotated[bytes, Meta(max_length=64)]


class Order(msgspec.Struct, frozen=True, array_like=True):
    lane: Annotated[int, Meta(ge=0)]
    units: Annotated[int, Meta(ge=1, le=1 << 10)]


class Missed(msgspec.Struct, frozen=True, array_like=True):
    """Units of which an evaluator has not heard all parts: their counts say nothing."""

    units: Annotated[
        tuple[tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=0)]], ...],
        Meta(max_length=MOST_UNITS),
    ]


def encoded(message: Batch | Again | Order | Missed) -> bytes:
    return msgspec.msgpack.encode(message)


def batch_from(peer: str, data: Buffer) -> Batch:
    """Raises FrameError."""
    return decoded(data, Batch, FrameError(f"{peer} sent a malformed batch"))


def again_from(peer: str, data: Buffer) -> Again:
    """Raises FrameError."""
    return decoded(data, Again, FrameError(f"{peer} sent a malformed repetition"))


def order_from(peer: str, data: Buffer) -> Order:
    """Raises FrameError."""
    return decoded(data, Order, FrameError(f"{peer} sent a malformed order"))


def missed_from(peer: str, data: Buffer) -> Missed:
    """Raises FrameError."""
    return decoded(data, Missed, FrameError(f"{peer} sent a malformed list of what it has missed"))


def words_in(shapes: Shapes) -> int:
    """Words of a question."""
    return sum(rows * width for (rows, width), _ in shapes.values())


def question_parts(
    digest: str, words: Mapping[str, Words], roots: Sequence[bytes], name: bytes
) -> list[bytes]:
    """At a client: what each evaluator is sent. words: at the scales of `asked_shapes`, its rows
    padded; roots: of this question's streams, one for each evaluator but the last. name:
    NAME_BYTES, the same if the same question is sent again."""
    whole = np.concatenate([each.reshape(-1) for each in words.values()])
    rows = len(next(iter(words.values())))
    head = _HEAD.pack(bytes.fromhex(digest), rows, name)
    for root in roots:
        with np.errstate(over="ignore"):
            whole = whole - _drawn(root, whole.size)
    return [head] * len(roots) + [b"".join((head, whole.astype("<i8", copy=False).data))]


def question_head(client: str, data: memoryview) -> tuple[str, int, bytes]:
    """The model's digest, the number of rows (0: how many are left), and the question's name.
    Raises QueryError."""
    if len(data) < HEAD_BYTES:
        raise QueryError(f"{client} sent a question without a head")
    digest, rows, name = _HEAD.unpack(data[:HEAD_BYTES])
    if rows and rows not in BUCKETS:
        raise QueryError(f"{client} sent a question of {rows} rows; possible: {BUCKETS}")
    return digest.hex(), rows, name


def check_question(client: str, data: memoryview, shapes: Shapes, *, drawn: bool) -> None:
    """drawn: whether this evaluator draws its summands. Raises QueryError for a question of another
    size."""
    size, expected = len(data) - HEAD_BYTES, 0 if drawn else 8 * words_in(shapes)
    if size != expected:
        raise QueryError(f"{client} sent {size} bytes of summands, not {expected}")


def _drawn(root: bytes, count: int) -> Words:
    stream = Stream(root)
    stream.begin_step(0)
    return stream.words(count)


def summands_of(data: memoryview, shapes: Shapes, root: bytes | None) -> dict[str, Words]:
    """This evaluator's summands of a checked question's rows. root: of the question's stream in
    common with the client; None at the last evaluator."""
    if root is not None:
        whole = _drawn(root, words_in(shapes))
    else:
        whole = np.frombuffer(data[HEAD_BYTES:], "<i8").astype(np.int64)
    found, start = {}, 0
    for name, ((rows, width), _) in shapes.items():
        found[name] = whole[start : start + rows * width].reshape(rows, width)
        start += rows * width
    return found


def answer_of(words: Words) -> bytes:
    """At an evaluator."""
    return _DONE + np.ascontiguousarray(words, "<i8").tobytes()


def refusal_of(code: str, left: int = 0) -> bytes:
    """At an evaluator: a word of REFUSALS; for "quota" with the rows that are left today."""
    return _SAID.pack(_REFUSED, left, code.encode())


def left_question(digest: str) -> bytes:
    """At a client: how many rows of today are left of this model."""
    return _HEAD.pack(bytes.fromhex(digest), 0, bytes(NAME_BYTES))


def left_of(left: int) -> bytes:
    """At the first evaluator: rows that are left to a client today."""
    return _SAID.pack(_LEFT, left, b"")


def is_refusal(data: memoryview) -> bool:
    return bytes(data[:1]) == _REFUSED


def answer_from(evaluator: str, data: memoryview, shape: Shape) -> Words | Refused:
    """At a client: an evaluator's summands, or its refusal. Raises QueryError."""
    if bytes(data[:1]) == _DONE and len(data) == 1 + 8 * int(np.prod(shape)):
        return np.frombuffer(data[1:], "<i8").astype(np.int64).reshape(shape)
    said = left_from(evaluator, data)
    if isinstance(said, int):
        raise QueryError(f"{evaluator} sent a malformed answer")
    return said


def left_from(evaluator: str, data: memoryview) -> int | Refused:
    """At a client: the rows that are left today, or a refusal. Raises QueryError."""
    if len(data) == _SAID.size:
        kind, left, said = _SAID.unpack(data)
        code = said.rstrip(b"\0").decode("ascii", "replace")
        if kind == _REFUSED and code in REFUSALS:
            return Refused(code, left)
        if kind == _LEFT and not code:
            return int(left)
    raise QueryError(f"{evaluator} sent a malformed answer")
