"""A node: connects to the coordinator, agrees to a job, runs its part. One program for all roles.

Guarantees that no share leaves before every node's signature on the same contract has been verified
here, this node's own rules allow the job (`Program.prepare`), all nodes signed one session id that
includes this node's nonce, and every neighbour confirmed it under pairwise keys.

The control connection has a thread of its own, so that an abort arrives while the main thread
computes; the program and the data plane stay in the main thread.

1. Connect and introduce ourselves.
2. Check the proposed contract: version, roster, roles, body; then our own rules.
3. Sign it with a fresh nonce and our constants' digest; verify everybody else's acceptance.
4. Compute the session id from all nonces, sign it and a checkpoint of our audit log, verify
   everybody's signature; keep everybody's checkpoint in our log (`witness`).
5. Connect to the neighbours, shake hands, confirm, and run.
6. Report that we are done, with our part of the results. When all are, check the statement of all
   results against what we saw ourselves and sign it.
7. Stay until all have signed; verify everybody's signature.

What this does to anybody's secrets is in the audit log before it happens: the signature, the start,
each opening. A log that cannot be written ends the run.

When a node leaves before the start and comes back, the coordinator proposes the same contract
again: 3 and 4 are repeated, with a fresh nonce; 2 is not.
"""

import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from parties.agreement import control
from parties.agreement.contract import (
    CONTRACT_VERSION,
    SESSION_PURPOSE,
    Acceptance,
    Contract,
    describe_trust,
    resumed_from,
    session_statement,
    verify_acceptances,
    verify_session,
)
from parties.agreement.control import FromCoordinator, FromNode, clip
from parties.agreement.result import Record, Statement, sign_result
from parties.agreement.session import Program, Scalar, Session, confirm, session_info, shake_hands
from parties.agreement.visitors import Visitors
from parties.audit import witness
from parties.audit.entries import Kind, Value
from parties.audit.log import AuditLog
from parties.errors import (
    AbortedError,
    AuditError,
    CardError,
    ContractError,
    ControlError,
    PartiesError,
    RosterError,
    TransportError,
)
from parties.keys import lifetime
from parties.keys.identity import Card
from parties.keys.live import LiveIdentity
from parties.keys.roster import Roster, differing_cards, roster_digest
from parties.keys.vault import Vault
from parties.nodes import artifacts
from parties.nodes.coordinator import ABORT_LINGER_S, MAX_WAITING, Event, ignore_event
from parties.nodes.dialling import await_connection, try_neighbours
from parties.nodes.members import Members
from parties.nodes.rotation import Message, Rotations, Running
from parties.stop import StopFlag, sigterm_interrupts
from parties.wire.control_plane import RECONNECT_S, ControlClient
from parties.wire.data_plane import DataPlane
from parties.wire.proxy import Proxy
from parties.wire.secure_channel import SecureChannel
from parties.wire.zmq_transport import CurveKeys, Transport
from protocols.errors import InterruptedRunError, PeerLostError, PeerTimeoutError, ProtocolError

log = logging.getLogger(__name__)

_M = TypeVar("_M")
_CODE = re.compile(r"[a-z0-9-]{1,32}")

REASON_WAIT_S = 1.5
"""How long the coordinator's explanation takes after a neighbour was lost."""

SLICE_S = 0.2
STOPPED = "stopped"

PROGRESS_S = 0.1
"""The interval between progress messages: each of them wakes a thread that takes the
interpreter."""


@dataclass(frozen=True)
class NodeSettings:
    """Where the coordinator is, whether peers may dial us, and how long to wait, in seconds."""

    coordinator: str
    """The coordinator's name in the roster."""

    address: str
    """tcp://host:port of the coordinator"""

    run_dir: Path
    listen: str | None = None
    advertise: str | None = None
    connect_timeout_s: float = 120.0
    agree_timeout_s: float = 3600.0
    """Limit for the other nodes to arrive and agree: somebody may have to start them by hand."""

    peer_timeout_s: float = 300.0
    """After this long without a frame a connected neighbour is given up."""

    return_timeout_s: float = 0.0
    """How long a coordinator that is lost during a run may take to come back; 0: the run ends."""
    reconnect_s: float = RECONNECT_S
    """How long a neighbour or the coordinator may take to come back when the connection broke; 0:
    the run ends."""

    pulse: tuple[float, float] | None = None
    """Seconds between heartbeats, and after how many without an answer a connection counts as
    broken; of two ends the smaller values hold."""

    dial_timeout_s: float = 8.0
    """A neighbour that has not answered a first call by then gets its frames through the relay."""

    proxy: Proxy | None = None
    """Through which the node dials the coordinator and the others."""


@dataclass(frozen=True)
class NodeResult:
    """What the program returned, and which sealed files were delivered to this node."""

    summary: Mapping[str, Any]
    sid: bytes
    bytes_sent: int
    bytes_received: int
    files: tuple[Path, ...]
    roster: Roster
    """With the cards of the run, of which some may have succeeded others."""
    record: bytes
    """The results with the signatures of all nodes, verified: see `result.Record`. Empty if this
    node left before there were any (`Program.leaving`)."""


class _ControlThread(threading.Thread):
    """The control connection: sends the node's messages and sorts the received ones."""

    def __init__(
        self,
        client: ControlClient,
        me: str,
        coordinator: str,
        stop: StopFlag,
        root: Path,
        on_event: Event,
        check: Callable[[], None],
        take: Callable[[Message], None],
        on_away: Callable[[Collection[str]], None],
        carried: Callable[[control.Carried], None],
    ) -> None:
        super().__init__(name="control", daemon=True)
        self._check, self._take, self._on_away = check, take, on_away
        self._carried = carried
        self._client = client
        self._me = me
        self._coordinator = coordinator
        self._stop_flag = stop
        self._on_event = on_event
        self._outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[FromCoordinator] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._finished = False
        self.linger_s = ABORT_LINGER_S
        self.state = "connecting"
        self.away: Collection[str] = ()
        """Nodes whose connection to the coordinator is broken now."""
        self.delivered = artifacts.Collector(root)

    @property
    def trouble(self) -> str | None:
        """A text that says why there is no connection yet; None if nothing is known to be wrong."""
        return self._client.trouble

    def say(self, message: FromNode) -> None:
        """From any thread: queue a message to the coordinator."""
        self._outbox.put(control.encode(message))
        self._client.wake()

    def expect(self, kind: type[_M] | tuple[type[_M], ...], timeout_s: float, what: str) -> _M:
        """The next message, which must be of `kind`. Raises the error that stopped the node
        meanwhile."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._stop_flag.check(f"waiting for {what}")
            try:
                message: Any = self._inbox.get(timeout=0.1)
            except queue.Empty:
                if time.monotonic() > deadline:
                    raise TransportError(f"{what} did not come within {timeout_s:.0f} s") from None
                continue
            if not isinstance(message, kind):
                raise ControlError(
                    f"{self._coordinator} sent {type(message).__name__} instead of {what}"
                )
            return message

    def finish(self) -> None:
        """Send what is queued, close, and end the thread."""
        self._closing.set()
        self._client.wake()
        self.join(timeout=self.linger_s + 5)

    def run(self) -> None:
        try:
            while not (self._closing.is_set() and self._outbox.empty()):
                while self._client.has_room and not self._outbox.empty():
                    self._client.send(self._outbox.get())
                self._look()
                data = self._client.poll(0.25)
                # Take the state before the last poll: messages from before a break are still read,
                # above all the reason for it.
                state = self._client.state()
                if data is None and state == "lost":
                    data = self._client.poll(0)
                # A coordinator that never stops talking cannot keep a node that wants to end.
                while data is not None and not self._closing.is_set():
                    self._sort(control.decode_from_coordinator(data, self._coordinator))
                    data = self._client.poll(0)
                self._watch(state)
                if state == "lost" and not self._finished:
                    raise AbortedError("coordinator-lost", self._coordinator)
        except Exception as error:
            self._stop_flag.set(error)
        finally:
            self._client.close(self.linger_s)

    def _watch(self, state: str) -> None:
        before, self.state = self.state, state
        if "reconnecting" in (before, state) and before != state:
            kind = "reconnecting" if state == "reconnecting" else "reconnected"
            if state != "lost":
                self._on_event(kind, {"nodes": (self._coordinator,)})

    def _look(self) -> None:
        """Stop the node, but not this thread, if a card of the run is not accepted any more."""
        if self._stop_flag.reason is None and not self._finished:
            self._guarded(self._check)

    def _guarded(self, call: Callable[[], None]) -> None:
        """Stop the node, but not this thread, which has to tell the others why."""
        try:
            call()
        except (PartiesError, ProtocolError) as error:
            self._stop_flag.set(error)

    def _sort(self, message: FromCoordinator) -> None:
        if isinstance(message, control.Aborted):
            if not self._finished:
                said = message.code, message.by, message.about, message.returns_s
                self._stop_flag.set(AbortedError(*said))
        elif isinstance(message, Message):
            self._guarded(lambda: self._take(message))
        elif isinstance(message, control.Carried):
            self._carried(message)
        elif isinstance(message, control.Away):
            before, self.away = set(self.away), message.names
            self._on_away(message.names)
            if gone := sorted(set(message.names) - before):
                self._on_event("reconnecting", {"nodes": tuple(gone)})
            if back := sorted(before - set(message.names)):
                self._on_event("reconnected", {"nodes": tuple(back)})
        elif isinstance(message, control.Waiting):
            fields = {"here": message.here, "missing": message.missing, "left_s": message.left_s}
            self._on_event("gathering", fields)
        elif isinstance(message, control.Delivery):
            part = message.part
            if part.kind != artifacts.SEALED or part.path.split("/")[0] != self._me:
                raise ControlError(
                    f"{self._coordinator} delivers an artifact that is not sealed to {self._me}"
                )
            self.delivered.add(message.sender, part)
        else:
            # A node that is preparing the job answers proposals late, so several may wait here.
            proposed = isinstance(message, control.Propose)
            if self._inbox.qsize() >= (control.MAX_ATTEMPTS if proposed else MAX_WAITING):
                raise ControlError(f"{self._coordinator} sends unrequested messages")
            self._finished |= isinstance(message, control.Finish | control.Farewell)
            self._inbox.put(message)


class _Node:
    def __init__(
        self,
        vault: Vault,
        roster: Roster,
        settings: NodeSettings,
        program: Program,
        audit: AuditLog,
        on_event: Event,
        has_begun: bool = False,
    ) -> None:
        lifetime.check_own(vault.card, lifetime.now())
        self._vault = vault if isinstance(vault, LiveIdentity) else LiveIdentity(vault)
        self._audit = audit
        self._job = self._digest = ""
        self._serves = False
        self._visitors: Visitors | None = None
        self._stoppable = self._said_so = False
        self.asked = False
        """Whether this node was asked to stop."""
        self.has_begun = has_begun
        """Whether everybody has signed a session: if it breaks off, another one may follow."""
        self._sent: dict[str, str] = {}
        """SHA-256 of each artifact that this node sent."""

        self._members = Members(roster, vault, self._note)
        roster = self._members.roster
        self._members.use([roster.card(settings.coordinator)])
        self._settings = settings
        self._program = program
        self._on_event = on_event
        self._me = vault.card.name
        self._stop = StopFlag()
        self._news: dict[str, Scalar] = {}
        self._next_report = 0.0
        self._server_key = roster.card(settings.coordinator).curve
        keys = CurveKeys(vault.card.curve, vault.curve_secret())
        allowed = {card.name: card.curve for card in roster.current(lifetime.now())}
        self._transport = Transport(
            keys,
            allowed,
            on_refused=self._turned_away,
            proxy=settings.proxy,
            pulse=settings.pulse,
        )
        try:
            self._plane = DataPlane(
                self._transport,
                self._me,
                self._stop,
                listen=settings.listen,
                advertise=settings.advertise,
                reconnect_s=settings.reconnect_s,
            )
        except BaseException:
            self._transport.close()
            raise
        try:
            self._client = ControlClient(
                self._transport, settings.address, self._server_key, settings.reconnect_s
            )
        except BaseException:
            self._plane.close(0)
            self._transport.close()
            raise
        self._control = _ControlThread(
            self._client,
            self._me,
            settings.coordinator,
            self._stop,
            settings.run_dir,
            on_event,
            self._look,
            self._take,
            self._set_away,
            self._visited,
        )
        self._rotations = Rotations(
            self._vault,
            self._members,
            audit,
            self._control.say,
            self._event,
            settings.coordinator,
        )

    @property
    def roster(self) -> Roster:
        """With cards that have succeeded others since."""
        return self._members.roster

    def _defers(self) -> bool:
        """At a request to stop: whether the program will stop by itself, after a checkpoint. A
        second request interrupts it."""
        if not self._stoppable or self.asked:
            return False
        self.asked = True
        return True

    def _set_stoppable(self, stoppable: bool) -> None:
        self._stoppable = stoppable

    def _look(self) -> None:
        self._members.check()
        self._rotations.check()

    def _take(self, message: Message) -> None:
        visitors = self._visitors
        if visitors and isinstance(message, control.Rotated) and visitors.serves(message.name):
            self._renew_client(visitors, message)
        else:
            self._rotations.take(message)

    def _renew_client(self, visitors: Visitors, message: control.Rotated) -> None:
        """Take over a client's newer card; one that is not believed harms nobody, and is logged."""
        try:
            self._members.follow(message.name, message.successions, self._settings.coordinator)
            visitors.succeed(self._members.roster.card(message.name))
        except (CardError, RosterError) as error:
            log.warning("%s", error)

    def _visited(self, message: control.Carried) -> None:
        """A client's message, of which none can come before this node has said that it is ready."""
        if self._visitors is not None:
            self._visitors.take(message)

    def _set_away(self, names: Collection[str]) -> None:
        self._plane.away = names

    def run(self) -> NodeResult:
        """Steps 1 to 6. Reports every failure to the others as one generic code."""
        linger_s = 0.0
        self._control.start()
        try:
            with sigterm_interrupts(self._defers):
                result = self._run()
            linger_s = 5.0
            return result
        except InterruptedRunError as error:
            # The flag holds the reason: an abort, a lost coordinator, or invalid messages from it.
            reason = self._stop.reason or error
            if not isinstance(reason, AbortedError):
                self._tell(reason)
            self._note_end(reason)
            raise reason from None
        except (PeerLostError, PeerTimeoutError) as error:
            # If it is this node's network that is down, another session may follow: that is known
            # once the coordinator is back, or counts as lost.
            while self._control.state == "reconnecting" and not self._stop.wait(SLICE_S):
                pass
            # The coordinator, which also hears of it, can best name the node that died or gave up.
            if not self._stop.wait(REASON_WAIT_S):
                self._tell(error)
                # It may wait for another session with all of us.
                self._stop.wait(REASON_WAIT_S if self.has_begun else 0)
            said = self._stop.reason
            if isinstance(said, AbortedError) and (said.by != self._me or said.returns_s):
                self._note_end(said)
                raise said from error
            self._note_end(error)
            raise
        except BaseException as error:
            self._tell(error)
            self._note_end(error)
            raise
        finally:
            self._plane.close(linger_s)
            self._control.finish()
            self._client.relay.close()
            self._transport.close()

    def _tell(self, error: BaseException) -> None:
        if self._control.state == "connecting":
            self._control.linger_s = 0.0
            return
        code = _code_of(error)
        # Whether a value was out of range or malformed is nobody else's business.
        about = getattr(error, "about", None)
        self._control.say(control.Abort("data" if code == "range" else code, about))

    def _note(self, kind: Kind, fields: Mapping[str, Value] | None = None) -> None:
        self._audit.append(kind, fields, job=self._job, digest=self._digest)

    def _note_end(self, error: BaseException) -> None:
        """Log why the run ended; what cannot be logged any more does not hide it."""
        by, code = ending(error, self._me)
        ended = self._serves and code == STOPPED
        try:
            self._note(Kind.RUN_ENDED if ended else Kind.RUN_ABORTED, {"code": code, "by": by})
        except AuditError as also:
            log.error("%s", also)

    def _turned_away(self, who: str, times: int) -> None:
        """A stranger was; from a thread of the transport's."""
        try:
            self._note(Kind.UNEXPECTED_PEER, {"who": who, "times": times})
        except AuditError as error:
            self._stop.set(error)

    def _run(self) -> NodeResult:
        settings, talk = self._settings, self._control
        self._connect()  # 1
        first: Any = talk.expect(
            (control.Propose, control.Finish), settings.agree_timeout_s, "a job"
        )
        if isinstance(first, control.Finish):  # a recipient that runs no node
            roster = self._members.roster
            ended = Record.from_bytes(first.record)
            ended.verify(roster, self._program.leaving(ended.body))
            return NodeResult({}, b"", 0, 0, tuple(talk.delivered.files), roster, first.record)
        contract, cards = self._check(first)  # 2
        signing = {name: card.signing_public for name, card in cards.items()}
        try:
            constants = self._program.prepare(first.body, contract.roles)
        except Exception as error:
            self._note(Kind.RUN_REFUSED, {"code": _code_of(error)})
            raise
        if len(constants) != 32:
            raise ContractError("a program's constants have a digest of 32 bytes")
        self._stop.check("preparing the job")
        agreed = self._agree(contract, cards, constants, first.attempt)
        while isinstance(agreed, control.Propose):
            if agreed.contract != first.contract and self._has_other_cards(agreed, contract):
                first = agreed
                contract, cards = self._check(agreed)
                signing = {name: card.signing_public for name, card in cards.items()}
            if (agreed.contract, agreed.body) != (first.contract, first.body):
                raise ContractError(
                    f"{settings.coordinator} proposes another job than the one {self._me} checked"
                )
            agreed = self._agree(contract, cards, constants, agreed.attempt)
        sid, resumed, start = agreed
        self.has_begun = True
        session = self._join(contract, cards, signing, sid, start)  # 5
        session = replace(session, resume=resumed)
        talk.say(control.Ready())
        talk.expect(control.Go, settings.agree_timeout_s, "the start of all nodes")
        self._rotations.started()
        self._event("started", sid=sid.hex(), resumed=session.resume.hex())
        self._note(Kind.RUN_STARTED, {"session": sid.hex(), "resumed": session.resume.hex()})
        summary = self._program.run(session)
        self._report()
        outcome = self._program.outcome()
        done = control.Done(json.dumps(summary).encode(), sid, outcome, self._sent)
        if self._me in self._program.leaving(first.body):
            return self._leave(contract, session, done, summary)
        talk.say(done)  # 6
        results = talk.expect(control.Results, float("inf"), "the results of all nodes")
        statement = self._check_results(contract, done, results.statement)
        self._note(Kind.RESULTS_SIGNED, {"statement": sha256(statement).hexdigest()})
        talk.say(control.SignResults(sign_result(self._me, statement, self._vault)))
        finish = talk.expect(control.Finish, float("inf"), "the signatures of all nodes")  # 7
        self._check_record(contract, first.body, statement, finish.record)
        self._note(Kind.RUN_ENDED)
        channel = session.channel
        return NodeResult(
            summary,
            sid,
            channel.bytes_sent,
            channel.bytes_received,
            tuple(talk.delivered.files),
            self._members.roster,
            finish.record,
        )

    def _check_results(self, contract: Contract, mine: control.Done, statement: bytes) -> bytes:
        """Raise ContractError, or the program's error, unless this is what we saw and sent."""
        said = Statement.from_bytes(statement)
        coordinator = self._settings.coordinator
        if (said.contract, said.sid) != (contract.digest(), mine.sid):
            raise ContractError(f"{coordinator} sent the results of another run to sign")
        if said.sent_by(self._me) != mine.artifacts:
            raise ContractError(
                f"{coordinator} sent a statement of results in which the files of {self._me} are "
                "not those that it sent; it was not signed"
            )
        computes = self._me in (*contract.roles.evaluators, contract.roles.dealer)
        if computes and said.outcome != mine.outcome:
            raise ContractError(
                f"the openings in the statement of results are not those that {self._me} took "
                "part in; it was not signed"
            )
        self._program.check_outcome(said.outcome)
        return statement

    def _check_record(
        self,
        contract: Contract,
        body: bytes,
        statement: bytes,
        record: bytes,
    ) -> None:
        """Raise ContractError unless everybody signed what we signed."""
        found = Record.from_bytes(record)
        said = (found.contract, found.body, found.statement.to_bytes())
        if said != (contract, body, statement):
            raise ContractError(
                f"{self._settings.coordinator} sent signatures under another statement of results "
                f"than the one that {self._me} signed"
            )
        found.verify(self._members.roster, self._program.leaving(body))

    def _leave(
        self, contract: Contract, session: Session, done: control.Done, summary: dict[str, object]
    ) -> NodeResult:
        """Sign this node's part of the results and leave: the others need it no more."""
        statement = Statement(contract.digest(), done.sid, done.outcome, ()).to_bytes()
        self._note(Kind.RESULTS_SIGNED, {"statement": sha256(statement).hexdigest()})
        talk = self._control
        talk.say(
            msgspec.structs.replace(done, parting=sign_result(self._me, statement, self._vault))
        )
        talk.expect(control.Farewell, self._settings.agree_timeout_s, "leave to go")
        self._note(Kind.RUN_ENDED)
        channel = session.channel
        return NodeResult(
            summary,
            done.sid,
            channel.bytes_sent,
            channel.bytes_received,
            (),
            self._members.roster,
            b"",
        )

    def _agree(
        self, contract: Contract, cards: Mapping[str, Card], constants: bytes, attempt: int
    ) -> tuple[bytes, bytes, control.Start] | control.Propose:
        """Steps 3 and 4: the session id, the state from which all go on, and the message to start;
        or the next proposal if a node left meanwhile."""
        settings, talk = self._settings, self._control
        signing = {name: card.signing_public for name, card in cards.items()}
        others = [cards[name] for name in contract.roles.nodes if name != self._me]
        self._note(Kind.RUN_SIGNED, {"contract": contract.digest().hex(), "attempt": attempt})
        held, insists = self._program.checkpoints(), self._program.insists()
        mine = Acceptance.sign(
            contract, self._me, os.urandom(32), constants, self._vault, held, insists
        )  # 3
        seen = witness.seen(self._audit, others)
        said = mine.nonce, mine.constants, mine.signature
        talk.say(control.Accept(*said, attempt, seen, held, insists))
        self._event("signed", job=contract.name)
        accepted: Any = talk.expect(
            (control.Accepted, control.Propose), settings.agree_timeout_s, "everybody's signature"
        )
        if isinstance(accepted, control.Propose):
            return accepted
        acceptances = {
            name: Acceptance(name, one.nonce, one.constants, one.signature, one.held, one.insists)
            for name, one in accepted.acceptances.items()
        }
        sid = verify_acceptances(contract, mine, acceptances, signing)
        resumed = resumed_from(contract, acceptances)
        unreachable = try_neighbours(
            self._me,
            contract.roles.neighbours(self._me),
            {**accepted.addresses, self._me: self._plane.address},
            settings.dial_timeout_s,
            self._on_event,
            settings.proxy,
        )
        checkpoint = self._audit.checkpoint()  # 4
        asked = {name: one.seen.get(self._me, 0) for name, one in accepted.acceptances.items()}
        proofs = witness.proofs(self._audit, checkpoint, asked)
        statement = session_statement(contract, sid, self._me, checkpoint, resumed)
        signature = self._vault.sign(SESSION_PURPOSE, statement)
        talk.say(control.SignSession(signature, unreachable, attempt, checkpoint, proofs))
        start: Any = talk.expect(
            (control.Start, control.Propose), settings.agree_timeout_s, "the start"
        )
        if isinstance(start, control.Propose):
            return start
        verify_session(contract, sid, start.signatures, start.checkpoints, signing, resumed)
        for card in others:
            note, proof = start.checkpoints.get(card.name, b""), start.proofs.get(card.name, ())
            if not witness.keep(self._audit, card, note, proof, contract.name, self._digest):
                log.warning(
                    "the audit log of %s does not go on from what this node holds of it: entries "
                    "were taken back there, or the coordinator withheld the proof; ask them, and "
                    "compare: mpc-train audit verify --against",
                    card.name,
                )
        return sid, resumed, start

    def _connect(self) -> None:
        settings, talk = self._settings, self._control
        chain = tuple(each.to_text() for each in self._vault.successions)
        talk.say(control.Hello(CONTRACT_VERSION, self._me, self._plane.address, chain))
        await_connection(
            talk,
            settings.address,
            settings.connect_timeout_s,
            self._stop,
            self._on_event,
            settings.proxy,
        )
        welcome = talk.expect(control.Welcome, 30.0, "a welcome")
        if welcome.version != CONTRACT_VERSION:
            raise ContractError(
                f"{settings.coordinator} has version {welcome.version}, {self._me} "
                f"{CONTRACT_VERSION}: run the same release everywhere"
            )
        self._event("connected", coordinator=settings.coordinator, address=settings.address)

    def _check(self, proposal: control.Propose) -> tuple[Contract, dict[str, Card]]:
        """Check the contract. Raises ContractError, RosterError or ExpiredError if this node must
        not sign it."""
        contract = Contract.from_bytes(proposal.contract)
        contract.check(proposal.body)
        self._job, self._digest = contract.name, contract.body_digest.hex()
        self._serves = bool(contract.roles.clients)
        said: dict[str, Value] = {
            "contract": contract.digest().hex(),
            "role": contract.roles.title(self._me),
            "coordinator": self._settings.coordinator,
        }
        self._note(Kind.RUN_PROPOSED, said)
        if self._me not in contract.roles.nodes:
            raise ContractError(f"{self._me} has no role in the proposed job")
        self._follow(proposal)
        names, refused = contract.roles.names, self._members.not_accepted(contract.roles.guests)
        roster = self._members.roster.subset(name for name in names if name not in refused)
        # Which card the coordinator means by a client that this node refuses is never used.
        digests = [
            proposal.cards.get(name, b"") if name in refused else roster.card(name).digest
            for name in names
        ]
        if roster_digest(digests) != contract.roster_digest:
            raise ContractError(differing_cards(roster, self._settings.coordinator, proposal.cards))
        own = roster.card(self._me)
        if own.signing_public != self._vault.card.signing_public:
            raise ContractError(f"the roster's card of {self._me} is not that of this identity")
        for warning in roster.check_lifetimes(lifetime.now()):
            log.warning("%s", warning)
        desk = self._settings.coordinator
        watched = {card for card in roster if card.name not in contract.roles.clients}
        self._members.use({*watched, self._members.roster.card(desk)})
        self._event(
            "proposed",
            job=contract.name,
            digest=contract.body_digest.hex(),
            role=contract.roles.title(self._me),
            trust=describe_trust(contract.roles),
        )
        return contract, {card.name: card for card in roster}

    def _follow(self, proposal: control.Propose) -> None:
        """Take over newer cards of others, each by the word of the card that is known here. What is
        not believed is logged; that the cards then differ is said by whoever compares them."""
        desk = self._settings.coordinator
        for name, texts in proposal.successions.items():
            if name == self._me or name not in self._members.roster:
                continue
            try:
                if self._members.follow(name, texts, desk):
                    self._event("rotated", node=name)
            except (CardError, RosterError) as error:
                log.warning("%s", error)

    def _has_other_cards(self, proposal: control.Propose, contract: Contract) -> bool:
        """Whether a later proposal is the same job with newer cards: a node came back with them; or
        with fewer clients, whose cards are not accepted any more."""
        found = Contract.from_bytes(proposal.contract)
        gone = contract.roles.guests.difference(found.roles.clients)
        same = replace(contract, roster_digest=found.roster_digest)
        return found == replace(same, roles=contract.roles.without(gone))

    def _join(
        self,
        contract: Contract,
        cards: Mapping[str, Card],
        signing: Mapping[str, bytes],
        sid: bytes,
        start: control.Start,
    ) -> Session:
        settings, roles = self._settings, contract.roles
        neighbours = roles.neighbours(self._me)
        listens = {name: start.addresses.get(name) for name in neighbours}
        listens[self._me] = self._plane.address
        self._plane.open(sid, listens, self._client.relay, settings.peer_timeout_s, start.relayed)
        info = session_info(sid, contract.digest(), contract.roster_digest)
        keys = shake_hands(
            self._plane, info, roles, self._me, signing, self._vault, settings.peer_timeout_s
        )
        channel = SecureChannel(self._plane, self._me, sid, keys, settings.peer_timeout_s)
        confirm(channel, sid, neighbours)
        live = dict(cards)
        self._rotations.begin(Running(contract, sid, live, channel))
        if roles.clients and self._me in roles.evaluators:
            self._visitors = Visitors(
                contract,
                sid,
                cards,
                self._vault,
                self._me,
                self._control.say,
                self._members.check_client,
                self._stop,
            )
        return Session(
            me=self._me,
            sid=sid,
            roles=roles,
            channel=channel,
            vault=self._vault,
            cards=live,
            run_dir=settings.run_dir,
            keys=keys,
            on_progress=self._progress,
            on_artifact=self._artifact,
            on_record=self._note,
            on_mac=self._audit.mac,
            asked_to_stop=lambda: self.asked,
            on_stoppable=self._set_stoppable,
            visitors=self._visitors,
        )

    def _progress(self, fields: Mapping[str, Scalar]) -> None:
        """Report the newest value of each field, at most every PROGRESS_S, because steps may be
        short."""
        if self.asked and not self._said_so:
            self._said_so = True
            self._event("stopping")
        self._news.update(fields)
        now = time.monotonic()
        if now >= self._next_report:
            self._next_report = now + PROGRESS_S
            self._report()

    def _report(self) -> None:
        if self._news:
            fields, self._news = self._news, {}
            self._control.say(control.Progress(fields))
            self._event("progress", fields=fields)

    def _artifact(self, kind: str, name: str, blob: bytes) -> None:
        self._sent[f"{kind}/{name}"] = sha256(blob).hexdigest()
        for part in artifacts.split(kind, name, blob):
            self._control.say(part)

    def _event(self, kind: str, **fields: Any) -> None:
        self._on_event(kind, fields)


def run_node(
    vault: Vault,
    roster: Roster,
    settings: NodeSettings,
    program: Program,
    audit: AuditLog,
    on_event: Event = ignore_event,
) -> NodeResult:
    """Take part in one run, in the roles that the job gives to `vault`'s name.

    `on_event(kind, fields)` is called with 'waiting' (why the coordinator does not answer, and the
    limit), 'gathering' (who is here, who is missing), 'unreachable' (a neighbour that this node
    cannot dial), 'reconnecting' and 'reconnected' (nodes, or the coordinator, whose connection
    broke or came back), 'rotated' (another node has new keys), 'connected', 'proposed' (with what
    is asked of this node and the statement of trust), 'signed', 'started', 'progress'. Returns when
    all nodes are done. Raises AbortedError (which node gave up, with a code), PeerLostError,
    PeerTimeoutError, TransportError, PortInUseError, ExpiredError, ContractError, ControlError,
    AuditError, what the program raises, and KeyboardInterrupt on Ctrl-C or SIGTERM; the others are
    told a code in every case.

    A run that others have broken off goes on in another session, if the coordinator waits for all
    to connect again, or if the coordinator itself is away for at most `return_timeout_s`.
    'suspended' says so.
    """
    begun = False
    while True:
        node = _Node(vault, roster, settings, program, audit, on_event, begun)
        try:
            return node.run()
        except AbortedError as error:
            # The others may be lost again before the next session has begun.
            begun = node.has_begun
            if node.asked:
                # A node that was to stop after the next checkpoint does not begin another session.
                raise KeyboardInterrupt from error
            away = error.reason_code == "coordinator-lost"
            patience = settings.return_timeout_s if away else error.returns_s
            if not begun or not patience:
                raise
            on_event("suspended", {"by": error.by, "code": error.reason_code, "limit_s": patience})
            settings = replace(settings, connect_timeout_s=float(patience))
            roster = node.roster


def ending(error: BaseException, me: str) -> tuple[str, str]:
    """By whom a session ended, and the one word that the log has for it: STOPPED if this node was
    asked to stop, as is the end of every service."""
    if isinstance(error, InterruptedRunError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, AbortedError):
        return error.by, clip(error.reason_code)
    return me, STOPPED if isinstance(error, KeyboardInterrupt) else _code_of(error)


def _code_of(error: BaseException) -> str:
    """The one word for an error that others and the log may be told."""
    said = getattr(error, "code", None)
    if isinstance(said, str) and _CODE.fullmatch(said):
        return said
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "internal"
