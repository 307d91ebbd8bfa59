"""Training for half an hour: memory is flat, and no file, thread or stored object is left behind.

`make soak` runs this (`SOAK_MINUTES`, 30 by default); no other target does.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.bad_wire import BadWire
from tests.support.commands import ROOT
from tests.support.csv_tables import csv_of, write_tables
from tests.support.images import SIDE, images
from tests.support.jobs import job_toml, write_job
from tests.support.patience import PATIENCE_S, wait_until
from tests.support.soak import Held, Sample, table, watch
from tests.support.study import NODES, Study

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
CUT_EVERY_S = 20.0

# More steps than a run takes in that time: 100 a second of 30 an epoch.
TRAIN = """
epochs = EPOCHS
batch_size = 32
checkpoint_every = 500
optimizer = { learning_rate = 0.05 }
"""


class InsecureNumbers(Held):
    """Samples that a test makes up."""

    def __init__(self, **series: list[int]) -> None:
        super().__init__(psutil.Process())
        steady = dict.fromkeys(("rss", "pss", "own", "files", "threads", "stored"), 100 << 20)
        count = max(map(len, series.values()))
        for number in range(count):
            changed = {name: values[number] for name, values in series.items()}
            self.when.append(float(number))
            self.samples.append(Sample(**{**steady, **changed}))


def growing(begin: int, end: int, count: int = 100) -> list[int]:
    return [begin + (end - begin) * number // count for number in range(count)]


MIB = 1 << 20


@pytest.mark.parametrize(
    ("series", "said"),
    [
        ({"rss": growing(100 * MIB, 110 * MIB)}, "rss grew"),
        ({"own": growing(50 * MIB, 60 * MIB)}, "own grew"),
        ({"files": growing(20, 24)}, "files: 21 became 23"),
        ({"threads": [8] * 80 + [9] * 20}, "threads: 8 became 9"),
        ({"stored": growing(MIB, 2 * MIB)}, "stores"),
    ],
)
def test_what_grows_is_noticed(series: dict[str, list[int]], said: str) -> None:
    (fault,) = InsecureNumbers(**series).faults()
    assert said in fault


def test_what_grows_in_the_warm_up_alone_is_flat() -> None:
    warming = growing(50 * MIB, 100 * MIB, 20) + growing(100 * MIB, 104 * MIB, 80)
    busy = [20, 25] * 10 + [20, 20, 21, 20] * 20
    held = InsecureNumbers(rss=warming, own=warming, files=busy, stored=[0] * 100)
    assert held.faults() == []
    assert held.drift() == pytest.approx(4 * MIB * 3600 / 80, rel=0.1)


def write_digits(folder: Path) -> Path:
    """A network that three organisations train, of which two compute and another one deals."""
    pixels, classes = images(1200)
    names = [f"p{index}" for index in range(SIDE * SIDE)]
    lines = csv_of(**dict(zip(names, pixels.T, strict=True)), digit=classes)
    owners = ("clinic-a", "clinic-b", "clinic-c")
    thirds = {
        owner: [lines[0], *lines[1 + 400 * place : 401 + 400 * place]]
        for place, owner in enumerate(owners)
    }
    write_tables(folder, thirds)
    text = job_toml(
        [f'{{ name = "{name}", scale = 255, range = [0, 255] }}' for name in names],
        "mlp",
        label="digit",
        rows=dict.fromkeys(owners, 400),
        recipients=["clinic-a"],
        job='evaluators = ["clinic-a", "clinic-b"]',
        data="test_fraction = 0.2",
        model="hidden = [64, 32]\nclasses = 10",
        train=TRAIN.replace("EPOCHS", str(int(200 * MINUTES))),
        more='[reveal]\nmetrics = ["accuracy"]\ntraining_loss_every = 500',
    )
    return write_job(folder, text)


def newest(url: str) -> dict[str, Any]:
    """What the live page says."""
    with urllib.request.urlopen(f"{url}state.json") as answer:  # noqa: S310 - http
        state = json.load(answer)
    assert isinstance(state, dict)
    return state


def live_url(process: subprocess.Popen[bytes], told: Path) -> str:
    """The address of the page, from what the process has said."""
    found: list[str] = []

    def told_it() -> bool:
        assert process.poll() is None, told.read_text()
        found[:] = re.findall(r"http://127\.0\.0\.1:\d+/", told.read_text())
        return bool(found)

    wait_until(told_it, "the live page")
    return found[0]


@dataclass
class Run:
    """A run that goes on, the address of its page, and what its processes hold."""

    title: str
    url: str
    held: dict[str, Held]

    def __post_init__(self) -> None:
        deadline = time.monotonic() + 4 * PATIENCE_S
        while (step := newest(self.url)["step"]) < 100:
            assert time.monotonic() < deadline, "the training has not begun"
            time.sleep(1)
        self.first = int(step)

    def steps(self) -> int:
        """The steps since the watch began."""
        state = newest(self.url)
        assert state["phase"] == "running", state
        return int(state["step"]) - self.first


@contextlib.contextmanager
def local_training(folder: Path) -> Iterator[Run]:
    """`launch.py`: six processes, with checkpoints and vaults."""
    folder.mkdir()
    job, told = write_digits(folder), folder / "told"
    argv = [sys.executable, str(ROOT / "launch.py"), str(job), "--run-dir", str(folder / "run")]
    with told.open("wb") as out:
        launcher = subprocess.Popen(
            [*argv, "--vault", "--live", "0"], stdout=out, stderr=out, cwd=folder
        )
    try:
        held = {"launcher": Held(psutil.Process(launcher.pid))}
        run = Run("Local run", live_url(launcher, told), held)
        children = psutil.Process(launcher.pid).children(recursive=True)
        for child in children:
            (config,) = [Path(word) for word in child.cmdline() if word.endswith(".toml")]
            run.held[config.parent.name] = Held(child, config.parent / "keys" / "vault")
        assert len(run.held) == 6
        yield run
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(PATIENCE_S) == 130, told.read_text()
        assert not psutil.wait_procs(children, timeout=PATIENCE_S)[1]
    finally:
        launcher.terminate()  # it ends its children, which a kill would leave some seconds
        launcher.wait(PATIENCE_S)


class OrdinaryStudy(Study):
    """Nodes as they are, which record nothing; the coordinator shows its page."""

    def start(self, name: str, *arguments: object) -> subprocess.Popen[bytes]:
        words = [str(word) for word in arguments]
        words += ["--live", "0"] if name == "desk" else []
        with self.output(name, "out").open("wb") as out, self.output(name, "err").open("wb") as err:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "mpc_train", *words],
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        return self.running[name]


@contextlib.contextmanager
def relayed_training(folder: Path, homes: Path) -> Iterator[tuple[Run, BadWire]]:
    """Nodes that reach the coordinator, and each other, over one wire."""
    folder.mkdir()
    shutil.copytree(homes, folder / "homes")
    # 150 steps a second of 5 an epoch, which the wire does not allow.
    study = OrdinaryStudy(folder, int(1800 * MINUTES))
    every = "seed = 3\ncheckpoint_every = 1000"
    study.job.write_text(study.job.read_text().replace("seed = 3", every))
    study.reconnect_s, study.node_lines = 60, "checkpoint_s = 1"
    try:
        study.coordinator()
        with BadWire(study.address, bytes_per_s=4e7) as wire:
            study.address = wire.address
            for name in NODES:
                study.node(name, network="")
            held = {
                name: Held(psutil.Process(process.pid), folder / "homes" / name / "vault")
                for name, process in study.running.items()
            }
            url = live_url(study.running["desk"], study.output("desk", "out"))
            run = Run("Relayed run", url, held)
            yield run, wire
            reached = run.first + run.steps()
            study.running["ann"].send_signal(signal.SIGTERM)
            ann = study.ended("ann")["ann"]
            assert ann.status == 130 and ann.record["resume"]["step"] >= reached
    finally:
        study.close()


@pytest.mark.soak
@pytest.mark.timeout(60 * MINUTES + 10 * PATIENCE_S)
def test_nothing_grows_in_a_long_run(
    tmp_path: Path, homes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs at the same time, whose pages somebody looks at. All connections of one of them are
    cut every CUT_EVERY_S."""
    with (
        local_training(tmp_path / "local") as local,
        relayed_training(tmp_path / "relayed", homes) as (relayed, wire),
    ):

        def look(passed: float) -> None:
            for run in (local, relayed):
                run.steps()
            if passed > CUT_EVERY_S * (wire.cuts + 1):
                wire.cut()

        everybody = [*local.held.values(), *relayed.held.values()]
        watch(everybody, 60 * MINUTES, look)
        cuts, steps = wire.cuts, {run.title: run.steps() for run in (local, relayed)}
        with capsys.disabled():
            print(f"\n{MINUTES:g} minutes; the relayed run's connections were cut {cuts} times.")
            for run in (local, relayed):
                print(f"\n{run.title}, {steps[run.title]} steps; early and late medians:\n")
                print(table(run.held))
    assert cuts >= 60 * MINUTES / CUT_EVERY_S / 2
    faults = [
        f"{run.title}, {name}: {fault}"
        for run in (local, relayed)
        for name, held in run.held.items()
        for fault in held.faults()
    ]
    assert not faults, faults
