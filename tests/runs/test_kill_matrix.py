"""Every node of a run is killed, alone and beside another, at moments that a seed chooses.

Real processes: a coordinator, two evaluators, an owner that only provides rows, and a dealer. Each
process that died is started again by the same command. The model must then be that of an
undisturbed run, and no root of a stream and no key of records may have been used twice.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest

from tests.runs.test_resume import await_steps, events, free_address
from tests.support.study import Study, csv_text, largest_difference

EPOCHS, STEPS = 300, 1500
"""Long enough that a run has not ended before a busy machine notices where it is."""

SEED = 12
NODES = ("desk", "ann", "bob", "office", "registry")
TOLERANCE = 2**-10
RESUMING_S = 12.0
"""About the time in which a node that was started again is back at training."""


@dataclass(frozen=True)
class Case:
    """Which nodes are killed, and when: `first` at a moment of the training, `second` a moment
    after it, or, if it is `resuming`, while the nodes come together again."""

    first: str
    moment: str
    second: str = ""
    resuming: bool = False
    asked: bool = False
    """The first one is asked to stop (SIGTERM) and not killed."""

    def __str__(self) -> str:
        verb = "stop" if self.asked else "kill"
        then = f", {'then' if self.resuming else 'and'} {self.second}" if self.second else ""
        return f"{verb} {self.first} {self.moment}{then}"


ALONE = [Case(name, moment) for name in NODES for moment in ("sharing", "early", "late")]
RESUMING = [Case(NODES[place - 1], "early", name, True) for place, name in enumerate(NODES)]
AGAIN = [Case(name, "early", name, True) for name in NODES]
TOGETHER = [Case(one, "early", other) for one, other in combinations(NODES, 2)]
ASKED = [
    Case(one, "early", other, asked=True)
    for one, other in permutations(NODES, 2)
    if one in ("ann", "bob")
]


class FiveNodes(Study):
    """The study with one more owner, which provides rows and computes nothing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, EPOCHS)
        self.roles["office"], self.rows["office"] = "party", 40
        self.csv("office").write_text(csv_text(40, 2))
        text = self.job.read_text()
        for old, new in (
            ('owners = ["ann", "bob"]', 'owners = ["ann", "bob", "office"]'),
            ("dealer =", 'evaluators = ["ann", "bob"]\ndealer ='),
            ("bob = 30 }", "bob = 30, office = 40 }"),
            ("batch_size = 8", "batch_size = 12"),  # as many steps as without the third owner
            ("seed = 3", "seed = 3\ncheckpoint_every = 10"),
        ):
            assert text.count(old) == 1
            text = text.replace(old, new)
        self.job.write_text(text)
        self.return_s, self.node_lines = self.join_s, "checkpoint_s = 0"
        self.listen = free_address()

    def begin(self, name: str) -> None:
        if name == "desk":
            self.coordinator(listen=self.listen)
        else:
            self.node(name)


def five_nodes(folder: Path, homes: Path) -> FiveNodes:
    shutil.copytree(homes, folder / "homes")
    return FiveNodes(folder)


@pytest.fixture
def study(tmp_path: Path, homes: Path) -> Iterator[FiveNodes]:
    made = five_nodes(tmp_path, homes)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, homes: Path) -> dict[str, np.ndarray]:
    """Of an undisturbed run."""
    study = five_nodes(tmp_path_factory.mktemp("undisturbed"), homes)
    try:
        for name in NODES:
            study.begin(name)
        ended = study.ended()
        assert {end.status for end in ended.values()} == {0}, ended
        return study.model()
    finally:
        study.close()


def await_moment(study: FiveNodes, moment: str, chance: random.Random) -> str:
    """Wait for it; returns when that was, in words."""
    if moment == "sharing":
        study.wait_for("the session", lambda: bool(events(study, "started")))
        pause = chance.uniform(0, 0.5)
        time.sleep(pause)
        return f"{pause:.2f} s after the start"
    low, high = (20, 120) if moment == "early" else (750, 1000)
    step = chance.randrange(low, high)
    await_steps(study, step)
    return f"after step {step}"


def kill(study: FiveNodes, name: str) -> None:
    process = study.running.pop(name)
    assert process.poll() is None, f"{name} had ended: {study.output(name, 'err').read_text()}"
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("case", [*ALONE, *RESUMING, *AGAIN, *TOGETHER, *ASKED], ids=str)
def test_a_run_goes_on_after_kills(
    study: FiveNodes,
    model: dict[str, np.ndarray],
    case: Case,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chance = random.Random(SEED + zlib.crc32(str(case).encode()))
    begun = time.monotonic()
    for name in NODES:
        study.begin(name)
    said = [await_moment(study, case.moment, chance)]
    if case.asked:
        study.running[case.first].send_signal(signal.SIGTERM)
        pause = chance.uniform(0, 0.1)
        time.sleep(pause)
        kill(study, case.second)
        stopped = study.ended(case.first)[case.first]
        assert stopped.status != 0, "it cannot have the results"
        said.append(f"{case.second} {pause:.2f} s later; status {stopped.status}")
        again = [case.first, case.second]
    else:
        kill(study, case.first)
        again = [case.first]
        if case.second and not case.resuming:
            pause = chance.uniform(0, 1.0)
            time.sleep(pause)
            kill(study, case.second)
            said.append(f"{case.second} {pause:.2f} s later")
            again.append(case.second)
    for name in sorted(again, key=NODES.index):  # others wait for the coordinator's address
        study.begin(name)
    if case.resuming:
        pause = chance.uniform(0, RESUMING_S)
        time.sleep(pause)
        if events(study, "done"):
            said.append(f"the run had ended before {case.second} was killed")
        elif study.running[case.second].poll() is None:
            kill(study, case.second)
            study.begin(case.second)
            said.append(f"{case.second} {pause:.2f} s after {case.first} was started again")
    ended = study.ended()
    assert {name: end.status for name, end in ended.items()} == dict.fromkeys(NODES, 0), ended
    assert ended["desk"].record["steps"] == STEPS
    apart = largest_difference(study.model(), model)
    twice = study.used_twice()
    with capsys.disabled():
        print(
            f"\n{case}: {'; '.join(said)}. The right model (within {apart:.1e}), {twice} keys used "
            f"twice, {time.monotonic() - begun:.0f} s"
        )
    assert apart < TOLERANCE and twice == 0
    assert study.leaks() == set()


def test_a_key_that_is_used_twice_is_noticed(tmp_path: Path) -> None:
    """What the other tests count on."""
    study = Study(tmp_path)
    roots = [bytes([number]) * 32 for number in (0, 0, 1, 2, 3)]
    (study.secrets / "ann.words.roots").write_bytes(b"".join(roots))
    (study.secrets / "bob.words.roots").write_bytes(b"".join(roots))
    assert study.used_twice() == 0  # a pair of nodes has them in common
    with (study.secrets / "ann.words.roots").open("ab") as file:
        file.write(roots[-1])
    assert study.used_twice() == 1
