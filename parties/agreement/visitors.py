"""An evaluator's part in a service: handshakes with clients, and their sealed questions.

Each visit of a client agrees on keys of its own, by the signed hybrid handshake of a session's
beginning, bound to the session, the contract and the roster; the client begins. The coordinator
carries the messages and sees their lengths. What a client sends can end its own visit and nothing
else.

    1, 2, 3, 4   the messages of the handshake
    q            a sealed question: its number (64 bits), its data; label "question"
    a            a sealed answer: the number, the data; label "answer"
    b            no: this client shakes hands too often; it waits
    x            this evaluator does not know the visit, or has ended it: begin again
    e            the client has left; the coordinator says so
"""

import logging
import queue
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from parties.agreement import control
from parties.agreement.contract import Contract
from parties.agreement.pace import Pace
from parties.errors import PartiesError
from parties.keys.identity import Card
from parties.stop import StopFlag
from protocols.errors import ProtocolError
from protocols.sealing.handshake import Keys, Responder
from protocols.sealing.record import RecordOpener, RecordSealer, record_context
from protocols.sealing.session import SUITE, VERSION, Endpoint, SessionInfo
from protocols.sealing.signatures import Signer, VerifyKeys

log = logging.getLogger(__name__)

PURPOSE = "service"
LEFT = b"e"
QUESTION, ANSWER = b"question", b"answer"
NUMBER = struct.Struct(">Q")
MAX_NUMBER = 1 << 62
MAX_VISITS = 4
"""Of one client; a further one ends the oldest."""
MAX_HEARD, MAX_HEARD_BYTES = 320, 64 << 20
"""Of one client: questions that the program has not taken, and the bytes in them."""


def service_info(contract: Contract, sid: bytes) -> SessionInfo:
    """The values to which handshakes with clients are bound."""
    return SessionInfo(
        version=VERSION,
        suite=SUITE,
        sid=sid,
        job=contract.digest(),
        roster=contract.roster_digest,
        purpose=PURPOSE,
    )


@dataclass(frozen=True, repr=False)
class Heard:
    """A question. visit: of the client, as `Visitors.answer` takes it. at: when it came, as
    `time.monotonic` has it. keys: those under which it came; a client that shakes hands again
    begins anew with its numbers."""

    client: str
    visit: bytes
    number: int
    data: memoryview
    at: float
    keys: Keys = field(repr=False)

    def __repr__(self) -> str:
        return f"Heard({self.client}, {self.number}, {len(self.data)} bytes)"


@dataclass
class _Visitor:
    client: str
    responder: Responder | None
    keys: Keys | None = None
    opener: RecordOpener | None = None
    sealer: RecordSealer | None = None
    newest: int = 0
    """The number of its last question: each is larger than those before."""


class Visitors:
    """The clients of one session, at one evaluator. `take` is for the control connection's thread,
    the rest for the one that computes.

    accepts: raises PartiesError for a card that is not accepted any more. say: sends a message to
    the coordinator, from any thread.
    """

    def __init__(
        self,
        contract: Contract,
        sid: bytes,
        cards: Mapping[str, Card],
        signer: Signer,
        me: str,
        say: Callable[[control.Carry], None],
        accepts: Callable[[Card], None],
        stop: StopFlag,
    ) -> None:
        self._contract, self._sid, self._me = contract, sid, me
        self._info = service_info(contract, sid)
        self._cards, self._signer = dict(cards), signer
        self._pace = Pace()
        self._say, self._accepts, self._stop = say, accepts, stop
        self._visitors: dict[bytes, _Visitor] = {}
        self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._untaken: dict[str, tuple[int, int]] = {}
        """By client, how many questions the program has not taken, and their bytes."""

    def take(self, message: control.Carried) -> None:
        """A message that the coordinator carried here."""
        client, visit = message.by, message.visit
        known = self._visitors.get(visit)
        if message.data == LEFT:
            if known is not None and known.client == client:
                del self._visitors[visit]
            return
        try:
            if client not in self._contract.roles.clients:
                raise ProtocolError(f"{client} is no client of this service")
            if client not in self._cards:
                raise ProtocolError(f"the card of {client} was not accepted when the session began")
            if known is not None and known.client != client:
                raise ProtocolError(f"{client} sent a message of another client's visit")
            self._accepts(self._cards[client])
            kind, data = message.data[:1], memoryview(message.data)[1:]
            if kind == b"1" and not self._pace.admits(client):
                log.info("%s shakes hands too often", client)
                self._visitors.pop(visit, None)
                self._say(control.Carry(client, b"b", visit))
            elif kind == b"1":
                self._begin(client, visit, bytes(data))
            elif kind == b"3" and known is not None and known.responder is not None:
                self._agree(known, visit, bytes(data))
            elif kind == b"q" and known is not None and known.opener is not None:
                self._hear(known, visit, data)
            else:
                raise ProtocolError(f"{client} sent a message that is not due")
        except (ProtocolError, PartiesError) as error:
            log.info("the visit of %s has ended: %s", client, error)
            if known is None or known.client == client:
                self._visitors.pop(visit, None)
            self._say(control.Carry(client, b"x", visit))

    def serves(self, name: str) -> bool:
        return name in self._contract.roles.clients

    def succeed(self, card: Card) -> None:
        """A client has new keys: from now on it shakes hands with these. Visits go on."""
        self._cards[card.name] = card

    def _begin(self, client: str, visit: bytes, data: bytes) -> None:
        self._visitors.pop(visit, None)
        mine = [each for each, one in self._visitors.items() if one.client == client]
        for oldest in mine[: max(0, len(mine) + 1 - MAX_VISITS)]:
            del self._visitors[oldest]
            self._say(control.Carry(client, b"x", oldest))
        roles = self._contract.roles
        me, peer = (
            Endpoint(name, roles.title(name), self._cards[name].signing_public)
            for name in (self._me, client)
        )
        verifier = VerifyKeys(peer.signing_public)
        responder = Responder(self._info, me, peer, self._signer, verifier)
        answer = responder.on_message1(data)
        self._visitors[visit] = _Visitor(client, responder)
        self._say(control.Carry(client, b"2" + answer, visit))

    def _agree(self, visitor: _Visitor, visit: bytes, data: bytes) -> None:
        assert visitor.responder is not None
        answer, keys = visitor.responder.on_message3(data)
        visitor.responder = None
        visitor.keys = keys
        visitor.opener = RecordOpener(
            keys.receive, record_context(self._sid, visitor.client, self._me)
        )
        visitor.sealer = RecordSealer(
            keys.send, record_context(self._sid, self._me, visitor.client)
        )
        self._say(control.Carry(visitor.client, b"4" + answer, visit))

    def _hear(self, visitor: _Visitor, visit: bytes, data: memoryview) -> None:
        assert visitor.opener is not None and visitor.keys is not None
        opened = visitor.opener.open(QUESTION, data)
        if len(opened) < NUMBER.size:
            raise ProtocolError(f"{visitor.client} sent a question without a number")
        (number,) = NUMBER.unpack(opened[: NUMBER.size])
        if not visitor.newest < number < MAX_NUMBER:
            raise ProtocolError(f"{visitor.client} used the number of a question twice")
        self._count(visitor.client, 1, len(opened))
        visitor.newest = number
        rest = opened[NUMBER.size :]
        self._heard.put(Heard(visitor.client, visit, number, rest, time.monotonic(), visitor.keys))

    def _count(self, client: str, questions: int, size: int) -> None:
        """Each client has a share of its own: what one sends keeps no other from being heard."""
        with self._lock:
            count, total = self._untaken.get(client, (0, 0))
            count, total = count + questions, total + size
            if count > MAX_HEARD or total > MAX_HEARD_BYTES:
                raise ProtocolError(f"more questions of {client} wait than this node keeps")
            self._untaken[client] = count, total

    def receive(self, timeout_s: float) -> Heard | None:
        """The next question, None if none comes in time. Raises InterruptedRunError if the node
        must stop."""
        self._stop.check("waiting for questions")
        try:
            heard = self._heard.get(timeout=timeout_s) if timeout_s else self._heard.get_nowait()
        except queue.Empty:
            return None
        self._count(heard.client, -1, -NUMBER.size - len(heard.data))
        return heard

    def answer(self, visit: bytes, number: int, data: bytes) -> None:
        """Answer a question; nothing happens if the visit has ended."""
        visitor = self._visitors.get(visit)
        if visitor is None or visitor.sealer is None:
            return
        sealed = visitor.sealer.seal(ANSWER, NUMBER.pack(number) + data)
        self._say(control.Carry(visitor.client, b"a" + sealed, visit))

    def knows(self, visit: bytes) -> bool:
        return visit in self._visitors
