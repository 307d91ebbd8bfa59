"""What the nodes of a run agree on before they share anything; all of it is public.

A session id names one start of one job. It takes a fresh nonce from every evaluator and the
dealer, so that no node can be led into a session that has already used its masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from protocols.canonical import pack
from protocols.errors import HandshakeError
from protocols.sealing import hpke, signatures

VERSION = 1
SUITE = f"{hpke.SUITE}/{signatures.SUITE}"
HASH_BYTES = 32
NONCE_BYTES = 32
MAX_TEXT_BYTES = 128
"""Suite, purpose, role, name: each is a short word, which bounds the first message."""


@dataclass(frozen=True)
class SessionInfo:
    """What both nodes must agree on before the first message; all of it is public."""

    version: int
    suite: str
    sid: bytes
    job: bytes
    roster: bytes
    purpose: str = "data"

    def __post_init__(self) -> None:
        for name in ("sid", "job", "roster"):
            if len(getattr(self, name)) != HASH_BYTES:
                raise HandshakeError(f"{name} must have {HASH_BYTES} bytes")
        if not 0 <= self.version < 1 << 32:
            raise HandshakeError("the version must fit 32 bits")
        _check_texts(suite=self.suite, purpose=self.purpose)


@dataclass(frozen=True)
class Endpoint:
    """One node of the pair: its name, its role in the job and its two verification keys."""

    name: str
    role: str
    signing_public: bytes

    def __post_init__(self) -> None:
        _check_texts(name=self.name, role=self.role)

    @property
    def identity(self) -> bytes:
        """Name and keys in 32 bytes."""
        return identity_digest(self.name, self.signing_public)

    def __repr__(self) -> str:
        return f"Endpoint({self.name}, {self.role})"


def identity_digest(name: str, signing_public: bytes) -> bytes:
    """The digest that represents a node wherever its identity is hashed or signed."""
    return sha256(pack(b"mpc-train/identity/1", name.encode(), signing_public)).digest()


def session_id(
    version: int,
    job: bytes,
    roster: bytes,
    members: Sequence[tuple[str, bytes, bytes]],
) -> bytes:
    """sid = H(version, job, roster, (role, identity digest, nonce) of each party in roster order).

    Every node contributes a fresh 32-byte nonce, so no node can be led into an old session. Raises
    HandshakeError for a nonce of another length or one that occurs twice.
    """
    nonces = [nonce for _, _, nonce in members]
    if any(len(nonce) != NONCE_BYTES for nonce in nonces) or len(set(nonces)) != len(nonces):
        raise HandshakeError(f"a session takes one nonce of {NONCE_BYTES} bytes from each node")
    parts = [pack(role.encode(), identity, nonce) for role, identity, nonce in members]
    return sha256(
        pack(b"mpc-train/session/1", version.to_bytes(4, "big"), job, roster, *parts)
    ).digest()


def _check_texts(**texts: str) -> None:
    for name, text in texts.items():
        if not 1 <= len(text.encode()) <= MAX_TEXT_BYTES:
            raise HandshakeError(f"{name} must have 1 to {MAX_TEXT_BYTES} bytes")
