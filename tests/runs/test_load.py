"""A coordinator under load: 64 nodes, and 10,000 connections of strangers while they compute."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from parties.keys.identity import IdentityKeys
from tests.support.local_run import ROOT, LocalRun
from tests.support.patience import PATIENCE_S
from tests.support.strangers import knock, knock_with_keys

NODES = 64
STRANGERS, WITH_KEYS = 9_500, 500
ROUNDS, PAUSE_S = 150, 0.5
"""Rounds go on for longer than the strangers take."""

MAX_GROWTH_BYTES = 200 << 20


class Watched:
    """The largest memory and the most open files of a process while it is watched."""

    def __init__(self, process: psutil.Process) -> None:
        self.process = process
        self.rss = self.files = 0
        self.over = threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        while not self.over.wait(0.1) and self.process.is_running():
            self.rss = max(self.rss, self.process.memory_info().rss)
            self.files = max(self.files, self.process.num_fds())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_64_nodes_and_10_000_strangers(tmp_path: Path) -> None:
    names = [f"node-{number:02}" for number in range(NODES)]
    keys = {name: IdentityKeys.generate() for name in (*names, "coordinator")}
    run = LocalRun(tmp_path, keys)
    roles = {"owners": names[:-1], "evaluators": names[:2], "dealer": names[-1], "recipients": []}
    roles["recipients"] = [names[0]]
    limits = {"arrive_timeout_s": 600.0, "agree_timeout_s": 600.0}
    child = run.coordinator(roles=roles, settings=limits)
    coordinator = psutil.Process(child.process.pid)
    idle = coordinator.memory_info().rss
    halves = []
    for number in range(2):
        folder = tmp_path / f"half-{number}"
        folder.mkdir()
        config = {
            "roster": str(run.roster),
            "address": run.address,
            "folder": str(folder),
            "options": {
                "rounds": ROUNDS,
                "pause": PAUSE_S,
                "size": 2000,
                "computing": [*names[:2], names[-1]],
            },
            "nodes": {name: keys[name].private_bytes().hex() for name in names[number::2]},
        }
        half = subprocess.Popen(
            [sys.executable, "-m", "tests.support.node_swarm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert half.stdin is not None
        half.stdin.write(json.dumps(config))
        half.stdin.close()
        half.stdin = None
        halves.append(half)
    try:
        begun = time.monotonic()
        for half in halves:
            assert half.stdout is not None and "running" in half.stdout.readline()
        connected_s = time.monotonic() - begun
        before = coordinator.memory_info().rss, coordinator.num_fds()
        watched = Watched(coordinator)
        started = time.monotonic()
        accepted = knock(run.address, STRANGERS)
        refused = knock_with_keys(run.address, keys["coordinator"].curve_public, WITH_KEYS)
        attacked_s = time.monotonic() - started
        assert all(half.poll() is None for half in halves), "the run ended too early to tell"
        ended = [half.communicate(timeout=10 * PATIENCE_S)[0] for half in halves]
        watched.over.set()
        results = run.results()
    finally:
        for half in halves:
            half.kill()
        run.supervisor.close()
    print(
        f"\n{NODES} nodes connected and agreed in {connected_s:.0f} s. {accepted} connections of "
        f"strangers and {refused} refused keys in {attacked_s:.1f} s "
        f"({(accepted + refused) / attacked_s:.0f} a second). Coordinator: {idle >> 20} MiB idle, "
        f"{before[0] >> 20} MiB with {NODES} nodes, at most {watched.rss >> 20} MiB; {before[1]} "
        f"open files, at most {watched.files}."
    )
    errors = {
        name: text for out in ended for name, text in json.loads(out.splitlines()[-1]).items()
    }
    assert not errors, errors
    assert results["coordinator"]["status"] == 0, results["coordinator"]
    assert accepted > 0.99 * STRANGERS and refused > 0.9 * WITH_KEYS
    assert "without a key or ticket were refused" in results["coordinator"]["stderr"]
    assert watched.rss - before[0] < MAX_GROWTH_BYTES
