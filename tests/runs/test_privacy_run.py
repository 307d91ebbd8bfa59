"""A job with [privacy] in real processes: a node is killed in the middle, the budget is spent once,
and what is opened says what was promised."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs.test_resume import await_steps, kill
from tests.support.commands import as_json, mpc_train
from tests.support.private import PRIVACY
from tests.support.study import Ended, Study

EPOCHS = 200
BUDGET = "\n[rules.privacy]\nunits = ['row']\nbudget_epsilon = 5\nbudget_delta = 0.00001\n"


@pytest.fixture
def study(tmp_path: Path, homes: Path) -> Iterator[Study]:
    shutil.copytree(homes, tmp_path / "homes")
    made = Study(tmp_path, EPOCHS)
    text = made.job.read_text().replace("fraction_bits = 24", "fraction_bits = 20")
    text = text.replace("seed = 3", "seed = 3\nguard = false\ncheckpoint_every = 10")
    text = text.replace("learning_rate = 0.1", "learning_rate = 0.01")
    text = text.replace('metrics = ["accuracy"]\n', "")
    made.job.write_text(text + PRIVACY)
    made.return_s = made.join_s
    made.node_lines = "checkpoint_s = 0"
    try:
        yield made
    finally:
        made.close()


@pytest.mark.slow
def test_a_run_that_is_broken_off_spends_its_budget_once(study: Study) -> None:
    study.coordinator()
    for name in study.roles:
        study.node(name, rules=BUDGET)
    await_steps(study, 100)
    kill(study, "ann")
    study.node("ann", rules=BUDGET)
    ended = study.ended()
    assert {name: end.status for name, end in ended.items()} == dict.fromkeys(ended, 0), ended
    assert study.leaks() == set()

    # What was opened says what was promised, and all nodes signed that.
    assert all(abs(value).max() < 50 for value in study.model().values())
    manifest = json.loads((study.folder / "opened" / "manifest.json").read_text())
    assert (manifest["privacy"]["epsilon"], manifest["privacy"]["unit"]) == ("3", "row")
    cards = ("--cards", study.homes / "ann" / "roster")
    said = as_json("model", "verify", study.folder / "opened", *cards)
    assert said["privacy"] == manifest["privacy"]
    shown = mpc_train("model", "verify", study.folder / "opened", *cards).stdout
    assert "Privacy differentially private with ε = 3 and δ = 0.00001 for one row" in shown

    # The break has cost nothing, and a second run would cost too much.
    study.coordinator()
    for name in study.roles:
        study.node(name, rules=BUDGET)
    ended = study.ended()
    refused(ended, "would cost ε = 3, and of the budget of this table 3 of 5 is spent by study")


@pytest.mark.slow
def test_a_node_that_requires_a_promise_refuses_the_same_job_without(study: Study) -> None:
    study.job.write_text(study.job.read_text().replace(PRIVACY, ""))
    study.coordinator()
    for name in study.roles:
        study.node(name, rules=BUDGET)
    ended = study.ended()
    refused(ended, "it has no [privacy]")


def refused(ended: dict[str, Ended], why: str) -> None:
    """A node refuses, and says why; the others say so, too, or have heard of it before they had
    looked themselves."""
    lines = {name: end.errors for name, end in ended.items() if name != "desk"}
    own = {name for name, said in lines.items() if any(why in line for line in said)}
    assert own, lines
    for name, (line,) in lines.items():
        assert ended[name].status != 0
        assert name in own or any(f"was aborted by {other}: policy" in line for other in own)
