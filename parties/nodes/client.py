"""A client of a service: connects to the coordinator, checks the contract, agrees on keys with each
evaluator, and asks.

Guarantees that a question leaves only sealed, one part for each evaluator, and only after every
evaluator has proved by its signature that it runs this contract in this session. The client signs
nothing that binds it. Its connection has a thread of its own, so that any number of threads may
ask; when the coordinator or the session is lost, it connects again by itself.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from parties.agreement import control
from parties.agreement.contract import CONTRACT_VERSION, Contract
from parties.agreement.visitors import ANSWER, NUMBER, QUESTION, service_info
from parties.audit.entries import Kind, Value
from parties.errors import (
    AbortedError,
    ContractError,
    ControlError,
    TransportError,
    TurnedAwayError,
)
from parties.keys import lifetime
from parties.keys.identity import Card
from parties.keys.roster import Roster, differing_cards, roster_digest
from parties.keys.vault import Vault
from parties.nodes.members import Members
from parties.nodes.node import NodeSettings
from parties.nodes.visits import BUSY
from parties.wire.control_plane import ControlClient
from parties.wire.zmq_transport import CurveKeys, Transport
from protocols.errors import PeerLostError, PeerTimeoutError
from protocols.sealing.handshake import Initiator, Keys
from protocols.sealing.record import RecordOpener, RecordSealer, record_context
from protocols.sealing.session import Endpoint
from protocols.sealing.signatures import VerifyKeys

log = logging.getLogger(__name__)

MAX_ASKED, MAX_ASKED_BYTES = 64, 16 << 20
"""Questions of one client on their way at once, and the bytes in them; further ones wait here."""

AGAIN_S = (0.2, 5.0)
"""How long a client waits before it connects again: first, and at most."""

HANDSHAKE_S = 30.0

SILENT = "the coordinator is reached, but says nothing; is it overloaded or stopped?"

LASTING = frozenset({"card", "expired", "revoked", "roster", "version"})
"""Codes of a coordinator that will refuse this client again, until somebody changes something."""


Ends = Callable[[memoryview], bool]


class _Call:
    """A question on its way: what each evaluator answered so far. ends: whether an answer is the
    last, since the others will not compute."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self.answers: dict[str, memoryview] = {}
        self.error: Exception | None = None
        self.done = threading.Event()

    def fail(self, error: Exception) -> None:
        if not self.done.is_set():
            self.error = error
            self.done.set()


@dataclass(eq=False)
class Line:
    """An agreed session with all evaluators of a service, until it is lost."""

    contract: Contract
    body: bytes
    sid: bytes
    keys: Mapping[str, Keys] = field(repr=False)

    def export(self, evaluator: str, label: str) -> bytes:
        """32 bytes that only this client and the evaluator know."""
        return self.keys[evaluator].export(label)


def may_pass(error: Exception) -> bool:
    """Whether what keeps a client from asking is over when nodes, or the network, are back."""
    if isinstance(error, AbortedError):
        return error.reason_code in ("interrupted", "coordinator-lost", BUSY) or error.returns_s > 0
    return isinstance(error, (TransportError, PeerLostError, PeerTimeoutError))


class Client:
    """The connection of one client; a context manager, which closes it.

    check: raises an error, which `line` repeats, unless this client wants to ask by this contract
    and body. on_event: as of `run_node`: 'connecting', 'serving', 'paused'. Raises ExpiredError for
    an identity that has expired.
    """

    def __init__(
        self,
        vault: Vault,
        roster: Roster,
        settings: NodeSettings,
        check: Callable[[Contract, bytes], None],
        note: Callable[[Kind, Mapping[str, Value]], None],
        on_event: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        lifetime.check_own(vault.card, lifetime.now())
        self._vault, self._settings, self._me = vault, settings, vault.card.name
        self._members = Members(roster, vault, note)
        self._check, self._on_event = check, on_event
        self._server_key = roster.card(settings.coordinator).curve
        keys = CurveKeys(vault.card.curve, vault.curve_secret())
        self._transport = Transport(keys, {}, proxy=settings.proxy, pulse=settings.pulse)
        self._changed = threading.Condition()
        self._line: Line | None = None
        self._fault: Exception | None = None
        self._trouble = ""
        self._closing = False
        self._calls: dict[int, _Call] = {}
        self._number = 0
        self._asked = self._asked_bytes = 0
        """Questions on their way, and the bytes in them."""
        self._outbox: deque[control.FromNode] = deque()
        self._talk: ControlClient | None = None
        self._serving: control.Serving | None = None
        self._contract: Contract | None = None
        self._open: dict[str, Initiator] = {}
        self._agreed: dict[str, Keys] = {}
        self._sealers: dict[str, RecordSealer] = {}
        self._openers: dict[str, RecordOpener] = {}
        self._deadline = 0.0
        self._thread = threading.Thread(target=self._run, name="client", daemon=True)

    def __enter__(self) -> "Client":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
            talk = self._talk
        if talk is not None:
            talk.wake()
        self._thread.join(timeout=10)
        self._transport.close()

    @property
    def serving(self) -> Line | None:
        """The session, if there is one now."""
        return self._line

    def line(self, timeout_s: float) -> Line:
        """The session; waits until there is one.

        Raises PeerTimeoutError, and the error that keeps this client from asking: ContractError,
        RosterError, TurnedAwayError and AbortedError (the coordinator refuses it), HandshakeError,
        what `check` raises.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._line is None:
                if self._fault is not None:
                    raise self._fault
                left = deadline - time.monotonic()
                if left <= 0 or self._closing:
                    raise PeerTimeoutError(
                        f"the service at {self._settings.address} did not answer within "
                        f"{timeout_s:.0f} s: {self._why_not()}"
                    )
                self._changed.wait(min(left, 1.0))
            return self._line

    def _why_not(self) -> str:
        """Why there is no session, for people."""
        talk = self._talk
        if trouble := (talk.trouble if talk is not None else None) or self._trouble:
            return trouble
        if talk is not None and talk.connected:
            return SILENT
        return "nobody answers there"

    def ask(
        self,
        line: Line,
        parts: Callable[[int], Mapping[str, bytes]],
        ends: Ends,
        timeout_s: float,
        size: int = 0,
    ) -> dict[str, memoryview]:
        """Send a part of a question to each evaluator; what each of them answers, or one that
        `ends` the question.

        parts: makes the parts of the question of this number, which grows. size: the bytes of the
        largest part. Raises PeerLostError if
        the session is lost meanwhile, and PeerTimeoutError.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            if not self._changed.wait_for(lambda: self._has_room(size), timeout_s):
                raise PeerTimeoutError(f"no question was answered for {timeout_s:.0f} s")
            self._asked += 1
            self._asked_bytes += size
        call = _Call(ends)
        try:
            with self._changed:
                if line is not self._line:
                    raise PeerLostError("the session of the service has ended; ask again")
                self._number += 1
                number = self._number
                for evaluator, data in parts(number).items():
                    sealed = self._sealers[evaluator].seal(QUESTION, NUMBER.pack(number) + data)
                    self._outbox.append(control.Carry(evaluator, b"q" + sealed))
                self._calls[number] = call
                talk = self._talk
            if talk is not None:
                talk.wake()
            if not call.done.wait(max(0.0, deadline - time.monotonic())):
                with self._changed:
                    self._calls.pop(number, None)
                raise PeerTimeoutError(
                    f"the question was not answered within {timeout_s:.0f} s; ask again"
                )
            if call.error is not None:
                raise call.error
            return call.answers
        finally:
            with self._changed:
                self._asked -= 1
                self._asked_bytes -= size
                self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        return not self._asked or (
            self._asked < MAX_ASKED and self._asked_bytes + size <= MAX_ASKED_BYTES
        )

    def _run(self) -> None:
        """The thread of the connection: connects again whenever it is lost."""
        pause_s = AGAIN_S[0]
        while not self._closing:
            self._talk = ControlClient(
                self._transport,
                self._settings.address,
                self._server_key,
                self._settings.reconnect_s,
            )
            self._outbox.clear()
            chain = tuple(each.to_text() for each in self._vault.successions)
            self._say(control.Hello(CONTRACT_VERSION, self._me, None, chain))
            self._on_event("connecting", {"address": self._settings.address})
            try:
                self._stay(self._talk)
            except Exception as error:  # those of `check` are its own
                self._drop(PeerLostError(f"the service was lost: {error}"))
                self._blame(error)
            finally:
                talk, self._talk = self._talk, None
                talk.close(0.5)
                talk.relay.close()
            with self._changed:
                self._changed.wait_for(lambda: self._closing, pause_s)
            pause_s = min(2 * pause_s, AGAIN_S[1])
        self._drop(PeerLostError("this client was closed"))

    def _stay(self, talk: ControlClient) -> None:
        """One connection, to its end."""
        while not self._closing:
            while self._outbox and talk.has_room:
                talk.send(control.encode(self._outbox.popleft()))
            data = talk.poll(0.25)
            if talk.state() == "lost" and data is None:
                raise TransportError(talk.trouble or "the connection to the coordinator broke")
            if talk.refused:
                raise TurnedAwayError(
                    f"{self._settings.coordinator} refuses {self._me}: no service at "
                    f"{self._settings.address} has it among its clients, or the roster there has "
                    "no card with its key"
                )
            if self._open and time.monotonic() > self._deadline:
                raise TransportError(f"{', '.join(self._open)} did not shake hands in time")
            while data is not None and not self._closing:
                self._take(control.decode_from_coordinator(data, self._settings.coordinator))
                data = talk.poll(0)

    def _say(self, message: control.FromNode) -> None:
        with self._changed:
            self._outbox.append(message)

    def _blame(self, error: Exception) -> None:
        """Note why there is no session: for `line` to raise at once, unless waiting may help."""
        with self._changed:
            self._fault, self._trouble = None if may_pass(error) else error, str(error)
            self._changed.notify_all()

    def _drop(self, error: Exception) -> None:
        """The session is over: nothing more of it is answered."""
        with self._changed:
            had, self._line = self._line, None
            calls, self._calls = list(self._calls.values()), {}
            self._open, self._agreed, self._serving = {}, {}, None
            self._sealers, self._openers = {}, {}
        for call in calls:
            call.fail(error)
        if had is not None:
            self._on_event("paused", {})

    def _take(self, message: control.FromCoordinator) -> None:
        if isinstance(message, control.Serving):
            self._drop(PeerLostError("the service began another session; ask again"))
            self._begin(message)
        elif isinstance(message, control.Waiting):
            self._drop(PeerLostError("the service waits for one of its nodes; ask again"))
            self._blame(PeerLostError("one of its nodes is away"))
        elif isinstance(message, control.Carried):
            self._hear(message.by, message.data)
        elif isinstance(message, control.Aborted):
            raise self._ended(message)
        elif isinstance(message, control.Welcome):
            if message.version != CONTRACT_VERSION:
                raise ContractError(
                    f"{self._settings.coordinator} has version {message.version}, this client "
                    f"{CONTRACT_VERSION}: run the same release everywhere"
                )
        else:
            raise ControlError(f"{self._settings.coordinator} sent {type(message).__name__}")

    def _ended(self, said: control.Aborted) -> Exception:
        """The error for the end of a visit."""
        if said.code in LASTING:
            return TurnedAwayError(f"{said.by} refuses {self._me}: {said.code}", said.code)
        if said.code == BUSY:
            return PeerLostError(
                f"{said.by} lets {self._me} in no more often for a while, since it connected too "
                "often; it waits, and tries again"
            )
        return AbortedError(said.code, said.by, said.about, said.returns_s)

    def _begin(self, serving: control.Serving) -> None:
        """Check the contract, and begin the handshakes."""
        contract = Contract.from_bytes(serving.contract)
        contract.check(serving.body)
        desk, roles = self._settings.coordinator, contract.roles
        if self._me not in roles.clients:
            raise ContractError(f"{self._me} is no client of this service")
        for name, texts in serving.successions.items():
            if name != self._me and name in self._members.roster:
                self._members.follow(name, texts, desk)
        digests = [serving.cards.get(name, b"") for name in roles.names]
        if roster_digest(digests) != contract.roster_digest:
            raise ContractError(f"{desk} did not send the cards of the contract")
        # A client need not know the other clients.
        known = [name for name in roles.names if name not in roles.clients or name == self._me]
        roster = self._members.roster.subset(known)
        # Of this client the contract may name a card that its present one has succeeded.
        mine = {card.digest for card in self._members.roster.line(self._me)}
        others = (card for card in roster if card.name != self._me)
        if serving.cards.get(self._me) not in mine or any(
            card.digest != serving.cards.get(card.name) for card in others
        ):
            raise ContractError(differing_cards(roster, desk, serving.cards))
        roster.check_lifetimes(lifetime.now())
        self._check(contract, serving.body)
        self._serving, self._contract = serving, contract
        self._deadline = time.monotonic() + HANDSHAKE_S
        info, cards = service_info(contract, serving.sid), {card.name: card for card in roster}
        me = self._endpoint(cards[self._me])
        for name in roles.evaluators:
            peer = self._endpoint(cards[name])
            verifier = VerifyKeys(peer.signing_public)
            side = self._open[name] = Initiator(info, me, peer, self._vault, verifier)
            self._say(control.Carry(name, b"1" + side.message1()))

    def _endpoint(self, card: Card) -> Endpoint:
        assert self._contract is not None
        return Endpoint(card.name, self._contract.roles.title(card.name), card.signing_public)

    def _hear(self, evaluator: str, message: bytes) -> None:
        kind, data = message[:1], message[1:]
        side = self._open.get(evaluator)
        if kind == b"2" and side is not None:
            self._say(control.Carry(evaluator, b"3" + side.on_message2(data)))
        elif kind == b"4" and side is not None:
            self._agreed[evaluator] = side.on_message4(data)
            del self._open[evaluator]
            if not self._open:
                self._agree()
        elif kind == b"a" and evaluator in self._openers:
            self._answer(evaluator, data)
        elif kind == b"b" and side is not None:
            raise PeerLostError(f"{evaluator} takes no more handshakes of this client for a while")
        elif kind == b"x" and (side is not None or evaluator in self._openers):
            raise PeerLostError(f"{evaluator} does not know this client any more")
        else:
            log.info("%s sent a message of another session", evaluator)

    def _agree(self) -> None:
        """All evaluators have shaken hands: questions may be asked."""
        serving, contract = self._serving, self._contract
        assert serving is not None and contract is not None
        sid, agreed = serving.sid, dict(self._agreed)
        with self._changed:
            for name, keys in agreed.items():
                self._sealers[name] = RecordSealer(keys.send, record_context(sid, self._me, name))
                self._openers[name] = RecordOpener(
                    keys.receive, record_context(sid, name, self._me)
                )
            self._line, self._fault = Line(contract, serving.body, sid, agreed), None
            self._changed.notify_all()
        self._on_event("serving", {"service": contract.name, "evaluators": tuple(agreed)})

    def _answer(self, evaluator: str, data: bytes) -> None:
        opened = self._openers[evaluator].open(ANSWER, data)
        if len(opened) < NUMBER.size:
            raise ControlError(f"{evaluator} sent an answer without a number")
        (number,) = NUMBER.unpack(opened[: NUMBER.size])
        call = self._calls.get(number)
        if call is None:  # its question has timed out
            return
        said = call.answers[evaluator] = opened[NUMBER.size :]
        if len(call.answers) == len(self._agreed) or call.ends(said):
            with self._changed:
                self._calls.pop(number, None)
            call.done.set()
