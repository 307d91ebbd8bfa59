"""The coordinator: brings the nodes of one job together, and sees no data.

Guarantees that a run starts only when every node of the contract is connected and has signed, that
everybody hears within seconds when one of them fails, and that sealed results are kept and
delivered. It is not trusted: nodes verify all signatures themselves and seal their frames end to
end. It can delay or stop a run, and it sees how much each pair of nodes communicates.

1. Wait for the nodes (`Hello`, `Welcome`); a wrong version is refused. A node that the job does not
   name gets no connection at all.
2. Propose the contract; collect and distribute the signed acceptances.
3. Collect and distribute everybody's signature under the session id, with addresses.
4. When all are ready, send `Go`. Relay frames and progress, and keep artifacts, until all are done.
5. Put together what all nodes say of the results; collect everybody's signature under it.
6. Deliver sealed artifacts to recipients that are connected; finish, with all signatures.

The coordinator waits for a node that leaves during 1, or during 2 and 3 before everybody has been
told to start: its operator may have to correct a table. When all are back, the job is proposed
again and signed with fresh nonces. A node that refuses the job ends the run.

A node that comes with newer keys than the coordinator knows shows the successions that led to
them; they are kept, and passed on with the proposal. A card of the job that is revoked or expires
ends the run at any time (`members`).

A node whose connection breaks keeps its place for `reconnect_s`: it comes back by itself, and
nothing that either sent is lost. A node that is lost (`_left` alone decides that), a malformed
message or an abort ends the run for all.
"""

import logging
import queue
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from parties.agreement import control
from parties.agreement.contract import (
    CONTRACT_VERSION,
    MAX_BODY_BYTES,
    Contract,
    Roles,
    newest_of_all,
    session_of,
)
from parties.agreement.control import FromCoordinator, FromNode, clip
from parties.agreement.result import (
    MAX_RESULT_BYTES,
    Artifact,
    Record,
    Statement,
    verify_result,
)
from parties.audit.entries import Kind, Value
from parties.audit.log import AuditLog
from parties.doctor.desk import Desk
from parties.errors import (
    AbortedError,
    AuditError,
    CardError,
    ContractError,
    ControlError,
    ExpiredError,
    PartiesError,
    RevokedError,
    RosterError,
)
from parties.keys import lifetime
from parties.keys.roster import Roster
from parties.keys.vault import Vault
from parties.nodes import artifacts
from parties.nodes.members import Members
from parties.nodes.rotation import RotationDesk
from parties.nodes.visits import Visits
from parties.stop import sigterm_interrupts
from parties.wire.control_plane import RECONNECT_S, Arrival, ControlServer
from parties.wire.tally import Tally
from parties.wire.zmq_transport import CurveKeys, Transport
from protocols.errors import PeerLostError, PeerTimeoutError, ProtocolError

log = logging.getLogger(__name__)

Event = Callable[[str, Mapping[str, Any]], None]
_M = TypeVar("_M")

MAX_WAITING = 4
"""How many unrequested messages one node may send; the protocol has one."""

MAY_RETURN = frozenset(
    {
        "lost",
        "interrupted",
        "data",
        "config",
        "artifact",
        "port-in-use",
        "vault",
        "key-service",
    }
)
"""Reasons for which a node may leave after the proposal and come back: faults that its operator can
correct. Not "policy", which is an organisation's decision, nor reasons that show that the nodes
disagree on the job."""

MAY_RESUME = frozenset({"lost", "interrupted", "peer-lost", "peer-timeout"})
"""Reasons for which a session may break off and be followed by another: a process, a machine or a
network was away. What a node computed or refused would be the same again."""

ABORT_LINGER_S = 2.0
"""How long the notice of an abort may take to leave."""


def ignore_event(kind: str, fields: Mapping[str, Any]) -> None:
    """Discards events, for callers that do not watch."""


@dataclass(frozen=True)
class CoordinatorSettings:
    """Where to listen and how long to wait, in seconds."""

    listen: str
    run_dir: Path
    arrive_timeout_s: float = 300.0
    agree_timeout_s: float = 300.0
    run_timeout_s: float = 7 * 24 * 3600.0
    reconnect_s: float = RECONNECT_S
    """How long a node whose connection broke keeps its place; 0: it is lost at once."""

    pulse: tuple[float, float] | None = None
    """As of a node's settings."""

    return_timeout_s: float = 0.0
    """How long to wait for a node that left after the job was proposed; 0: the run ends."""


@dataclass(frozen=True)
class CoordinatorResult:
    """What the coordinator knows at the end: each node's public summary, and the files that it
    kept."""

    summaries: Mapping[str, dict[str, Any]]
    files: tuple[Path, ...]
    relayed_bytes: int
    record: bytes
    """The results with the signatures of all nodes: see `result.Record`."""


@dataclass
class _Node:
    """A connected node of the job."""

    process: bytes
    """Which process of the node: the same over all its connections."""

    address: str | None = None
    inbox: list[FromNode] = field(default_factory=list)


class Coordinator:
    """One run of one job. The constructor binds the port, so `address` is known afterwards.

    `on_event(kind, fields)` is called with 'arrived', 'rotated' (a node has new keys), 'left',
    'reconnecting' (a node's connection broke, and is waited for), 'reconnected', 'refused',
    'gathering' (who is here, who is missing), 'unreachable' (who cannot dial whom),
    'proposed', 'agreed', 'started', 'progress', 'artifact', 'done', 'aborted'. `keep` makes the
    results durable before any node hears that all have signed them. Raises
    PortInUseError, RosterError, ExpiredError, ContractError.
    """

    def __init__(
        self,
        vault: Vault,
        roster: Roster,
        name: str,
        job: tuple[Roles, bytes],
        settings: CoordinatorSettings,
        audit: AuditLog,
        on_event: Event = ignore_event,
        keep: "Callable[[CoordinatorResult], None]" = lambda result: None,
    ) -> None:
        roles, body = job
        if len(body) > MAX_BODY_BYTES:
            raise ContractError(f"the job has {len(body)} bytes, at most {MAX_BODY_BYTES}")
        roles.check()
        lifetime.check_own(vault.card, lifetime.now())
        self._me = vault.card.name
        self._audit = audit
        self._digest = sha256(body).hexdigest()
        self._name = name
        self._members = Members(roster, vault, self._note)
        self._roles = roles
        self._left_out: dict[str, CardError | RosterError] = {}
        """Clients of a service whose card is not accepted; until this process ends."""
        cards = self._members.roster.subset(self._served().names)
        for warning in cards.check_lifetimes(lifetime.now()):
            log.warning("%s", warning)
        self._body = body
        self._settings = settings
        self._on_event, self._keep_results = on_event, keep
        self._nodes: dict[str, _Node] = {}
        self._refused = Tally()
        self._again: list[Arrival] = []
        self._phase: Literal["gathering", "agreeing", "running", "signing"] = "gathering"
        self._attempt = 0
        self._nonces: dict[str, bytes] = {}
        self._newest = b""
        self._fruitless = 0
        """How often the job was proposed since all evaluators last held a newer checkpoint than
        `_newest` was."""
        self._someone_left = False
        self._parted: dict[str, bytes] = {}
        """The signatures of nodes whose part is done, and which may disconnect."""
        self._agree_on_cards()
        self._collector = artifacts.Collector(settings.run_dir)
        keys = CurveKeys(vault.card.curve, vault.curve_secret())
        # Cards that the job does not name get no connection.
        strangers = {card.name: card.curve for card in roster if card.name not in cards}
        allowed = {card.name: card.curve for card in cards}
        self._strangers: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._transport = Transport(
            keys,
            allowed,
            strangers,
            lambda who, times: self._strangers.put((who, times)),
            pulse=settings.pulse,
        )
        self._neighbours = {name: roles.neighbours(name) for name in roles.nodes}
        self._desk = RotationDesk(self._members, roles.nodes, self._neighbours, self._send)
        measurements = Desk(CONTRACT_VERSION, busy=lambda: self._phase != "gathering")
        try:
            self._server = ControlServer(
                self._transport,
                settings.listen,
                self._neighbours,
                measurements.answer,
                settings.reconnect_s,
            )
        except PartiesError:
            self._transport.close()
            raise
        self.address = self._server.address
        self._visits = Visits(
            roles, self._me, self._server, self._deliver_to, self._admits_client, self._refuse
        )

    @property
    def roster(self) -> Roster:
        """The roster with the cards of this run, of which some may have succeeded others."""
        return self._members.roster

    def _served(self) -> Roles:
        """The roles without clients of a service whose card is revoked or has expired: nobody else
        has to wait until they are taken out of its file. Raises that error if no client is left."""
        guests = self._roles.guests
        self._left_out |= self._members.not_accepted(guests.difference(self._left_out))
        if guests and guests == self._left_out.keys():
            raise next(iter(self._left_out.values()))
        return self._roles.without(self._left_out)

    def _agree_on_cards(self) -> None:
        """The contract that is proposed next, over the cards as they are now."""
        roles = self._served()
        cards = self._members.roster.subset(roles.names)
        self.contract = Contract.of(self._name, roles, self._body, cards.digest())
        self._cards = cards
        self._card_digests = {card.name: card.digest for card in cards}
        # A client whose card is revoked is not served any more; the others are.
        self._members.use(card for card in cards if card.name not in self._roles.clients)

    def run(self) -> CoordinatorResult:
        """Run the job to its end. After any failure all nodes get one generic code.

        Raises PeerTimeoutError (with the names of the missing nodes), PeerLostError, AbortedError,
        ControlError, KeyboardInterrupt.
        """
        try:
            with sigterm_interrupts():
                result = self._run()
        except AbortedError as error:
            self._abort(error.reason_code, error.by, error.about)
            raise
        except (RevokedError, ExpiredError) as error:
            self._abort(error.code, self._me, error.about)
            raise
        except _Faulty as error:
            lost = isinstance(error.cause, PeerLostError)
            self._abort("lost" if lost else error.cause.code, error.name)
            raise error.cause from None
        except (PartiesError, ProtocolError) as error:
            self._abort(error.code, self._me)
            raise
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            # A service manager starts it again; Ctrl-C is a person who ends the run. Of a service
            # each operator ends a node: whoever stops the coordinator may offer other models next.
            serves = bool(self._roles.clients)
            again = interrupted and (serves or error.args == (signal.SIGTERM,))
            wait_s = round(self._settings.return_timeout_s) if again else 0
            self._abort("interrupted" if interrupted else "internal", self._me, wait_s=wait_s)
            raise
        self._close(linger_s=10.0)
        return result

    def _run(self) -> CoordinatorResult:
        names, patience = self.contract.roles.nodes, self._settings.return_timeout_s
        self._gather(names, self._settings.arrive_timeout_s, "did not arrive")  # 1
        while True:
            try:
                return self._session(names)
            except _LostError as error:
                self._suspend(error)
                self._gather(names, patience, "did not come back")

    def _session(self, names: tuple[str, ...]) -> CoordinatorResult:
        """One session of all nodes, to the end of the run. Raises _LostError if a node leaves it
        that may come back for another one."""
        settings = self._settings
        while (signed := self._agreed(names)) is None:  # 2
            self._gather(names, settings.return_timeout_s, "did not come back")
        self._phase = "running"
        self._event("agreed", nodes=list(names))
        addresses = {name: self._nodes[name].address for name in names}
        signatures = {name: message.signature for name, message in signed.items()}
        checkpoints = {name: message.checkpoint for name, message in signed.items()}
        relayed = self._relayed(signed, addresses)
        for name in names:
            proofs = {of: message.proofs.get(name, ()) for of, message in signed.items()}
            start = control.Start(signatures, addresses, relayed[name], checkpoints, proofs)
            self._send(name, start)  # 3
        deadline = time.monotonic() + settings.agree_timeout_s
        self._collect(control.Ready, names, deadline, "did not connect to its peers")
        self._event("started", nodes=list(names))
        self._note(Kind.RUN_STARTED)
        self._tell(names, control.Go())  # 4
        deadline = time.monotonic() + settings.run_timeout_s
        if self._roles.clients:
            deadline = float("inf")
            self._open_to_clients()
        done = self._collect(control.Done, names, deadline, "did not finish")
        summaries = {name: _json(message.summary, name) for name, message in done.items()}
        record = self._signed_results(done)  # 5
        files = tuple(self._collector.files)
        result = CoordinatorResult(summaries, files, self._server.relayed_bytes, record)
        self._deliver()  # 6
        # Nodes that hear of the end destroy their checkpoints: from then on only these files have
        # the results of recipients who are not here.
        self._keep_results(result)
        self._tell(tuple(self._nodes), control.Finish(record))
        self._note(Kind.RUN_ENDED)
        self._event("done", files=[str(path) for path in files])
        return result

    def _open_to_clients(self) -> None:
        contract = self.contract
        keys = {card.name: card.signing_public for card in self._cards}
        serving = control.Serving(
            contract.to_bytes(),
            self._body,
            session_of(contract, self._nonces, keys),
            self._card_digests,
            self._members.chains({*contract.roles.names, self._me}),
        )
        self._fruitless = 0  # a service has no checkpoints: it has got as far as it can
        self._visits.begin(serving)

    def _deliver_to(self, name: str, message: FromCoordinator) -> None:
        """What a client sends to a node, if that is there."""
        if name in self._nodes:
            self._send(name, message)

    def _suspend(self, error: "_LostError") -> None:
        """End the session, and begin anew with whoever connects again; nothing of it is kept. Mere
        recipients stay."""
        self._event("suspended", node=error.name, code=error.code)
        self._visits.pause((error.name,))
        self._note(Kind.RUN_ABORTED, {"code": error.code, "by": error.name})
        wait_s = round(self._settings.return_timeout_s)
        there = tuple(name for name in self._roles.nodes if name in self._nodes)
        self._tell(there, control.Aborted(error.code, error.name, None, wait_s))
        for name in there:
            self._server.forget(self._nodes.pop(name).process)
        self._parted.clear()
        self._collector.discard()
        self._collector = artifacts.Collector(self._settings.run_dir)
        self._desk = RotationDesk(self._members, self._roles.nodes, self._neighbours, self._send)

    def _signed_results(self, done: Mapping[str, control.Done]) -> bytes:
        """The record of the results, which all nodes have signed."""
        contract = self.contract
        roles, first = contract.roles, contract.roles.evaluators[0]
        computing = (*roles.evaluators, roles.dealer)
        for name, message in done.items():
            outcome = done[first].outcome if name in computing else b""
            if (message.sid, message.outcome) != (done[first].sid, outcome):
                raise _Faulty(
                    name,
                    ContractError(
                        f"{name} and {first} state different openings or sessions; there is no "
                        "result"
                    ),
                )
        artifacts = tuple(
            Artifact(name, path, digest)
            for name, message in done.items()
            for path, digest in message.artifacts.items()
        )
        said = done[first]
        statement = Statement(contract.digest(), said.sid, said.outcome, artifacts)
        text = statement.to_bytes()
        if len(text) > MAX_RESULT_BYTES:
            raise ContractError(f"the statement of results has {len(text)} bytes, too many to send")
        self._phase = "signing"
        staying = tuple(name for name in roles.nodes if name not in self._parted)
        self._tell(staying, control.Results(text))
        deadline = time.monotonic() + self._settings.agree_timeout_s
        signed = self._collect(control.SignResults, staying, deadline, "did not sign the results")
        found = {name: message.signature for name, message in signed.items()} | self._parted
        parting = statement.parting().to_bytes()
        for name in roles.nodes:
            try:
                card = self.roster.signer(self._cards.card(name))
                verify_result(name, text if name in staying else parting, found[name], card)
            except ContractError as error:
                raise _Faulty(name, error) from error
        signatures = tuple(found[name] for name in roles.nodes)
        digests = tuple(self._card_digests[name] for name in roles.names)
        return Record(contract, self._body, digests, statement, signatures).to_bytes()

    def _agreed(self, names: tuple[str, ...]) -> dict[str, control.SignSession] | None:
        """Propose the job and collect everybody's signature under the session; None if a node left
        meanwhile."""
        self._agree_on_cards()
        contract = self.contract
        self._phase, self._someone_left = "agreeing", False
        self._attempt += 1
        self._fruitless += 1
        for node in self._nodes.values():
            node.inbox.clear()
        self._note(Kind.RUN_PROPOSED, {"nodes": names, "attempt": self._attempt})
        self._event("proposed", job=contract.name, digest=contract.body_digest.hex())
        self._tell(
            names,
            control.Propose(
                contract.to_bytes(),
                self._body,
                self._card_digests,
                self._attempt,
                self._members.chains({*contract.roles.names, self._me}),
            ),
        )
        deadline = time.monotonic() + self._settings.agree_timeout_s
        try:
            accepted = self._collect(control.Accept, names, deadline, "did not accept the job")
            self._count_progress(accepted)
            addresses = {name: self._nodes[name].address for name in names}
            self._tell(names, control.Accepted(accepted, addresses))
            self._nonces = {name: message.nonce for name, message in accepted.items()}
            return self._collect(control.SignSession, names, deadline, "did not sign the session")
        except _LeftError:
            return None

    def _count_progress(self, accepted: Mapping[str, control.Accept]) -> None:
        """A run of days may break off often; one that gets no further ends (MAX_ATTEMPTS)."""
        newest = newest_of_all({name: accepted[name].held for name in self._roles.evaluators})
        if newest > self._newest:
            self._newest, self._fruitless = newest, 0

    @property
    def _may_propose(self) -> bool:
        return self._fruitless < control.MAX_ATTEMPTS

    def _relayed(
        self, signed: Mapping[str, control.SignSession], addresses: Mapping[str, str | None]
    ) -> dict[str, tuple[str, ...]]:
        """For each node, the neighbours that it cannot dial or that cannot dial it."""
        pairs: dict[str, set[str]] = {name: set() for name in signed}
        for name, message in signed.items():
            for peer in message.unreachable:
                if peer not in self.contract.roles.neighbours(name):
                    raise _Faulty(name, ControlError(f"{name} does not dial {clip(peer)}"))
                pairs[name].add(peer)
                pairs[peer].add(name)
                self._event("unreachable", node=name, peer=peer, address=addresses[peer])
        return {name: tuple(sorted(peers)) for name, peers in pairs.items()}

    def _gather(self, names: tuple[str, ...], timeout_s: float, failure: str) -> None:
        """Wait until all are connected at the same time. Until then a node that leaves may come
        back."""
        self._phase = "gathering"
        told: tuple[str, ...] | None = None
        deadline = time.monotonic() + timeout_s
        while missing := [name for name in names if name not in self._nodes]:
            if time.monotonic() > deadline:
                raise PeerTimeoutError(f"{failure} within {timeout_s:.0f} s: {', '.join(missing)}")
            if told != tuple(missing):
                told = tuple(missing)
                here = tuple(name for name in names if name not in told)
                left_s = round(min(max(deadline - time.monotonic(), 0), control.MAX_WAIT_S))
                self._tell(tuple(self._nodes), control.Waiting(here, told, left_s))
                self._event("gathering", here=here, missing=told, left_s=left_s)
            self._attend()

    def _collect(
        self, kind: type[_M], names: tuple[str, ...], deadline: float, failure: str
    ) -> dict[str, _M]:
        """One message of `kind` from each of `names`. A node that sends anything else is at
        fault."""
        found: dict[str, _M] = {}
        while len(found) < len(names):
            if self._phase == "agreeing" and self._someone_left:
                raise _LeftError
            for name in names:
                # A node that has parted is found, and may be gone.
                if name not in found and (inbox := self._nodes[name].inbox):
                    message = inbox.pop(0)
                    if not isinstance(message, kind):
                        raise _Faulty(
                            name,
                            ControlError(
                                f"{name} sent {type(message).__name__}; expected {kind.__name__}"
                            ),
                        )
                    found[name] = message
                    if isinstance(message, control.Done) and message.parting:
                        self._part(name, message)
            if len(found) == len(names):
                break
            if time.monotonic() > deadline:
                late = [name for name in names if name not in found]
                raise PeerTimeoutError(f"{failure} in time: {', '.join(late)}")
            self._attend()
        return found

    def _attend(self) -> None:
        """Process what arrives within a moment, and what an operator changes in the roster."""
        self._members.check()
        while self._again:
            self._handle(self._again.pop())
        for arrival in self._server.poll(0.1):
            self._handle(arrival)
        self._note_strangers()
        for process in self._server.lost():
            self._visits.left(process)
            for name, node in list(self._nodes.items()):
                if node.process == process:
                    self._left(name)
        while self._server.news:
            kind, name, broken_s = self._server.news.popleft()
            if name in self._roles.clients:  # who come and go as they like
                continue
            fields = {"seconds": round(broken_s, 1)} if broken_s else {}
            self._event(kind, node=name, **fields)
            away = (each for each, node in self._nodes.items() if self._is_away(node))
            self._tell(tuple(self._nodes), control.Away(tuple(sorted(away))))

    def _note_strangers(self) -> None:
        """Log who was turned away at the door since the last call."""
        while not self._strangers.empty():
            who, times = self._strangers.get()
            self._note(Kind.UNEXPECTED_PEER, {"who": who, "times": times})

    def _is_away(self, node: "_Node") -> bool:
        return self._server.is_away(node.process)

    def _left(self, name: str) -> None:
        """A node is lost: it said farewell, or its connection broke and it did not come back in
        time, or a new process of it has come. It ends the run if the job has a node there, but not
        for a mere recipient."""
        node = self._nodes[name]
        if self._may_return(name):
            self._let_go(name)
            return
        for message in node.inbox:
            if isinstance(message, control.Abort):
                raise AbortedError(message.code, name, message.about)
        self._server.forget(self._nodes.pop(name).process)
        if name in self.contract.roles.nodes and name not in self._parted:
            if self._may_resume("lost"):
                raise _LostError(name, "lost")
            raise _Faulty(
                name,
                PeerLostError(
                    f"{name} is gone: its process ended, or its connection broke and did not come "
                    f"back within {self._settings.reconnect_s:g} s"
                    + (
                        "; it had not signed the results, so there are none"
                        if self._phase == "signing"
                        else ""
                    )
                ),
            )

    def _part(self, name: str, message: control.Done) -> None:
        """Let a node go whose part is done. Its signature is verified with the others'."""
        if name in self.contract.roles.evaluators or message.artifacts:
            raise _Faulty(name, ControlError(f"{name} wants to leave before it has signed results"))
        self._parted[name] = message.parting
        self._send(name, control.Farewell())
        self._event("parted", node=name)

    def _may_return(self, name: str, code: str = "lost") -> bool:
        """Whether a node that leaves now may come back: before the job is proposed any node, and
        from then until the start a node that did not refuse the job."""
        if self._phase == "gathering" and not self._attempt:
            return True
        if self._phase in ("running", "signing") or not self._settings.return_timeout_s:
            return False
        known = name in self.contract.roles.nodes
        return known and code in MAY_RETURN and self._may_propose

    def _may_resume(self, code: str) -> bool:
        """Whether a session that breaks off for this reason may be followed by another one."""
        return (
            self._phase in ("running", "signing")
            and code in MAY_RESUME
            and self._settings.return_timeout_s > 0
            and self._may_propose
        )

    def _let_go(self, name: str, **fields: str) -> None:
        self._server.forget(self._nodes.pop(name).process)
        self._someone_left = True
        self._event("left", node=name, **fields)

    def _handle(self, arrival: Arrival) -> None:
        name = arrival.name
        if name in self._roles.clients:
            self._visits.take(arrival)
            return
        node = self._nodes.get(name)
        if node is not None and node.process != arrival.process:
            if not self._is_away(node):
                self._refuse(arrival.process, name, "already-connected")
                return
            # It is taken up when the loss of its predecessor is dealt with.
            self._again.append(arrival)
            self._left(name)
            return
        try:
            message = control.decode_from_node(arrival.data, name)
        except ControlError as error:
            if node is None:
                self._refuse(arrival.process, name, error.code)
                return
            raise _Faulty(name, error) from error
        if node is None:
            self._greet(arrival, message)
        elif isinstance(message, control.Abort):
            if self._may_resume(message.code):
                raise _LostError(name, message.code)
            if not self._may_return(name, message.code):
                raise AbortedError(message.code, name, message.about)
            # A new process under this name is accepted.
            self._let_go(name, code=message.code)
        elif isinstance(message, (control.Accept, control.SignSession)) and (
            message.attempt < self._attempt
        ):
            log.debug("%s answered an earlier proposal", name)
        elif isinstance(message, control.Progress):
            if name in self._roles.nodes:  # a mere recipient computes nothing
                self._event("progress", node=name, fields=message.fields)
        elif isinstance(message, control.ArtifactPart):
            self._keep(name, message)
        elif isinstance(message, control.Carry):
            if name in self._roles.evaluators:
                self._visits.answer(name, message)
        elif isinstance(message, control.Rotate) and self._parted:
            parted = ", ".join(self._parted)
            log.warning("%s has new keys, which %s cannot sign any more", name, parted)
        elif isinstance(message, control.OfRotation) and self._phase == "running":
            try:
                self._desk.take(name, message)
            except PartiesError as error:
                raise _Faulty(name, error) from error
            if isinstance(message, control.Rotate):
                self._event("rotated", node=name)
        elif len(node.inbox) < MAX_WAITING:
            node.inbox.append(message)
        else:
            raise _Faulty(name, ControlError(f"{name} sends unrequested messages"))

    def _greet(self, arrival: Arrival, message: FromNode) -> None:
        name = arrival.name
        if not isinstance(message, control.Hello) or message.name != name:
            self._refuse(arrival.process, name, "control")
        elif message.version != CONTRACT_VERSION:
            log.warning(
                "%s has version %d, this coordinator %d", name, message.version, CONTRACT_VERSION
            )
            self._refuse(arrival.process, name, "version")
            if name in self.contract.roles.nodes:
                raise _Faulty(
                    name,
                    ContractError(
                        f"{name} has version {message.version}, this coordinator "
                        f"{CONTRACT_VERSION}: run the same release everywhere"
                    ),
                )
        elif self._follows(arrival, message):
            self._nodes[name] = _Node(arrival.process, message.address)
            self._server.keep(arrival.process)
            self._send(name, control.Welcome(CONTRACT_VERSION, self._me))
            self._event("arrived", node=name)

    def _follows(self, arrival: Arrival, message: control.Hello) -> bool:
        """Take over the newer card that a node brings along; refuse the node if it is not
        believed."""
        name = arrival.name
        try:
            changed = self._members.follow(name, message.successions, name)
        except (CardError, RosterError) as error:
            self._disbelieve(arrival, error)
            return False
        if changed:
            self._event("rotated", node=name)
        return True

    def _disbelieve(self, arrival: Arrival, error: CardError | RosterError) -> None:
        log.warning("%s", error)
        self._refuse(arrival.process, arrival.name, error.code)

    def _admits_client(self, arrival: Arrival, message: control.Hello) -> bool:
        """As `_follows`, and only while its card is accepted, which ends nobody else's visit.
        Evaluators of a running session are shown a client's newer card, which they verify from the
        one that they know."""
        if not self._follows(arrival, message):
            return False
        name = arrival.name
        if (why := self._left_out.get(name)) is not None:
            # Not raised again: an error remembers each time, with all that was there.
            self._disbelieve(arrival, why)
            return False
        try:
            card = self._members.roster.card(name)
            self._members.check_client(card)
        except (CardError, RosterError) as error:
            self._disbelieve(arrival, error)
            return False
        if self._phase == "running" and card.digest != self._card_digests[name]:
            rotated = control.Rotated(name, self._members.chains([name]).get(name, ()))
            for evaluator in self._roles.evaluators:
                self._deliver_to(evaluator, rotated)
        return True

    def _keep(self, name: str, part: control.ArtifactPart) -> None:
        if name not in self.contract.roles.nodes:
            raise _Faulty(name, ControlError(f"{name} does not run a node of this job"))
        if part.kind == artifacts.SEALED:
            if name not in self.contract.roles.evaluators:
                raise _Faulty(
                    name, ControlError(f"{name} sent a sealed result but is not an evaluator")
                )
            recipient = part.path.split("/")[0]
            if recipient not in self.contract.roles.receivers:
                raise _Faulty(name, ControlError(f"{name} seals to {clip(recipient)}"))
        try:
            path = self._collector.add(name, part)
        except ControlError as error:
            raise _Faulty(name, error) from error
        if path is not None:
            self._event("artifact", node=name, file=str(path))

    def _deliver(self) -> None:
        for recipient, files in self._collector.sealed.items():
            if recipient in self._nodes:
                for sender, path, file in files:
                    for part in artifacts.split(artifacts.SEALED, path, file.read_bytes()):
                        self._send(recipient, control.Delivery(sender, part))

    def _event(self, kind: str, **fields: Any) -> None:
        self._on_event(kind, fields)

    def _note(self, kind: Kind, fields: Mapping[str, Value] | None = None) -> None:
        self._audit.append(kind, fields, job=self._name, digest=self._digest)

    def _send(self, name: str, message: FromCoordinator) -> None:
        if not self._server.send(self._nodes[name].process, control.encode(message)):
            # A node that caused an abort has often left before it can be told; that does no harm.
            level = logging.INFO if isinstance(message, control.Aborted) else logging.WARNING
            log.log(level, "could not send %s a %s", name, type(message).__name__)

    def _tell(self, names: tuple[str, ...], message: FromCoordinator) -> None:
        for name in names:
            self._send(name, message)

    def _refuse(self, process: bytes, name: str, code: str) -> None:
        if count := self._refused.add(name):
            log.warning("refused %s %d times, the last time: %s", name, count, code)
            self._event("refused", node=name, code=code)
            self._note(Kind.UNEXPECTED_PEER, {"who": name, "times": count, "code": code})
        self._server.send(process, control.encode(control.Aborted(code, self._me)))

    def _abort(self, code: str, by: str, about: str | None = None, wait_s: int = 0) -> None:
        """Tell everybody. A node that has failed itself ignores the message. wait_s: for how long
        nodes whose session breaks off wait for a coordinator that is started again."""
        aborted = control.Aborted(code, by, about, wait_s)
        self._tell(tuple(self._nodes), aborted)
        self._visits.close(aborted)
        self._event("aborted", node=by, code=code)
        try:
            ended = by == self._me and code == "interrupted" and bool(self._roles.clients)
            said = {"code": "stopped" if ended else code, "by": by}
            self._note(Kind.RUN_ENDED if ended else Kind.RUN_ABORTED, said)
        except AuditError as error:
            log.error("%s", error)
        self._close(ABORT_LINGER_S)

    def _close(self, linger_s: float) -> None:
        self._server.close(linger_s)
        self._transport.close()
        try:
            self._note_strangers()  # those of the last moment: nobody attends any more
        except AuditError as error:
            log.error("%s", error)


class _LeftError(Exception):
    """A node left during the agreement on the job."""


class _LostError(Exception):
    """A node has left a session of which another may follow."""

    def __init__(self, name: str, code: str) -> None:
        super().__init__(f"{name}: {code}")
        self.name, self.code = name, code


class _Faulty(Exception):
    """An error that one node caused, with the node's name for the others."""

    def __init__(self, name: str, cause: PartiesError | ProtocolError) -> None:
        super().__init__(str(cause))
        self.name = name
        self.cause = cause


def _json(summary: bytes, name: str) -> dict[str, Any]:
    try:
        value: dict[str, Any] = msgspec.json.decode(summary, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _Faulty(name, ControlError(f"{name} sent a summary that is not JSON")) from error
    return value
