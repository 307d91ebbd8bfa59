"""Messages of the control plane: typed, versioned, bounded; anything else is a ControlError.

Each message is one MessagePack map with its type in the field `t`; unknown fields and types are
errors. Nothing secret travels here: names, digests, signatures, progress, sealed artifacts. The
reason for an abort is one generic code, never text, because an error's text may depend on data.

    node → coordinator            coordinator → node
    Hello                         Welcome, Waiting, Away
                                  Propose
    Accept                        Accepted
    SignSession                   Start
    Ready                         Go
    Progress, ArtifactPart        Delivery
    Rotate                        Rotated
    Kept                          Switch
    Handshake                     Handshaken
    RotationDone
    Carry                         Carried
    Done                          Results
    SignResults                   Finish
    Abort                         Aborted

A client of a service (`parties.nodes.visits`) sends Hello, Carry and Abort, and receives Welcome,
Waiting, Serving, Carried and Aborted.
"""

import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from parties.agreement.contract import MAX_BODY_BYTES, MAX_CONTRACT_BYTES
from parties.agreement.result import (
    MAX_OUTCOME_BYTES,
    MAX_RECORD_BYTES,
    MAX_RESULT_BYTES,
)
from parties.audit.checkpoint import MAX_CHECKPOINT_BYTES
from parties.audit.merkle import MAX_PROOF
from parties.errors import ControlError
from parties.keys.statements import MAX_CHAIN, MAX_STATEMENT_BYTES
from protocols.names import MAX_NAME_BYTES, MAX_NAMES, NAME
from protocols.sealing.handshake import MESSAGE_MAX_BYTES
from protocols.sealing.signatures import SIGNATURE_BYTES

MAX_MESSAGE_BYTES = 4 << 20
PART_BYTES = 1 << 20
"""Artifacts travel in parts of this size, so that other messages get through in between."""

MAX_ARTIFACT_BYTES = 1 << 30
MAX_ARTIFACTS = 4096
"""The limit for one run, over all nodes."""

MAX_ARTIFACTS_BYTES = 16 << 30
"""The limit for one run, over all nodes, on the disk of the node that collects them."""

MAX_PENDING_BYTES = 4 << 30
"""The limit for parts of incomplete artifacts in memory, over all nodes."""

MAX_SUMMARY_BYTES = 1 << 20
MAX_CHECKPOINTS, MAX_TOKEN_BYTES = 8, 64

MAX_CARRIED_BYTES = 3 << 20
"""Of one sealed message between a client and an evaluator."""

VISIT_BYTES = 16

MAX_WAIT_S = 7 * 24 * 3600
"""The longest that a coordinator waits for nodes to join, in seconds."""

MAX_ATTEMPTS = 16
"""How often a run may propose its job without getting further: nodes left and came back, and no
checkpoint that all evaluators hold is newer than at the first of these proposals."""

MAX_PROPOSALS = 1 << 32
"""How often a run may propose its job at all."""

Name = Annotated[str, Meta(max_length=MAX_NAME_BYTES, pattern=f"^{NAME.pattern}")]
Code = Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^[a-z0-9-]+\Z")]
Names = Annotated[tuple[Name, ...], Meta(max_length=MAX_NAMES)]
Seconds = Annotated[int, Meta(ge=0, le=MAX_WAIT_S)]
Attempt = Annotated[int, Meta(ge=1, le=MAX_PROPOSALS)]
Token = Annotated[bytes, Meta(min_length=1, max_length=MAX_TOKEN_BYTES)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Visit = Annotated[bytes, Meta(max_length=VISIT_BYTES)]
Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
Note = Annotated[bytes, Meta(max_length=MAX_CHECKPOINT_BYTES)]
Proof = Annotated[tuple[Digest, ...], Meta(max_length=MAX_PROOF)]
Address = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^tcp://[!-~]+\Z")]
Word = Annotated[str, Meta(min_length=1, max_length=64)]
Text = Annotated[str, Meta(max_length=256)]
Path = Annotated[str, Meta(min_length=1, max_length=512)]
Fields = Annotated[dict[Word, Text | int | float | bool | None], Meta(max_length=64)]
Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Part = Annotated[bytes, Meta(max_length=PART_BYTES)]

Statement = Annotated[str, Meta(max_length=MAX_STATEMENT_BYTES)]
Chain = Annotated[tuple[Statement, ...], Meta(max_length=MAX_CHAIN)]

_COMPONENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="t"):
    """Common settings of all messages."""


class Hello(_Message, frozen=True, tag="hello"):
    """The first message of a node. `address`: where peers may dial it. successions: those that led
    to its present card, which the coordinator may not know yet."""

    version: int
    name: Name
    address: Address | None = None
    successions: Chain = ()


class Welcome(_Message, frozen=True, tag="welcome"):
    version: int
    name: Name


class Waiting(_Message, frozen=True, tag="waiting"):
    """Who is connected and who is still missing; sent again when that changes.

    left_s: the run ends if the missing nodes have not joined within this many seconds.
    """

    here: Names
    missing: Names
    left_s: Seconds


class Away(_Message, frozen=True, tag="away"):
    """Whose connection to the coordinator is broken now, and may come back; sent when that
    changes."""

    names: Names


class Propose(_Message, frozen=True, tag="propose"):
    """cards: the digests of the coordinator's cards, so that a node can name a card that differs.
    attempt: the number of this proposal in the run; the coordinator proposes again after a node
    left and came back. successions: by name, those that led to the coordinator's cards; each node
    verifies them from the card that it knows itself."""

    contract: Annotated[bytes, Meta(max_length=MAX_CONTRACT_BYTES)]
    body: Annotated[bytes, Meta(max_length=MAX_BODY_BYTES)]
    cards: Annotated[dict[Name, Digest], Meta(max_length=MAX_NAMES)] = {}
    attempt: Attempt = 1
    successions: Annotated[dict[Name, Chain], Meta(max_length=MAX_NAMES)] = {}


class Accept(_Message, frozen=True, tag="accept"):
    """A signed acceptance of the contract: see `contract.Acceptance`. attempt: which proposal it
    answers. seen: by node, how long its audit log was by the newest checkpoint that the sender
    holds. held, insists: as there."""

    nonce: Digest
    constants: Digest
    signature: Signature
    attempt: Attempt = 1
    seen: Annotated[dict[Name, Count], Meta(max_length=MAX_NAMES)] = {}
    held: Annotated[tuple[Token, ...], Meta(max_length=MAX_CHECKPOINTS)] = ()
    insists: bool = False


class Accepted(_Message, frozen=True, tag="accepted"):
    """addresses: where each node can be dialled; its neighbours try these."""

    acceptances: Annotated[dict[Name, Accept], Meta(max_length=MAX_NAMES)]
    addresses: Annotated[dict[Name, Address | None], Meta(max_length=MAX_NAMES)] = {}


class SignSession(_Message, frozen=True, tag="sign-session"):
    """unreachable: neighbours that this node would dial and cannot. attempt: as in `Accept`.
    checkpoint: of this node's audit log, which the signature covers. proofs: by node, that it goes
    on from what that node has seen."""

    signature: Signature
    unreachable: Names = ()
    attempt: Attempt = 1
    checkpoint: Note = b""
    proofs: Annotated[dict[Name, Proof], Meta(max_length=MAX_NAMES)] = {}


class Start(_Message, frozen=True, tag="start"):
    """Everybody's signature under the session id, and where each node listens.

    relayed: the receiver's neighbours to which the coordinator passes frames on, since one of the
    two cannot dial the other. checkpoints: of everybody's audit log. proofs: by node, that its log
    goes on from what the receiver has seen of it.
    """

    signatures: Annotated[dict[Name, Signature], Meta(max_length=MAX_NAMES)]
    addresses: Annotated[dict[Name, Address | None], Meta(max_length=MAX_NAMES)]
    relayed: Names = ()
    checkpoints: Annotated[dict[Name, Note], Meta(max_length=MAX_NAMES)] = {}
    proofs: Annotated[dict[Name, Proof], Meta(max_length=MAX_NAMES)] = {}


class Ready(_Message, frozen=True, tag="ready"):
    """All handshakes of this node are complete and confirmed."""


class Go(_Message, frozen=True, tag="go"):
    """All nodes are ready."""


class Progress(_Message, frozen=True, tag="progress"):
    fields: Fields


class ArtifactPart(_Message, frozen=True, tag="artifact"):
    """Part of an artifact. Parts of one artifact follow each other; the last one is marked."""

    kind: Word
    path: Path
    index: Annotated[int, Meta(ge=0, le=MAX_ARTIFACT_BYTES // PART_BYTES)]
    last: bool
    data: Part


class Delivery(_Message, frozen=True, tag="delivery"):
    """Part of an artifact of `sender`, for a recipient."""

    sender: Name
    part: ArtifactPart


class Done(_Message, frozen=True, tag="done"):
    """The program ended; `summary` is JSON with what the coordinator may know: sizes and times.

    sid, outcome, artifacts: this node's part of what all nodes are to sign, see `result`; by
    '<kind>/<path>', the SHA-256 of each file that it sent. parting: empty if the node stays until
    all have signed; of one that leaves now, its signature under its own part of the results.
    """

    summary: Annotated[bytes, Meta(max_length=MAX_SUMMARY_BYTES)]
    sid: Digest = bytes(32)
    outcome: Annotated[bytes, Meta(max_length=MAX_OUTCOME_BYTES)] = b""
    artifacts: Annotated[dict[Path, Hex], Meta(max_length=MAX_ARTIFACTS)] = {}
    parting: Annotated[bytes, Meta(max_length=SIGNATURE_BYTES)] = b""


class Farewell(_Message, frozen=True, tag="farewell"):
    """The coordinator has what a parting node leaves behind: it may disconnect."""


class Results(_Message, frozen=True, tag="results"):
    """All programs have ended: the statement that all nodes are to sign."""

    statement: Annotated[bytes, Meta(max_length=MAX_RESULT_BYTES)]


class SignResults(_Message, frozen=True, tag="sign-results"):
    signature: Signature


class Finish(_Message, frozen=True, tag="finish"):
    """All nodes are done and have signed: connections may close. record: see `result.Record`."""

    record: Annotated[bytes, Meta(max_length=MAX_RECORD_BYTES)] = b""


class Rotate(_Message, frozen=True, tag="rotate"):
    """This node's identity was succeeded; see `parties.nodes.rotation`, also for the next six."""

    successions: Chain


class Rotated(_Message, frozen=True, tag="rotated"):
    name: Name
    successions: Chain


class Kept(_Message, frozen=True, tag="kept"):
    """The sender holds the new card of `name`: signed, see `contract.rotation_statement`."""

    name: Name
    signature: Signature


class Switch(_Message, frozen=True, tag="switch"):
    """All nodes hold it: the new keys of `name` are in force."""

    name: Name
    signatures: Annotated[dict[Name, Signature], Meta(max_length=MAX_NAMES)]


class Handshake(_Message, frozen=True, tag="handshake"):
    """For the node `to`; empty: the sender has the keys."""

    to: Name
    data: Annotated[bytes, Meta(max_length=MESSAGE_MAX_BYTES)]


class Handshaken(_Message, frozen=True, tag="handshaken"):
    by: Name
    data: Annotated[bytes, Meta(max_length=MESSAGE_MAX_BYTES)]


class RotationDone(_Message, frozen=True, tag="rotation-done"):
    """All neighbours of the sender have fresh keys: the next node may rotate."""


class Serving(_Message, frozen=True, tag="serving"):
    """The session of a service runs: the contract of its nodes and the body, for a client to check;
    cards, successions: as in `Propose`."""

    contract: Annotated[bytes, Meta(max_length=MAX_CONTRACT_BYTES)]
    body: Annotated[bytes, Meta(max_length=MAX_BODY_BYTES)]
    sid: Digest
    cards: Annotated[dict[Name, Digest], Meta(max_length=MAX_NAMES)] = {}
    successions: Annotated[dict[Name, Chain], Meta(max_length=MAX_NAMES)] = {}


class Carry(_Message, frozen=True, tag="carry"):
    """A sealed message from a client to the evaluator `to`, or the other way round.
    visit: which connection of the client; empty from the client itself."""

    to: Name
    data: Annotated[bytes, Meta(max_length=MAX_CARRIED_BYTES)]
    visit: Visit = b""


class Carried(_Message, frozen=True, tag="carried"):
    by: Name
    data: Annotated[bytes, Meta(max_length=MAX_CARRIED_BYTES)]
    visit: Visit = b""


class Abort(_Message, frozen=True, tag="abort"):
    """about: whose card is not accepted any more, if that is the reason."""

    code: Code
    about: Name | None = None


class Aborted(_Message, frozen=True, tag="aborted"):
    """The session is over. returns_s: how long the coordinator waits for all nodes to connect
    again, for another session of the same contract; 0: it does not."""

    code: Code
    by: Name
    about: Name | None = None
    returns_s: Seconds = 0


OfRotation = Rotate | Kept | Handshake | RotationDone
FromNode = (
    Hello
    | Accept
    | SignSession
    | Ready
    | Progress
    | ArtifactPart
    | Done
    | SignResults
    | Carry
    | Abort
    | OfRotation
)
FromCoordinator = (
    Welcome
    | Waiting
    | Away
    | Propose
    | Accepted
    | Start
    | Go
    | Delivery
    | Serving
    | Carried
    | Farewell
    | Results
    | Finish
    | Aborted
    | Rotated
    | Switch
    | Handshaken
)

_encoder = msgspec.msgpack.Encoder()
_from_node = msgspec.msgpack.Decoder(FromNode)
_from_coordinator = msgspec.msgpack.Decoder(FromCoordinator)
_M = TypeVar("_M")


def encode(message: FromNode | FromCoordinator) -> bytes:
    """The bytes of one message. Raises ControlError if it is larger than a receiver accepts."""
    data = _encoder.encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise ControlError(f"a {type(message).__name__} has {len(data)} bytes, too many to send")
    return data


def _decode(decoder: "msgspec.msgpack.Decoder[_M]", data: bytes, sender: str) -> _M:
    if len(data) > MAX_MESSAGE_BYTES:
        raise ControlError(f"{sender} sent a control message of {len(data)} bytes")
    try:
        return decoder.decode(data)
    # The decoder's recursion and size limits raise exceptions other than its own.
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise ControlError(f"{sender} sent a malformed control message: {clip(error)}") from error


def decode_from_node(data: bytes, sender: str) -> FromNode:
    """Parse a node's message. Raises ControlError for anything else."""
    message: Any = _decode(_from_node, data, sender)
    if isinstance(message, ArtifactPart):
        check_path(message.path, sender)
        check_path(message.kind, sender)
    return message


def decode_from_coordinator(data: bytes, sender: str) -> FromCoordinator:
    """Parse a message of the coordinator. Raises ControlError for anything else."""
    message: Any = _decode(_from_coordinator, data, sender)
    if isinstance(message, Delivery):
        check_path(message.part.path, sender)
        check_path(message.part.kind, sender)
    return message


def check_path(path: str, sender: str) -> None:
    """Raise ControlError unless `path` consists of up to four plain words that stay in their
    directory."""
    words = path.split("/")
    if len(words) > 4 or not all(_COMPONENT.fullmatch(word) for word in words):
        raise ControlError(f"{sender} names an artifact {clip(path)}")


def clip(text: object, limit: int = 120) -> str:
    """What a peer said, for a log or a message: escaped and short."""
    return repr(str(text))[1:-1][:limit]
