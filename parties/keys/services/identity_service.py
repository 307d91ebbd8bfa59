"""The default: file keys are sealed to the node's own identity, which its passphrase protects.

Nothing else has to be kept or remembered. When the identity is rotated, its successor still opens
what it wrapped, and wraps everything else; the next rotation of the vault wraps all objects anew.
"""

from parties.errors import KeyServiceError, RetiredKeyError, WrappedKeyError
from parties.keys.identity import Card
from parties.keys.vault import Vault
from protocols.errors import AuthenticationError

SCHEME = "identity"


def key_id_of(card: Card) -> str:
    """The id of a card's key, of which the owner of the card has the private half."""
    return f"{SCHEME}:{card.digest.hex()}"


def wrap_for(card: Card, file_key: bytes, info: bytes) -> tuple[str, bytes]:
    """Seal 32 bytes to the owner of a card, who alone can `unwrap` them."""
    return key_id_of(card), card.recipient_key.seal(info, file_key)


class IdentityService:
    """`identity:`, over the private keys of a node."""

    uri = f"{SCHEME}:"

    def __init__(self, identity: Vault) -> None:
        self._identity = identity

    @property
    def current(self) -> str:
        return key_id_of(self._identity.card)

    def wrap(self, file_key: bytes, info: bytes) -> tuple[str, bytes]:
        return self.current, wrap_for(self._identity.card, file_key, info)[1]

    def unwrap(self, key_id: str, wrapped: bytes, info: bytes) -> bytes:
        name = self._identity.card.name
        if not self._opens(key_id):
            raise RetiredKeyError(
                f"the key belongs to another identity than the present one of {name}; use the "
                "identity that it was kept with"
            )
        try:
            return self._identity.unseal(info, wrapped)
        except AuthenticationError as error:
            raise WrappedKeyError(f"the file key does not open for {name}: {error}") from error

    def _opens(self, key_id: str) -> bool:
        """Whether the key is this identity's, or that of one that it succeeded."""
        digest = key_id.removeprefix(self.uri)
        try:
            return key_id.startswith(self.uri) and self._identity.opens_for(bytes.fromhex(digest))
        except ValueError:
            return False

    def rotate(self) -> str:
        raise KeyServiceError(
            f"{self.uri} is as old as the identity of {self._identity.card.name}; rotate that: "
            "mpc-train identity rotate, then once more mpc-train vault rotate"
        )

    def check_rotation(self) -> None:
        self.rotate()

    def retire(self, needed: frozenset[str]) -> tuple[str, ...]:
        return ()
