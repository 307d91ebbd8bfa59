"""Two organisations that talk to each other outside any run: a server, and clients that it knows.

Every connection agrees on keys of its own, by the signed hybrid handshake of a session's beginning
(`protocols/sealing/handshake`). It is bound to both cards, to what the connection is for and to a
fresh nonce of each end; the client begins. What is said afterwards is sealed, so that traffic
recorded today stays confidential against quantum computers, and nobody can take another's place.

    client      its nonce (32)
    server      its nonce (32) ‖ digest of its own card (32) ‖ digest of the client's card (32)
    1, 2, 3, 4  the messages of the handshake, each a message of one part
    then        sealed messages both ways, of at most `MAX_PARTS` parts, in order

The digests only tell people which card differs; nothing is decided by them. Each part is a record
of `protocols/sealing/record`, whose label says whether it is the last of its message, so that a
message cannot lose or gain a part. What is not due or does not verify ends its connection and
nothing else: the server answers `ENDED`, or `BUSY` to a client that begins too often. Both are
shorter than any record; they are not authenticated and can only end what they answer.

Leaves to the caller: the connection, the name of its other end, and the length of what arrives.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from parties.agreement.pace import Pace
from parties.errors import ControlError, PartiesError, RosterError
from parties.keys import lifetime
from parties.keys.identity import Card
from parties.keys.roster import Roster, differing_cards, roster_digest
from parties.keys.vault import Vault
from protocols.canonical import pack
from protocols.errors import FrameError, HandshakeError, PeerLostError, ProtocolError
from protocols.sealing.handshake import MESSAGE_MAX_BYTES, Initiator, Keys, Responder
from protocols.sealing.record import TAG_BYTES, RecordOpener, RecordSealer, record_context
from protocols.sealing.session import (
    HASH_BYTES,
    NONCE_BYTES,
    SUITE,
    VERSION,
    Endpoint,
    SessionInfo,
    session_id,
)

log = logging.getLogger(__name__)

CLIENT, SERVER = "client", "server"
MAX_PARTS = 2
PART_OVERHEAD_BYTES = TAG_BYTES
"""By how much a sealed part is longer."""
MAX_LINES = 4
"""Connections of one client; a further one ends the oldest."""
ENDED, BUSY = b"x", b"b"

_MORE, _LAST = b"more", b"last"

Parts = tuple[bytes, ...]


class Sealed:
    """Both directions of one connection, once both ends have agreed. For one thread."""

    def __init__(self, keys: Keys, sid: bytes, me: str, peer: str) -> None:
        self._peer = peer
        self._sealer = RecordSealer(keys.send, record_context(sid, me, peer))
        self._opener = RecordOpener(keys.receive, record_context(sid, peer, me))

    def seal(self, parts: Sequence[bytes]) -> Parts:
        """The next message to the other end. It must be sent: the one after it does not open
        without it."""
        if not 0 < len(parts) <= MAX_PARTS:
            raise FrameError(f"a message has 1 to {MAX_PARTS} parts, not {len(parts)}")
        return tuple(self._sealer.seal(_label(parts, place), p) for place, p in enumerate(parts))

    def open(self, parts: Sequence[bytes]) -> Parts:
        """The parts of the next message from the other end.

        Raises FrameError and AuthenticationError; then the direction is of no more use.
        """
        if not 0 < len(parts) <= MAX_PARTS:
            raise FrameError(f"{self._peer} sent a message of another number of parts")
        found = (self._opener.open(_label(parts, place), p) for place, p in enumerate(parts))
        return tuple(map(bytes, found))


def _label(parts: Sequence[bytes], place: int) -> bytes:
    return _LAST if place == len(parts) - 1 else _MORE


def _info(purpose: str, client: Card, server: Card, nonces: tuple[bytes, bytes]) -> SessionInfo:
    """The values to which a handshake is bound. nonces: of the client, and of the server."""
    members = sorted(
        [(client, CLIENT, nonces[0]), (server, SERVER, nonces[1])], key=lambda one: one[0].name
    )
    job = sha256(pack(b"mpc-train/pair/1", purpose.encode())).digest()
    roster = roster_digest(card.digest for card, _, _ in members)
    mine = [(role, _end(card, role).identity, nonce) for card, role, nonce in members]
    sid = session_id(VERSION, job, roster, mine)
    return SessionInfo(VERSION, SUITE, sid, job, roster, purpose)


def _end(card: Card, role: str) -> Endpoint:
    return Endpoint(card.name, role, card.signing_public)


class ClientEnd:
    """A client's end of one connection: `begin`, `take` what the server says until `sealed`."""

    def __init__(self, vault: Vault, server: Card, purpose: str) -> None:
        self._vault, self._server, self._purpose = vault, server, purpose
        self._nonce = os.urandom(NONCE_BYTES)
        self._side: Initiator | None = None
        self._sid = b""
        self.sealed: Sealed | None = None

    def begin(self) -> bytes:
        """The first message."""
        return self._nonce

    def take(self, message: bytes) -> bytes | None:
        """The message that answers this one of the server; None: both ends have agreed.

        Raises HandshakeError, AuthenticationError, and RosterError if either end has another card
        of the other.
        """
        if message in (ENDED, BUSY):
            raise refusal(self._server.name, message, during="the handshake")
        if self._side is None:
            return self._propose(message)
        if not self._side.has_answered:
            return self._side.on_message2(message)
        keys = self._side.on_message4(message)
        self.sealed = Sealed(keys, self._sid, self._vault.card.name, self._server.name)
        return None

    def _propose(self, message: bytes) -> bytes:
        server, me = self._server, self._vault.card
        if len(message) != NONCE_BYTES + 2 * HASH_BYTES:
            raise HandshakeError(
                f"{server.name} does not answer as this release does; run the same release at both "
                "ends"
            )
        nonce, rest = message[:NONCE_BYTES], message[NONCE_BYTES:]
        theirs = {server.name: rest[:HASH_BYTES], me.name: rest[HASH_BYTES:]}
        if theirs != {server.name: server.digest, me.name: me.digest}:
            raise RosterError(differing_cards(Roster.of((server, me)), server.name, theirs))
        info = _info(self._purpose, me, server, (self._nonce, nonce))
        ends = _end(me, CLIENT), _end(server, SERVER)
        self._sid = info.sid
        self._side = Initiator(info, *ends, self._vault, server.verifier())
        return self._side.message1()


def refusal(server: str, message: bytes, *, during: str) -> Exception:
    """The error for `ENDED` or `BUSY` of a server."""
    if message == BUSY:
        return PeerLostError(f"{server} takes no more handshakes of this client for a while")
    return PeerLostError(
        f"{server} ended {during}; its own log says why. Do both ends run the same release?"
    )


@dataclass
class _Line:
    """A client's connection at the server: its name, and how far it has come."""

    client: str
    side: Responder | None
    sid: bytes
    sealed: Sealed | None = None


class ServerEnd:
    """A server's ends of all its connections. For one thread.

    peers: by name, the cards of the clients. say: sends a message that is not sealed to a route. A
    route stands for one connection, whose client has a proven name.
    """

    def __init__(
        self,
        vault: Vault,
        peers: Mapping[str, Card],
        purpose: str,
        say: Callable[[bytes, Parts], object],
    ) -> None:
        self._vault, self._peers, self._purpose, self._say = vault, dict(peers), purpose, say
        self._pace = Pace()
        self._lines: dict[bytes, _Line] = {}
        self.ended: deque[bytes] = deque()
        """Routes whose keys are of no more use, oldest first."""

    def take(self, route: bytes, client: str, parts: Sequence[bytes]) -> Parts | None:
        """What a client said under the keys of its connection; None for everything else, which is
        answered here."""
        line = self._lines.get(route)
        try:
            if line is not None and line.sealed is not None:
                return line.sealed.open(parts)
            if len(parts) != 1 or len(parts[0]) > MESSAGE_MAX_BYTES:
                raise ControlError(f"{client} sent something else than a part of a handshake")
            if line is None:
                self._begin(route, client, parts[0])
            else:
                self._go_on(route, line, parts[0])
        except (ProtocolError, PartiesError) as error:
            log.info("a connection of %s has ended: %s", client, error)
            self.end(route)
        return None

    def seal(self, route: bytes, parts: Sequence[bytes]) -> Parts | None:
        """The next sealed message to a client; None if its connection has ended."""
        line = self._lines.get(route)
        return None if line is None or line.sealed is None else line.sealed.seal(parts)

    def end(self, route: bytes) -> None:
        """Forget a connection's keys, and say so."""
        if self._lines.pop(route, None) is not None:
            self.ended.append(route)
        self._say(route, (ENDED,))

    def forget(self, route: bytes) -> None:
        """The connection is gone, and its keys with it."""
        self._lines.pop(route, None)

    def _begin(self, route: bytes, client: str, nonce: bytes) -> None:
        """1. Not too often.
        2. Both cards are valid now, whatever they were when the server started.
        3. So many connections of one client.
        """
        mine, card = self._vault.card, self._peers[client]
        if not self._pace.admits(client):  # 1
            log.info("%s begins too often", client)
            self._say(route, (BUSY,))
            return
        moment = lifetime.now()  # 2
        lifetime.check_own(mine, moment)
        lifetime.check_peer(card, moment)
        theirs = [each for each, one in self._lines.items() if one.client == client]  # 3
        for oldest in theirs[: max(0, len(theirs) + 1 - MAX_LINES)]:
            self.end(oldest)
        own = os.urandom(NONCE_BYTES)
        info = _info(self._purpose, card, mine, (nonce, own))
        ends = _end(mine, SERVER), _end(card, CLIENT)
        side = Responder(info, *ends, self._vault, card.verifier())
        self._lines[route] = _Line(client, side, info.sid)
        self._say(route, (own + mine.digest + card.digest,))

    def _go_on(self, route: bytes, line: _Line, message: bytes) -> None:
        side = line.side
        assert side is not None
        if not side.has_answered:
            self._say(route, (side.on_message1(message),))
            return
        answer, keys = side.on_message3(message)
        line.side = None
        line.sealed = Sealed(keys, line.sid, self._vault.card.name, line.client)
        self._say(route, (answer,))
