"""The default: file keys are sealed to the node's own identity, which its passphrase protects.

Nothing else has to be kept or remembered. A new identity is a new key: objects that the old one
wraps are wrapped anew while both can be opened.
"""

from parties.errors import KeyServiceError, RetiredKeyError, WrappedKeyError
from parties.keys.vault import Vault
from protocols.errors import AuthenticationError

SCHEME = "identity"


class IdentityService:
    """`identity:`, over the private keys of a node."""

    uri = f"{SCHEME}:"

    def __init__(self, identity: Vault) -> None:
        self._identity = identity

    @property
    def current(self) -> str:
        return f"{self.uri}{self._identity.card.digest.hex()}"

    def wrap(self, file_key: bytes, info: bytes) -> tuple[str, bytes]:
        return self.current, self._identity.card.recipient_key.seal(info, file_key)

    def unwrap(self, key_id: str, wrapped: bytes, info: bytes) -> bytes:
        name = self._identity.card.name
        if key_id != self.current:
            raise RetiredKeyError(
                f"the key belongs to another identity than the present one of {name}; use the "
                "identity that it was kept with"
            )
        try:
            return self._identity.unseal(info, wrapped)
        except AuthenticationError as error:
            raise WrappedKeyError(f"the file key does not open for {name}: {error}") from error

    def rotate(self) -> str:
        raise KeyServiceError(
            f"{self.uri} is as old as the identity of {self._identity.card.name}; make a new "
            "identity, or name another key service, to rotate"
        )

    def check_rotation(self) -> None:
        self.rotate()

    def retire(self, needed: frozenset[str]) -> tuple[str, ...]:
        return ()
