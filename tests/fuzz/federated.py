"""What owners and evaluators of a federated job send one another."""

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any, cast

import numpy as np

from mpc_train.errors import DataError, QueryError
from mpc_train.federated.limits import Limits
from mpc_train.federated.rounds import messages
from mpc_train.federated.rounds.desk import Desk
from mpc_train.federated.rounds.kept import Kept, Memory
from mpc_train.federated.rounds.messages import Arrived, Record, State
from mpc_train.federated.sealed import SealedRound, sealed_update
from parties.agreement.visitors import Heard
from protocols.errors import FrameError
from tests.fuzz.parser import Parser

VISIT = bytes(16)
BEGIN = messages.BEGIN + messages.ROUND.pack(2) + bytes(messages.UPDATE_BYTES)
RECORD = Record(1, ("ann", "bob"), ("cas",), 40)


def at_the_desk(data: bytes) -> Any:
    """An owner's question at the first evaluator and at another: whatever it is, it is answered."""
    said = []
    for leads in (True, False):
        kept = Kept(Memory(), bytes(32))
        kept.store(RECORD, bytes(80) if leads else bytes(32))
        kept.release(1)
        desk = Desk(cast(Any, None), 10, ("ann",), kept, lambda _: bytes(32), leads=leads)
        desk.open_round(2)
        for number, question in enumerate((BEGIN, data), 1):
            heard = Heard("ann", VISIT, number, memoryview(question), 0.0, cast(Any, None))
            answer = desk._answer(heard)
        said.append(answer)
        if answer[:1] != b"\0":
            assert answer[1:].decode() in messages.REFUSALS
    return said


def questions() -> Sequence[bytes]:
    return [
        messages.STATE,
        BEGIN,
        messages.PIECE + messages.PLACE.pack(1, 0) + bytes(80),
        messages.KEY + messages.ROUND.pack(1),
        messages.GET + messages.FETCH.pack(1, 0),
    ]


def read_key(data: bytes) -> Any:
    return messages.key_from("ann", messages.answered("ann", memoryview(data)), True)


def read_root(data: bytes) -> Any:
    return messages.root_from("ann", messages.answered("ann", memoryview(data)))


def closed(data: bytes) -> Any:
    found = messages.closed_from("ann", data)
    messages.held_from("ann", data[: len(found)], len(found))
    return found


@cache
def sealed_round() -> SealedRound:
    return SealedRound()


LIMITS = Limits(Fraction(1), 3)


def read_sealed(data: bytes) -> Any:
    return sealed_round().mean({"ann": data}, {"ann": 1}, LIMITS, 1)


def sealed() -> Sequence[bytes]:
    return [sealed_update(np.ones(3), LIMITS, 1, "ann", sealed_round().public)]


READS = ("mpc_train.federated.rounds.messages",)
PARSERS: dict[str, Parser] = {
    "question of a federated owner": Parser(
        at_the_desk, questions, (), ("mpc_train.federated.rounds.desk",)
    ),
    "key of a federated round": Parser(
        read_key,
        lambda: [
            messages.answer(messages.key_answer(RECORD, bytes(32))),
            messages.refusal("late"),
        ],
        (QueryError,),
        READS,
        unread=True,
    ),
    "root of a mask of an update": Parser(
        read_root, lambda: [messages.answer(bytes(32))], (QueryError,), READS, unread=True
    ),
    "state of federated rounds": Parser(
        lambda data: messages.state_from("ann", data),
        lambda: [messages.encoded(State(3, 4, bytes(32)))],
        (QueryError,),
        READS,
    ),
    "updates that are there": Parser(
        closed,
        lambda: [messages.encoded((Arrived("cas", bytes(16)),))],
        (FrameError,),
        READS,
        unread=True,
    ),
    "sealed federated update": Parser(
        read_sealed, sealed, (DataError,), ("mpc_train.federated.sealed",), costly=True
    ),
    "kept federated round": Parser(
        lambda data: messages.record_from("ann", data),
        lambda: [messages.encoded(RECORD)],
        (QueryError,),
        ("mpc_train.federated.rounds.kept",),
    ),
}
