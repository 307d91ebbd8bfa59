"""A whole run on this machine: what its nodes print, and what is said when one of them dies."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from typer.testing import CliRunner

from mpc_train.cli import app
from mpc_train.commands.local.children import failure
from mpc_train.commands.local.run import passing
from parties.nodes.supervisor import Supervisor


def test_the_losses_of_an_evaluator_join_the_coordinators_events() -> None:
    got: list[tuple[str, dict[str, Any]]] = []
    told = passing("desk", lambda kind, fields: got.append((kind, fields)))
    loss = {"event": "loss", "step": 50, "loss": 0.25}
    told("ann", json.dumps(loss))
    told("ann", json.dumps({"event": "started"}))
    told("desk", json.dumps({"event": "started"}))
    told("desk", json.dumps(loss))  # the coordinator has none to tell
    told("ann", json.dumps({"status": "ok"}))
    told("ann", "not JSON")
    assert got == [("loss", {"step": 50, "loss": 0.25}), ("started", {})]


def child(name: str, returncode: int, said: dict[str, Any] | None = None) -> Any:
    lines = [] if said is None else [json.dumps(said)]
    return SimpleNamespace(name=name, returncode=returncode, stdout=lines, stderr=[], threads=())


def test_a_killed_node_of_a_local_run_says_what_to_do() -> None:
    lost = {"status": "AbortedError", "code": "aborted", "message": "bob was lost", "exit": 8}
    children = {"bob": child("bob", -9), "ann": child("ann", 8, lost)}
    both = SimpleNamespace(children=children, first_failure=children["bob"])
    error = failure(cast(Supervisor, both))
    assert error.status == 8
    assert "bob: its process was ended by signal 9" in str(error)
    assert "give the same command once more" in str(error)
    data = {"status": "DataError", "code": "data", "message": "line 3", "exit": 4}
    children["cleo"] = child("cleo", 4, data)
    assert "once more" not in str(failure(cast(Supervisor, both)))


def test_a_mistyped_path_is_no_altered_result(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["model", "verify", str(tmp_path / "none.sealed")])
    assert result.exit_code == 3, result.stderr
    assert "none.sealed: there is no such file" in result.stderr


def test_a_doctor_of_this_machine_alone_says_so() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert "the network was not tried" in result.stdout.splitlines()[-1] or result.exit_code == 11
