"""Bytes from peers and files, drawn and mutated: a parser gives a value or one of our errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parties.agreement import control
from parties.agreement.contract import Contract, Roles
from parties.errors import CardError, ContractError, ControlError, IdentityError, RosterError
from parties.keys.identity import Card, IdentityKeys
from parties.keys.keyfile import KdfCost, open_secret, read_header, seal_secret
from parties.keys.lifetime import now
from parties.keys.roster import Roster
from parties.keys.statements import Revocation, Succession
from parties.keys.vault import MemoryVault
from parties.nodes.artifacts import split
from parties.wire.data_plane import _pack, _unpack
from protocols.errors import AuthenticationError, EnvelopeError, FrameError, HandshakeError
from protocols.sealing.bundle import pack_bundle, unpack_bundle
from protocols.sealing.envelope import EnvelopeInfo, check_envelope, read_info, seal_envelope
from protocols.sealing.handshake import Initiator, Responder
from protocols.sealing.session import SUITE, VERSION, Endpoint, SessionInfo

ROLES = Roles(("ann", "bob"), ("ann", "bob"), "dora", ("ann",))
CHEAP = KdfCost(memory_kib=64, passes=1, lanes=1)
INFO = EnvelopeInfo("x", bytes(32), 3, ("weight", "bias"), "ann", ("bob",))


@cache
def keys(name: str) -> IdentityKeys:
    return IdentityKeys.generate()


def card(name: str) -> Card:
    return keys(name).card(name)


class _Part:
    """A received message part, as ZeroMQ gives it."""

    def __init__(self, data: bytes) -> None:
        self.buffer = memoryview(data)


def frame(data: bytes) -> Any:
    return _unpack("bob", [_Part(data)])  # type: ignore[list-item]


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


def checked(data: bytes) -> Any:
    read_info(data)
    check_envelope(
        data,
        expected=INFO,
        recipient_keys=[card("bob").recipient_key],
        verifier=card("ann").verifier(),
    )


def identity(data: bytes) -> Any:
    read_header(data)
    return open_secret(data, b"wrong", CHEAP)


def text(parse: Callable[[str], Any]) -> Callable[[bytes], Any]:
    return lambda data: parse(data.decode("utf-8", "replace"))


def encoded(*messages: Any) -> list[bytes]:
    return [control.encode(message) for message in messages]


def seeds() -> dict[str, list[bytes]]:
    """Whole messages and files of each kind."""
    acceptance = control.Accept(bytes(32), bytes(32), bytes(3373))
    contract = Contract.of("job", ROLES, b"body", bytes(32)).to_bytes()
    parts = list(split("sealed", "ann/model", bytes(100)))
    owner = MemoryVault.generate("ann")
    chain = owner.successor().successions
    envelope = seal_envelope(
        bytes(3000),
        info=INFO,
        recipient_keys=[card("bob").recipient_key],
        signer=keys("ann").signing,
    )
    return {
        "from a node": encoded(
            control.Hello(1, "ann", "tcp://127.0.0.1:1", (chain[0].to_text(),)),
            control.Rotate((chain[0].to_text(),)),
            control.Kept("ann", bytes(3373)),
            control.Handshake("ann", bytes(100)),
            control.RotationDone(),
            control.Progress({"step": 1, "phase": "training", "left": 0.5, "ok": True}),
            control.Done(b"{}"),
            control.Abort("data"),
            *parts,
        ),
        "from the coordinator": encoded(
            control.Propose(contract, b"body"),
            control.Start({"ann": bytes(3373)}, {"ann": None}),
            control.Accepted({"ann": acceptance}),
            control.Delivery("ann", parts[0]),
            control.Rotated("ann", (chain[0].to_text(),)),
            control.Switch("ann", {"ann": bytes(3373)}),
            control.Handshaken("ann", bytes(100)),
        ),
        "contract": [contract],
        "bundle": [pack_bundle(b"record", [b"one", b"two"])],
        "envelope": [envelope],
        "frame": [b"".join(bytes(part) for part in _pack(7, 3, b"label", bytes(50)))],
        "handshake": [bytes(200)],
        "card": [card("ann").to_text().encode()],
        "succession": [chain[0].to_text().encode()],
        "revocation": [Revocation.sign(owner, now()).to_text().encode()],
        "identity": [seal_secret(bytes(192), b"right", b"header", CHEAP)],
    }


PARSERS: dict[str, tuple[Callable[[bytes], Any], tuple[type[Exception], ...]]] = {
    "from a node": (lambda data: control.decode_from_node(data, "bob"), (ControlError,)),
    "from the coordinator": (
        lambda data: control.decode_from_coordinator(data, "desk"),
        (ControlError,),
    ),
    "contract": (Contract.from_bytes, (ContractError,)),
    "bundle": (unpack_bundle, (EnvelopeError,)),
    "envelope": (checked, (EnvelopeError,)),
    "frame": (frame, (FrameError,)),
    "handshake": (shaken, (HandshakeError, AuthenticationError)),
    "card": (text(Card.from_text), (CardError,)),
    "succession": (text(Succession.from_text), (CardError,)),
    "revocation": (text(Revocation.from_text), (CardError,)),
    "identity": (identity, (IdentityError,)),
}
SEEDS = seeds()


def mutated(whole: list[bytes]) -> st.SearchStrategy[bytes]:
    """Cut, doubled, with bytes altered, put in or taken out; or of another making altogether."""

    def alter(parts: tuple[bytes, list[tuple[int, bytes]], int]) -> bytes:
        data, edits, end = parts
        for place, piece in edits:
            at = place % (len(data) + 1)
            data = data[:at] + piece + data[at + len(piece) // 2 :]
        return data[: end % (len(data) + 1)] if end else data

    edits = st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=9)), max_size=4)
    altered = st.tuples(st.sampled_from(whole), edits, st.integers(0, 10_000)).map(alter)
    return st.binary(max_size=400) | altered | st.sampled_from(whole).map(lambda data: data * 2)


@pytest.mark.parametrize("kind", PARSERS)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_only_our_errors(kind: str, data: st.DataObject) -> None:
    parse, errors = PARSERS[kind]
    drawn = data.draw(mutated(SEEDS[kind]))
    try:
        parse(drawn)
    except errors as error:
        assert len(str(error)) < 2_000


@pytest.mark.parametrize("kind", sorted(set(PARSERS) - {"handshake", "identity"}))
def test_what_is_whole_is_read(kind: str) -> None:
    for whole in SEEDS[kind]:
        PARSERS[kind][0](whole)


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",  # a list of 2^32 entries
        b"\xdf\xff\xff\xff\xff",  # a map of as many
        b"\xc6\xff\xff\xff\xff",  # as many bytes
        b"\x81\xa1t\xdb\xff\xff\xff\xff",
        b"\x91" * 200_000,  # lists in lists
        b"\x81\xa1t" * 50_000,
        b"\x81\xa1t\xa4done" + bytes(5 << 20),
    ],
    ids=["list", "map", "bytes", "text", "deep", "deep maps", "long"],
)
def test_a_message_that_claims_much_is_refused_at_once(data: bytes) -> None:
    for decode in (control.decode_from_node, control.decode_from_coordinator):
        with pytest.raises(ControlError):
            decode(data, "bob")


@pytest.mark.parametrize(
    "content",
    [
        "a = " + "[" * 100_000,
        "a = 1" + "0" * 100_000,
        'card = "text"',
        "card = [1, 2]",
        "version = 1\n[[card]]\nname = 1",
        "\x00\x1b[31m",
        "x = 1\n" * 10_000,
    ],
)
def test_a_roster_that_is_none_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "roster.toml"
    path.write_text(content)
    with pytest.raises(RosterError, match=r"roster\.toml"):
        Roster.load(path)
    with pytest.raises(CardError):
        Card.from_text(content)
