"""Whole runs in real processes, over wires that are cut and stall."""

import shutil
import time
from pathlib import Path

import pytest

from tests.support.bad_wire import BadWire
from tests.support.local_run import LISTEN, LocalRun
from tests.support.patience import wait_until
from tests.support.study import NODES, Study


def running(
    local_run: LocalRun, wire: BadWire, listen: str | None, rounds: int, reconnect_s: float = 60.0
) -> None:
    """Nodes that exchange frames; the only way to the coordinator is the wire."""
    local_run.address = wire.address
    settings = {"reconnect_s": reconnect_s}
    for name in ("alice", "bob", "dora"):
        options = {"rounds": rounds, "pause": 0.002, "size": 20_000}
        local_run.node(name, options, listen=listen, settings=settings)
    children = local_run.supervisor.children
    wait_until(
        lambda: all(children[name].stdout for name in ("alice", "bob", "dora")), "all to run"
    )


@pytest.mark.parametrize("listen", [LISTEN, None], ids=["direct", "relayed"])
def test_a_run_outlives_cuts_of_the_only_connection(
    local_run: LocalRun, listen: str | None
) -> None:
    local_run.coordinator(settings={"reconnect_s": 60.0})
    with BadWire(local_run.address) as wire:
        running(local_run, wire, listen, 500)
        for _ in range(3):
            wire.cut()
            time.sleep(0.4)
        results = local_run.results()
    for name in ("alice", "bob", "dora", "coordinator"):
        assert results[name]["status"] == 0, results[name]
    assert wire.connections >= 6, "each node has one connection, and made others"
    assert "reconnecting" in results["alice"]["stderr"]
    assert "reconnected" in results["alice"]["stderr"]


def test_a_node_has_one_connection_to_the_coordinator(local_run: LocalRun) -> None:
    local_run.coordinator()
    with BadWire(local_run.address) as wire:
        running(local_run, wire, None, 20)
        results = local_run.results()
    # Each node also looked once whether a coordinator answers.
    assert sum(passed > 10_000 for passed in wire.passed) == 3 and len(wire.passed) <= 6
    assert results["coordinator"]["status"] == 0 and results["coordinator"]["relayed"] > 0


@pytest.mark.slow
def test_a_node_that_does_not_come_back_is_named(local_run: LocalRun) -> None:
    local_run.coordinator(settings={"reconnect_s": 1.5})
    with BadWire(local_run.address) as wire:
        running(local_run, wire, LISTEN, 100_000, reconnect_s=1.5)
        wire.refuse()
        results = local_run.results()
    assert "broke and did not come back within 1.5 s" in results["coordinator"]["message"]
    for name in ("alice", "bob", "dora"):
        assert results[name]["error"] in ("AbortedError", "PeerLostError"), results[name]


@pytest.mark.slow
def test_a_run_outlives_a_stall_of_half_a_minute(local_run: LocalRun) -> None:
    local_run.coordinator(settings={"reconnect_s": 120.0})
    with BadWire(local_run.address) as wire:
        running(local_run, wire, None, 500)
        wire.stall()
        time.sleep(30)
        wire.flow()
        results = local_run.results()
    for name in ("alice", "bob", "dora", "coordinator"):
        assert results[name]["status"] == 0, results[name]


@pytest.mark.slow
@pytest.mark.parametrize("network", ['listen = "tcp://127.0.0.1:*"', ""], ids=["direct", "relayed"])
def test_a_training_outlives_a_bad_connection(tmp_path: Path, homes: Path, network: str) -> None:
    """Cuts, a stall that is longer than heartbeats allow, and a slow line; the model is right."""
    shutil.copytree(homes, tmp_path / "homes")
    study = Study(tmp_path, 300)
    study.reconnect_s = 60
    try:
        study.coordinator()
        with BadWire(study.address, bytes_per_s=4e6) as wire:
            study.address = wire.address
            for name in NODES:
                study.node(name, network=network)
            started = study.output("desk", "out")
            wait_until(lambda: '"progress"' in started.read_text(), "the training to begin")
            for _ in range(4):
                wire.cut()
                time.sleep(1)
            wire.stall()
            time.sleep(8)
            wire.flow()
            ended = study.ended()
        assert {name: end.status for name, end in ended.items()} == dict.fromkeys(ended, 0), ended
        assert ended["desk"].record["steps"] == 1500
        assert ended["ann"].record["metrics"]["accuracy"] == pytest.approx(1, abs=0.08)
        assert '"reconnected"' in started.read_text()
    finally:
        study.close()
