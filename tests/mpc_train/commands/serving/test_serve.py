"""`mpc-train serve` at the coordinator of a service."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpc_train.commands import nodes
from mpc_train.commands.common import Format
from mpc_train.commands.serving import shares
from mpc_train.run import node_config
from mpc_train.serving import service_file
from parties.agreement.contract import Roles


def test_its_page_shows_all_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nodes report that are not on it is not shown."""
    roles = Roles((), ("ann", "bob"), "registry", (), clients=("clinic",))
    config, service = SimpleNamespace(job=Path("service.toml")), SimpleNamespace(roles=roles)
    monkeypatch.setattr(shares, "configure_logging", lambda verbose: None)
    monkeypatch.setattr(node_config, "load_coordinator_config", lambda path: config)
    monkeypatch.setattr(service_file, "is_service_file", lambda path: True)
    monkeypatch.setattr(service_file, "load_service_file", lambda path: service)
    shown: list[tuple[str, ...]] = []

    class Shown(Exception): ...

    def events(output: Format, names: tuple[str, ...] = ()) -> Any:
        shown.append(names)
        raise Shown

    monkeypatch.setattr(nodes, "Events", events)
    with pytest.raises(Shown):
        shares._coordinate(Path("coordinator.toml"), (None, None), Format.text, False, None)
    assert shown == [("ann", "bob", "registry")]
