"""Nodes that are killed, and machines that lose power, at every place of a run.

Whatever happens, the run ends with the right model, no mask is used twice, and no second model
leaves.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.support.linear_rule import write_study
from tests.support.power_loss import PowerFailed, PowerLoss
from tests.support.sessions import Kill, Killed, Rehearsal, difference

TRAIN = "optimizer = { learning_rate = 0.3, momentum = 0.5 }\ncheckpoint_every = {}"
STEPS = 12
TOLERANCE = 2**-12
NODES = ("ann", "bob", "registry")


def rehearsal(folder: Path, every: int = 1) -> Rehearsal:
    folder.mkdir(exist_ok=True)
    train = TRAIN.replace("{}", str(every))
    path = write_study(
        folder, "linear", train, 'metrics = ["mse"]', epochs=3, job='evaluators = ["ann", "bob"]'
    )
    return Rehearsal(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Of an undisturbed run."""
    run = rehearsal(tmp_path_factory.mktemp("undisturbed"))
    run.session()
    return run.model()


def finish(run: Rehearsal, model: dict[str, np.ndarray]) -> None:
    """The last session of a run ends well."""
    sealed = run.words() if len(run.halves) == len(run.job.evaluators) else None
    run.session()
    assert difference(run.model(), model) < TOLERANCE
    assert run.masks_used_twice() == 0
    if sealed is not None:
        assert all(np.array_equal(sealed[name], run.words()[name]) for name in run.job.shapes)


def test_a_stream_that_is_used_twice_is_noticed(tmp_path: Path) -> None:
    """What the other tests count on: the same session again, with the keys of the first."""
    run = rehearsal(tmp_path)
    run.session()
    assert run.masks_used_twice() == 0
    run.number -= 1
    run.session()
    assert run.masks_used_twice() == len(run.drawn) > 0


def places(steps: range, frames: tuple[int, ...]) -> list[tuple[Kill, ...]]:
    return [(Kill(node, step, at),) for node in NODES for step in steps for at in frames]


FEW = [
    (Kill("ann", 1), Kill("bob", 7, 2)),
    (Kill("registry", 5, 1), Kill("ann", 13, 2), Kill("registry", 13)),
]
EVERY = [
    *places(range(STEPS + 2), (0, 1, 3)),
    *[
        tuple(Kill(NODES[(first + place) % 3], first + place * apart) for place in range(3))
        for first in range(1, 8)
        for apart in (1, 2)
    ],
]


def survive(folder: Path, kills: tuple[Kill, ...], model: dict[str, np.ndarray]) -> int:
    run = rehearsal(folder)
    died = 0
    for kill in kills:
        try:
            run.session(kill)
        except Killed:
            died += 1
        else:
            break  # it had ended before it came to that place
    if died == len(kills):
        finish(run, model)
    assert run.masks_used_twice() == 0
    return died


@pytest.mark.parametrize("kills", FEW, ids=str)
def test_kills(tmp_path: Path, model: dict[str, np.ndarray], kills: tuple[Kill, ...]) -> None:
    assert survive(tmp_path, kills, model) == len(kills)


@pytest.mark.slow
def test_kills_of_every_node_at_every_step(
    tmp_path: Path, model: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    died = [survive(tmp_path / str(number), kills, model) for number, kills in enumerate(EVERY)]
    with capsys.disabled():
        print(f"\n{len(EVERY)} runs with {sum(died)} kills: right models, no mask used twice")
    assert sum(map(bool, died)) > 0.9 * len(EVERY)


def test_what_is_not_synced_is_lost(tmp_path: Path) -> None:
    """What the other tests of power count on."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with pytest.raises(PowerFailed), PowerLoss(folder, at=0):
        (folder / "unsynced").write_bytes(b"data")
        with (folder / "synced").open("wb") as stream:
            os.fsync(stream.fileno())
    assert list(folder.iterdir()) == []


def fail_at(folder: Path, sync: int, model: dict[str, np.ndarray]) -> bool:
    """Whether the power failed at this sync of the run; it goes on afterwards all the same."""
    run = rehearsal(folder, every=4)
    vaults = folder / "vaults"
    vaults.mkdir()
    try:
        with PowerLoss(vaults, sync) as disk:
            disk.begin()
            run.session()
    except PowerFailed:
        if not run.ended:  # otherwise everybody has the results, and is tidying up
            finish(run, model)
        assert difference(run.model(), model) < TOLERANCE
        return True
    return False


@pytest.mark.parametrize("sync", [14, 23, 40])
def test_power_fails(tmp_path: Path, model: dict[str, np.ndarray], sync: int) -> None:
    assert fail_at(tmp_path, sync, model)


@pytest.mark.slow
def test_power_fails_at_every_sync(
    tmp_path: Path, model: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    sync = 0
    while fail_at(tmp_path / str(sync), sync, model):
        sync += 1
    with capsys.disabled():
        print(f"\npower failed at each of {sync} syncs: right models, no mask used twice")
    assert sync > 40
