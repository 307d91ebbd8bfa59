"""Whole runs that are broken off and go on in another session, in one process: all phases, the
vaults of the nodes, and every piece of every keystream counted."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.checkpoints.state import State
from mpc_train.errors import ArtifactError, DataError
from mpc_train.run.phases.notes import Note
from parties.audit.entries import Kind
from parties.errors import ResumeError
from tests.support.linear_rule import write_study
from tests.support.sessions import Kill, Killed, Rehearsal, difference

EVALUATORS = 'evaluators = ["ann", "bob"]'
MOMENTUM = "optimizer = { learning_rate = 0.3, momentum = 0.5 }\ncheckpoint_every = 1"
STOPPING = f"{MOMENTUM}\nearly_stopping = {{ fraction = 0.25, patience = 2 }}"
NEWTON = 'optimizer = { name = "newton" }'


def study(
    folder: Path, name: str, train: str = MOMENTUM, kind: str = "linear", reveal: str = ""
) -> Rehearsal:
    (folder / name).mkdir()
    path = write_study(folder / name, kind, train, reveal, epochs=3, job=EVALUATORS)
    return Rehearsal(path)


@pytest.mark.parametrize("train", [MOMENTUM, STOPPING], ids=["momentum", "stopping"])
def test_it_ends_as_if_it_had_not_been_broken_off(tmp_path: Path, train: str) -> None:
    whole, broken = study(tmp_path, "whole", train), study(tmp_path, "broken", train)
    whole.session()
    with pytest.raises(Killed):
        broken.session(Kill("bob", 6))
    assert broken.resumed_after == -1
    broken.session()
    assert broken.resumed_after in (4, 5)
    assert difference(whole.model(), broken.model()) < 1e-3
    assert broken.masks_used_twice() == 0


def test_the_weights_that_are_revealed_are_those_of_the_last_checkpoint(tmp_path: Path) -> None:
    """So that nobody gets two models that differ by rounding."""
    run = study(tmp_path, "run", reveal='metrics = ["mse"]')
    for frame in (0, 3):
        with pytest.raises(Killed):
            run.session(Kill("registry", 13, frame))
    kept = run.kept()
    assert [len(run.shelf(name).tokens()) for name in run.job.evaluators] == [1, 1]
    run.session()
    assert run.resumed_after == 12
    found = run.words()
    for name in run.job.shapes:
        np.testing.assert_array_equal(found[name], kept[f"tensor/{name}"])
    assert run.masks_used_twice() == 0


def test_losses_before_the_checkpoint_are_not_revealed_again(tmp_path: Path) -> None:
    run = study(tmp_path, "run", reveal="training_loss_every = 1")
    with pytest.raises(Killed):
        run.session(Kill("ann", 8))
    run.session()
    said = [
        int(str(fields["step"]))
        for node, kind, fields in run.events
        if kind is Kind.OPENED and fields["output"] == "training_loss" and node == "ann"
    ]
    assert set(said) == {*range(1, 13)}
    repeated = {step for step in said if said.count(step) > 1}
    assert all(step > run.resumed_after for step in repeated)
    losses = run.programs["ann"].found.losses
    assert losses is not None and [*map(int, losses)] == [*range(1, 13)]
    outcomes = {run.programs[name].outcome() for name in run.nodes}
    assert len(outcomes) == 1


def broken_off(folder: Path, step: int = 6, train: str = MOMENTUM, reveal: str = "") -> Rehearsal:
    run = study(folder, "run", train, reveal=reveal)
    with pytest.raises(Killed):
        run.session(Kill("ann", step))
    return run


def test_parts_of_different_trainings_are_not_added_up(tmp_path: Path) -> None:
    """As after a copy of another run's checkpoint under the name of this one's."""
    run = broken_off(tmp_path)
    shelf = run.shelf("bob")
    *_, newest = shelf.tokens()
    state = State.from_bytes(shelf.read(newest))
    shelf.prune(0)
    shelf.write(newest, replace(state, agreed=bytes(32)).to_bytes())
    with pytest.raises(ArtifactError, match="holds another state of the training after step 5"):
        run.session()


def test_a_node_that_has_lost_its_checkpoints_is_named(tmp_path: Path) -> None:
    run = broken_off(tmp_path)
    run.shelf("bob").prune(0)
    with pytest.raises(ResumeError, match=r"ann holds 2, bob holds none"):
        run.session()


def test_results_that_may_have_left_do_not_leave_from_another_training(tmp_path: Path) -> None:
    """From a rolled back, an older or no checkpoint the model would be another."""
    run = broken_off(tmp_path, step=13, reveal='metrics = ["mse"]')
    for name in run.job.evaluators:
        run.shelf(name).prune(0)
    with pytest.raises(ResumeError, match="a second result"):
        run.session()


def test_a_regression_whose_results_may_have_left_does_not_begin_anew(tmp_path: Path) -> None:
    path = write_study(tmp_path, "linear", MOMENTUM, job=EVALUATORS)
    text = path.read_text()
    text = text[: text.index("[train]")] + f"[train]\n{NEWTON}\n[reveal]\nleast_test_rows = 10\n"
    path.write_text(text)
    run = Rehearsal(path)
    run.session()
    for name in run.nodes:
        run.note(name).write(Note("", leaving=True))
    with pytest.raises(ResumeError):
        run.session()


def test_another_table_is_refused(tmp_path: Path) -> None:
    run = broken_off(tmp_path)
    table = run.folder / "data" / "bob.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    with pytest.raises(DataError, match="the table of bob is not the one with which it began"):
        run.session()


@pytest.mark.parametrize("name", ["ann", "bob"])
def test_a_node_that_is_asked_to_stop_does_so_after_a_checkpoint(tmp_path: Path, name: str) -> None:
    run = study(tmp_path, "run", MOMENTUM.replace("checkpoint_every = 1", "checkpoint_every = 5"))
    run.every_s, run.stop = 1000, name
    with pytest.raises(KeyboardInterrupt):
        run.session()
    run.stop = ""
    run.session()
    assert run.resumed_after == 5


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize("fault", [damage, cut, Path.unlink])
@pytest.mark.parametrize("end", ["chunks", "header"])
def test_the_one_before_serves_if_the_newest_is_damaged(
    tmp_path: Path, fault: Any, end: str
) -> None:
    run = broken_off(tmp_path)
    common = run.shelf("ann").tokens()
    folder = tmp_path / "run" / "vaults" / "bob" / "vault" / "checkpoint"
    newest = max(folder.glob(f"*.{end}"), key=lambda path: int(path.name.split(".")[-2]))
    fault(newest)
    run.session()
    assert run.resumed_after > 0
    assert run.point in common
    assert run.masks_used_twice() == 0


def test_another_node_s_and_another_job_s_checkpoints_are_not_used(tmp_path: Path) -> None:
    run = broken_off(tmp_path)
    vaults = tmp_path / "run" / "vaults"
    mine = vaults / "bob" / "vault" / "checkpoint"
    shutil.rmtree(mine)
    shutil.copytree(vaults / "ann" / "vault" / "checkpoint", mine)
    assert run.shelf("bob").tokens() == ()
