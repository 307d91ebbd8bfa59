"""The handshake: agreement, every altered message, wrong orders, and the key schedule's vectors."""

import hmac
import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.canonical import pack, unpack
from protocols.errors import AuthenticationError, HandshakeError, ProtocolError
from protocols.sealing import handshake, hpke
from protocols.sealing.handshake import (
    MESSAGE_MAX_BYTES,
    SUITE,
    Endpoint,
    Initiator,
    Keys,
    Responder,
    SessionInfo,
    identity_digest,
    session_id,
)
from protocols.sealing.key_schedule import Schedule
from protocols.sealing.signatures import SigningKeys, VerifyKeys

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "channel.json").read_text())
KEYS = {name: SigningKeys(bytes([number]) * 64) for number, name in enumerate(("a", "b", "eve"))}
INFO = SessionInfo(1, SUITE, b"s" * 32, b"j" * 32, b"r" * 32)
A = Endpoint("hospital-a", "evaluator", KEYS["a"].public)
B = Endpoint("bank-b", "dealer", KEYS["b"].public)
FIELD_COUNTS = {1: 15, 2: 5, 3: 4, 4: 2}

Mutation = Callable[[int, bytes], bytes]


class Run:
    """Both sides and what each ended with; `mutate` sits on the wire between them."""

    def __init__(self, mutate: Mutation | None = None, *, responder: Responder | None = None):
        self.initiator_keys: Keys | None = None
        self.responder_keys: Keys | None = None
        self.errors: list[ProtocolError] = []
        wire = mutate or (lambda _, message: message)
        self.initiator = Initiator(INFO, A, B, KEYS["a"], VerifyKeys(B.signing_public))
        self.responder = responder or make_responder()
        self.messages: list[bytes] = []
        try:
            m1 = self._pass(wire, 1, self.initiator.message1())
            m2 = self._pass(wire, 2, self.responder.on_message1(m1))
            m3 = self._pass(wire, 3, self.initiator.on_message2(m2))
            answer, self.responder_keys = self.responder.on_message3(m3)
            self.initiator_keys = self.initiator.on_message4(self._pass(wire, 4, answer))
        except ProtocolError as error:
            self.errors.append(error)

    def _pass(self, wire: Mutation, number: int, message: bytes) -> bytes:
        self.messages.append(message)
        return wire(number, message)


def make_responder(
    info: SessionInfo = INFO, me: Endpoint = B, peer: Endpoint = A, signer: str = "b"
) -> Responder:
    return Responder(info, me, peer, KEYS[signer], VerifyKeys(peer.signing_public))


def flip(data: bytes, position: int, mask: int = 1) -> bytes:
    changed = bytearray(data)
    changed[position] ^= mask
    return bytes(changed)


def only(number: int, change: Callable[[bytes], bytes]) -> Mutation:
    return lambda at, message: change(message) if at == number else message


def assert_refused(run: Run, altered: int) -> None:
    """Nobody has keys, but for a responder whose last message was altered on its way."""
    assert run.initiator_keys is None
    assert (run.responder_keys is not None) == (altered == 4)
    assert [type(error) for error in run.errors] in ([HandshakeError], [AuthenticationError])
    with pytest.raises(HandshakeError, match="has ended"):
        if len(run.messages) in (1, 3):  # the one that the responder was given last
            run.responder.on_message1(b"")
        else:
            run.initiator.on_message2(b"")


def test_both_sides_agree() -> None:
    run = Run()
    ours, theirs = run.initiator_keys, run.responder_keys
    assert ours is not None and theirs is not None and not run.errors
    assert ours.send == theirs.receive and ours.receive == theirs.send
    assert ours.transcript == theirs.transcript
    assert ours.export("stream") == theirs.export("stream")
    labels = [ours.send, ours.receive, ours.export("stream"), ours.export("stream2")]
    assert len(set(labels)) == 4 and all(len(label) == 32 for label in labels)


def test_message_sizes_are_pinned() -> None:
    sizes = [len(message) for message in Run().messages]
    assert sizes == [1570, 5815, 4595, 46]
    assert max(sizes) <= MESSAGE_MAX_BYTES


def test_two_runs_share_nothing() -> None:
    first, second = Run(), Run()
    assert first.initiator_keys is not None and second.initiator_keys is not None
    assert first.initiator_keys.send != second.initiator_keys.send
    for ours, theirs in zip(first.messages, second.messages, strict=True):
        assert ours != theirs


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_every_altered_field_is_refused(number: int) -> None:
    for index in range(FIELD_COUNTS[number]):

        def change(message: bytes, index: int = index) -> bytes:
            fields = unpack(message, [1 << 20] * FIELD_COUNTS[number])
            fields[index] = flip(fields[index], len(fields[index]) // 2)
            return pack(*fields)

        assert_refused(Run(only(number, change)), number)


@given(st.integers(1, 4), st.integers(0, 6000), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_every_altered_byte_is_refused(number: int, position: int, mask: int) -> None:
    run = Run(only(number, lambda message: flip(message, position % len(message), mask)))
    assert_refused(run, number)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("change", [lambda m: m[:-1], lambda m: m + b"\0", lambda m: b""])
def test_truncated_and_extended_messages_are_refused(
    number: int, change: Callable[[bytes], bytes]
) -> None:
    run = Run(only(number, change))
    assert_refused(run, number)
    assert isinstance(run.errors[0], HandshakeError)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("version", 2, "version differs: it has 1"),
        ("suite", "other", "suite differs: it has 'MLKEM768_X25519"),
        ("purpose", "control", "purpose differs: it has 'data'"),
        ("sid", b"t" * 32, "session id differs"),
        ("job", b"t" * 32, "job differs"),
        ("roster", b"t" * 32, "roster differs"),
    ],
)
def test_what_is_not_agreed_is_named(field: str, value: object, said: str) -> None:
    run = Run(responder=make_responder(replace(INFO, **{field: value})))  # type: ignore[arg-type]
    assert_refused(run, 1)
    assert said in str(run.errors[0]) and "hospital-a" in str(run.errors[0])


@pytest.mark.parametrize(
    ("responder", "said"),
    [
        (make_responder(peer=replace(A, role="dealer")), "the initiator's role differs"),
        (make_responder(peer=replace(A, name="hospital-c")), "the initiator's name differs"),
        (
            make_responder(peer=replace(A, signing_public=KEYS["eve"].public)),
            "the initiator's signing keys differs",
        ),
        (make_responder(me=replace(B, role="evaluator")), "the responder's role differs"),
        (make_responder(me=replace(B, name="bank-c")), "the responder's name differs"),
        (
            make_responder(me=replace(B, signing_public=KEYS["eve"].public)),
            "the responder's signing keys differs",
        ),
    ],
)
def test_other_roles_and_identities_are_refused(responder: Responder, said: str) -> None:
    run = Run(responder=responder)
    assert_refused(run, 1)
    assert said in str(run.errors[0])


def test_a_responder_without_its_signing_keys_is_refused() -> None:
    run = Run(responder=make_responder(signer="eve"))
    assert_refused(run, 2)
    assert isinstance(run.errors[0], AuthenticationError)
    assert "bank-b" in str(run.errors[0])


def test_an_initiator_without_its_signing_keys_is_refused() -> None:
    initiator = Initiator(INFO, A, B, KEYS["eve"], VerifyKeys(B.signing_public))
    responder = make_responder()
    message3 = initiator.on_message2(responder.on_message1(initiator.message1()))
    with pytest.raises(AuthenticationError, match="hospital-a"):
        responder.on_message3(message3)


def test_messages_of_an_earlier_run_are_refused() -> None:
    earlier = Run().messages
    for number in (2, 3, 4):
        assert_refused(Run(only(number, lambda _, n=number: earlier[n - 1])), number)  # type: ignore[misc]
    assert_refused(Run(only(1, lambda _: earlier[0])), 1)


def test_a_message_in_place_of_another_is_refused() -> None:
    earlier = Run().messages
    for place in (1, 2, 3, 4):
        for number in (1, 2, 3, 4):
            if number != place:
                run = Run(only(place, lambda _, n=number: earlier[n - 1]))  # type: ignore[misc]
                assert_refused(run, place)


def test_an_own_message_reflected_is_refused() -> None:
    initiator = Initiator(INFO, A, B, KEYS["a"], VerifyKeys(B.signing_public))
    with pytest.raises(HandshakeError):
        initiator.on_message2(initiator.message1())


@pytest.mark.parametrize(
    "epk",
    [
        bytes(hpke.PUBLIC_BYTES),
        hpke.HybridPrivateKey.generate().public[: hpke.MLKEM_PUBLIC_BYTES] + bytes(32),
        b"\xff" * hpke.MLKEM_PUBLIC_BYTES + hpke.HybridPrivateKey.generate().public[-32:],
        hpke.HybridPrivateKey.generate().public[:-1],
    ],
    ids=["all zero", "low-order X25519", "unreduced ML-KEM", "short"],
)
def test_an_unusable_ephemeral_key_is_one_named_error(epk: bytes) -> None:
    def change(message: bytes) -> bytes:
        return pack(*unpack(message, [1 << 20] * 15)[:-1], epk)

    run = Run(only(1, change))
    assert_refused(run, 1)
    assert isinstance(run.errors[0], AuthenticationError)

    class Dishonest(Responder):
        """Signs the bad key properly: only the use of the key can show it."""

        def on_message1(self, message: bytes) -> bytes:
            self._epk = epk
            return super().on_message1(message)

    run = Run(
        responder=Dishonest(INFO, B, A, KEYS["b"], VerifyKeys(A.signing_public)),
    )
    assert_refused(run, 2)
    assert isinstance(run.errors[0], AuthenticationError)


def test_a_secret_that_was_sealed_for_another_handshake_is_refused() -> None:
    """Everything is signed properly: only what the secret was sealed under can show it."""

    class Elsewhere:
        """Seals its secret under the right label and another transcript."""

        def _seal(self, public: bytes, info: bytes) -> bytes:
            label = "hs1/r>i" if isinstance(self, Responder) else "hs1/i>r"
            other = handshake._info(label, b"another transcript")
            sealed: bytes = super()._seal(public, other)  # type: ignore[misc]
            return sealed

    class ElsewhereResponder(Elsewhere, Responder): ...

    class ElsewhereInitiator(Elsewhere, Initiator): ...

    run = Run(
        responder=ElsewhereResponder(INFO, B, A, KEYS["b"], VerifyKeys(A.signing_public)),
    )
    assert_refused(run, 2)
    assert "its secret" in str(run.errors[0])
    initiator = ElsewhereInitiator(INFO, A, B, KEYS["a"], VerifyKeys(B.signing_public))
    responder = make_responder()
    message3 = initiator.on_message2(responder.on_message1(initiator.message1()))
    with pytest.raises(AuthenticationError, match="hospital-a: its secret"):
        responder.on_message3(message3)


def test_a_short_nonce_is_refused() -> None:
    def change(message: bytes) -> bytes:
        fields = unpack(message, [1 << 20] * 15)
        fields[-2] = fields[-2][:-1]
        return pack(*fields)

    run = Run(only(1, change))
    assert_refused(run, 1)
    assert "nonce" in str(run.errors[0])


def test_calls_out_of_order_are_refused() -> None:
    initiator = Initiator(INFO, A, B, KEYS["a"], VerifyKeys(B.signing_public))
    for early in (initiator.on_message2, initiator.on_message4):
        with pytest.raises(HandshakeError, match="out of order"):
            early(b"")
    responder = make_responder()
    with pytest.raises(HandshakeError, match="out of order"):
        responder.on_message3(b"")
    message1 = initiator.message1()
    with pytest.raises(HandshakeError, match="out of order"):
        initiator.message1()
    message2 = responder.on_message1(message1)
    with pytest.raises(HandshakeError, match="out of order"):
        responder.on_message1(message1)
    message3 = initiator.on_message2(message2)
    with pytest.raises(HandshakeError, match="out of order"):
        initiator.on_message2(message2)
    message4, _ = responder.on_message3(message3)
    with pytest.raises(HandshakeError, match="out of order"):
        responder.on_message3(message3)
    initiator.on_message4(message4)
    with pytest.raises(HandshakeError, match="out of order"):
        initiator.on_message4(message4)


def test_a_handshake_with_oneself_is_refused() -> None:
    for peer in (replace(B, name=A.name), replace(B, signing_public=A.signing_public)):
        with pytest.raises(HandshakeError, match="itself"):
            Initiator(INFO, A, peer, KEYS["a"], VerifyKeys(peer.signing_public))


def test_bad_session_facts_are_refused() -> None:
    for change in ({"sid": b"short"}, {"version": -1}, {"suite": ""}, {"purpose": "x" * 129}):
        with pytest.raises(HandshakeError):
            replace(INFO, **change)


@given(st.binary(max_size=300))
@settings(max_examples=40, deadline=None)
def test_arbitrary_bytes_cause_only_our_error(message: bytes) -> None:
    initiator = Initiator(INFO, A, B, KEYS["a"], VerifyKeys(B.signing_public))
    initiator.message1()
    with pytest.raises(HandshakeError):
        initiator.on_message2(message)
    with pytest.raises(HandshakeError):
        make_responder().on_message1(message)


def test_nothing_secret_is_shown() -> None:
    run = Run()
    assert run.initiator_keys is not None
    secrets = [run.initiator_keys.send, run.initiator_keys.export("x"), bytes([0]) * 64]
    shown = f"{run.initiator!r} {run.responder!r} {run.initiator_keys!r} {KEYS['a']!r} {A!r}"
    shown += repr(run.initiator._ephemeral) + repr(hpke.HybridPrivateKey.generate())
    for secret in secrets:
        assert secret.hex() not in shown and repr(secret) not in shown
    assert run.initiator._secret == b"" and run.responder._secret == b""
    assert run.initiator._ephemeral is None and run.responder._ephemeral is None


def hkdf_expand(key: bytes, *info: bytes) -> bytes:
    packed = b"".join(len(part).to_bytes(4, "big") + part for part in info)
    return hmac.digest(key, packed + b"\x01", "sha256")


def test_key_schedule_vectors_agree_with_a_second_implementation() -> None:
    vector = VECTORS["key_schedule"]
    s_a, s_b = (bytes.fromhex(vector[f"{side}_secret"]) for side in ("initiator", "responder"))
    th = bytes.fromhex(vector["th"])
    root = hmac.digest(th, s_a + s_b, "sha256")
    labels = {
        "mac_initiator": b"mac/i",
        "mac_responder": b"mac/r",
        "to_responder": b"data/i>r",
        "to_initiator": b"data/r>i",
        "export": b"export",
    }
    schedule = Schedule.derive(s_a, s_b, th)
    for name, label in labels.items():
        expected = hkdf_expand(root, b"mpc-train/hs1/key", label)
        assert getattr(schedule, name) == expected == bytes.fromhex(vector[name])
    exported = hkdf_expand(
        schedule.export, b"mpc-train/hs1/export", vector["export_label"].encode()
    )
    keys = Keys(schedule.to_responder, schedule.to_initiator, th, schedule.export)
    assert keys.export(vector["export_label"]) == exported == bytes.fromhex(vector["exported"])
    assert exported.hex() not in repr(schedule) and "redacted" in repr(schedule)


def test_session_id_vector_agrees_with_a_second_implementation() -> None:
    vector = VECTORS["session"]
    job, roster = bytes.fromhex(vector["job"]), bytes.fromhex(vector["roster"])
    members = [
        (role, bytes.fromhex(identity), bytes.fromhex(nonce))
        for role, identity, nonce in vector["members"]
    ]

    def field(data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + data

    text = field(b"mpc-train/session/1") + field(b"\0\0\0\1") + field(job) + field(roster)
    for role, identity, nonce in members:
        text += field(field(role.encode()) + field(identity) + field(nonce))
    sid = session_id(vector["version"], job, roster, members)
    assert sid.hex() == vector["sid"] == sha256(text).hexdigest()


def test_session_id_depends_on_everything_and_refuses_bad_nonces() -> None:
    identities = [identity_digest(name, KEYS["a"].public) for name in ("a", "b")]
    members = [("evaluator", identities[0], b"1" * 32), ("dealer", identities[1], b"2" * 32)]
    sids = {
        session_id(1, b"j" * 32, b"r" * 32, members),
        session_id(2, b"j" * 32, b"r" * 32, members),
        session_id(1, b"k" * 32, b"r" * 32, members),
        session_id(1, b"j" * 32, b"s" * 32, members),
        session_id(1, b"j" * 32, b"r" * 32, members[::-1]),
        session_id(1, b"j" * 32, b"r" * 32, members[:1]),
        session_id(1, b"j" * 32, b"r" * 32, [members[0], ("dealer", identities[1], b"3" * 32)]),
    }
    assert len(sids) == 7
    for nonce in (b"1" * 32, b"2" * 31):
        with pytest.raises(HandshakeError, match="nonce"):
            session_id(1, b"j" * 32, b"r" * 32, [members[0], ("dealer", identities[1], nonce)])
