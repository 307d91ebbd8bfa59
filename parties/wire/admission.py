"""Tickets: how a node knows who dials it before it reads a frame.

Both ends of a pair compute the same proof from their CURVE keys, which are X25519 keys:

    proof = HKDF-SHA256(X25519(own secret, peer's public); label ‖ sid ‖ dialler ‖ listener)

A ticket shows that its holder has the secret of a key on the allow-list, in this session: the
session id depends on fresh nonces of all nodes. It is sent in the clear and admits one connection.
Somebody who reads it on the wire cannot use it elsewhere; somebody who uses it first stops the run.
A ticket does not make anybody a member of the session: keys come from the signed handshake alone
(`protocols.sealing.handshake`).
"""

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from parties.errors import TransportError
from protocols.canonical import pack

PROOF_BYTES = 32

_LABEL = b"mpc-train/admission/1"


@dataclass(frozen=True, slots=True)
class Ticket:
    """The dialling node's name, and its proof in hexadecimal."""

    name: str
    proof: str = field(repr=False)


def make_ticket(
    secret: bytes, public: bytes, session: bytes, *, dialler: str, listener: str
) -> Ticket:
    """The ticket that admits `dialler` at `listener` in `session`; both ends compute the same.

    secret: this node's CURVE key, public: the other's, 32 bytes each. Raises TransportError for an
    invalid public key.
    """
    try:
        peer = X25519PublicKey.from_public_bytes(public)
        shared = X25519PrivateKey.from_private_bytes(secret).exchange(peer)
    except ValueError as error:
        raise TransportError(
            f"the card of {dialler} or {listener} does not hold a valid CURVE key"
        ) from error
    info = pack(_LABEL, session, dialler.encode(), listener.encode())
    return Ticket(dialler, HKDF(SHA256(), PROOF_BYTES, None, info).derive(shared).hex())
