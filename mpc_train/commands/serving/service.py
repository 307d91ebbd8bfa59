"""The connection of a client to the evaluators of a service, for the commands that ask."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from mpc_train.errors import ConfigError

if TYPE_CHECKING:
    from mpc_train.run.node_config import NodeConfig
    from mpc_train.serving.offered import Service
    from parties.keys.roster import Roster
    from parties.keys.vault import FileVault


def connected(
    config: "NodeConfig", identity: "FileVault", roster: "Roster"
) -> "AbstractContextManager[Service]":
    """The service of the coordinator that the node's file names, as long as the context lasts.

    Raises ConfigError, PartiesError and QueryError.
    """
    raise ConfigError(
        f"{config.path}: this release cannot connect to models in shares yet; it can ask models "
        "under homomorphic encryption: mpc-train he query"
    )
