"""Where a node keeps its identity, its vault and its runs.

Imports nothing heavy: every command starts from here, `--help` included.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HOME_VARIABLE = "MPC_TRAIN_HOME"


@dataclass(frozen=True)
class Place:
    """The directories of a node's identity, of the cards of others and of its runs."""

    name: str
    home: Path
    roster: Path
    run_dir: Path
    approvals: Path
    passphrase_file: Path | None
    lock_memory: bool = False
    rotate_after_days: int = 0
    spool_bytes: int = 20 * 10**9
    memory_bytes: int = 0
    checkpoint_s: float = 60.0
    device: str = ""


@dataclass(frozen=True)
class KeyPlace:
    """The URI of a key service, with an absolute path, and the file of its secret."""

    uri: str
    passphrase_file: Path | None = None


@dataclass(frozen=True)
class VaultPlace:
    """Where a node's vault lies, its key, and by name the keys of single columns."""

    folder: Path
    key: KeyPlace
    columns: Mapping[str, KeyPlace]
    most_days: int = 365
    most_objects: int = 1_000_000
    """When `mpc-train vault rotate --if-due` rotates a key."""


ENVIRONMENT = "environment"
"""As a proxy's address: that of HTTPS_PROXY."""


@dataclass(frozen=True)
class ProxyPlace:
    """The HTTP proxy of a node's file: its URL, which contains no password, the file of the
    password, and the hosts that are dialled without it."""

    url: str
    password_file: Path | None = None
    direct: tuple[str, ...] = ()


def default_home() -> Path:
    """Return the default directory of identities."""
    return Path(os.environ.get(HOME_VARIABLE) or "~/.mpc-train").expanduser()
