"""Vaults of nodes whose identity is in memory."""

from functools import cache
from pathlib import Path

from mpc_train.node.storage import NodeVault
from mpc_train.run.place import KeyPlace, VaultPlace
from parties.keys.vault import MemoryVault


def node_vault(folder: Path, name: str = "ann") -> NodeVault:
    """The vault of a node below `folder`, under its identity, which is the same each time."""
    return NodeVault(VaultPlace(folder / "vault", KeyPlace("identity:"), {}), name, _identity(name))


@cache
def _identity(name: str) -> MemoryVault:
    return MemoryVault.generate(name)
