"""Two nodes agree on fresh keys: signed, hybrid post-quantum, forward secret. No I/O.

Guarantees to each side that the other holds the signing keys of its card, sees the same version,
suite, session, job, roster, purpose and roles, and derived the same keys; and that messages under
them stay secret even if every long-term key leaks later (ephemeral keys in both directions, used
once). Leaves to the caller: who initiates (the lower roster index), that a session id holds the
caller's own nonce, and one handshake per (session, pair, purpose).

    M1 A→B  version, suite, sid, job, roster, purpose, role and identity of both, n_A, epk_A
    M2 B→A  n_B, epk_B, ct_B, Sign_B("hs1/resp" ‖ H(M1, n_B, epk_B, ct_B))
            ct_B = Seal(epk_A, s_B; "hs1/r>i" ‖ H(M1, n_B, epk_B))
    M3 A→B  ct_A, Sign_A("hs1/init" ‖ th), MAC_A
            ct_A = Seal(epk_B, s_A; "hs1/i>r" ‖ H(M1, M2)),   th = H(M1, M2, ct_A)
    M4 B→A  MAC_B("fin" ‖ identity ‖ th ‖ signatures)

    K = HKDF-SHA256(s_A ‖ s_B; salt th), with one label for each MAC, each direction and export.

A sends nothing under K before M4 verified, B nothing before M3. Signed ephemeral exchange with a
MAC over the identities follows SIGMA (Krawczyk, CRYPTO 2003); HPKE is RFC 9180. All hashes are
SHA-256 over length-prefixed fields.

Malformed, foreign or misplaced messages raise HandshakeError; an invalid signature, MAC, sealed
secret or key raises AuthenticationError. Either ends the object: there is no retry.
"""

import hmac
import os
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from protocols.canonical import decode_text, pack, unpack
from protocols.errors import AuthenticationError, FrameError, HandshakeError
from protocols.sealing import hpke, signatures
from protocols.sealing.hpke import HybridPrivateKey
from protocols.sealing.key_schedule import Keys, Schedule
from protocols.sealing.session import (
    HASH_BYTES,
    MAX_TEXT_BYTES,
    NONCE_BYTES,
    SUITE,
    VERSION,
    Endpoint,
    SessionInfo,
    identity_digest,
    session_id,
)
from protocols.sealing.signatures import Signer, Verifier

__all__ = [
    "MESSAGE_MAX_BYTES",
    "NONCE_BYTES",
    "SUITE",
    "VERSION",
    "Endpoint",
    "Initiator",
    "Keys",
    "Responder",
    "SessionInfo",
    "Signer",
    "Verifier",
    "identity_digest",
    "session_id",
]

SECRET_BYTES = 32

_SEALED_BYTES = SECRET_BYTES + hpke.OVERHEAD_BYTES
_TAGS = (b"hs1/m1", b"hs1/m2", b"hs1/m3", b"hs1/m4")
_BOUNDS: Final = (
    # tag, version, suite, purpose, sid, job, roster, A: role name key, B: role name key, n_A, epk_A
    (
        *(6, 4, MAX_TEXT_BYTES, MAX_TEXT_BYTES, HASH_BYTES, HASH_BYTES, HASH_BYTES),
        *(MAX_TEXT_BYTES, MAX_TEXT_BYTES, HASH_BYTES),
        *(MAX_TEXT_BYTES, MAX_TEXT_BYTES, HASH_BYTES),
        *(NONCE_BYTES, hpke.PUBLIC_BYTES),
    ),
    (6, NONCE_BYTES, hpke.PUBLIC_BYTES, _SEALED_BYTES, signatures.SIGNATURE_BYTES),
    (6, _SEALED_BYTES, signatures.SIGNATURE_BYTES, HASH_BYTES),
    (6, HASH_BYTES),
)
_AGREED = ("suite", "purpose", "session id", "job", "roster")
_PARTIES = ("role", "name", "signing keys")

MESSAGE_MAX_BYTES = max(sum(bounds) + 4 * len(bounds) for bounds in _BOUNDS)
"""No message of a handshake is longer; a transport may drop longer ones."""

Entropy = Callable[[int], bytes]


class _Side:
    """What both sides have in common: the identities, one ephemeral key, the order of calls."""

    _last: int

    def __init__(
        self,
        info: SessionInfo,
        me: Endpoint,
        peer: Endpoint,
        signer: Signer,
        verifier: Verifier,
        entropy: Entropy = os.urandom,
    ) -> None:
        if me.name == peer.name or me.signing_public == peer.signing_public:
            raise HandshakeError(f"{me.name} would shake hands with itself")
        self._info = info
        self._me = me
        self._peer = peer
        self._signer = signer
        self._verifier = verifier
        self._nonce = entropy(NONCE_BYTES)
        self._secret = entropy(SECRET_BYTES)
        self._ephemeral: HybridPrivateKey | None = HybridPrivateKey(entropy(hpke.PRIVATE_BYTES))
        self._epk = self._ephemeral.public
        self._step = 0

    @property
    def has_answered(self) -> bool:
        """Whether this side has answered the other's first message, and the last one is due."""
        return self._step == self._last

    def _advance(self, step: int, call: str) -> None:
        """Each call comes once, in order. A failure leaves the object at -1, where no call is
        allowed."""
        if self._step != step:
            state = "has ended" if self._step < 0 else f"is at step {self._step}"
            raise HandshakeError(
                f"{call}: out of order, the handshake with {self._peer.name} {state}"
            )
        self._step = -1

    def _take_ephemeral(self) -> HybridPrivateKey:
        """The ephemeral key, once: it opens one secret and is dropped."""
        key, self._ephemeral = self._ephemeral, None
        if key is None:
            raise HandshakeError(f"the ephemeral key for {self._peer.name} was used before")
        return key

    def _parse(self, number: int, message: bytes) -> list[bytes]:
        try:
            fields = unpack(message, _BOUNDS[number - 1])
        except FrameError as error:
            raise HandshakeError(f"{self._peer.name}: M{number} is malformed: {error}") from error
        if fields[0] != _TAGS[number - 1]:
            raise HandshakeError(f"{self._peer.name}: expected M{number}, got another message")
        return fields

    def _verify(self, purpose: str, statement: bytes, signature: bytes) -> None:
        try:
            self._verifier.verify(purpose, statement, signature)
        except AuthenticationError as error:
            raise AuthenticationError(f"{self._peer.name}: {error}") from error

    def _seal(self, public: bytes, info: bytes) -> bytes:
        try:
            return hpke.seal(public, info, self._secret)
        except AuthenticationError as error:
            raise AuthenticationError(f"{self._peer.name}: its ephemeral key: {error}") from error

    def _open(self, info: bytes, sealed: bytes) -> bytes:
        try:
            secret = self._take_ephemeral().open(info, sealed)
        except AuthenticationError as error:
            raise AuthenticationError(f"{self._peer.name}: its secret: {error}") from error
        if len(secret) != SECRET_BYTES:
            raise AuthenticationError(f"{self._peer.name}: its secret has the wrong length")
        return secret

    def _check_mac(self, expected: bytes, mac: bytes) -> None:
        if not hmac.compare_digest(expected, mac):
            raise AuthenticationError(f"{self._peer.name}: its key confirmation does not verify")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._me.name}, {self._peer.name}, step {self._step})"


class Initiator(_Side):
    """A: `message1`, then `on_message2`, then `on_message4`."""

    _last = 2

    def message1(self) -> bytes:
        """M1, to be sent to the peer."""
        self._advance(0, "message1")
        header = _header(self._info, self._me, self._peer)
        self._m1 = pack(_TAGS[0], *header, self._nonce, self._epk)
        self._step = 1
        return self._m1

    def on_message2(self, message: bytes) -> bytes:
        """Check M2 and answer with M3. Raises HandshakeError or AuthenticationError.

        1. The peer's signature covers M1, hence everything that both agree on.
        2. Its secret opens with our ephemeral key, which is dropped.
        3. Our secret is sealed to its ephemeral key, under everything so far.
        4. Our signature and key confirmation over the transcript.
        """
        self._advance(1, "on_message2")
        _, nonce, epk, ct_b, sign_b = self._parse(2, message)
        self._verify("hs1/resp", _hash(self._m1, nonce, epk, ct_b), sign_b)  # 1
        secret_b = self._open(_info("hs1/r>i", self._m1, nonce, epk), ct_b)  # 2
        ct_a = self._seal(epk, _info("hs1/i>r", self._m1, message))  # 3
        th = _hash(self._m1, message, ct_a)  # 4
        sign_a = self._signer.sign("hs1/init", th)
        self._schedule = Schedule.derive(self._secret, secret_b, th)
        self._th = th
        self._signatures = (sign_a, sign_b)
        self._secret = b""
        mac_a = _mac(self._schedule.mac_initiator, b"init", self._me, th, sign_a, sign_b)
        self._step = 2
        return pack(_TAGS[2], ct_a, sign_a, mac_a)

    def on_message4(self, message: bytes) -> Keys:
        """Check the peer's key confirmation; the keys may be used from here on."""
        self._advance(2, "on_message4")
        _, mac_b = self._parse(4, message)
        schedule = self._schedule
        expected = _mac(schedule.mac_responder, b"fin", self._peer, self._th, *self._signatures)
        self._check_mac(expected, mac_b)
        del self._schedule
        return Keys(schedule.to_responder, schedule.to_initiator, self._th, schedule.export)


class Responder(_Side):
    """B: `on_message1`, then `on_message3`."""

    _last = 1

    def on_message1(self, message: bytes) -> bytes:
        """Check that M1 proposes what we expect of this peer, and answer with M2.

        1. Version, suite, purpose, session, job, roster, roles and identities are equal to ours.
        2. Our secret is sealed to the peer's ephemeral key, under M1 and our own key and nonce.
        3. Our signature over all of it.

        Raises HandshakeError or AuthenticationError.
        """
        self._advance(0, "on_message1")
        fields = self._parse(1, message)
        expected = _header(self._info, self._peer, self._me)
        for name, theirs, ours in zip(_FIELD_NAMES, fields[1:-2], expected, strict=True):  # 1
            if theirs != ours:
                raise HandshakeError(f"{self._peer.name}: {name} differs{_shown(name, theirs)}")
        if len(fields[-2]) != NONCE_BYTES:
            raise HandshakeError(f"{self._peer.name}: its nonce is too short")
        epk = self._epk
        ct_b = self._seal(fields[-1], _info("hs1/r>i", message, self._nonce, epk))  # 2
        sign_b = self._signer.sign("hs1/resp", _hash(message, self._nonce, epk, ct_b))  # 3
        self._m1 = bytes(message)
        self._m2 = pack(_TAGS[1], self._nonce, epk, ct_b, sign_b)
        self._sign_b = sign_b
        self._step = 1
        return self._m2

    def on_message3(self, message: bytes) -> tuple[bytes, Keys]:
        """Check M3; M4 to be sent, and the keys. Raises HandshakeError or AuthenticationError.

        1. The peer's signature covers the whole transcript: it is the peer, here and now.
        2. Its secret opens with our ephemeral key, which is dropped.
        3. Its key confirmation shows that it derived the same keys.
        """
        self._advance(1, "on_message3")
        _, ct_a, sign_a, mac_a = self._parse(3, message)
        th = _hash(self._m1, self._m2, ct_a)
        self._verify("hs1/init", th, sign_a)  # 1
        secret_a = self._open(_info("hs1/i>r", self._m1, self._m2), ct_a)  # 2
        schedule = Schedule.derive(secret_a, self._secret, th)
        self._secret = b""
        pair = (sign_a, self._sign_b)
        self._check_mac(_mac(schedule.mac_initiator, b"init", self._peer, th, *pair), mac_a)  # 3
        mac_b = _mac(schedule.mac_responder, b"fin", self._me, th, *pair)
        keys = Keys(schedule.to_initiator, schedule.to_responder, th, schedule.export)
        return pack(_TAGS[3], mac_b), keys


_FIELD_NAMES = (
    "version",
    *_AGREED,
    *(f"the initiator's {part}" for part in _PARTIES),
    *(f"the responder's {part}" for part in _PARTIES),
)


def _header(info: SessionInfo, initiator: Endpoint, responder: Endpoint) -> list[bytes]:
    return [
        info.version.to_bytes(4, "big"),
        info.suite.encode(),
        info.purpose.encode(),
        info.sid,
        info.job,
        info.roster,
        *(initiator.role.encode(), initiator.name.encode(), initiator.identity),
        *(responder.role.encode(), responder.name.encode(), responder.identity),
    ]


def _shown(name: str, theirs: bytes) -> str:
    """Show the received value if a person can act on it: an old version, another suite."""
    if name == "version":
        return f": it has {int.from_bytes(theirs, 'big')}; run the same release on both nodes"
    if name in ("suite", "purpose"):
        try:
            return f": it has {decode_text(theirs)!r}"
        except FrameError:
            return ""
    return ""


def _hash(*parts: bytes) -> bytes:
    return sha256(pack(*parts)).digest()


def _info(label: str, *parts: bytes) -> bytes:
    return pack(label.encode(), _hash(*parts))


def _mac(key: bytes, label: bytes, who: Endpoint, th: bytes, *signed: bytes) -> bytes:
    return hmac.digest(key, pack(label, who.identity, th, *signed), "sha256")
