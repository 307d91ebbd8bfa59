"""A node with a budget for its table: what a run that is broken off, or goes on, spends of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpc_train.admission.load import load_job
from mpc_train.commands.common import Format
from mpc_train.commands.nodes import Events, _Guarded
from mpc_train.errors import RefusedError
from mpc_train.jobs.job import Job
from mpc_train.node.consent import roles_of
from mpc_train.node.remembered import Remembered
from mpc_train.node.storage import NodeVault
from mpc_train.run.node_config import load_node_config
from mpc_train.run.phases.notes import Note, RunNote
from parties.keys.roster import Roster
from parties.keys.vault import MemoryVault
from tests.support.audit_logs import audit_log
from tests.support.csv_tables import csv_lines
from tests.support.jobs import changed, loaded, write_job
from tests.support.node_files import CONSENTING
from tests.support.node_vaults import node_vault
from tests.support.private import PRIVATE

ONCE = PRIVATE.replace("noise.epsilon = 0.5\n", "").replace('metrics = ["accuracy"]\n', "")
LIMITS = "\n[rules.privacy]\nbudget_epsilon = 4\nbudget_delta = 0.00001\n"


class Ann:
    """The node of ann, which evaluates, and the runs that begin there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "ann.csv").write_text("\n".join(csv_lines(40)))
        (folder / "home").mkdir()
        (folder / "ann.toml").write_text(CONSENTING + LIMITS)
        self.roster = Roster.of([MemoryVault.generate("ann").card])
        self.safe: NodeVault = node_vault(folder)
        self.count = 0

    def job(self, *changes: tuple[str, str]) -> Job:
        return load_job(write_job(self.folder, changed(*changes, text=ONCE)))

    def note(self, job: Job) -> RunNote:
        return RunNote(self.safe.opened, job.name, job.digest().hex())

    def begin(self, job: Job, *, resume: bool = False, fresh: bool = False) -> None:
        """All have signed, and the run begins, or goes on; nothing is computed."""
        self.count += 1
        guarded = _Guarded(
            load_node_config(self.folder / "ann.toml"),
            self.roster,
            False,
            Events(Format.json),
            lambda _: True,
            audit_log(self.folder / f"log-{self.count}"),
            self.safe,
            (False, fresh),
        )
        guarded.prepare(job.to_bytes(), roles_of(job))
        assert guarded._program is not None
        begun: list[Any] = []
        guarded._program.run = lambda session: begun.append(session) or {}  # type: ignore[method-assign, func-returns-value]
        guarded.run(SimpleNamespace(resume=resume))  # type: ignore[arg-type]
        assert begun

    @property
    def spent(self) -> list[str]:
        source = load_node_config(self.folder / "ann.toml").source("study")
        lines = Remembered(self.safe, "ann", load_node_config(self.folder / "ann.toml").rules)
        return lines.notes(source)[-1:]


@pytest.fixture
def ann(tmp_path: Path) -> Ann:
    return Ann(tmp_path)


ONE_RUN = ["runs over this table have cost ε = 3, δ = 0.00001 of 4, 0.00001"]


def test_a_run_that_goes_on_spends_nothing(ann: Ann) -> None:
    job = ann.job()
    ann.begin(job)
    assert ann.spent == ONE_RUN
    # Results may even have left: what goes on lets the same leave once more.
    for leaving in (False, False, True):
        ann.note(job).write(Note("mark", leaving=leaving))
        ann.begin(job, resume=True)
    assert ann.spent == ONE_RUN


def test_a_run_that_begins_anew_is_paid_for_if_nothing_has_left(ann: Ann) -> None:
    job = ann.job()
    ann.begin(job)
    ann.note(job).write(Note("mark"))
    ann.begin(job)
    assert ann.spent == ONE_RUN
    # Results may have left: the same job once more is a second one.
    ann.note(job).write(Note("mark", leaving=True))
    with pytest.raises(RefusedError, match="3 of 4 is spent by study"):
        ann.begin(job)
    # With --fresh nobody knows what the run before has let out.
    ann.note(job).write(Note("mark"))
    with pytest.raises(RefusedError, match="3 of 4 is spent by study"):
        ann.begin(job, fresh=True)
    assert ann.spent == ONE_RUN


def test_a_finished_run_pays_for_no_second_one(ann: Ann) -> None:
    job = ann.job()
    ann.begin(job)
    ann.note(job).clear()
    with pytest.raises(RefusedError, match="3 of 4 is spent by study"):
        ann.begin(job)


def test_another_job_is_not_paid_for_by_a_note_of_this_one(ann: Ann) -> None:
    ann.begin(ann.job())
    ann.note(ann.job()).write(Note("mark"))
    with pytest.raises(RefusedError, match="3 of 4 is spent by study"):
        ann.begin(ann.job(("seed = 7", "seed = 8")))


def test_an_owner_that_does_not_compute_pays_again(ann: Ann) -> None:
    """It does not see when results leave."""
    job = ann.job(
        ('dealer = "registry"', 'dealer = "registry"\nevaluators = ["bob", "cleo"]'),
    )
    ann.begin(job)
    ann.note(job).write(Note("mark"))
    with pytest.raises(RefusedError, match="3 of 4 is spent by study"):
        ann.begin(job)


def test_the_budget_is_checked_before_anybody_signs(ann: Ann) -> None:
    ann.begin(ann.job())
    text = ONCE.replace('name = "study"', 'name = "study"').replace("seed = 7", "seed = 9")
    job = loaded(ann.folder, text)
    guarded = _Guarded(
        load_node_config(ann.folder / "ann.toml"),
        ann.roster,
        False,
        Events(Format.json),
        lambda _: True,
        audit_log(ann.folder / "log"),
        ann.safe,
    )
    with pytest.raises(RefusedError, match="3 of 4 is spent by study"):
        guarded.prepare(job.to_bytes(), roles_of(job))


def test_a_node_that_requires_a_promise_is_not_asked_about_other_jobs(ann: Ann) -> None:
    plain = load_job(write_job(ann.folder))
    with pytest.raises(RefusedError, match=r"it has no \[privacy\]"):
        ann.begin(plain)
