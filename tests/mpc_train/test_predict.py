"""A recipient applies an opened model to raw records."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from mpc_train.cli import app
from mpc_train.jobs.job import Job
from mpc_train.opening import PREPARATION_FILE
from mpc_train.preparation.applied import applied
from mpc_train.preparation.local import local_terms
from mpc_train.preparation.sealed import BITS, opened_parameters
from tests.mpc_train.preparation_case import JOB, prepared_job, typed
from tests.mpc_train.test_artifact import Run, opened

LEVELS = ["north", "south", "east", "elsewhere"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def model_in(folder: Path, job: Job) -> Run:
    """An opened model with weights that are known."""
    made = Run(job)
    for name, content in opened(made.envelopes()).files.items():
        (folder / name).write_bytes(content)
    return made


def raw(path: Path, rows: int, *, label: bool = False) -> Path:
    """The same rows as `typed(rows, 1)` as a file, with a column that no job knows."""
    table = typed(rows, 1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = table.names if label else table.names[:-1]
        writer.writerow(["note", *names])
        for values, missing in zip(table.values, table.missing, strict=True):
            cells = [f"{value:.0f}" for value in values]
            cells[4] = LEVELS[int(values[4])]
            gaps = ["" if gone else cell for cell, gone in zip(cells, missing, strict=True)]
            writer.writerow(["x", *gaps[: len(names)]])
    return path


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return prepared_job(tmp_path)


def expected(job: Job, made: Run, rows: int) -> np.ndarray:
    weights = {
        name: np.round(value * 2.0 ** BITS.get(name, 20)) / 2.0 ** BITS.get(name, 20)
        for name, value in made.weights.items()
    }
    parameters = opened_parameters(job.pipeline, weights)
    inputs = applied(job.pipeline, local_terms(job.pipeline, typed(rows, 1)), parameters)
    logits: np.ndarray = inputs @ np.float32(weights["weight"][0]) + np.float32(weights["bias"][0])
    return logits


@pytest.mark.parametrize("label", [False, True])
def test_predictions_follow_from_raw_records(tmp_path: Path, job: Job, label: bool) -> None:
    made = model_in(tmp_path, job)
    result = run("predict", tmp_path, raw(tmp_path / "new.csv", 300, label=label))
    assert result.exit_code == 0, result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(rows) == 300
    logits = expected(job, made, 300)
    odds = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose([float(row["p(true)"]) for row in rows], odds, atol=1e-6)
    np.testing.assert_allclose([float(row["p(false)"]) for row in rows], 1 - odds, atol=1e-6)
    assert [row["prediction"] for row in rows] == ["true" if z >= 0 else "false" for z in logits]
    assert [row["row"] for row in rows] == [str(k + 1) for k in range(300)]


def test_json_and_a_file(tmp_path: Path, job: Job) -> None:
    model_in(tmp_path, job)
    table, out = raw(tmp_path / "new.csv", 20), tmp_path / "found.json"
    result = run("predict", tmp_path / "model.safetensors", table, "--format", "json")
    *records, last = map(json.loads, result.stdout.splitlines())
    assert (len(records), last["rows"], last["status"]) == (20, 20, "ok")
    assert run("predict", tmp_path, table, "--out", out).exit_code == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == records
    assert not list(tmp_path.glob("*.partial"))


def test_a_number_comes_in_its_own_unit(tmp_path: Path) -> None:
    text = JOB.replace('label = "ill"', 'label = { name = "visits", center = 5, scale = 2 }')
    text = text.replace('"logistic"', '"linear"').replace("data]", 'data]\nfeatures = ["age"]')
    job = prepared_job(tmp_path, 'scale = "standard"\nmissing = "mean"', text)
    made = model_in(tmp_path, job)
    result = run("predict", tmp_path, raw(tmp_path / "new.csv", 30))
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert set(rows[0]) == {"row", "prediction"}
    np.testing.assert_allclose(
        [float(row["prediction"]) for row in rows], expected(job, made, 30) * 2 + 5, rtol=1e-5
    )


def test_bad_cells_are_named(tmp_path: Path, job: Job) -> None:
    model_in(tmp_path, job)
    path = raw(tmp_path / "new.csv", 30)
    lines = path.read_text().splitlines()
    lines[7] = "x,40,,200,,north"
    path.write_text("\n".join(lines))
    result = run("predict", tmp_path, path, "--out", tmp_path / "found.csv")
    assert result.exit_code == 4
    assert "new.csv: line 8: column 'visits'" in result.stderr
    assert not (tmp_path / "found.csv").exists()
    path.write_text("\n".join(line.rsplit(",", 2)[0] for line in lines))
    assert "missing column" in run("predict", tmp_path, path).stderr


def test_files_that_do_not_belong_together(tmp_path: Path, job: Job) -> None:
    table = raw(tmp_path / "new.csv", 5)
    result = run("predict", tmp_path / "nowhere", table)
    assert result.exit_code == 9 and "cannot be read" in result.stderr
    model_in(tmp_path, job)
    part = tmp_path / PREPARATION_FILE
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    result = run("predict", tmp_path, table)
    assert result.exit_code == 9 and "is not the file that the manifest" in result.stderr
