"""Audit logs for tests: of nodes that have their keys in memory."""

from pathlib import Path

from parties.audit.log import AuditLog
from parties.keys.services.identity_service import IdentityService
from parties.keys.vault import MemoryVault, Vault


class KeysOfAnyDay(IdentityService):
    """Opens for the same keys, whenever their card was made: workers make one at their start."""

    @property
    def current(self) -> str:
        return f"{self.uri}{self._identity.card.name}"

    def _opens(self, key_id: str) -> bool:
        return key_id == self.current


def audit_log(folder: Path, identity: Vault | None = None) -> AuditLog:
    """The log of `identity`, by default of a new one, below `folder`."""
    owner = identity or MemoryVault.generate("ann")
    return AuditLog(folder / "audit" / owner.card.name, owner, KeysOfAnyDay(owner))
