"""The client's side: predictions for a table by a model that it never sees.

The rows are read, checked and prepared as for `mpc-train predict`; the outputs for 4,096 rows at a
time are asked of a server. The link function (sigmoid, softmax, exp, the label's unit) is applied
here.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mpc_train.errors import QueryError, QueryRefusedError
from mpc_train.homomorphic.description import Description
from mpc_train.homomorphic.keys import KeyPair
from mpc_train.homomorphic.messages import (
    MEANINGS,
    WINDOW,
    Answer,
    Ask,
    Give,
    Go,
    Got,
    Message,
    Parts,
    Refused,
    Show,
    Shown,
    ToClient,
    encode,
    read_at_client,
)
from mpc_train.homomorphic.parameters import SLOTS
from mpc_train.owners.local import Local, local_terms
from mpc_train.results.predictions import Predictions
from protocols.arrays import Reals

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.tables.typed import TypedTable


class Line(Protocol):
    """A connection to one server, whose name it has proved."""

    server: str

    def send(self, parts: Parts) -> None:
        """Raises an error that names the server if the connection is lost."""

    def receive(self) -> Sequence[bytes]:
        """The parts of the next message; raises the same, also after a time without one."""


def describe(line: Line, model: str) -> Description:
    """What the server says of a model. Raises QueryRefusedError and QueryError."""
    line.send(encode(Show(model)))
    message, blob = _heard(line)
    if not isinstance(message, Shown):
        raise QueryError(f"{line.server} answered something else than a description")
    return Description.read(blob, model)


@dataclass
class Question:
    """Asks for the outputs of one model over one connection, as often as is needed."""

    line: Line
    keys: KeyPair
    description: Description
    bytes_up: int = field(default=0, init=False)
    bytes_down: int = field(default=0, init=False)

    def outputs(self, local: Local) -> Reals:
        """The model's outputs, float64[rows, outputs], of any number of rows."""
        rows = len(local.values)
        found = np.empty((rows, self.description.job.outputs))
        for first in range(0, rows, SLOTS):
            part = slice(first, min(first + SLOTS, rows))
            found[part] = self._request(Local(local.values[part], local.present[part]))
        return found

    def _request(self, local: Local) -> Reals:
        """1. The request is admitted.
        2. The columns follow each other, each encrypted when there is room for it.
        3. An answer for each output, in order.
        """
        description, columns = self.description, self.description.columns
        rows, due = len(local.values), deque[int]()
        self._send(Ask(description.name, description.digest), self.keys.public)
        self._expect(Go())  # 1
        for column in range(len(columns.names)):  # 2
            if len(due) == WINDOW:
                self._expect(Got(due.popleft()))
            self._send(Give(column), self.keys.encrypt(columns.values(local, column)))
            due.append(column)
        while due:
            self._expect(Got(due.popleft()))
        answers = [  # 3
            self.keys.decrypt(self._expect(Answer(output)), rows)
            for output in range(description.job.outputs)
        ]
        return np.column_stack(answers)

    def _send(self, message: Message, blob: bytes = b"") -> None:
        parts = encode(message, blob)
        self.bytes_up += sum(map(len, parts))
        self.line.send(parts)

    def _expect(self, due: Message) -> bytes:
        """The second part of the message that is due."""
        message, blob = _heard(self.line)
        self.bytes_down += len(blob)
        if message != due:
            raise QueryError(f"{self.line.server} sent something that is not due")
        return blob


def _heard(line: Line) -> tuple[ToClient, bytes]:
    """The next message; raises QueryRefusedError for a refusal."""
    try:
        message, blob = read_at_client(line.receive())
    except QueryError as error:
        raise QueryError(f"{line.server}: {error}") from error
    if isinstance(message, Refused):
        meaning = MEANINGS.get(message.code, "a reason that this release does not know")
        code = message.code if message.code in MEANINGS else "malformed"
        raise QueryRefusedError(f"{line.server} refuses: {meaning}", code)
    return message, blob


@dataclass(frozen=True, repr=False)
class EncryptedPredictor(Predictions):
    """Predictions by a model that is at a server."""

    job: "Job"
    outputs_of: Callable[[Local], Reals]

    @classmethod
    def of(cls, question: Question) -> "EncryptedPredictor":
        return cls(question.description.job, question.outputs)

    def predicted(self, table: "TypedTable") -> list[list[Any]]:
        """The predictions for a table with the job's features."""
        return self.of_outputs(self.outputs_of(local_terms(self.job.pipeline, table)))
