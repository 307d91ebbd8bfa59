"""A client's connection to a service, as `serving.offered.Service`.

Rows leave as summands, one for each evaluator, sealed to each of them; the answers come back in the
same way and are added up here. Neither a part of the question nor a part of the answer says
anything alone.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mpc_train.errors import QueryError, QueryLostError, QueryRefusedError
from mpc_train.serving.offered import CONNECT_S, MOST_ROWS, NAME_BYTES, REFUSALS, Offered
from mpc_train.serving.offers import left_words
from mpc_train.serving.service import Agreed
from parties.errors import PartiesError
from parties.nodes.client import Client, Line, may_pass
from parties.nodes.node import NodeSettings
from protocols.errors import PeerTimeoutError, ProtocolError

if TYPE_CHECKING:
    from mpc_train.owners.local import Local
    from mpc_train.serving.messages import Refused
    from parties.agreement.contract import Contract
    from parties.audit.entries import Kind, Value
    from parties.keys.roster import Roster
    from parties.keys.vault import Vault
    from protocols.arrays import Reals

ANSWER_S = 60.0
LEFT_S = 10.0
"""How long a client waits to hear how many rows are left, which nothing depends on."""
SOON_S = 5.0
"""After this long a client says that it waits."""


class SharedService:
    """An open connection. answer_s: how long one answer may take."""

    def __init__(self, client: Client, connect_s: float, answer_s: float) -> None:
        self._client, self._connect_s, self._answer_s = client, connect_s, answer_s
        self._lock = threading.Lock()
        self._line: Line | None = None
        self._agreed: Agreed | None = None

    @property
    def models(self) -> Mapping[str, tuple[Offered, ...]]:
        line = self._client.line(self._connect_s)
        with self._lock:
            if line is not self._line or self._agreed is None:
                self._line, self._agreed = line, Agreed.from_bytes(line.body)
            agreed = self._agreed
        found: dict[str, tuple[Offered, ...]] = {}
        for model in agreed.offered:
            found[model.name] = (*found.get(model.name, ()), model)
        return found

    def ask(self, model: Offered, rows: Local, name: bytes = b"") -> Reals:
        """As `Service.ask`."""
        # They load PyTorch, for which a client that only looks at what is offered need not wait.
        from mpc_train.serving.answer import values
        from mpc_train.serving.forward import asked_shapes, asked_values
        from mpc_train.serving.lanes import bucket_of
        from protocols.ring.fixed_point import encode

        count = len(rows.values)
        if not 1 <= count <= MOST_ROWS:
            raise QueryError(f"a question has 1 to {MOST_ROWS} rows, not {count}")
        padded = bucket_of(count)
        shapes = asked_shapes(model.job, padded)
        brought = asked_values(model.job, rows)
        words = {}
        for key, (shape, bits) in shapes.items():
            words[key] = np.zeros(shape, np.int64)
            words[key][:count] = encode(brought[key], bits)
        with _losing():
            found = self._asked(model, words, name or secrets.token_bytes(NAME_BYTES))
        return values(model.job, found[:count])

    def left(self, model: Offered) -> int:
        """As `Service.left`. 1 message to the first evaluator, and 1 back."""
        from mpc_train.serving import messages

        with _losing():
            line = self._client.line(LEFT_S)
            first = line.contract.roles.evaluators[0]
            said = {first: messages.left_question(model.digest)}
            # The first answer is the only one.
            answers = self._client.ask(line, lambda _: said, lambda data: True, LEFT_S)
        found = messages.left_from(first, answers[first])
        if isinstance(found, int):
            return found
        raise QueryRefusedError(f"{first}: {REFUSALS[found.code]}", found.code)

    def _asked(self, model: Offered, words: Mapping[str, np.ndarray], name: bytes) -> np.ndarray:
        from mpc_train.serving import messages
        from mpc_train.serving.answer import answer_width

        line = self._client.line(self._connect_s)
        evaluators = line.contract.roles.evaluators

        def parts(number: int) -> dict[str, bytes]:
            label = messages.ROOT_LABEL.format(number)
            roots = [line.export(each, label) for each in evaluators[:-1]]
            said = messages.question_parts(model.digest, words, roots, name)
            return dict(zip(evaluators, said, strict=True))

        size = 8 * sum(each.size for each in words.values())
        answers = self._client.ask(line, parts, messages.is_refusal, self._answer_s, size)
        rows = len(next(iter(words.values())))
        shape = (rows, answer_width(model.job))
        total = np.zeros(shape, np.int64)
        for evaluator, data in answers.items():
            said = messages.answer_from(evaluator, data, shape)
            if isinstance(said, messages.Refused):
                raise QueryRefusedError(f"{evaluator}: {_why(said, model, rows)}", said.code)
            with np.errstate(over="ignore"):
                total += said
        return total


@contextmanager
def _losing() -> Iterator[None]:
    """Inside this context a lost connection is a QueryLostError."""
    try:
        yield
    except (PartiesError, ProtocolError) as error:
        if not may_pass(error):
            raise
        raise QueryLostError(str(error), "unavailable") from error


def _why(refused: Refused, model: Offered, rows: int) -> str:
    """Why a question of so many padded rows is refused."""
    if refused.code != "quota":
        return REFUSALS[refused.code]
    return (
        f"the question counts as {rows:,} rows, and {left_words(model, refused.left)}; ask fewer"
        if refused.left
        else left_words(model, 0)
    )


@contextmanager
def connected(
    vault: Vault,
    roster: Roster,
    settings: NodeSettings,
    note: Callable[[Kind, Mapping[str, Value]], None],
    on_event: Callable[[str, Mapping[str, Any]], None],
    connect_s: float = CONNECT_S,
    answer_s: float = ANSWER_S,
    join_s: float | None = None,
    waits: Callable[[str], None] = lambda why: None,
) -> Iterator[SharedService]:
    """Inside this context a client is connected to a service; it waits until that serves.

    note: writes the audit log. connect_s: how long it waits whenever the service is lost; join_s:
    at first, if that is another time. waits: is told once that, and why, it takes long. Raises
    PartiesError and JobError for a service that this client should not ask, or that does not answer
    in time.
    """

    def check(contract: Contract, body: bytes) -> None:
        agreed = Agreed.from_bytes(body)
        if not agreed.allows(contract.roles):
            raise QueryError("the roles in the service's contract are not those of its models")

    with Client(vault, roster, settings, check, note, on_event) as client:
        join_s = connect_s if join_s is None else join_s
        if join_s > SOON_S:
            try:
                client.line(SOON_S)
            except PeerTimeoutError as error:
                waits(str(error))
        client.line(join_s)
        yield SharedService(client, connect_s, answer_s)
