"""Jobs that join columns, broken off: records are not joined again, and rows stay in order."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.admission.load import resolved
from mpc_train.checkpoints import joined
from mpc_train.checkpoints.joined import BLOCK_WORDS, FRONT, kept_bytes
from mpc_train.checkpoints.state import State
from mpc_train.errors import ArtifactError, DataError
from mpc_train.jobs.job import Job
from mpc_train.linkage import link as linking
from mpc_train.owners.table import Table, load_table
from mpc_train.run.phases import link
from mpc_train.run.phases.shelf import JOINED
from mpc_train.tables.source import Source
from mpc_train.training.first_weights import initial_weights
from mpc_train.twin.training import train_twin
from parties.audit.entries import Kind
from parties.errors import ResumeError
from protocols.linkage.intersection import agree_key
from tests.support import columns_case
from tests.support.columns_case import JOB, three_owners, weighted, write_job
from tests.support.power_loss import PowerFailed, PowerLoss
from tests.support.sessions import Kill, Killed, Rehearsal, difference

TOLERANCE = 2**-12
COMMON = 35
STEPS = 9
"""27 of the 35 joined rows train."""
TEXT = JOB.replace("batch_size = 8", "batch_size = 8\ncheckpoint_every = 1")
NEWTON = TEXT[: TEXT.index("[train]")] + '[train]\noptimizer = { name = "newton", l2 = 0.1 }\n'
NEWTON += TEXT[TEXT.index("[reveal]") :]
BOTH = ["holders", "nobody"]


def tables(folder: Path, job: Job) -> list[Table]:
    return [*columns_case.load_tables(folder / "data", job).values()]


def weighted_tables(folder: Path, job: Job) -> list[Table]:
    found = []
    for owner in job.owners:
        path = columns_case.write_table(folder / "data", owner, job.data.rows[owner])
        if owner == "insurer":
            header, *lines = path.read_text().splitlines()
            heavy = [f"{line},{1 + number % 3}" for number, line in enumerate(lines)]
            path.write_text("\n".join([f"{header},w", *heavy]) + "\n")
        form = "%d.%m.%Y" if owner == "bank" else "%Y-%m-%d"
        found.append(load_table(Source(str(path), date_format=form), job, owner))
    return found


def known(size: int) -> bytes:
    """Entropy with which two runs join rows in the same order."""
    return bytes(range(size))


def study(folder: Path, membership: str = "holders", text: str = TEXT) -> Rehearsal:
    return Rehearsal(write_job(folder, membership, text), tables=tables)


def killed(run: Rehearsal, kill: Kill) -> None:
    with pytest.raises(Killed):
        run.session(kill)


def no_join(*_: Any) -> None:
    raise AssertionError("records are joined again")


CASES = {
    "holders": ("holders", TEXT),
    "newton": ("holders", NEWTON),
    "weighted": ("holders", weighted(TEXT)),
}


@pytest.mark.parametrize("case", CASES)
def test_it_ends_as_if_it_had_not_been_broken_off(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linking, "agree_key", partial(agree_key, entropy=known))
    whole, run = (study(tmp_path / name, *CASES[case]) for name in ("whole", "run"))
    if case == "weighted":
        whole.tables = run.tables = weighted_tables
    whole.session()
    killed(run, Kill("insurer", 5))
    monkeypatch.setattr(link, "link", no_join)
    run.session()
    assert run.resumed_after in (3, 4)
    # Rows in another order would be other batches, and other rows held out.
    assert difference(whole.model(), run.model()) < TOLERANCE
    assert run.masks_used_twice() == 0
    bank = run.programs["bank"]
    assert bank.found.joined_rows == COMMON
    assert bank.unmatched_records == 60 - COMMON
    assert bank.found.metrics == whole.programs["bank"].found.metrics
    outcomes = {one.outcome() for one in (*run.programs.values(), *whole.programs.values())}
    assert len(outcomes) == 1


@pytest.mark.parametrize("membership", BOTH)
def test_the_model_is_that_of_the_rows_in_their_order(tmp_path: Path, membership: str) -> None:
    """Trained in the clear, without a break, over the rows as they were joined and kept."""
    run = study(tmp_path, membership)
    killed(run, Kill("insurer", 6))
    words = np.sum(summands(run), axis=0)
    job = resolved(run.job, COMMON)
    inputs = words[: 3 * COMMON].reshape(COMMON, 3)
    real = [part / 2**job.fraction_bits for part in (inputs, words[3 * COMMON :])]
    table = Table(real[0], real[1], np.empty((COMMON, 0)), weights=np.empty(0))
    twin = train_twin(job, [table], initial_weights(job))
    run.session()
    assert run.resumed_after == 5
    assert difference(run.model(), twin.state) < 2e-3
    found = run.programs["bank"].found.metrics
    assert found is not None and found["accuracy"] == twin.metrics["accuracy"]


def test_nothing_of_the_join_is_disclosed_again(tmp_path: Path) -> None:
    run = study(tmp_path)
    killed(run, Kill("bank", 5))
    run.session()
    said = [
        (node, fields["output"])
        for node, kind, fields in run.events
        if kind is Kind.OPENING and fields["step"] == 0
    ]
    assert said
    assert len(said) == len(set(said))


def test_it_goes_on_before_the_first_step(tmp_path: Path) -> None:
    """A node that is lost while the first step lasts does not cost the join."""
    run = study(tmp_path)
    run.every_s = 1000
    killed(run, Kill("insurer", 3))
    run.session()
    assert run.resumed_after == 0
    assert run.masks_used_twice() == 0


def test_results_that_may_have_left_are_the_same(tmp_path: Path) -> None:
    run = study(tmp_path)
    killed(run, Kill("registry", 10, 3))
    kept = run.kept()
    assert run.note("bank").read().leaving  # type: ignore[union-attr]
    run.session()
    for name in run.job.shapes:
        np.testing.assert_array_equal(run.words()[name], kept[f"tensor/{name}"])
    assert run.masks_used_twice() == 0


def files(run: Rehearsal, name: str) -> Path:
    return run.folder / "vaults" / name / "vault" / JOINED


def headers(run: Rehearsal) -> list[Path]:
    return [file for name in run.job.evaluators for file in files(run, name).glob("*.header")]


def test_rows_are_destroyed_when_the_run_ends(tmp_path: Path) -> None:
    run = study(tmp_path)
    killed(run, Kill("bank", 5))
    assert len(headers(run)) == 2
    run.session()
    assert headers(run) == []


def test_rows_are_destroyed_before_noise_is_drawn(tmp_path: Path) -> None:
    noise = '\nnoise = { epsilon = 1 }\nmetrics = ["accuracy"]'
    run = study(tmp_path, text=TEXT.replace('\nmetrics = ["accuracy"]', noise))
    killed(run, Kill("registry", 10, 3))
    assert headers(run) == []


def summands(run: Rehearsal) -> list[np.ndarray]:
    found = []
    for name in run.job.evaluators:
        with run.shelf(name).rows() as reader:
            data = reader.read(1 << 30)
        found.append(np.frombuffer(data[FRONT.size :], "<i8"))
    return found


def test_the_parts_together_are_the_rows_and_one_says_nothing(tmp_path: Path) -> None:
    run = study(tmp_path, "nobody", three_owners(TEXT))
    killed(run, Kill("bank", 4))
    parts = summands(run)
    job = run.job.with_joined(len(parts[0]) // 5)
    assert 8 * len(parts[0]) + FRONT.size == kept_bytes(job)
    inputs = np.sum(parts, axis=0)[: 4 * job.rows].reshape(job.rows, 4)
    truth = columns_case.truth()
    ages = np.sort(inputs[:, 2] / 2**job.fraction_bits)
    assert np.abs(ages[:, None] - truth["age"]).min(axis=1).max() < 2**-10
    for part in parts:
        # Uniform words: of 4 rows' worth, none is as small as every true word is.
        assert (np.abs(part) > 2**40).mean() > 0.99


def test_rows_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert BLOCK_WORDS > 1000
    monkeypatch.setattr(joined, "BLOCK_WORDS", 16)
    run, whole = study(tmp_path / "run"), study(tmp_path / "whole")
    whole.session()
    killed(run, Kill("bank", 5))
    run.session()
    assert difference(whole.model(), run.model()) < TOLERANCE
    assert run.masks_used_twice() == 0


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("fault", [flip, cut, Path.unlink])
@pytest.mark.parametrize("end", ["chunks", "header"])
def test_damaged_rows_are_not_signed_for(
    tmp_path: Path, fault: Callable[[Path], None], end: str
) -> None:
    run = study(tmp_path)
    killed(run, Kill("bank", 5))
    (file,) = files(run, "insurer").glob(f"*.{end}")
    fault(file)
    assert run.shelf("insurer").tokens() == ()
    with pytest.raises(ResumeError, match="bank holds 2, insurer holds none"):
        run.session()


def test_rows_of_another_join_are_not_used(tmp_path: Path) -> None:
    """As after one vault was put back to an earlier day."""
    run, other = study(tmp_path / "run"), study(tmp_path / "other")
    other.number = 50
    for each in (run, other):
        killed(each, Kill("bank", 5))
    shutil.rmtree(files(run, "insurer"))
    shutil.copytree(files(other, "insurer"), files(run, "insurer"))
    assert run.shelf("insurer").tokens() == ()


def test_checkpoints_of_different_joins_are_not_added_up(tmp_path: Path) -> None:
    """One that says it belongs to the rows that are there."""
    run = study(tmp_path)
    killed(run, Kill("bank", 5))
    shelf = run.shelf("insurer")
    *_, newest = shelf.tokens()
    state = State.from_bytes(shelf.read(newest))
    wrong = State(state.position, state.parts, state.agreed, bytes([1] * 32))
    shelf.write(newest, wrong.to_bytes(), state.rows)
    shelf.prune(1)
    with pytest.raises(ArtifactError, match="not those of the checkpoint"):
        run.session()


def test_another_table_is_refused(tmp_path: Path) -> None:
    run = study(tmp_path)
    killed(run, Kill("bank", 5))

    def older(folder: Path, job: Job) -> list[Table]:
        found = tables(folder, job)
        found[0].features[3] += 1
        return found

    run.tables = older
    with pytest.raises(DataError, match="the table of bank is not the one with which it began"):
        run.session()


def test_no_room_for_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on without checkpoints, and its nodes say so."""
    run = study(tmp_path)
    shelf = run.shelf("insurer")

    def full(*_: Any) -> None:
        raise ArtifactError("the disk is full")

    monkeypatch.setattr(shelf, "write_rows", full)
    shelves = {"insurer": shelf, "bank": run.shelf("bank")}
    monkeypatch.setattr(run, "shelf", partial(dict.__getitem__, shelves))
    killed(run, Kill("registry", 5))
    assert [one.tokens() for one in shelves.values()] == [(), ()]
    assert headers(run) == []
    (bank,), (insurer,) = (run.programs[name].warnings for name in ("bank", "insurer"))
    assert "insurer cannot" in bank
    assert "the disk is full" in insurer


NODES = ("bank", "insurer", "registry")


@pytest.mark.slow
def test_kills_of_every_node_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linking, "agree_key", partial(agree_key, entropy=known))
    whole = study(tmp_path / "whole")
    whole.session()
    for node in NODES:
        for step in range(STEPS + 2):
            run = study(tmp_path / f"{node}-{step}")
            killed(run, Kill(node, step, 1))
            run.session()
            assert difference(run.model(), whole.model()) < TOLERANCE or not run.point
            assert run.masks_used_twice() == 0


EVERY_FOURTH = TEXT.replace("every = 1", "every = 4")
"""Another job, and so another order of rows."""


def fail_at(folder: Path, sync: int, whole: Rehearsal) -> bool:
    """Whether the power failed at this sync of the run, which goes on afterwards."""
    run = study(folder, text=EVERY_FOURTH)
    vaults = folder / "vaults"
    vaults.mkdir()
    try:
        with PowerLoss(vaults, sync) as disk:
            disk.begin()
            run.session()
    except PowerFailed:
        if not run.ended:
            run.session()
        assert run.masks_used_twice() == 0
        if run.point:
            assert difference(run.model(), whole.model()) < TOLERANCE
        return True
    return False


@pytest.mark.slow
def test_power_fails_at_every_sync(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = study(tmp_path / "whole", text=EVERY_FOURTH)
    whole.session()
    sync = 0
    while fail_at(tmp_path / str(sync), sync, whole):
        sync += 1
    with capsys.disabled():
        print(f"\npower failed at each of {sync} syncs: right models, no mask used twice")
    assert sync > 40
