"""The connection of a client to the evaluators of a service, for the commands that ask."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mpc_train.base.printing import say
from mpc_train.commands.common import proxy_of

if TYPE_CHECKING:
    from mpc_train.run.node_config import NodeConfig
    from mpc_train.serving.offered import Service
    from parties.audit.entries import Kind, Value
    from parties.audit.log import AuditLog
    from parties.keys.roster import Roster
    from parties.keys.vault import FileVault

log = logging.getLogger(__name__)


@contextlib.contextmanager
def connected(
    config: "NodeConfig",
    identity: "FileVault",
    roster: "Roster",
    audit: "AuditLog",
    connect_s: float,
    join_s: float,
) -> Iterator["Service"]:
    """The service of the coordinator that the node's file names, as long as the context lasts.

    join_s: how long to wait for it at first; connect_s: whenever it is lost. Raises PartiesError
    and QueryError.
    """
    from mpc_train.asking.client import connected as client_of
    from mpc_train.commands.nodes import node_settings
    from mpc_train.run.memory import settle

    def on_event(event: str, said: Mapping[str, Any]) -> None:
        log.info("%s %s", event, said)

    def note(kind: "Kind", fields: "Mapping[str, Value]") -> None:
        audit.append(kind, fields)

    def waits(why: str) -> None:
        say(f"{why}; waiting for up to {join_s:.0f} s", aside=True)

    settings = node_settings(config, config.place.run_dir, proxy_of(config.proxy))
    with client_of(
        identity, roster, settings, note, on_event, connect_s, join_s=join_s, waits=waits
    ) as service:
        settle()
        yield service
