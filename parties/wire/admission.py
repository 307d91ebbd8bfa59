"""Tickets: how a node knows who dials it before it reads a frame.

Both ends of a pair compute the same proof from their CURVE keys, which are X25519 keys:

    proof = HKDF-SHA256(X25519(own secret, peer's public);
                        label ‖ sid ‖ dialler ‖ listener ‖ number)

A ticket shows that its holder has the secret of a key on the allow-list, in this session: the
session id depends on fresh nonces of all nodes. It is sent in the clear and admits one connection:
the dialling node numbers its tickets, one for each attempt to connect, and the listening one admits
only numbers above all that it has seen of that node. Somebody who reads a ticket on the wire cannot
use it elsewhere; somebody who uses it first stops the run. A ticket does not make anybody a member
of the session: keys come from the signed handshake alone (`protocols.sealing.handshake`).

The same secret gives each direction of a pair a key for messages about the connection itself
(`parties.wire.resume`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hmac import compare_digest

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from parties.errors import TransportError
from protocols.canonical import pack

PROOF_BYTES = 32

_LABEL = b"mpc-train/admission/2"
_LINK_LABEL = b"mpc-train/link/1"
_USER = re.compile(r"([a-z0-9-]+)/(0|[1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True)
class Ticket:
    """The dialling node's name, the number of its attempt, and its proof in hexadecimal."""

    name: str
    number: int
    proof: str = field(repr=False)

    @property
    def user(self) -> str:
        """Name and number, as the ticket shows them."""
        return f"{self.name}/{self.number}"


def split_user(user: str) -> tuple[str, int]:
    """Name and number of a ticket that was admitted; the number of a CURVE key's name is 0."""
    name, _, number = user.partition("/")
    return name, int(number or 0)


def _derive(secret: bytes, public: bytes, names: tuple[str, str], info: bytes) -> bytes:
    try:
        peer = X25519PublicKey.from_public_bytes(public)
        shared = X25519PrivateKey.from_private_bytes(secret).exchange(peer)
    except ValueError as error:
        raise TransportError(
            f"the card of {names[0]} or {names[1]} does not hold a valid CURVE key"
        ) from error
    return HKDF(SHA256(), PROOF_BYTES, None, info).derive(shared)


def make_ticket(
    secret: bytes, public: bytes, session: bytes, *, dialler: str, listener: str, number: int = 0
) -> Ticket:
    """The ticket that admits `dialler` at `listener` in `session`; both ends compute the same.

    secret: this node's CURVE key, public: the other's, 32 bytes each. Raises TransportError for an
    invalid public key.
    """
    info = pack(_LABEL, session, dialler.encode(), listener.encode(), number.to_bytes(8, "big"))
    proof = _derive(secret, public, (dialler, listener), info)
    return Ticket(dialler, number, proof.hex())


def link_key(secret: bytes, public: bytes, session: bytes, *, sender: str, receiver: str) -> bytes:
    """The key under which `sender` authenticates messages about its connection to `receiver`.

    Arguments and errors as of `make_ticket`.
    """
    info = pack(_LINK_LABEL, session, sender.encode(), receiver.encode())
    return _derive(secret, public, (sender, receiver), info)


class Admission:
    """Which tickets one listening socket admits in one session: of each name, only numbers above
    those that it has shown before. For one thread.

    secret: this node's CURVE key. publics: the keys of the nodes that may dial.
    """

    def __init__(
        self, secret: bytes, publics: Mapping[str, bytes], session: bytes, listener: str
    ) -> None:
        self._secret, self._publics = secret, publics
        self._session, self._listener = session, listener
        self._next = dict.fromkeys(publics, 0)

    def admit(self, user: bytes, proof: bytes) -> str | None:
        """Name and number as in `Ticket.user` if this is a valid ticket; it is not admitted
        again."""
        found = _USER.fullmatch(user.decode("ascii", "replace"))
        if found is None or found[1] not in self._publics:
            return None
        name, number = found[1], int(found[2])
        due = make_ticket(
            self._secret,
            self._publics[name],
            self._session,
            dialler=name,
            listener=self._listener,
            number=number,
        )
        if not compare_digest(due.proof.encode(), proof) or number < self._next[name]:
            return None
        self._next[name] = number + 1
        return due.user

    def __repr__(self) -> str:
        return f"Admission({', '.join(self._publics)})"
