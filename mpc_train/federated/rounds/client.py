"""An owner that runs no node: trains for rounds, comes and goes, and needs no compiler.

It connects through the coordinator as a client of a service does (`parties.nodes.client`), compares
the contract with the job that its own rules allowed, and shakes hands with each evaluator. An
update leaves it under a mask, of which each evaluator has told it a share. Whatever it misses, it
catches up on: the evaluators keep the masked sums of all rounds.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mpc_train.errors import QueryError, RefusedError
from mpc_train.federated.rounds import messages
from mpc_train.federated.rounds.messages import FETCH, PIECE_BYTES, PLACE, ROUND, State
from mpc_train.federated.rounds.told import Told, mean_of
from mpc_train.federated.rules import Global
from parties.errors import PartiesError
from parties.nodes.client import Client, Line, may_pass
from protocols.errors import ProtocolError

if TYPE_CHECKING:
    from mpc_train.federated.local import Owner, Update
    from mpc_train.federated.rounds.begun import Begun
    from mpc_train.jobs.job import Job
    from parties.agreement.contract import Contract, Roles
    from parties.audit.entries import Kind, Value
    from parties.keys.roster import Roster
    from parties.keys.vault import Vault
    from parties.nodes.node import NodeSettings
    from protocols.arrays import Words

log = logging.getLogger(__name__)

PIECES_AT_ONCE = 4
POLL_S, ANSWER_S = 0.5, 120.0


@dataclass
class Waiting:
    """What an owner does between rounds. patience_s: how long the evaluators may be away."""

    patience_s: float
    poll_s: float = POLL_S


class RoundsClient:
    """An owner's part in all rounds of a job.

    on_round: called after each round that was opened. begun: whether the run counts already against
    this owner's budgets.
    """

    def __init__(
        self,
        client: Client,
        job: Job,
        me: str,
        owner: Owner,
        waiting: Waiting,
        on_round: Callable[[Told], None],
        begun: Begun,
    ) -> None:
        self._client, self._job, self._me, self._owner = client, job, me, owner
        self._waiting, self._on_round, self._begun = waiting, on_round, begun
        self._secret = job.sums_sizes
        self._words = owner.limits.size + (1 if self._secret else 0)
        self.model = Global(owner.initial())
        self._run = b""
        """The run to which the model belongs, empty before its first round."""
        self._update: tuple[int, Update] | None = None
        """Of the round that comes next, with its number; what is split anew each time it is
        sent."""
        self._sent: tuple[bytes, int] | None = None
        """The session and the round for which an update is there."""
        self.sent_bytes = 0

    def run(self) -> Global:
        """Take part until all rounds are over; the last global model.

        Raises PeerTimeoutError if the evaluators are away for too long, DataError for an update
        that is not finite, RefusedError if the run is beyond a budget, and what keeps a client from
        connecting.
        """
        lost_since = time.monotonic()
        while True:
            try:
                line = self._client.line(self._waiting.patience_s)
                state = self._state(line)
                lost_since = time.monotonic()
                # What they go back behind they open a second time, with other updates.
                if self.model.round and (state.run != self._run or state.opened < self.model.round):
                    log.info("the evaluators have begun anew, or gone back")
                    self.model, self._update = Global(self._owner.initial()), None
                self._run = state.run
                while self.model.round < state.opened:
                    self._catch_up(line, self.model.round + 1)
                if self.model.round >= self._job.federated.rounds:
                    return self.model  # the evaluators may have ended already
                if state.gathering == self.model.round + 1 and self._sent != (
                    line.sid,
                    state.gathering,
                ):
                    self._begun.enter(line.sid, state.run)
                    self._take_part(line, state.gathering)
                    continue
            except QueryError as error:
                if error.code not in ("late", "unknown"):
                    raise
                log.info("%s", error)
            except (PartiesError, ProtocolError) as error:
                if not may_pass(error) or time.monotonic() - lost_since > self._waiting.patience_s:
                    raise
                log.info("%s", error)
            time.sleep(self._waiting.poll_s)

    def _take_part(self, line: Line, number: int) -> None:
        if self._update is None or self._update[0] != number:
            self._update = number, self._owner.train(self.model.weights, number)
        update = self._update[1]
        words = np.append(update.words, update.rows) if self._secret else update.words
        evaluators = line.contract.roles.evaluators
        question, update_name = [0], os.urandom(messages.UPDATE_BYTES)

        def parts(asked: int) -> dict[str, bytes]:
            question[0] = asked
            return dict.fromkeys(evaluators, messages.BEGIN + ROUND.pack(number) + update_name)

        answers = self._client.ask(line, parts, messages.is_refusal, ANSWER_S)
        told = {name: messages.answered(name, data) for name, data in answers.items()}
        if len(told) != len(evaluators):
            raise QueryError("not every evaluator has answered", "late")
        roots = [messages.root_from(name, told[name]) for name in evaluators]

        def send(offset: int, piece: bytes) -> None:
            head = messages.PIECE + PLACE.pack(question[0], offset)
            self._ask(line, evaluators[0], head + piece, len(piece))

        with ThreadPoolExecutor(PIECES_AT_ONCE) as pool:
            under_way: deque[Future[None]] = deque()
            for place, piece in enumerate(messages.masked(words, roots)):
                under_way.append(pool.submit(send, place * PIECE_BYTES, piece))
                if len(under_way) > PIECES_AT_ONCE:
                    under_way.popleft().result()
            for one in under_way:
                one.result()
        self.sent_bytes += 8 * words.size
        self._sent = line.sid, number

    def _catch_up(self, line: Line, number: int) -> None:
        """Fetch the sum of an opened round, and move the model."""
        evaluators = line.contract.roles.evaluators
        first = evaluators[0]
        said = messages.KEY + ROUND.pack(number)
        answers = self._client.ask(
            line, lambda _: dict.fromkeys(evaluators, said), messages.is_refusal, ANSWER_S
        )
        pads, record = [], None
        for name in evaluators:
            if name not in answers:
                refused, data = next(iter(answers.items()))
                messages.answered(refused, data)
            data = messages.answered(name, answers[name])
            pad, theirs = messages.key_from(name, data, name != first)
            if record is not None and theirs != record:
                raise QueryError(f"{name} and {first} tell different things about round {number}")
            record = theirs
            pads.append(pad)
        assert record is not None
        if record.round != number:
            raise QueryError(f"{first} tells of round {record.round} instead of {number}")
        total = self._fetched(line, first, number)
        with np.errstate(over="ignore"):
            for pad in pads[1:]:
                messages.lift(pad, total)
        mean = mean_of(total, record, self._owner.limits, self._secret)
        self.model.move(self._job.federated, mean)
        update = self._update[1] if self._update is not None and self._update[0] == number else None
        self._on_round(Told.of(self._me, record, update, self._owner.measured(self.model.weights)))

    def _fetched(self, line: Line, first: str, number: int) -> Words:
        octets = np.empty(8 * self._words, np.uint8)

        def fetch(offset: int) -> None:
            data = self._ask(line, first, messages.GET + FETCH.pack(number, offset))
            place = octets[offset : offset + PIECE_BYTES]
            if len(data) != len(place):
                raise QueryError(f"{first} sent {len(data)} bytes of a sum, not {len(place)}")
            place[:] = np.frombuffer(data, np.uint8)

        # The last piece comes last: with it the evaluators know that this owner has the model.
        places = range(0, len(octets), PIECE_BYTES)
        with ThreadPoolExecutor(PIECES_AT_ONCE) as pool:
            list(pool.map(fetch, places[:-1]))
        fetch(places[-1])
        return octets.view("<i8").astype(np.int64, copy=False)

    def _state(self, line: Line) -> State:
        first = line.contract.roles.evaluators[0]
        return messages.state_from(first, self._ask(line, first, messages.STATE))

    def _ask(self, line: Line, evaluator: str, data: bytes, size: int = 0) -> memoryview:
        answers = self._client.ask(
            line, lambda _: {evaluator: data}, lambda _: True, ANSWER_S, size
        )
        return messages.answered(evaluator, answers[evaluator])


@contextmanager
def rounds_client(
    vault: Vault,
    roster: Roster,
    settings: NodeSettings,
    job: Job,
    roles: Roles,
    owner: Owner,
    waiting: Waiting,
    note: Callable[[Kind, Mapping[str, Value]], None],
    on_event: Callable[[str, Mapping[str, Any]], None],
    on_round: Callable[[Told], None],
    begun: Begun,
) -> Iterator[RoundsClient]:
    """Inside this context an owner is connected to the evaluators of its job, or tries to be.

    roles: those of the job. note: writes the audit log. Raises RefusedError, through
    `RoundsClient.run`, if the coordinator speaks of another job.
    """
    body = job.to_bytes()

    def check(contract: Contract, said: bytes) -> None:
        if said != body or contract.roles != roles:
            raise RefusedError(
                f"the coordinator runs another job than {job.name}, digest {job.digest().hex()}, "
                "which this node has checked; nothing was shared. Compare what mpc-train job check "
                "prints at both: the digest covers the job file and the source of its module"
            )

    with Client(vault, roster, settings, check, note, on_event) as client:
        me = vault.card.name
        yield RoundsClient(client, job, me, owner, waiting, on_round, begun)
