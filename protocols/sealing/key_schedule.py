"""From the two secrets of a handshake to its keys: HKDF-SHA256 (RFC 5869), one label a use."""

from dataclasses import dataclass

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from protocols.canonical import pack


@dataclass(frozen=True, repr=False, eq=False)
class Keys:
    """What a finished handshake gives: one key for each direction, and further ones by label."""

    send: bytes
    receive: bytes
    transcript: bytes
    _export: bytes

    def export(self, label: str) -> bytes:
        """32 bytes that only these two nodes know, another for each label."""
        info = pack(b"mpc-train/hs1/export", label.encode())
        return HKDFExpand(SHA256(), 32, info).derive(self._export)

    def __repr__(self) -> str:
        return f"Keys(transcript {self.transcript[:4].hex()}…, redacted)"


@dataclass(frozen=True, repr=False, eq=False)
class Schedule:
    """K of the module's docstring, one secret for each label."""

    mac_initiator: bytes
    mac_responder: bytes
    to_responder: bytes
    to_initiator: bytes
    export: bytes

    @classmethod
    def derive(cls, initiator_secret: bytes, responder_secret: bytes, th: bytes) -> "Schedule":
        root = HKDF.extract(SHA256(), th, initiator_secret + responder_secret)

        def expand(label: bytes) -> bytes:
            return HKDFExpand(SHA256(), 32, pack(b"mpc-train/hs1/key", label)).derive(root)

        return cls(
            mac_initiator=expand(b"mac/i"),
            mac_responder=expand(b"mac/r"),
            to_responder=expand(b"data/i>r"),
            to_initiator=expand(b"data/r>i"),
            export=expand(b"export"),
        )

    def __repr__(self) -> str:
        return "Schedule(redacted)"
