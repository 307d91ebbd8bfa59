"""A session: pairwise keys among the nodes that signed one job, and what a program gets from it.

Each node connects, shakes hands with every neighbour under the session id, confirms the id under
the pairwise keys, and only then computes. A neighbour's confirmation says that it has finished all
its handshakes, so once all confirmations are in, every evaluator and the dealer is known to hold
this session id: no opening is sent before that.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from parties.agreement.contract import Roles
from parties.audit.entries import Kind, Value
from parties.wire.secure_channel import RawFrames, SecureChannel
from protocols.canonical import pack
from protocols.errors import HandshakeError
from protocols.sealing.handshake import MESSAGE_MAX_BYTES, Initiator, Keys, Responder
from protocols.sealing.session import SUITE, VERSION, Endpoint, SessionInfo
from protocols.sealing.signatures import Signer, VerifyKeys

if TYPE_CHECKING:
    from parties.agreement.visitors import Visitors
    from parties.keys.identity import Card
    from parties.keys.vault import Vault

HANDSHAKE_LABEL = b"handshake"
CONFIRM_LABEL = b"confirm"

Scalar = str | int | float | bool | None


def session_info(sid: bytes, job_digest: bytes, roster_digest: bytes) -> SessionInfo:
    """The values to which the handshakes of one session are bound."""
    return SessionInfo(version=VERSION, suite=SUITE, sid=sid, job=job_digest, roster=roster_digest)


def shake_hands(
    frames: RawFrames,
    info: SessionInfo,
    roles: Roles,
    me: str,
    signing_keys: Mapping[str, bytes],
    signer: Signer,
    timeout_s: float,
) -> dict[str, Keys]:
    """One handshake with each neighbour of `me`, all at once; the lower roster index initiates.

    Each step sends to all neighbours before it waits for any, so no order of arrival can block.
    `timeout_s` limits each wait. Raises HandshakeError, AuthenticationError and the errors of
    `frames`.
    """
    ends = {name: Endpoint(name, roles.title(name), signing_keys[name]) for name in roles.nodes}
    deadline = time.monotonic() + timeout_s

    def take(peer: str) -> bytes:
        label, message = frames.receive(peer, max(0.1, deadline - time.monotonic()))
        if label != HANDSHAKE_LABEL or len(message) > MESSAGE_MAX_BYTES:
            raise HandshakeError(f"{peer} sent something other than its part of the handshake")
        return bytes(message)

    def ends_with(peer: str) -> tuple[SessionInfo, Endpoint, Endpoint, Signer, VerifyKeys]:
        return info, ends[me], ends[peer], signer, VerifyKeys(signing_keys[peer])

    neighbours = roles.neighbours(me)
    initiators = {peer: Initiator(*ends_with(peer)) for peer in neighbours if me < peer}
    responders = {peer: Responder(*ends_with(peer)) for peer in neighbours if peer < me}
    keys: dict[str, Keys] = {}
    for peer, initiator in initiators.items():
        frames.send(peer, HANDSHAKE_LABEL, initiator.message1())
    for peer, responder in responders.items():
        frames.send(peer, HANDSHAKE_LABEL, responder.on_message1(take(peer)))
    for peer, initiator in initiators.items():
        frames.send(peer, HANDSHAKE_LABEL, initiator.on_message2(take(peer)))
    for peer, responder in responders.items():
        message4, keys[peer] = responder.on_message3(take(peer))
        frames.send(peer, HANDSHAKE_LABEL, message4)
    for peer, initiator in initiators.items():
        keys[peer] = initiator.on_message4(take(peer))
    return keys


def confirm(channel: SecureChannel, sid: bytes, neighbours: tuple[str, ...]) -> None:
    """Confirm to every neighbour, under the pairwise keys, that all handshakes are done, and wait
    for theirs.

    Raises HandshakeError if a neighbour confirms anything else.
    """
    for peer in neighbours:
        channel.send(peer, CONFIRM_LABEL, sid)
    for peer in neighbours:
        label, payload = channel.receive(peer, len(sid))
        if label != CONFIRM_LABEL or payload != sid:
            raise HandshakeError(f"{peer} did not confirm the session")


def no_progress(fields: Mapping[str, Scalar]) -> None:
    """Discards reports, for nodes that nobody watches."""


def no_artifacts(kind: str, name: str, blob: bytes) -> None:
    """Discards artifacts, for nodes that have nobody to send them to."""


def no_record(kind: Kind, fields: Mapping[str, Value]) -> None:
    """For sessions of tests and measurements, which have no audit log."""


def never_asked() -> bool:
    """For sessions that nobody asks to stop."""
    return False


def no_matter(stoppable: bool) -> None:
    """The same."""


def no_mac(data: bytes) -> str:
    """The same."""
    return ""


@dataclass(frozen=True)
class Session:
    """What a program gets after all nodes have agreed and shaken hands."""

    me: str
    sid: bytes
    roles: Roles
    channel: SecureChannel
    """Sealed frames to every neighbour: `roles.neighbours(me)`."""

    vault: "Vault | Signer" = field(repr=False)
    """Signs envelopes as this node."""

    cards: "Mapping[str, Card]" = field(repr=False)
    """The public cards of all that the job names, recipients included; a rotation during the run
    changes one. What is sealed goes to the card that stands here then."""

    run_dir: Path
    keys: Mapping[str, Keys] = field(repr=False)
    on_progress: Callable[[Mapping[str, Scalar]], None] = field(default=no_progress, repr=False)
    on_artifact: Callable[[str, str, bytes], None] = field(default=no_artifacts, repr=False)

    on_record: Callable[[Kind, Mapping[str, Value]], None] = field(default=no_record, repr=False)
    on_mac: Callable[[bytes], str] = field(default=no_mac, repr=False)

    asked_to_stop: Callable[[], bool] = field(default=never_asked, repr=False)
    """Whether this node is to stop as soon as the run can go on from there later."""
    on_stoppable: Callable[[bool], None] = field(default=no_matter, repr=False)

    resume: bytes = b""
    """The name of the checkpoint from which all go on (`Program.checkpoints`); empty: none."""

    visitors: "Visitors | None" = field(default=None, repr=False)
    """The clients of a service, at an evaluator."""

    @property
    def is_evaluator(self) -> bool:
        return self.me in self.roles.evaluators

    @property
    def is_dealer(self) -> bool:
        return self.me == self.roles.dealer

    def export(self, peer: str, label: str) -> bytes:
        """32 bytes that only this node and `peer` know, for this session; each label has its
        own."""
        return self.keys[peer].export(label)

    def progress(self, **fields: Scalar) -> None:
        """Report this node's progress to those who watch. Never report a value that depends on
        data."""
        self.on_progress(fields)

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Inside, a first request to stop does not interrupt the program, which looks at
        `asked_to_stop`; at the end of the context it does."""
        self.on_stoppable(True)
        try:
            yield
        finally:
            self.on_stoppable(False)
        if self.asked_to_stop():
            raise KeyboardInterrupt

    def record(self, kind: Kind, **fields: Value) -> None:
        """Add an entry about this job to the audit log; it is durable when this returns.

        Never a value that depends on data. Raises AuditError, which ends the run.
        """
        self.on_record(kind, fields)

    def mac(self, data: bytes) -> str:
        """HMAC-SHA-256 of opened values for the audit log, in hexadecimal, under a key of the log:
        bound to this session, and no use to whoever does not have the key."""
        return self.on_mac(pack(b"opening", self.sid, data))

    def emit(self, kind: str, name: str, blob: bytes) -> None:
        """Send an artifact to the coordinator: only one that is sealed, or that the job makes
        public.

        `name` is a relative path of plain words; kind 'sealed' takes '<recipient>/<file>' and
        is delivered to that recipient.
        """
        self.on_artifact(kind, name, blob)


class Program(Protocol):
    """What the nodes compute; the node code does not interpret it."""

    def prepare(self, body: bytes, roles: Roles) -> bytes:
        """Check the job against this node's rules and load its data, before anything is signed.

        Returns the digest (32 bytes) of the table of public constants. Raises PolicyError, or
        errors of its own with a `code`.
        """

    def run(self, session: Session) -> dict[str, object]:
        """Compute. The result is public and can be written as JSON."""

    def outcome(self) -> bytes:
        """What this node saw of the run that is public and that all nodes sign, after `run`.

        The same bytes at every evaluator and the dealer; empty at other nodes, which saw nothing.
        """

    def checkpoints(self) -> tuple[bytes, ...]:
        """The names of the states of this job from which this node could go on, after `prepare`; at
        most `control.MAX_CHECKPOINTS`. Later states have larger names."""

    def insists(self) -> bool:
        """Whether this node goes on from one of them or not at all, after `prepare`."""

    def leaving(self, body: bytes) -> tuple[str, ...]:
        """The nodes that leave, by this job, as soon as their programs have ended: they do not see
        the results of the others, and sign what they saw. Evaluators stay."""

    def check_outcome(self, outcome: bytes) -> None:
        """Raise an error with a `code` unless this is an outcome that the signed job allows."""
