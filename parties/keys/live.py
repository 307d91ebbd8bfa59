"""An identity in use whose keys may be succeeded while it is: everybody who holds it sees the
newest. Safe to use from several threads: each call uses one identity from its beginning to its end.
"""

import os
from datetime import timedelta

from parties.errors import IdentityError
from parties.keys import lifetime
from parties.keys.identity import Card
from parties.keys.statements import Succession
from parties.keys.vault import FileVault, Vault


class LiveIdentity:
    """A vault that stands for another one, and after `succeed` for its successor.

    rotate_after_days: how old a card may become before `renewed` makes a successor; 0: never.
    """

    def __init__(self, vault: Vault, rotate_after_days: int = 0) -> None:
        self._vault = vault
        self._rotate_after = timedelta(days=rotate_after_days)
        self._seen = self._state()

    @property
    def card(self) -> Card:
        return self._vault.card

    @property
    def successions(self) -> tuple[Succession, ...]:
        """Those that led to this card, the oldest first."""
        return self._vault.successions

    def opens_for(self, digest: bytes) -> bool:
        """Whether `unseal` opens what was sealed to the card with this digest."""
        return self._vault.opens_for(digest)

    def sign(self, purpose: str, message: bytes) -> bytes:
        """Both signatures over (purpose, message)."""
        return self._vault.sign(purpose, message)

    def sign_text(self, text: bytes) -> tuple[bytes, bytes]:
        """Ed25519 and ML-DSA-65 over a text as it is."""
        return self._vault.sign_text(text)

    def unseal(self, info: bytes, ciphertext: bytes) -> bytes:
        """Open what was sealed to this identity, or to one that it succeeded."""
        return self._vault.unseal(info, ciphertext)

    def curve_secret(self) -> bytes:
        """The 32-byte secret of the CURVE connections."""
        return self._vault.curve_secret()

    def succeed(self, vault: Vault) -> None:
        """From now on this is `vault`, a successor. Raises IdentityError for anything else."""
        if not any(each.old.digest == self.card.digest for each in vault.successions):
            raise IdentityError(f"not a successor of the identity of {self.card.name}")
        self._vault = vault

    def renewed(self) -> Vault | None:
        """The successor that the identity's file holds by now, None if there is none.

        Looks at the file's date; reads it only after a change. Makes the successor if the card has
        become too old. Raises IdentityError for a file that was damaged or exchanged.
        """
        vault = self._vault
        if not isinstance(vault, FileVault):
            return None
        if self._rotate_after and self._age() >= self._rotate_after:
            return self._checked(vault.rotate())
        state = self._state()
        if state == self._seen:
            return None
        self._seen = state
        found = vault.reopen()
        return None if found.card.digest == self.card.digest else self._checked(found)

    def _checked(self, found: FileVault) -> FileVault:
        self._seen = self._state()
        if not any(each.old.digest == self.card.digest for each in found.successions):
            raise IdentityError(
                f"{found.path}: holds another identity than the one that was opened"
            )
        return found

    def _age(self) -> timedelta:
        return lifetime.now() - lifetime.read_moment(self.card.issued, "issued", self.card.name)

    def _state(self) -> tuple[int, ...]:
        if not isinstance(self._vault, FileVault):
            return ()
        try:
            info = os.stat(self._vault.path)
        except OSError:
            return ()
        return info.st_mtime_ns, info.st_size, info.st_ino

    def __repr__(self) -> str:
        return f"LiveIdentity({self._vault!r})"
