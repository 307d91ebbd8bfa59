"""What peers, the coordinator, proxies and doctors send, and the signed statements among it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from parties.agreement import control
from parties.agreement.contract import Contract, Roles
from parties.agreement.pair import ClientEnd, ServerEnd
from parties.agreement.result import Artifact, Record, Statement
from parties.doctor.desk import Desk, question, read_answer
from parties.errors import (
    CardError,
    ContractError,
    ControlError,
    IdentityError,
    ProxyError,
    RosterError,
)
from parties.keys.identity import Card, IdentityKeys
from parties.keys.keyfile import KdfCost, open_secret, read_header, seal_secret
from parties.keys.lifetime import now
from parties.keys.statements import Revocation, Succession
from parties.keys.vault import MemoryVault
from parties.nodes.artifacts import split
from parties.nodes.coordinator import _Faulty, _json
from parties.wire.control_plane import pad, unpad
from parties.wire.data_plane import _pack, _unpack
from parties.wire.proxy import Proxy
from parties.wire.resume import ACK, ASK, RESUME, SENT, Link
from protocols.channel import Buffer
from protocols.errors import (
    AuthenticationError,
    DesyncError,
    EnvelopeError,
    FrameError,
    HandshakeError,
    PeerLostError,
    PointError,
)
from protocols.linkage.intersection import _SIZE, Exponent, told
from protocols.roles.frames import check_label, receive_all
from protocols.sealing.bundle import pack_bundle, unpack_bundle
from protocols.sealing.envelope import EnvelopeInfo, check_envelope, read_info, seal_envelope
from protocols.sealing.handshake import Initiator, Responder
from protocols.sealing.record import RecordOpener, RecordSealer
from protocols.sealing.session import SUITE, VERSION, Endpoint, SessionInfo
from protocols.sealing.signatures import SIGNATURE_BYTES
from tests.fuzz.parser import Parser

ROLES = Roles(("ann", "bob"), ("ann", "bob"), "dora", ("ann",))
CHEAP = KdfCost(memory_kib=64, passes=1, lanes=1)
INFO = EnvelopeInfo("x", bytes(32), 3, ("weight", "bias"), "ann", ("bob",))


@cache
def keys(name: str) -> IdentityKeys:
    return IdentityKeys.generate()


def card(name: str) -> Card:
    return keys(name).card(name)


class Part:
    """A received message part, as ZeroMQ gives it."""

    def __init__(self, data: Buffer) -> None:
        self.buffer = memoryview(data)
        self.bytes = bytes(data)

    def __len__(self) -> int:
        return len(self.bytes)


class Said:
    """A socket to which a proxy has said something."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def settimeout(self, seconds: float | None) -> None:
        pass

    def sendall(self, data: bytes) -> None:
        pass

    def close(self) -> None:
        pass

    def recv(self, count: int) -> bytes:
        piece, self.data = self.data[:count], self.data[count:]
        return piece


class Waiting:
    """A channel on which one frame waits."""

    def __init__(self, label: bytes, data: bytes) -> None:
        self._frame = label, memoryview(bytearray(data))

    def receive(self, peer: str, most: int) -> tuple[bytes, memoryview]:
        return self._frame


def waiting(label: bytes, data: bytes) -> Any:
    return Waiting(label, data)


def frame(data: bytes) -> Any:
    return _unpack("bob", [Part(data)])  # type: ignore[list-item]


def shaken(data: bytes) -> Any:
    """A first message at whoever answers, and a second one at whoever asked."""
    info = SessionInfo(version=VERSION, suite=SUITE, sid=bytes(32), job=bytes(32), roster=bytes(32))
    ends = {n: Endpoint(n, "evaluator", card(n).signing_public) for n in ("ann", "bob")}
    args = info, ends["bob"], ends["ann"], keys("bob").signing, card("ann").verifier()
    other = info, ends["ann"], ends["bob"], keys("ann").signing, card("bob").verifier()
    initiator = Initiator(*other)
    initiator.message1()
    for call in (Responder(*args).on_message1, initiator.on_message2):
        try:
            call(data)
        except (HandshakeError, AuthenticationError):
            continue
    raise HandshakeError("neither took it")


def paired(data: bytes) -> Any:
    """What a server that belongs to no run is told before and after its nonce, and tells."""
    company, ann = pair_ends("company"), pair_ends("ann")
    server = ServerEnd(company, {"ann": ann.card}, "questions", lambda route, parts: None)
    for parts in ((data,), (bytes(32),), (data,), (data, data), (bytes(32),)):
        server.take(b"1", "ann", parts)
    client = ClientEnd(ann, company.card, "questions")
    return client.take(data), client.take(data)


@cache
def pair_ends(name: str) -> MemoryVault:
    return MemoryVault.generate(name)


def checked(data: bytes) -> Any:
    read_info(data)
    check_envelope(
        data,
        expected=INFO,
        recipient_keys=[card("bob").recipient_key],
        verifier=card("ann").verifier(),
    )


def recorded(data: bytes) -> Any:
    return RecordOpener(bytes(32), b"context").open(b"label", data)


def points(data: bytes) -> Any:
    """Masked identifiers of another owner: 32 bytes each."""
    rows = np.frombuffer(data[: len(data) // 32 * 32], np.uint8).reshape(-1, 32)
    return Exponent().of_points(rows, "bob")


def from_proxy(data: bytes) -> Any:
    proxy = Proxy("proxy.invalid", 3128, user="ann", password=b"secret")
    proxy._dial = lambda timeout_s: Said(data)  # type: ignore[assignment, method-assign, return-value]
    return proxy.open("study.invalid", 7700, 5.0)


def identity(data: bytes) -> Any:
    read_header(data)
    return open_secret(data, b"wrong", CHEAP)


def measured(data: bytes) -> Any:
    """A question to a desk, and its answer; the same bytes in place of an answer."""
    answer = Desk(7).answer("ann", [Part(data)])  # type: ignore[list-item]
    if answer is not None:
        read_answer([Part(each) for each in answer], "desk")  # type: ignore[misc]
    return read_answer([Part(data), Part(b"")], "desk")  # type: ignore[list-item]


def text(parse: Callable[[str], Any]) -> Callable[[bytes], Any]:
    return lambda data: parse(data.decode("utf-8", "replace"))


def encoded(*messages: Any) -> list[bytes]:
    return [control.encode(message) for message in messages]


def contract() -> Contract:
    return Contract.of("job", ROLES, b"body", bytes(32))


def statement() -> Statement:
    return Statement(
        contract().digest(), bytes(32), b"o", (Artifact("ann", "sealed/x/y", "0" * 64),)
    )


def record() -> bytes:
    signatures = (bytes(SIGNATURE_BYTES),) * 3
    return Record(contract(), b"body", (bytes(32),) * 3, statement(), signatures).to_bytes()


@cache
def chain() -> tuple[Succession, ...]:
    return MemoryVault.generate("ann").successor().successions


def from_nodes() -> Sequence[bytes]:
    return encoded(
        control.Hello(1, "ann", "tcp://127.0.0.1:1", (chain()[0].to_text(),)),
        control.Accept(bytes(32), bytes(32), bytes(SIGNATURE_BYTES)),
        control.Rotate((chain()[0].to_text(),)),
        control.Kept("ann", bytes(SIGNATURE_BYTES)),
        control.Handshake("ann", bytes(100)),
        control.RotationDone(),
        control.Progress({"step": 1, "phase": "training", "left": 0.5, "ok": True}),
        control.Done(b"{}"),
        control.Abort("data"),
        *split("sealed", "ann/model", bytes(100)),
    )


def from_coordinator() -> Sequence[bytes]:
    acceptance = control.Accept(bytes(32), bytes(32), bytes(SIGNATURE_BYTES))
    return encoded(
        control.Propose(contract().to_bytes(), b"body"),
        control.Start({"ann": bytes(SIGNATURE_BYTES)}, {"ann": None}),
        control.Accepted({"ann": acceptance}),
        control.Delivery("ann", next(iter(split("sealed", "ann/model", bytes(100))))),
        control.Rotated("ann", (chain()[0].to_text(),)),
        control.Switch("ann", {"ann": bytes(SIGNATURE_BYTES)}),
        control.Handshaken("ann", bytes(100)),
    )


def envelope() -> bytes:
    return seal_envelope(
        bytes(3000),
        info=INFO,
        recipient_keys=[card("bob").recipient_key],
        signer=keys("ann").signing,
    )


def summary(data: bytes) -> Any:
    try:
        return _json(data, "ann")
    except _Faulty as error:
        raise error.cause from error


SEALED = (EnvelopeError,)
PARSERS: dict[str, Parser] = {
    "from a node": Parser(
        lambda data: control.decode_from_node(data, "bob"),
        from_nodes,
        (ControlError,),
        ("parties.agreement.control",),
    ),
    "from the coordinator": Parser(
        lambda data: control.decode_from_coordinator(data, "desk"),
        from_coordinator,
        (ControlError,),
        ("parties.agreement.control",),
    ),
    "a node's summary": Parser(
        summary, lambda: [b'{"a": 1}'], (ControlError,), ("parties.nodes.coordinator",)
    ),
    "contract": Parser(
        Contract.from_bytes,
        lambda: [contract().to_bytes()],
        (ContractError,),
        ("parties.agreement.contract",),
    ),
    "statement of results": Parser(
        Statement.from_bytes,
        lambda: [statement().to_bytes()],
        (ContractError,),
        ("parties.agreement.result",),
    ),
    "record of a run": Parser(
        Record.from_bytes, lambda: [record()], (ContractError,), ("parties.agreement.result",)
    ),
    "frame": Parser(
        frame,
        lambda: [b"".join(bytes(part) for part in _pack(7, 3, b"label", bytes(50)))],
        (FrameError,),
        ("parties.wire.data_plane",),
    ),
    "relayed frame": Parser(
        lambda data: unpad("bob", memoryview(data)),
        lambda: [pad((b"label", bytes(50))), pad((b"one part",))],
        (FrameError,),
        ("parties.wire.control_plane",),
    ),
    "message about a connection": Parser(
        lambda data: Link(bytes(32), bytes(32)).read(data),
        lambda: [Link(bytes(32), bytes(32)).message(kind) for kind in (ACK, RESUME, ASK, SENT)],
        (AuthenticationError, FrameError),
        ("parties.wire.resume",),
    ),
    "label": Parser(
        lambda data: check_label("bob", b"expected", data),
        lambda: [b"expected"],
        (DesyncError, FrameError),
        ("protocols.roles.frames",),
    ),
    "words": Parser(
        lambda data: receive_all(waiting(b"label", data), "bob", b"label", 40),
        lambda: [bytes(40)],
        (DesyncError, FrameError),
        ("protocols.roles.frames",),
    ),
    "points": Parser(
        points,
        lambda: [b"\x02" * 32],
        (PointError,),
        ("protocols.linkage.intersection",),
        unread=True,
    ),
    "number of joined records": Parser(
        lambda data: told(waiting(_SIZE, data), ["bob"], 100),
        lambda: [(7).to_bytes(8, "big")],
        (DesyncError, FrameError),
        ("protocols.linkage.intersection",),
    ),
    "sealed frame": Parser(
        recorded,
        lambda: [RecordSealer(bytes(32), b"context").seal(b"label", bytes(100))],
        (AuthenticationError,),
        ("protocols.sealing.record",),
    ),
    "handshake": Parser(
        shaken,
        lambda: [bytes(200)],
        (HandshakeError, AuthenticationError),
        ("protocols.sealing.handshake",),
        unread=True,
    ),
    "connection outside a run": Parser(
        paired,
        lambda: [bytes(32) + pair_ends("company").card.digest + pair_ends("ann").card.digest],
        (HandshakeError, AuthenticationError, PeerLostError, RosterError),
        ("parties.agreement.pair",),
        unread=True,
    ),
    "bundle": Parser(
        unpack_bundle,
        lambda: [pack_bundle(b"record", [b"one", b"two"])],
        SEALED,
        ("protocols.sealing.bundle",),
    ),
    "envelope": Parser(
        checked,
        lambda: [envelope()],
        SEALED,
        ("protocols.sealing.envelope", "protocols.sealing.container"),
    ),
    "card": Parser(
        text(Card.from_text),
        lambda: [card("ann").to_text().encode()],
        (CardError,),
        ("parties.keys.identity",),
    ),
    "succession": Parser(
        text(Succession.from_text),
        lambda: [chain()[0].to_text().encode()],
        (CardError,),
        ("parties.keys.statements",),
    ),
    "revocation": Parser(
        text(Revocation.from_text),
        lambda: [Revocation.sign(MemoryVault.generate("ann"), now()).to_text().encode()],
        (CardError,),
        ("parties.keys.statements",),
    ),
    "identity": Parser(
        identity,
        lambda: [seal_secret(bytes(192), b"right", b"header", CHEAP)],
        (IdentityError,),
        ("parties.keys.keyfile", "parties.keys.vault"),
        unread=True,
    ),
    "answer of a proxy": Parser(
        from_proxy,
        lambda: [
            b"HTTP/1.1 200 OK\r\nVia: x\r\n\r\nmore",
            b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\n\r\n",
        ],
        (ProxyError,),
        ("parties.wire.proxy",),
        unread=True,
    ),
    "address of a proxy": Parser(
        text(Proxy.from_url),
        lambda: [b"http://ann:secret@proxy:3128"],
        (ValueError,),
        ("parties.wire.proxy",),
    ),
    "measurement": Parser(
        measured,
        lambda: [bytes(question(1, 10)[0])],
        (ControlError,),
        ("parties.doctor.desk",),
        unread=True,
    ),
}
