"""What clients, evaluators and the dealer of a service send one another, and its files."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mpc_train.errors import ConfigError, JobError, QueryError
from mpc_train.serving import messages
from mpc_train.serving.forward import asked_shapes
from mpc_train.serving.messages import Again, Batch, Missed, Order, Part
from mpc_train.serving.service import Agreed
from mpc_train.serving.service_file import load_service_file
from mpc_train.shared.description import Description
from protocols.errors import FrameError, ProtocolError
from tests.fuzz.parser import Parser
from tests.fuzz.tables import in_file
from tests.support.served import served_job


@cache
def described() -> Description:
    with TemporaryDirectory() as folder:
        return Description(served_job(Path(folder)), bytes(32).hex())


def question(data: bytes) -> Any:
    """At the last evaluator, who is sent its summands."""
    view = memoryview(bytearray(data))
    _, rows, _ = messages.question_head("clinic", view)
    shapes = asked_shapes(described().job, rows)
    messages.check_question("clinic", view, shapes, drawn=False)
    return messages.summands_of(view, shapes, None)


def asked() -> Sequence[bytes]:
    shapes = asked_shapes(described().job, 1)
    words = {name: np.ones(shape, np.int64) for name, (shape, _) in shapes.items()}
    whole = messages.question_parts(described().digest, words, [], bytes(16))
    return [*whole, messages.left_question(described().digest)]


def read_answer(data: bytes) -> Any:
    return messages.answer_from("ann", memoryview(data), (2, 1))


def answers() -> Sequence[bytes]:
    refused = [messages.refusal_of("busy"), messages.refusal_of("quota", 84)]
    return [messages.answer_of(np.ones((2, 1), np.int64)), *refused]


def read_left(data: bytes) -> Any:
    return messages.left_from("ann", memoryview(data))


def lefts() -> Sequence[bytes]:
    return [messages.left_of(84), messages.refusal_of("not-allowed")]


def from_peer(read: Callable[[str, bytes], Any]) -> Callable[[bytes], Any]:
    return lambda data: read("ann", data)


def visit(data: bytes) -> Any:
    """What a client sends to an evaluator: nothing that it sends raises an error."""
    from parties.agreement import control
    from tests.support.visiting import visitors

    one, _ = visitors()
    one.take(control.Carried("clinic", data, bytes(16)))
    return one


def visited() -> Sequence[bytes]:
    from tests.support.visiting import first_message

    return [first_message(), b"3rest", b"qrest"]


PARSERS: dict[str, Parser] = {
    "question to a service": Parser(
        question, asked, (QueryError,), ("mpc_train.serving.messages",)
    ),
    "answer of a service": Parser(
        read_answer, answers, (QueryError,), ("mpc_train.serving.messages",)
    ),
    "rows that are left at a service": Parser(
        read_left, lefts, (QueryError,), ("mpc_train.serving.messages",)
    ),
    "batch of a service": Parser(
        from_peer(messages.batch_from),
        lambda: [messages.encoded(Batch(0, (Part("clinic", bytes(16), 1, 16),)))],
        (FrameError,),
        ("mpc_train.serving.messages",),
    ),
    "repetition of a service": Parser(
        from_peer(messages.again_from),
        lambda: [messages.encoded(Again(Part("clinic", bytes(16), 1, 16), bytes(40)))],
        (FrameError,),
        ("mpc_train.serving.messages",),
    ),
    "order of a service": Parser(
        from_peer(messages.order_from),
        lambda: [messages.encoded(Order(0, 3))],
        (FrameError,),
        ("mpc_train.serving.messages",),
    ),
    "what an evaluator has missed": Parser(
        from_peer(messages.missed_from),
        lambda: [messages.encoded(Missed(((0, 3), (2, 1))))],
        (FrameError,),
        ("mpc_train.serving.messages",),
    ),
    "body of a service": Parser(
        Agreed.from_bytes,
        lambda: [Agreed.of("house", [described()]).to_bytes()],
        (JobError,),
        ("mpc_train.serving.service",),
    ),
    "file of a service": Parser(
        in_file("service.toml", load_service_file),
        lambda: [b'[service]\nname = "house"\nmodels = ["none.model"]\n'],
        (ConfigError,),
        ("mpc_train.serving.service_file",),
        unread=True,
    ),
    "message of a client's visit": Parser(
        visit, visited, (ProtocolError,), ("parties.agreement.visitors",), costly=True
    ),
}
