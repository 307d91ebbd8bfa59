"""A node's keys are rotated while a run computes; nothing waits, and no frame is lost.

All of it happens in the threads of the control connection. R is the node whose identity file was
rotated; its old keys are in force everywhere until step 4.

1. R finds the new identity in its file and sends the successions to the coordinator (`Rotate`).
2. The coordinator verifies them from the card that it knows and passes them on (`Rotated`). One
   rotation at a time.
3. Each node verifies them from the card that *it* knows, updates its roster, logs it, and signs
   contract, session, new card and new roster digest (`Kept`): R with its new keys, the others with
   their present ones.
4. Everybody verifies all signatures (`Switch`): all nodes hold the same cards again, whatever the
   coordinator says. From here on R signs with its new keys.
5. R and each of its neighbours agree on fresh record keys by the signed hybrid handshake of a run's
   beginning, bound to the session, the new roster digest and the number of the card (`Handshake`,
   relayed by the coordinator). Who knows that the other end has them tells the channel, which
   changes at its next frame (`secure_channel`). R reports when all have (`RotationDone`).

A run that ends meanwhile ends well: R's next run goes on with its new keys.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from parties.agreement import control
from parties.agreement.contract import (
    ROTATION_PURPOSE,
    Contract,
    rotation_statement,
    verify_rotation,
)
from parties.agreement.session import session_info
from parties.audit.log import AuditLog
from parties.errors import ControlError, IdentityError
from parties.keys.identity import Card
from parties.keys.live import LiveIdentity
from parties.keys.roster import Roster
from parties.keys.statements import Succession
from parties.keys.vault import Vault
from parties.nodes.members import LOOK_S, Members
from parties.wire.secure_channel import SecureChannel
from protocols.sealing.handshake import Initiator, Keys, Responder
from protocols.sealing.session import Endpoint, SessionInfo

log = logging.getLogger(__name__)

RECORD_KEYS_S = 3600.0
"""After this long the record keys of all connections are replaced, however little was sent."""

MAX_QUEUED = 16
"""Rotations that wait for others at the coordinator."""

Message = control.Rotated | control.Switch | control.Handshaken


@dataclass(frozen=True)
class Running:
    """What a node's rotations need of the run. cards: by name; changed when one is succeeded."""

    contract: Contract
    sid: bytes
    cards: dict[str, Card]
    channel: SecureChannel


class Rotations:
    """One node's part: its own rotations and those of others. For the control thread, except
    `begin` and `started`."""

    def __init__(
        self,
        identity: LiveIdentity,
        members: Members,
        audit: AuditLog,
        say: Callable[[control.FromNode], None],
        on_event: Callable[..., None],
        coordinator: str,
    ) -> None:
        self._identity, self._members, self._audit = identity, members, audit
        self._say, self._on_event, self._coordinator = say, on_event, coordinator
        self._me = identity.card.name
        self._run: Running | None = None
        self._is_started = False
        self._next_look = self._next_renewal = 0.0
        self._announced: Vault | None = None
        self._kept: Card | None = None
        """The new card that this node has signed, until the switch."""
        self._open: dict[str, Initiator | Responder] = {}
        self._ready: dict[str, Keys] = {}
        """By peer, keys that it does not have yet."""
        self._mine = False
        """Whether the handshakes in progress follow a rotation of this node."""

    def begin(self, run: Running) -> None:
        """The session is agreed on: from now on others may rotate."""
        self._run = run
        self._next_renewal = time.monotonic() + RECORD_KEYS_S

    def started(self) -> None:
        """All nodes compute: from now on this node may rotate."""
        self._is_started = True

    def check(self) -> None:
        """Look whether this node's identity was rotated, or record keys are due; at most every
        `LOOK_S`. Raises IdentityError."""
        moment = time.monotonic()
        if self._run is None or not self._is_started or moment < self._next_look:
            return
        self._next_look = moment + LOOK_S
        if moment >= self._next_renewal:
            self._next_renewal = moment + RECORD_KEYS_S
            self._run.channel.renew()
        if self._announced is None and (found := self._renewed()) is not None:
            self._announced = found  # 1
            self._say(control.Rotate(tuple(each.to_text() for each in found.successions)))

    def _renewed(self) -> Vault | None:
        try:
            return self._identity.renewed()
        except IdentityError as error:
            log.warning("%s; this run goes on with the keys as they were", error)
            return None

    def take(self, message: Message) -> None:
        """Steps 3 to 5. Raises the errors of what does not fit; the run ends with them."""
        if self._run is None:
            raise ControlError(f"{self._coordinator} speaks of a rotation before the run")
        if isinstance(message, control.Rotated):
            self._keep(self._run, message)
        elif isinstance(message, control.Switch):
            self._switch(self._run, message)
        else:
            self._shake(self._run, message)

    def _keep(self, run: Running, message: control.Rotated) -> None:  # 3
        name = message.name
        if name not in run.contract.roles.nodes or self._kept or self._open or self._ready:
            raise ControlError(f"{self._coordinator} sends a rotation that is not due")
        if name == self._me:
            if self._announced is None:
                raise ControlError(f"{self._coordinator} claims that {self._me} has new keys")
            self._members.own(self._announced)
            signer: Vault = self._announced
            self._kept = signer.card
        else:
            self._members.follow(name, message.successions, self._coordinator)
            signer = self._identity
            self._kept = self._newest(run, message)
        digest = _roster_digest(run, self._kept)
        statement = rotation_statement(
            run.contract, run.sid, name, self._kept.digest, digest, self._me
        )
        self._say(control.Kept(name, signer.sign(ROTATION_PURPOSE, statement)))

    def _newest(self, run: Running, message: control.Rotated) -> Card:
        """The card to which the successions lead: a newer one than that of the session, which this
        node's roster holds now."""
        name = message.name
        newest = Succession.from_text(message.successions[-1]).new if message.successions else None
        known = {card.digest for card in self._members.roster.line(name)}
        if (
            newest is None
            or newest.digest not in known
            or newest.sequence <= run.cards[name].sequence
        ):
            raise ControlError(f"{self._coordinator} sends an old card of {name} as a new one")
        return newest

    def _switch(self, run: Running, message: control.Switch) -> None:  # 4
        name, card = message.name, self._kept
        if card is None or card.name != name:
            raise ControlError(f"{self._coordinator} orders a change of keys that is not due")
        digest = _roster_digest(run, card)
        keys = {each: known.signing_public for each, known in run.cards.items()}
        keys[name] = card.signing_public
        verify_rotation(
            run.contract, run.sid, (name, card.digest, digest), message.signatures, keys
        )
        run.cards[name] = card
        self._members.use_successor(card)
        self._kept = None
        if name == self._me and self._announced is not None:
            # First the entry in the log: what the new keys sign comes behind it.
            self._audit.succeed(self._announced)
            self._identity.succeed(self._announced)
            self._announced = None
        self._on_event("rotated", node=name)
        neighbours = run.contract.roles.neighbours(self._me)
        self._mine = name == self._me
        peers = neighbours if self._mine else tuple({name} & set(neighbours))
        for peer in peers:
            side = self._side(run, card, digest, peer)
            self._open[peer] = side
            if isinstance(side, Initiator):
                self._say(control.Handshake(peer, side.message1()))

    def _side(self, run: Running, card: Card, digest: bytes, peer: str) -> Initiator | Responder:
        purpose = f"rotation/{card.name}/{card.sequence}"
        base = session_info(run.sid, run.contract.digest(), digest)
        info = SessionInfo(base.version, base.suite, base.sid, base.job, base.roster, purpose)
        me, other = (
            Endpoint(name, run.contract.roles.title(name), run.cards[name].signing_public)
            for name in (self._me, peer)
        )
        kind = Initiator if self._me < peer else Responder
        return kind(info, me, other, self._identity, run.cards[peer].verifier())

    def _shake(self, run: Running, message: control.Handshaken) -> None:  # 5
        peer, data = message.by, message.data
        side = self._open.get(peer)
        if side is None and peer not in self._ready:
            raise ControlError(f"{peer} sends a handshake that is not due")
        if side is None:
            # The peer says that it has the keys: both may use them.
            run.channel.change(peer, self._ready.pop(peer))
        elif isinstance(side, Responder):
            if not side.has_answered:
                self._say(control.Handshake(peer, side.on_message1(data)))
                return
            answer, keys = side.on_message3(data)
            run.channel.agree(peer, keys)
            self._ready[peer] = keys
            del self._open[peer]
            self._say(control.Handshake(peer, answer))
        elif not side.has_answered:
            self._say(control.Handshake(peer, side.on_message2(data)))
            return
        else:
            keys = side.on_message4(data)
            run.channel.agree(peer, keys)
            run.channel.change(peer, keys)
            del self._open[peer]
            self._say(control.Handshake(peer, b""))
        if self._mine and not self._open and not self._ready:
            self._mine = False
            self._say(control.RotationDone())


def _roster_digest(run: Running, card: Card) -> bytes:
    """That of the session's cards with this one, whatever else the roster's file says by now."""
    return Roster({**run.cards, card.name: card}).digest()


class RotationDesk:
    """The coordinator's part: one rotation at a time, and nothing that it could forge."""

    def __init__(
        self,
        members: Members,
        nodes: tuple[str, ...],
        neighbours: Mapping[str, tuple[str, ...]],
        tell: Callable[[str, control.FromCoordinator], None],
    ) -> None:
        self._members, self._nodes, self._neighbours, self._tell = members, nodes, neighbours, tell
        self._waiting: deque[control.Rotated] = deque()
        self._current = ""
        self._signatures: dict[str, bytes] = {}
        self._is_switched = False

    def take(self, name: str, message: Any) -> None:
        """One message of the node `name`. Raises ControlError, and the errors of a succession that
        is not believed."""
        if isinstance(message, control.Rotate):
            self._rotate(name, message)
        elif isinstance(message, control.Kept):
            self._keep(name, message)
        elif isinstance(message, control.Handshake):
            self._relay(name, message)
        elif name != self._current or not self._is_switched:
            raise ControlError(f"{name} ends a rotation that is not under way")
        else:
            self._current, self._is_switched = "", False
            self._next()

    def _rotate(self, name: str, message: control.Rotate) -> None:  # 2
        if len(self._waiting) >= MAX_QUEUED or name not in self._nodes:
            raise ControlError(f"{name} sends rotations that are not due")
        self._members.follow(name, message.successions, name)
        self._waiting.append(control.Rotated(name, message.successions))
        self._next()

    def _next(self) -> None:
        if self._current or not self._waiting:
            return
        rotated = self._waiting.popleft()
        self._current, self._signatures = rotated.name, {}
        for node in self._nodes:
            self._tell(node, rotated)

    def _keep(self, name: str, message: control.Kept) -> None:
        if message.name != self._current or name in self._signatures or self._is_switched:
            raise ControlError(f"{name} keeps a rotation that is not under way")
        self._signatures[name] = message.signature
        if set(self._signatures) == set(self._nodes):
            self._is_switched = True
            self._members.use_successor(self._members.roster.card(self._current))
            for node in self._nodes:
                self._tell(node, control.Switch(self._current, self._signatures))

    def _relay(self, name: str, message: control.Handshake) -> None:
        pair = {name, message.to}
        if (
            not self._is_switched
            or self._current not in pair
            or message.to not in self._neighbours.get(name, ())
        ):
            raise ControlError(f"{name} sends a handshake that is not due")
        self._tell(message.to, control.Handshaken(name, message.data))
