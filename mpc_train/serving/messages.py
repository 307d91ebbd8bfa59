"""What clients, evaluators and the dealer of a service say to one another.

question   client → each evaluator: the model's digest (32 bytes), rows (32 bits), and at the
           last evaluator its summands as int64 words, by `forward.asked_shapes`, one after the
           other; the other evaluators draw theirs from a stream in common with the client
answer     0, then this evaluator's summands of the answers, int64[rows, answers]; or 1 and a
           word of `offered.REFUSALS`
batch      first evaluator → others: what is computed next
order      first evaluator → dealer: how much is made next
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import Struct
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
from msgspec import Meta

from mpc_train.errors import QueryError
from mpc_train.serving.lanes import BUCKETS
from mpc_train.serving.offered import REFUSALS
from parties.agreement.visitors import MAX_NUMBER
from protocols.errors import FrameError

if TYPE_CHECKING:
    from protocols.arrays import Shape, Words
    from protocols.channel import Buffer
    from protocols.roles.streams import Stream

ROOT_LABEL = "mpc-train question root v1"
"""Of the streams that a client has in common with each evaluator but the last; the number of a
question is the step."""
BATCH, ORDER = b"mpc-train batch v1", b"mpc-train order v1"
MAX_BATCH_BYTES = 1 << 16
_HEAD = Struct(">32sI")
_DONE, _REFUSED = b"\0", b"\1"

Shapes = Mapping[str, tuple[tuple[int, int], int]]

Number = Annotated[int, Meta(ge=1, lt=MAX_NUMBER)]


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One question of a batch; visit, number: as of `agreement.visitors.Heard`. rows: as the first
    evaluator has heard it, padded."""

    client: str
    visit: Annotated[bytes, Meta(max_length=16)]
    number: Number
    rows: Annotated[int, Meta(ge=1, le=BUCKETS[-1])]


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """The questions that the next unit of a lane answers, their rows one after the other."""

    lane: Annotated[int, Meta(ge=0)]
    parts: Annotated[tuple[Part, ...], Meta(max_length=BUCKETS[-1])]


class Order(msgspec.Struct, frozen=True, array_like=True):
    lane: Annotated[int, Meta(ge=0)]
    units: Annotated[int, Meta(ge=1, le=1 << 10)]


def encoded(message: Batch | Order) -> bytes:
    return msgspec.msgpack.encode(message)


def batch_from(peer: str, data: Buffer) -> Batch:
    """Raises FrameError."""
    try:
        return msgspec.msgpack.decode(data, type=Batch)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FrameError(f"{peer} sent a malformed batch") from error


def order_from(peer: str, data: Buffer) -> Order:
    """Raises FrameError."""
    try:
        return msgspec.msgpack.decode(data, type=Order)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FrameError(f"{peer} sent a malformed order") from error


def words_in(shapes: Shapes) -> int:
    """Words of a question."""
    return sum(rows * width for (rows, width), _ in shapes.values())


def question_parts(
    digest: str, words: Mapping[str, Words], streams: Sequence[Stream], number: int
) -> list[bytes]:
    """At a client: what each evaluator is sent. words: at the scales of `asked_shapes`, its rows
    padded; streams: one for each evaluator but the last, `number` not used before."""
    whole = np.concatenate([each.reshape(-1) for each in words.values()])
    rows = len(next(iter(words.values())))
    head = _HEAD.pack(bytes.fromhex(digest), rows)
    for stream in streams:
        stream.begin_step(number)
        with np.errstate(over="ignore"):
            whole = whole - stream.words(whole.size)
    return [head] * len(streams) + [head + whole.astype("<i8").tobytes()]


def question_head(client: str, data: memoryview) -> tuple[str, int]:
    """The model's digest and the number of rows. Raises QueryError."""
    if len(data) < _HEAD.size:
        raise QueryError(f"{client} sent a question without a head")
    digest, rows = _HEAD.unpack(data[: _HEAD.size])
    if rows not in BUCKETS:
        raise QueryError(f"{client} sent a question of {rows} rows; possible: {BUCKETS}")
    return digest.hex(), rows


def summands_of(
    client: str, data: memoryview, shapes: Shapes, stream: Stream | None, number: int
) -> dict[str, Words]:
    """This evaluator's summands of a question's rows. stream: None at the last evaluator. Raises
    QueryError."""
    count = words_in(shapes)
    rest = data[_HEAD.size :]
    if stream is not None:
        if len(rest):
            raise QueryError(f"{client} sent more than the head of a question")
        stream.begin_step(number)
        whole = stream.words(count)
    else:
        if len(rest) != 8 * count:
            raise QueryError(f"{client} sent {len(rest)} bytes of summands, not {8 * count}")
        whole = np.frombuffer(rest, "<i8").astype(np.int64)
    found, start = {}, 0
    for name, ((rows, width), _) in shapes.items():
        found[name] = whole[start : start + rows * width].reshape(rows, width)
        start += rows * width
    return found


def answer_of(words: Words) -> bytes:
    """At an evaluator."""
    return _DONE + np.ascontiguousarray(words).astype("<i8").tobytes()


def refusal_of(code: str) -> bytes:
    """At an evaluator: a word of REFUSALS."""
    return _REFUSED + code.encode()


def is_refusal(data: memoryview) -> bool:
    return bytes(data[:1]) == _REFUSED


def answer_from(evaluator: str, data: memoryview, shape: Shape) -> Words | str:
    """At a client: an evaluator's summands, or the word with which it refuses. Raises
    QueryError."""
    kind, rest = bytes(data[:1]), data[1:]
    if kind == _REFUSED and len(rest) < 32 and (code := bytes(rest).decode("ascii", "replace")):
        if code in REFUSALS:
            return code
    elif kind == _DONE and len(rest) == 8 * int(np.prod(shape)):
        return np.frombuffer(rest, "<i8").astype(np.int64).reshape(shape)
    raise QueryError(f"{evaluator} sent a malformed answer")
