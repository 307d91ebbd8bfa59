"""What a node keeps of what it revealed, and which further runs it refuses."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.admission.load import load_job
from mpc_train.admission.rules import PrivacyRules, Rules
from mpc_train.errors import ConfigError, RefusedError
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import split
from mpc_train.node.remembered import REVEALED, Remembered
from mpc_train.node.storage import HISTORY
from mpc_train.owners.table import Table, load_table
from mpc_train.run.history import rows_of, table_mark
from mpc_train.tables.source import Source
from tests.mpc_train.jobs.test_privacy import WATCHED
from tests.support import columns_case
from tests.support.csv_tables import csv_lines
from tests.support.jobs import (
    JOB,
    SCHEMA_FILE,
    allowing,
    changed,
    column,
    loaded,
    schema_toml,
    with_data,
    write_job,
)
from tests.support.node_vaults import node_vault
from tests.support.private import PRIVATE

NOISE = "noise = { epsilon = 0.5 }"
PLAIN = JOB.replace('"accuracy", "auc"', '"accuracy"')
NOISY = f"{PLAIN}{NOISE}\n"


class Node:
    """Ann, her table and what she has revealed."""

    def __init__(self, folder: Path, **rules: Any) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir(exist_ok=True)
        self.csv = folder / "ann.csv"
        self.csv.write_text("\n".join(csv_lines(40)))
        self.rules = rules
        self.safe = node_vault(self.home)

    def run(self, text: str, *changes: tuple[str, str], rows: int = 40) -> Job:
        """A run of a job begins; raises RefusedError where it may not."""
        text = changed(*changes, text=text).replace("ann = 40", f"ann = {rows}")
        job = loaded(self.folder, text)
        table = load_table(self.source, job, "ann")
        remembered = Remembered(self.safe, "ann", allowing(job, **self.rules))
        remembered.check(job, self.source, table)
        remembered.write(job, self.source, table)
        return job

    @property
    def source(self) -> Source:
        return Source(str(self.csv))

    @property
    def kept(self) -> bytes:
        """The record, in the clear."""
        with self.safe.opened() as store, store.open(HISTORY, REVEALED) as content:
            return content.reader.read()

    def keep(self, body: bytes) -> None:
        """Replace the record."""
        with self.safe.opened() as store, store.writing(HISTORY, REVEALED) as out:
            out.write(body)


def test_rows_that_were_left_out_do_not_move_the_others(tmp_path: Path) -> None:
    """Two runs, one without the rows of no label: what they differ by is rows of the source."""
    lines = csv_lines(44)
    for row in (3, 9, 10, 40):
        lines[row + 1] = lines[row + 1][:-1]
    path = tmp_path / "ann.csv"
    path.write_text("\n".join(lines))
    job = load_job(write_job(tmp_path))
    table = load_table(Source(str(path), drop_rows=("missing-label",)), job, "ann")
    kept = [row for row in range(44) if row not in (3, 9, 10, 40)]
    assert table.places.tolist() == kept
    (warning,) = table.warnings
    assert warning == f"{path}: 4 rows dropped: 4 without a label (drop_rows)"
    trained, measured, pooled = rows_of(job, "ann", table)
    assert len(trained) == len(measured) == 44
    assert not (trained | measured | pooled)[[3, 9, 10, 40]].any()
    plain = load_table(Node(tmp_path).source, job, "ann")
    assert np.array_equal(rows_of(job, "ann", plain)[0], trained[kept])


@pytest.fixture
def ann(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        (),
        (("seed = 7", "seed = 8"),),
        (('name = "study"', 'name = "other"'),),
        (("learning_rate = 0.5", "learning_rate = 0.51"),),
        (("epsilon = 0.5", "epsilon = 0.4"),),
    ],
)
def test_noise_is_not_drawn_anew(ann: Node, changes: tuple[tuple[str, str], ...]) -> None:
    ann.run(NOISY)
    with pytest.raises(RefusedError, match="revealed numbers with noise over this table") as caught:
        ann.run(NOISY, *changes)
    said = str(caught.value)
    assert "study of 2" in said and "repeats = 1" in said
    assert f"ε = {'0.9' if changes and 'epsilon' in changes[0][0] else '1.0'} in all" in said
    assert "write repeats = 2 under [rules]" in said
    assert len(json.loads(ann.kept)["runs"]) == 1


def test_an_organisation_may_allow_more(tmp_path: Path) -> None:
    ann = Node(tmp_path, repeats=2)
    ann.run(NOISY)
    ann.run(NOISY)
    with pytest.raises(RefusedError, match="2 runs have already revealed"):
        ann.run(NOISY)


@pytest.mark.parametrize("how", ["copied", "moved", "another cell", "a longer table"])
def test_a_table_is_known_again(ann: Node, how: str) -> None:
    ann.run(NOISY)
    rows = 40
    if how in ("copied", "moved"):
        other = ann.folder / "copy.csv"
        other.write_text(ann.csv.read_text())
        if how == "moved":
            ann.csv.unlink()
        ann.csv = other
    elif how == "another cell":
        lines = ann.csv.read_text().splitlines()
        ann.csv.write_text("\n".join([*lines[:-1], "50,0.5,1"]))
    else:
        ann.csv.write_text("\n".join(csv_lines(60)))
        rows = 60
    with pytest.raises(RefusedError, match="with noise over this table"):
        ann.run(NOISY, rows=rows)


def test_another_table_is_another(ann: Node) -> None:
    ann.run(NOISY)
    ann.csv = ann.folder / "other.csv"
    ann.csv.write_text("\n".join(csv_lines(40, seed=5)))
    ann.run(NOISY)
    ann.run(PLAIN)


def test_runs_without_noise_may_be_repeated(ann: Node) -> None:
    ann.run(PLAIN)
    ann.run(PLAIN, ("seed = 7", "seed = 8"))
    ann.run(PLAIN, ("epochs = 4", "epochs = 5"))


@pytest.mark.parametrize(
    "changes",
    [
        (("test_fraction = 0.25", "test_fraction = 0.3"),),
        (("test_fraction = 0.25", "test_fraction = 0.2"), ("seed = 7", "seed = 9")),
    ],
)
def test_two_jobs_whose_rows_differ_by_few_are_refused(
    ann: Node, changes: tuple[tuple[str, str], ...]
) -> None:
    ann.run(PLAIN)
    with pytest.raises(RefusedError, match="trains on other rows of this table than study") as said:
        ann.run(PLAIN, *changes)
    assert "least_difference = 10" in str(said.value)
    assert "the results would differ by the information" in str(said.value)


def test_two_metrics_of_rows_that_differ_by_few_are_refused(ann: Node) -> None:
    """The same rows train; a few that were measured now decide when training ends."""
    text = f"{PLAIN}least_test_rows = 5\n"
    ann.run(text)
    stopping = ("seed = 7", "seed = 7\nearly_stopping = { fraction = 0.0625 }")
    with pytest.raises(RefusedError, match="measures other rows of this table than study"):
        ann.run(text, stopping, ("test_fraction = 0.25", "test_fraction = 0.2"))


def test_another_split_of_many_rows_is_allowed(tmp_path: Path) -> None:
    ann = Node(tmp_path, least_difference=6)
    first = ann.run(PLAIN)
    other = ann.run(PLAIN, ("split_seed = 3", "split_seed = 4"))
    mine = [set(split(job)[0][split(job)[0] < 40].tolist()) for job in (first, other)]
    assert len(mine[0] ^ mine[1]) >= 6


def test_one_batch_of_all_rows_but_one_is_a_row_set_of_its_own(ann: Node) -> None:
    """Training rows are the same, but the seed says which of them is left over."""
    once = (("epochs = 4", "epochs = 1"), ("batch_size = 16", "batch_size = 74"))
    left_over = set()
    refused = 0
    for seed in range(12):
        try:
            job = ann.run(PLAIN, *once, ("seed = 7", f"seed = {seed}"))
        except RefusedError as error:
            assert "by 1 row" in str(error) or "by 2 rows" in str(error)
            refused += 1
            continue
        chosen, *_ = rows_of(job, "ann", load_table(ann.source, job, "ann"))
        left_over.add(chosen.tobytes())
    assert len(left_over) == 1 and refused > 0


@pytest.mark.parametrize("scale", ["standard", "declared"])
def test_means_and_scales_are_of_rows_that_no_batch_takes(ann: Node, scale: str) -> None:
    """Batches of other rows make other results; the means beside them differ by a row's cells."""
    text = PLAIN.replace("epochs = 4\nbatch_size = 16", "epochs = 1\nbatch_size = 38").replace(
        'metrics = ["accuracy"]', ""
    )
    text = text.replace("[train]", f'[prepare]\nscale = "{scale}"\n[train]')
    more = (("test_fraction = 0.25", "test_fraction = 0.26"), ("seed = 7", "seed = 8"))
    other = text
    for old, new in more:
        other = other.replace(old, new)
    for split_seed in range(99):
        seeded = ("split_seed = 3", f"split_seed = {split_seed}")
        jobs = [load_job(write_job(ann.folder, one.replace(*seeded))) for one in (text, other)]
        rows = [rows_of(job, "ann", load_table(ann.source, job, "ann")) for job in jobs]
        trained, _, pooled = (np.count_nonzero(a ^ b) for a, b in zip(*rows, strict=True))
        if pooled == 1 and trained >= 10:
            break
    ann.run(text, seeded)
    if scale == "declared":
        ann.run(text, seeded, *more)
        return
    with pytest.raises(RefusedError, match=r"takes means and scales of other rows .* by 1 row:"):
        ann.run(text, seeded, *more)


def test_a_table_that_grew_by_a_row(ann: Node) -> None:
    whole = (("test_fraction = 0.25", "test_fraction = 0"), ('metrics = ["accuracy"]', ""))
    ann.run(PLAIN, *whole)
    ann.csv.write_text("\n".join(csv_lines(41)))
    with pytest.raises(RefusedError, match="by 1 row"):
        ann.run(PLAIN, *whole, rows=41)


def test_grouped_rows_are_known_in_the_table_s_own_order() -> None:
    """`places` says where each row stands in its source, whatever seed groups them."""
    table = Table(np.arange(12.0).reshape(6, 2), np.zeros(6), np.ones((6, 0)))
    moved = table.ordered(np.array([3, 1, 5, 0, 2, 4]))
    assert moved.features[:, 0].tolist() == [6, 2, 10, 0, 4, 8]
    assert table_mark(bytes(32), moved) == table_mark(bytes(32), table)
    other = Table(table.features[::-1].copy(), table.labels, table.present)
    assert table_mark(bytes(32), table) != table_mark(bytes(32), other)
    assert table_mark(bytes(32), table) != table_mark(bytes(31) + b"1", table)


def test_rows_that_stay_together_are_compared(ann: Node) -> None:
    """A job that splits by a patient puts rows into another order for each seed."""
    schema = schema_toml(
        column("patient", "identifier"),
        column("age", range=[0, 120]),
        column("dose", range=[-30, 30]),
        column("ill", "category", levels=["0", "1"]),
    )
    (ann.folder / "schema.toml").write_text(schema)
    header, *lines = csv_lines(40)
    cells = [f"p{number // 2},{line}" for number, line in enumerate(lines)]
    ann.csv.write_text("\n".join([f"patient,{header}", *cells]))
    text = with_data(f'{SCHEMA_FILE}\nsplit_by = "patient"', PLAIN)
    text = text.replace("[train]", '[prepare]\nscale = "standard"\n[train]')
    job = ann.run(text)
    table = load_table(ann.source, job, "ann")
    trained, measured, _ = rows_of(job, "ann", table)
    assert trained.sum() == 30 and measured.sum() == 10 and not (trained & measured).any()
    # Both rows of a patient are on one side, in the order of the table.
    assert np.array_equal(trained[::2], trained[1::2])
    # It is these rows of the file: doses, which tell rows apart, lie as the file has them.
    doses = np.array([float(line.split(",")[1]) for line in lines])
    assert len(set(doses)) == 40
    moved = np.isin(np.arange(40) + job.first_row("ann"), split(job)[0])
    assert np.array_equal(trained[np.argsort(doses)], moved[np.argsort(table.features[:, 1])])
    with pytest.raises(RefusedError, match="trains on other rows"):
        ann.run(text, ("test_fraction = 0.25", "test_fraction = 0.2"))


def test_the_file_is_the_node_s_own_and_holds_no_cell(ann: Node) -> None:
    job = ann.run(NOISY)
    text = ann.kept.decode()
    on_disk = [path.read_bytes() for path in ann.home.rglob("*") if path.is_file()]
    assert on_disk and not any(job.digest().hex().encode() in data for data in on_disk)
    assert job.digest().hex() in text
    cells = {cell for line in csv_lines(40)[1:] for cell in line.split(",") if len(cell) > 4}
    assert not any(cell in text for cell in cells)
    assert str(ann.csv) not in text
    remembered = Remembered(ann.safe, "ann", Rules((), (), ()))
    (line,) = remembered.notes(ann.source)
    assert "by study" in line and "with noise of ε = 0.5" in line
    assert remembered.notes(Source("elsewhere.csv")) == []


@pytest.mark.parametrize("body", [b"", b"{}", b'{"key": "00", "runs": [], "version": 2}'])
def test_a_damaged_file_stops_the_node(ann: Node, body: bytes) -> None:
    ann.keep(body)
    with pytest.raises(ConfigError, match=r"history revealed: cannot be read .* it records what"):
        ann.run(PLAIN)
    assert ann.kept == body


def test_a_record_that_was_altered_stops_the_node(ann: Node) -> None:
    ann.run(NOISY)
    (chunks,) = ann.home.rglob("revealed.*.chunks")
    data = bytearray(chunks.read_bytes())
    data[-1] ^= 1
    chunks.write_bytes(data)
    with pytest.raises(ConfigError, match="cannot be read"):
        ann.run(PLAIN)


def test_only_the_newest_record_is_kept(ann: Node) -> None:
    for least in (5, 6, 7):
        ann.run(PLAIN, ("epochs = 4", f"epochs = {least}"))
    assert len(json.loads(ann.kept)["runs"]) == 3
    assert [path.name for path in ann.home.rglob("*.chunks")] == ["revealed.3.chunks"]


def test_what_cannot_be_kept_is_not_begun(ann: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("parties.vault.store.write_atomic", full)
    with pytest.raises(ConfigError, match="must be recorded; nothing was shared"):
        ann.run(PLAIN)


def test_a_home_that_cannot_be_written_is_found_at_the_start(
    ann: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    Remembered(ann.safe, "ann", Rules((), (), ())).try_to_write()
    assert not list(ann.home.rglob("revealed*")) and not list(ann.home.rglob("*.trial"))

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("mpc_train.node.places.write_atomic", read_only)
    with pytest.raises(ConfigError, match=r"vault: cannot be written \(Read-only"):
        Remembered(ann.safe, "ann", Rules((), (), ())).try_to_write()


def test_two_nodes_of_one_identity_see_each_other_s_run(ann: Node) -> None:
    """Both were prepared before either began."""
    job = load_job(write_job(ann.folder, NOISY))
    table = load_table(ann.source, job, "ann")
    one, other = (Remembered(ann.safe, "ann", allowing(job)) for _ in range(2))
    one.check(job, ann.source, table)
    other.check(job, ann.source, table)
    one.write(job, ann.source, table)
    with pytest.raises(RefusedError, match="with noise over this table"):
        other.write(job, ann.source, table)


def test_an_owner_of_columns_keeps_the_whole_table(tmp_path: Path) -> None:
    """Which of its rows are joined nobody may know, so all of them count."""
    job = load_job(columns_case.write_job(tmp_path, "nobody"))
    table = Table(np.zeros((60, 1)), np.zeros(60), np.ones((60, 0)))
    trained, measured, pooled = rows_of(job, "bank", table)
    assert trained.all() and measured.all() and pooled.all() and len(trained) == 60


# Budgets of tables.

FIRST = PRIVATE.replace("noise.epsilon = 0.5\n", "").replace('metrics = ["accuracy"]\n', "")
"""No metric: nothing but the model, at ε = 3 and δ = 0.00001."""


def budget(epsilon: object, delta: object = "0.00002", **more: Any) -> PrivacyRules:
    return PrivacyRules(
        budget_epsilon=Decimal(str(epsilon)), budget_delta=Decimal(str(delta)), **more
    )


def private_node(folder: Path, limits: PrivacyRules | None, **rules: Any) -> Node:
    return Node(folder, privacy=limits, **rules)


def test_a_table_has_a_budget_over_all_jobs(tmp_path: Path) -> None:
    ann = private_node(tmp_path, budget(7))
    ann.run(FIRST)
    ann.run(FIRST, ("seed = 7", "seed = 8"))
    with pytest.raises(
        RefusedError, match=r"would cost ε = 3, .* 6 of 7 is spent by study"
    ) as said:
        ann.run(FIRST, ("seed = 7", "seed = 9"))
    assert "write budget_epsilon = 9 under [rules.privacy]" in str(said.value)
    assert len(json.loads(ann.kept)["runs"]) == 2
    # What is left is enough for a smaller promise, but not at this δ.
    with pytest.raises(RefusedError, match=r"would cost δ = 0\.00001"):
        ann.run(FIRST, ("epsilon = 3", "epsilon = 1"))
    ann.rules["privacy"] = budget(7, "0.00003")
    ann.run(FIRST, ("epsilon = 3", "epsilon = 1"))
    lines = Remembered(ann.safe, "ann", Rules((), (), (), privacy=budget(7))).notes(ann.source)
    assert lines[-1] == "runs over this table have cost ε = 7, δ = 0.00003 of 7, 0.00002"


def test_the_first_job_has_to_fit_too(tmp_path: Path) -> None:
    ann = private_node(tmp_path, budget("2.5"))
    with pytest.raises(RefusedError, match=r"ε = 3, .* 0 of 2.5 is spent\. Nothing was shared"):
        ann.run(FIRST)


def test_a_promise_for_less_than_a_unit_counts_as_much(tmp_path: Path) -> None:
    """Neighbours, unit and seed of the job do not open a second budget."""
    ann = private_node(tmp_path, budget(5))
    ann.run(FIRST)
    for change in (('"zeroed"', '"replaced"'), ('name = "study"', 'name = "other"')):
        with pytest.raises(RefusedError, match=r"3 of 5 is spent"):
            ann.run(FIRST, change)


def to_a_copy(node: Node, name: str = "copy.csv") -> None:
    """The node's next run is over a copy of its table."""
    copy = node.folder / name
    copy.write_text(node.csv.read_text())
    node.csv = copy


def test_a_copy_of_the_table_has_the_same_budget(tmp_path: Path) -> None:
    ann = private_node(tmp_path, budget(5))
    ann.run(FIRST)
    to_a_copy(ann)
    with pytest.raises(RefusedError, match=r"3 of 5 is spent"):
        ann.run(FIRST)
    ann.csv.write_text("\n".join(csv_lines(40, seed=5)))
    to_a_copy(ann, "other.csv")
    ann.run(FIRST)


def test_a_copy_of_a_table_that_has_grown_has_the_same_budget(tmp_path: Path) -> None:
    """It has neither the place nor the cells of the first run, but the second run has both."""
    ann = private_node(tmp_path, budget(8))
    ann.run(FIRST)
    ann.csv.write_text("\n".join(csv_lines(40, seed=5)))
    ann.run(FIRST)
    to_a_copy(ann)
    with pytest.raises(RefusedError, match=r"6 of 8 is spent"):
        ann.run(FIRST)


def test_a_copy_that_has_grown_has_the_same_budget(tmp_path: Path) -> None:
    """Also of runs over the table that it is a copy of."""
    ann = private_node(tmp_path, budget(8))
    ann.run(FIRST)
    to_a_copy(ann)
    ann.run(FIRST)
    ann.csv.write_text("\n".join(csv_lines(40, seed=5)))
    rules = Rules((), (), (), privacy=budget(8))
    lines = Remembered(ann.safe, "ann", rules).notes(ann.source)
    assert lines[-1].startswith("runs over this table have cost ε = 6, δ = 0.00002 of 8")
    with pytest.raises(RefusedError, match=r"6 of 8 is spent"):
        ann.run(FIRST)


def test_counts_of_training_rows_are_noise_that_is_not_drawn_anew(tmp_path: Path) -> None:
    watched = WATCHED.replace("noise.epsilon = 0.5\n", "").replace('metrics = ["accuracy"]\n', "")
    ann = private_node(tmp_path, None)
    ann.run(watched)
    assert json.loads(ann.kept)["runs"][0]["epsilon"] == "0.5"
    with pytest.raises(RefusedError, match=r"numbers with noise .* repeats = 1"):
        ann.run(watched)


def test_a_budget_counts_noise_in_the_place_of_repeats(tmp_path: Path) -> None:
    ann = private_node(tmp_path, budget(7))
    ann.run(PRIVATE)
    ann.run(PRIVATE)
    other = private_node(tmp_path, None)
    with pytest.raises(RefusedError, match=r"numbers with noise .* repeats = 1"):
        other.run(PRIVATE)


def test_jobs_without_a_promise_are_not_in_the_budget(tmp_path: Path) -> None:
    """They may run where the rules do not require one, and the notes say so."""
    ann = private_node(tmp_path, budget(3, required=False))
    ann.run(PLAIN)
    ann.run(FIRST)
    notes = Remembered(ann.safe, "ann", Rules((), (), ())).notes(ann.source)
    assert "without differential privacy" in notes[0] and "at ε = 3, δ = 0.00001" in notes[1]


def test_a_run_that_let_nothing_leave_is_not_paid_twice(tmp_path: Path) -> None:
    ann = private_node(tmp_path, budget(4))
    job = ann.run(FIRST)
    table = load_table(ann.source, job, "ann")
    remembered = Remembered(ann.safe, "ann", allowing(job, privacy=budget(4)))
    remembered.write(job, ann.source, table, reserved=True)
    assert len(json.loads(ann.kept)["runs"]) == 1
    # Another job has nothing that was paid for it, whatever is said.
    other = loaded(ann.folder, FIRST.replace("seed = 7", "seed = 8"))
    with pytest.raises(RefusedError, match="3 of 4 is spent"):
        remembered.write(other, ann.source, table, reserved=True)
    with pytest.raises(RefusedError, match="3 of 4 is spent"):
        remembered.write(job, ann.source, table)


def test_a_record_of_before_there_were_budgets_is_read(ann: Node) -> None:
    ann.run(PLAIN)
    record = json.loads(ann.kept)
    for run in record["runs"]:
        del run["budget_epsilon"], run["budget_delta"]
    ann.keep(json.dumps(record).encode())
    ann.run(PLAIN, ("seed = 7", "seed = 8"))
    assert len(json.loads(ann.kept)["runs"]) == 2
