"""Whole runs in real processes of jobs whose owners hold columns."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.admission.load import load_job
from tests.support.columns_case import JOB, weighted, write_job, write_table
from tests.support.commands import ended, launch
from tests.support.csv_tables import write_tables
from tests.support.jobs import duplicates_toml
from tests.support.jobs import write_job as write_rows_job

FULL_BATCHES = (
    JOB.replace("test_fraction = 0.25", "test_fraction = 0")
    .replace("batch_size = 8", "batch_size = 35")
    .replace("epochs = 3", "epochs = 25")
    .replace('metrics = ["accuracy"]', "")
    .replace("least_rows = 20", "least_rows = 35")
)
"""Of all 35 joined rows, so that the model does not depend on their order."""


def study(folder: Path, membership: str, text: str = JOB) -> Path:
    path = write_job(folder, membership, text)
    job = load_job(path)
    for owner in job.owners:
        write_table(folder / "data", owner, job.data.rows[owner])
    (folder / "local.toml").write_text(
        '[data]\nbank = { file = "data/bank.csv", date_format = "%d.%m.%Y" }\n'
        "[rules]\nleast_effective_rows = 1\n"
    )
    return path


@pytest.mark.parametrize(
    ("membership", "text"),
    [("holders", JOB), ("nobody", FULL_BATCHES)],
)
@pytest.mark.slow  # joined jobs run whole, in one process, in tests/mpc_train/checkpoints
def test_the_model_is_that_of_the_joined_table(tmp_path: Path, membership: str, text: str) -> None:
    folder = tmp_path / "study"
    process = launch(study(folder, membership, text), "--compare")
    record, err = ended(process)
    assert process.returncode == 0, err
    assert record["joined_rows"] == 35
    assert record["unmatched_records"] == {"bank": 25, "insurer": 10}
    assert not record["warnings"]
    assert "how many of its own records found no partner" in record["learnt"]["insurer"]
    assert record["max_weight_difference"] < 2e-3
    for name, value in record["metrics"].items():
        assert value == pytest.approx(record["twin_metrics"][name], abs=0.13)
    check_that_nobody_is_named(folder, record, err)


@pytest.mark.slow
def test_one_owner_brings_weights(tmp_path: Path) -> None:
    """The table's rows are found and permuted with their weights."""
    folder = tmp_path / "study"
    path = study(folder, "nobody", weighted(FULL_BATCHES))
    table = folder / "data" / "insurer.csv"
    header, *lines = table.read_text().splitlines()
    weights = np.random.default_rng(2).uniform(0, 4, len(lines)).round(2)
    heavy = [f"{line},{weight}" for line, weight in zip(lines, weights, strict=True)]
    table.write_text("\n".join([f"{header},w", *heavy]) + "\n")
    record, err = ended(launch(path, "--compare"))
    assert record["status"] == "ok", err
    assert record["max_weight_difference"] < 2e-3


@pytest.mark.slow
def test_a_join_that_lost_most_records_does_not_just_say_ok(tmp_path: Path) -> None:
    """One owner spells half of its records in a way that nothing was declared for."""
    folder = tmp_path / "study"
    text = JOB.replace("least_rows = 20", "least_rows = 16").replace("0.25", "0.4")
    path = study(folder, "holders", text)
    table = folder / "data" / "bank.csv"
    header, *lines = table.read_text().splitlines()
    spelt = [
        line.replace("Müller", "Mueller") if row % 2 else line for row, line in enumerate(lines)
    ]
    table.write_text("\n".join([header, *spelt]) + "\n")
    record, err = ended(launch(path))
    joined = record["joined_rows"]
    assert record["status"] == "ok" and 16 <= joined < 22, err
    assert record["unmatched_records"] == {"bank": 60 - joined, "insurer": 45 - joined}
    manifest = json.loads(Path(record["model"]).with_name("manifest.json").read_text())
    said = manifest["linkage"]
    assert said["joined"] == joined and said["unmatched"] == record["unmatched_records"]
    for owner, rows, warning in zip(("bank", "insurer"), (60, 45), said["warnings"], strict=True):
        assert warning.startswith(f"only {joined} of {owner}'s {rows} records found a partner")
        assert f"{owner}: {warning}" in record["warnings"]
        own = json.loads(
            (folder / "run" / "logs" / f"{owner}.stdout.log").read_text().splitlines()[-1]
        )
        assert own["unmatched_records"] == rows - joined and own["warnings"] == [warning]
        assert warning in (folder / "run" / "logs" / f"{owner}.stderr.log").read_text()


def check_that_nobody_is_named(folder: Path, record: dict[str, Any], err: str) -> None:
    """No identifier, in no spelling, in a log, a report, a result or a node's file."""
    texts = [err, json.dumps(record)]
    texts += [path.read_text() for path in folder.rglob("*.log")]
    texts += [path.read_text() for path in (folder / "run").rglob("*.toml")]
    texts += [path.read_bytes().decode("latin-1") for path in folder.rglob("*.sealed")]
    assert len(texts) > 8
    for owner in ("bank", "insurer"):
        for line in (folder / "data" / f"{owner}.csv").read_text().splitlines()[1:]:
            name, born = line.split(",")[:2]
            assert not any(name in text or born in text for text in texts)


@pytest.mark.slow  # the error itself is tested in test_link.py
def test_too_few_records_end_the_run_with_one_error(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    process = launch(study(folder, "nobody", JOB.replace("least_rows = 20", "least_rows = 36")))
    record, err = ended(process)
    assert process.returncode == 4, err
    assert record["status"] == "LinkageError"
    assert "35 records in common, but the job requires 36" in record["message"]
    assert not list(folder.rglob("*.sealed"))


DUPLICATES = duplicates_toml({"ann": 30, "bob": 20}, 1, 'normalise = { id = ["spaces"] }, ')


@pytest.mark.slow  # the check itself is tested in test_link.py
@pytest.mark.parametrize("common", [1, 2])
def test_records_in_two_tables(tmp_path: Path, common: int) -> None:
    rng = np.random.default_rng(1)
    for owner, first, rows in (("ann", 0, 30), ("bob", 30 - common, 20)):
        lines = ["id,age,ill"]
        for number in range(first, first + rows):
            key = f"8{number:05}" if owner == "ann" else f"8{number // 1000:02} {number % 1000:03}"
            lines.append(f"{key},{rng.normal():.4f},{number % 2}")
        write_tables(tmp_path, {owner: lines})
    process = launch(write_rows_job(tmp_path, DUPLICATES), "--compare")
    record, err = ended(process)
    if common > 1:
        assert process.returncode == 4
        assert record["status"] == "LinkageError"
        assert "2 records are in the tables of several owners" in record["message"]
    else:
        assert process.returncode == 0, err
        assert record["max_weight_difference"] < 2e-3
