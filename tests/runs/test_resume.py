"""Nodes are killed in the middle of a training and started again: it goes on, in real processes."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.study import NODES, Ended, Study

EPOCHS, STEPS = 300, 1500


@pytest.fixture
def study(tmp_path: Path, homes: Path) -> Iterator[Study]:
    shutil.copytree(homes, tmp_path / "homes")
    made = Study(tmp_path, EPOCHS)
    made.job.write_text(made.job.read_text().replace("seed = 3", "seed = 3\ncheckpoint_every = 10"))
    made.return_s = made.join_s
    made.node_lines = "checkpoint_s = 0"
    try:
        yield made
    finally:
        made.close()


def free_address() -> str:
    """A port that is free, and below those that the kernel gives to whoever asks for any: nobody
    takes it while its owner is away. Not by the seed that several test processes may share."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return f"tcp://127.0.0.1:{port}"
    raise AssertionError("no port is free")


def events(study: Study, kind: str, name: str = "desk") -> list[dict[str, Any]]:
    """The events of this kind that the process of this name has told since it was started."""
    whole = study.output(name, "out").read_text().rpartition("\n")[0].splitlines()
    return [event for event in map(json.loads, whole) if event.get("event") == kind]


def await_steps(study: Study, least: int) -> None:
    """Until both evaluators have finished this step."""

    def over() -> bool:
        newest = dict.fromkeys(("ann", "bob"), 0)
        for event in events(study, "progress"):
            if event["node"] in newest:
                newest[event["node"]] = event["fields"].get("step", 0)
        return min(newest.values()) >= least

    study.wait_for(f"step {least}", over)


def kill(study: Study, *names: str) -> None:
    for name in names:
        study.running[name].kill()
    for name in names:
        study.running.pop(name).wait()


def check(study: Study, ended: dict[str, Ended]) -> None:
    """All ended well, with the metrics of an undisturbed run, and nothing secret is left behind."""
    assert {name: end.status for name, end in ended.items()} == dict.fromkeys(ended, 0), ended
    record = ended["desk"].record
    assert record["steps"] == STEPS
    assert ended["ann"].record["metrics"]["accuracy"] == pytest.approx(1, abs=0.08)
    assert study.leaks() == set()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [["ann"], ["bob"], ["registry"], ["ann", "bob"], [*NODES]])
def test_a_killed_node_that_is_started_again_goes_on(study: Study, killed: list[str]) -> None:
    study.coordinator()
    study.nodes()
    await_steps(study, 300)
    kill(study, *killed)
    for name in killed:
        study.node(name)
    ended = study.ended()
    check(study, ended)
    (first,) = {event["code"] for event in events(study, "suspended")}
    assert first == "lost"
    for name in killed:
        (started,) = events(study, "started", name)
        assert int(started["resumed"][:8], 16) >= 290


@pytest.mark.slow
def test_a_node_that_is_asked_to_stop_keeps_a_checkpoint(study: Study) -> None:
    study.node_lines = "checkpoint_s = 10000"
    study.coordinator()
    study.nodes()
    await_steps(study, 100)
    study.running["bob"].send_signal(signal.SIGTERM)
    bob = study.ended("bob")["bob"]
    assert bob.status == 130
    assert bob.record["resume"]["step"] >= 100
    assert bob.record["resume"]["command"].endswith("bob.toml --resume")
    study.node("bob")
    check(study, study.ended())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_coordinator_that_is_started_again_goes_on(study: Study, number: signal.Signals) -> None:
    """Killed, or stopped by a service manager, which says how the run goes on."""
    address = free_address()
    study.coordinator(listen=address)
    study.nodes()
    await_steps(study, 300)
    study.running["desk"].send_signal(number)
    if number is signal.SIGTERM:
        desk = study.ended("desk")["desk"]
        assert desk.status == 130
        assert "mpc-train coordinator --config" in desk.record["resume"]["command"]
    else:
        study.running.pop("desk").wait()
    study.coordinator(listen=address)
    check(study, study.ended())
