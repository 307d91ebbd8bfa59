"""A person's dated signature over the digest of a document: under a job, and under a policy.

Guarantees that the holder of a card's keys signed this digest, under this purpose, with this day.
Leaves to the caller: whose signature counts for what, for how long, and which document has the
digest. The day is what the signer's clock said.

    signed      pack(signer's name, digest (32 bytes), day as YYYY-MM-DD)
    signature   Ed25519 and ML-DSA-65 over it (`protocols.sealing.signatures`), base64
"""

import base64
import binascii
from collections.abc import Mapping
from datetime import date
from typing import Protocol

import msgspec

from protocols.canonical import pack
from protocols.errors import AuthenticationError
from protocols.sealing.signatures import Signer, Verifier


class StatementError(ValueError):
    """A signature that does not verify."""


class PublicCard(Protocol):
    """The part of a card that verification needs."""

    def verifier(self) -> Verifier: ...


Cards = Mapping[str, PublicCard]


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """digest: hexadecimal. day: UTC. signature: base64."""

    signer: str
    digest: str
    day: date
    signature: str

    def check(self, purpose: str, card: PublicCard) -> None:
        """Raise StatementError unless `card` signed this under `purpose`."""
        try:
            signature = base64.b64decode(self.signature, validate=True)
            signed = _signed(self.signer, bytes.fromhex(self.digest), self.day)
            card.verifier().verify(purpose, signed, signature)
        except (AuthenticationError, binascii.Error, ValueError) as error:
            raise StatementError(
                f"the signature is not that of {self.signer}'s card; if {self.signer} has other "
                "keys now, sign anew"
            ) from error


def sign(purpose: str, signer: str, digest: bytes, day: date, keys: Signer) -> Statement:
    """The statement of `signer`, who holds `keys`, about the document with this digest."""
    signature = keys.sign(purpose, _signed(signer, digest, day))
    return Statement(signer, digest.hex(), day, base64.b64encode(signature).decode())


def _signed(signer: str, digest: bytes, day: date) -> bytes:
    return pack(signer.encode(), digest, day.isoformat().encode())
