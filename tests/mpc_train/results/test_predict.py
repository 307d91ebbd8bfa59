"""A recipient applies an opened model to raw records: `predict` as a command and as a call."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest

from mpc_train.commands.predict import predict_command
from mpc_train.errors import ArtifactError, ConfigError, DataError
from mpc_train.jobs.job import Job
from mpc_train.owners.applied import applied
from mpc_train.owners.local import local_terms
from mpc_train.preparation.sealed import BITS, opened_parameters
from mpc_train.results.kept import KeptModel
from mpc_train.results.opening import PREPARATION_FILE
from mpc_train.results.predicting import load_predictor, predict
from mpc_train.tables.source import Source
from parties.keys.services.identity_service import IdentityService
from parties.keys.vault import FileVault
from parties.vault.store import Store
from tests.mpc_train.results.test_artifact import Run, opened
from tests.support.commands import mpc_train
from tests.support.node_files import party_toml
from tests.support.preparation_case import JOB, prepared_job, typed

LEVELS = ["north", "south", "east", "elsewhere"]


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
    result = mpc_train("predict", tmp_path, raw(tmp_path / "new.csv", 300, label=label))
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
    result = mpc_train("predict", tmp_path / "model.safetensors", table, "--format", "json")
    *records, last = map(json.loads, result.stdout.splitlines())
    assert (len(records), last["rows"], last["status"]) == (20, 20, "ok")
    assert mpc_train("predict", tmp_path, table, "--out", out).exit_code == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == records
    assert not list(tmp_path.glob("*.partial"))


def test_a_number_comes_in_its_own_unit(tmp_path: Path) -> None:
    text = JOB.replace('label = "ill"', 'label = { name = "visits", center = 5, scale = 2 }')
    text = text.replace('"logistic"', '"linear"').replace("data]", 'data]\nfeatures = ["age"]')
    job = prepared_job(tmp_path, 'scale = "standard"\nmissing = "mean"', text)
    made = model_in(tmp_path, job)
    result = mpc_train("predict", tmp_path, raw(tmp_path / "new.csv", 30))
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert set(rows[0]) == {"row", "prediction"}
    np.testing.assert_allclose(
        [float(row["prediction"]) for row in rows], expected(job, made, 30) * 2 + 5, rtol=1e-5
    )


def test_a_table_without_rows_is_warned_of(tmp_path: Path, job: Job) -> None:
    model_in(tmp_path, job)
    table = raw(tmp_path / "new.csv", 5)
    table.write_text(table.read_text().splitlines()[0] + "\n")
    result = mpc_train("predict", tmp_path, table, "--out", tmp_path / "found.csv")
    assert result.exit_code == 0
    assert "warning: " in result.stderr and "nothing was predicted" in result.stderr


def test_bad_cells_are_named(tmp_path: Path, job: Job) -> None:
    model_in(tmp_path, job)
    path = raw(tmp_path / "new.csv", 30)
    lines = path.read_text().splitlines()
    lines[7] = "x,40,,200,,north"
    path.write_text("\n".join(lines))
    result = mpc_train("predict", tmp_path, path, "--out", tmp_path / "found.csv")
    assert result.exit_code == 4
    assert "new.csv: line 8: column 'visits'" in result.stderr
    assert not (tmp_path / "found.csv").exists()
    path.write_text("\n".join(line.rsplit(",", 2)[0] for line in lines))
    assert "missing column" in mpc_train("predict", tmp_path, path).stderr


def test_files_that_do_not_belong_together(tmp_path: Path, job: Job) -> None:
    table = raw(tmp_path / "new.csv", 5)
    result = mpc_train("predict", tmp_path / "nowhere", table)
    assert result.exit_code == 9 and "cannot be read" in result.stderr
    model_in(tmp_path, job)
    part = tmp_path / PREPARATION_FILE
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    result = mpc_train("predict", tmp_path, table)
    assert result.exit_code == 9 and "is not the file that the manifest" in result.stderr


def test_ids_are_kept_as_they_stand_there(tmp_path: Path, job: Job) -> None:
    model_in(tmp_path, job)
    path = raw(tmp_path / "new.csv", 40, label=True)
    lines = path.read_text().splitlines()
    names = [" 007", "7.0", '"Zoë, ""the"" other"', "", *map(str, range(36))]
    named = [f"{name},{line}" for name, line in zip(["patient", *names], lines, strict=True)]
    path.write_text("\n".join(named))
    plain = mpc_train("predict", tmp_path, path)
    result = mpc_train("predict", tmp_path, path, "--id", "patient", "--id", "age")
    assert result.exit_code == 0, result.stderr
    before = list(csv.DictReader(io.StringIO(plain.stdout)))
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert list(rows[0]) == ["row", "patient", "age", "prediction", "p(false)", "p(true)"]
    assert [row["patient"] for row in rows[:4]] == [" 007", "7.0", 'Zoë, "the" other', ""]
    assert [row["age"] for row in rows] == [line.split(",")[1] for line in lines[1:]]
    for old, new in zip(before, rows, strict=True):
        assert old == {name: new[name] for name in old}
    asked = mpc_train("predict", tmp_path, path, "--id", "patient", "--format", "json")
    assert json.loads(asked.stdout.splitlines()[2])["patient"] == 'Zoë, "the" other'


@pytest.mark.parametrize("form", ["parquet", "arrow", "npz"])
def test_ids_of_other_formats(tmp_path: Path, job: Job, form: str) -> None:
    model_in(tmp_path, job)
    numbers = list(range(5))
    columns: dict[str, object] = {"nr": [1001, 1002, 1003, 1004, 1005]}
    columns |= {"age": numbers, "income": [5000.0] * 5, "visits": numbers}
    columns |= {"smoker": [True] * 5, "region": ["north"] * 5}
    path = tmp_path / f"new.{form}"
    frame = polars.DataFrame(columns)
    if form == "parquet":
        frame.write_parquet(path)
    elif form == "arrow":
        frame.write_ipc(path)
    else:
        arrays: dict[str, Any] = {name: np.array(cells) for name, cells in columns.items()}
        np.savez(path, **arrays)
    result = mpc_train("predict", tmp_path, path, "--id", "nr")
    assert result.exit_code == 0, result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["nr"] for row in rows] == ["1001", "1002", "1003", "1004", "1005"]


def test_ids_that_cannot_be_kept(tmp_path: Path, job: Job) -> None:
    model_in(tmp_path, job)
    path = raw(tmp_path / "new.csv", 5)
    for ids in (["row"], ["prediction"], ["p(true)"], ["note", "note"]):
        options = [word for name in ids for word in ("--id", name)]
        result = mpc_train("predict", tmp_path, path, *options)
        assert result.exit_code == 3 and repr(ids[-1]) in result.stderr
        assert result.stdout == ""
    result = mpc_train("predict", tmp_path, path, "--id", "patient")
    assert result.exit_code == 4 and "missing column 'patient'" in result.stderr


@pytest.mark.parametrize("name", ["found.parquet", "found.xlsx", "found", "found.csv.gz", ".csv"])
def test_other_endings_are_refused(tmp_path: Path, job: Job, name: str) -> None:
    model_in(tmp_path, job)
    out = tmp_path / name
    result = mpc_train("predict", tmp_path, raw(tmp_path / "new.csv", 5), "--out", out)
    assert result.exit_code == 3 and ".csv, .json, .jsonl" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize("name", ["found.csv", "found.CSV", "found.json", "found.jsonl"])
def test_endings_that_are_written(tmp_path: Path, job: Job, name: str) -> None:
    model_in(tmp_path, job)
    out = tmp_path / name
    result = mpc_train("predict", tmp_path, raw(tmp_path / "new.csv", 5), "--out", out)
    assert result.exit_code == 0, result.stderr
    first = out.read_text().splitlines()[0]
    assert first.startswith("row," if name.lower().endswith("csv") else '{"row": 1')


def test_a_table_is_not_written_over(tmp_path: Path, job: Job) -> None:
    model_in(tmp_path, job)
    path = raw(tmp_path / "new.csv", 5)
    before = path.read_bytes()
    result = mpc_train("predict", tmp_path, path, "--out", path)
    assert result.exit_code == 3 and "is the table itself" in result.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_is_printed_before_every_row_is_right(
    tmp_path: Path, job: Job, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last row is wrong, and many chunks before it are right."""
    monkeypatch.setattr("mpc_train.tables.readers.csv_text.BLOCK_BYTES", 256)
    monkeypatch.setattr("mpc_train.tables.loading.load.BLOCK_BYTES", 256)
    model_in(tmp_path, job)
    path = raw(tmp_path / "new.csv", 300)
    path.write_text(path.read_text().rstrip("\n") + "\nx,40,,2000,,north\n")
    result = mpc_train("predict", tmp_path, path, "--format", form)
    assert result.exit_code == 4 and "column 'visits'" in result.stderr
    printed = result.stdout.splitlines()
    assert [json.loads(line)["status"] for line in printed] == ["DataError"] * (form == "json")


def test_a_call_gives_what_the_command_writes(tmp_path: Path, job: Job) -> None:
    model_in(tmp_path, job)
    path = raw(tmp_path / "new.csv", 50)
    rows = list(csv.DictReader(io.StringIO(mpc_train("predict", tmp_path, path).stdout)))
    frame = polars.read_csv(path, null_values=[""])
    loaded = load_predictor(tmp_path)
    for model in (tmp_path, str(tmp_path / "model.safetensors"), loaded):
        for records in (path, str(path), Source(str(path)), frame):
            found = predict(model, records, ids=["note"])
            assert found.columns == ["note", "prediction", "p(false)", "p(true)"]
            assert found["prediction"].to_list() == [row["prediction"] for row in rows]
            assert found["note"].to_list() == ["x"] * 50
            np.testing.assert_allclose(
                found["p(true)"].to_numpy(), [float(row["p(true)"]) for row in rows], rtol=1e-7
            )
    assert predict(loaded, frame.head(0)).height == 0
    assert predict(loaded, frame.head(0)).schema == predict(loaded, frame).schema


def test_tables_in_any_dialect(tmp_path: Path, job: Job) -> None:
    model_in(tmp_path, job)
    path = raw(tmp_path / "new.csv", 50)
    plain = mpc_train("predict", tmp_path, path)
    odd = tmp_path / "odd.csv"
    odd.write_text("made by hand\n" + path.read_text() + "# the end\n")
    read = ("--read", "skip_lines=1", "--read", "comment=#")
    assert mpc_train("predict", tmp_path, odd, *read).stdout == plain.stdout
    drafted = mpc_train("schema", "infer", odd, *read)
    plain = mpc_train("schema", "infer", path)
    # One line more stands before the cell that is out of range.
    assert drafted.exit_code == 0
    assert drafted.stdout.replace("line 3:", "line 2:") == plain.stdout
    for command in (("predict", tmp_path, odd), ("schema", "infer", odd)):
        wrong = mpc_train(*command, "--read", "comment=##", "--read", "thousands=.")
        assert wrong.exit_code == 3
        assert "comment: one ASCII character" in wrong.stderr
        assert "thousands: is also the decimal sign" in wrong.stderr
        assert "write KEY=VALUE" in mpc_train(*command, "--read", "comment").stderr
        assert "unknown field `komma`" in mpc_train(*command, "--read", "komma=1").stderr


def test_a_node_s_own_file_says_how_new_records_are_written(tmp_path: Path, job: Job) -> None:
    """Otherwise an owner types again what its file says; the label's rename is not missed."""
    model_in(tmp_path, job)
    path = raw(tmp_path / "new.csv", 50)
    plain = mpc_train("predict", tmp_path, path)
    feature, label = job.features[0].name, job.data.label
    ours = tmp_path / "ours.csv"
    text = path.read_text().replace(",", ";").replace(f";{feature};", ";Größe;", 1)
    level = typed(1, 1).names[4]
    assert LEVELS[0] in text
    ours.write_text(text.replace(LEVELS[0], "die erste"))
    config = tmp_path / "party.toml"
    data = (
        f'{job.name} = {{ file = "old.csv", delimiter = ";", ignore = ["note"], '
        f'rename = {{ "Größe" = "{feature}", Ziel = "{label}" }}, '
        f'recode = {{ {level} = {{ "die erste" = "{LEVELS[0]}" }}, Ziel = {{ ja = "1" }} }}, '
        'drop_rows = ["missing-label"] }'
    )
    config.write_text(party_toml(data=data))
    found = mpc_train("predict", tmp_path, ours, "--config", config)
    assert (found.exit_code, found.stdout) == (0, plain.stdout), found.stderr
    both = mpc_train("predict", tmp_path, ours, "--config", config, "--delimiter", ";")
    assert both.exit_code == 3
    assert "leave the other options out" in both.stderr
    config.write_text(config.read_text().replace(f"{job.name} =", "another ="))
    assert "no table for the job" in mpc_train("predict", tmp_path, ours, "--config", config).stderr


def test_a_call_raises_what_the_command_says(tmp_path: Path, job: Job) -> None:
    model_in(tmp_path, job)
    frame = polars.read_csv(raw(tmp_path / "new.csv", 50), null_values=[""])
    bad = frame.with_columns(visits=polars.Series([5] * 7 + [2000] + [5] * 42))
    with pytest.raises(DataError, match="the data frame: row 8: column 'visits': outside"):
        predict(tmp_path, bad)
    with pytest.raises(DataError, match="the data frame: missing column 'age'"):
        predict(tmp_path, frame.drop("age"))
    with pytest.raises(ConfigError, match="format"):
        predict(tmp_path, "table.docx")
    with pytest.raises(ConfigError, match="'prediction'"):
        predict(tmp_path, frame, ids=["prediction"])


def test_ids_cannot_steer_a_terminal(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model_in(tmp_path, job)
    path = raw(tmp_path / "new.csv", 2)
    path.write_text(path.read_text().replace("\nx,", "\n\x1b[2Jx,"))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    predict_command(str(tmp_path), path, ids=["note"])
    assert "\x1b" not in (shown := capsys.readouterr().out) and "\\u001b[2Jx" in shown


def test_a_model_and_its_predictions_stay_in_a_vault(tmp_path: Path, job: Job) -> None:
    home, folder = tmp_path / "home", tmp_path / "opened"
    home.mkdir(mode=0o700)
    folder.mkdir()
    made = model_in(folder, job)
    table = raw(tmp_path / "new.csv", 20)
    plain = mpc_train("predict", folder, table).stdout
    identity = FileVault.create(home, "ann", b"correct horse")
    secret = tmp_path / "passphrase"
    secret.write_bytes(b"correct horse")
    secret.chmod(0o600)
    node = tmp_path / "party.toml"
    node.write_text(party_toml(node='home = "home"\npassphrase_file = "passphrase"'))
    store = Store(home / "vault", "ann", IdentityService(identity))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with store.writing("model", "study") as out:
        out.write(KeptModel("", files).packed())

    words = ("predict", "vault:study", table, "--vault", node)
    assert mpc_train(*words).stdout == plain
    kept = mpc_train(*words, "--out", "vault:new", "--format", "json")
    assert (json.loads(kept.stdout)["rows"], made.job.digest()) == (20, job.digest())
    with store.open("predictions", "new") as content:
        assert content.reader.read().decode() == plain
    assert content.info.job == job.digest().hex()
    odds = plain.splitlines()[5].split(",")[-1].encode()
    assert not any(odds in path.read_bytes() for path in home.rglob("*") if path.is_file())

    export = ("vault", "export", "--config", node, "--out")
    assert mpc_train(*export, tmp_path / "new.out", "new", "--kind", "predictions").exit_code == 0
    assert (tmp_path / "new.out").read_text() == plain
    assert mpc_train(*export, tmp_path / "again", "study", "--kind", "model").exit_code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == files
    assert mpc_train("predict", tmp_path / "again", table).stdout == plain
    again = mpc_train(*export, tmp_path / "again", "study", "--kind", "model")
    assert again.exit_code == 3 and "nothing is replaced" in again.stderr

    with store.writing("key", "tokens") as out:
        out.write(b"k" * 32)
    refused = mpc_train(*export, tmp_path / "key", "tokens", "--kind", "key")
    assert refused.exit_code == 3 and not (tmp_path / "key").exists()
    for wrong in (("vault:study", table), (folder, table, "--vault", node)):
        found = mpc_train("predict", *wrong)
        assert found.exit_code == 3 and "belong together" in found.stderr
    with store.writing("model", "study") as out:
        out.write(b"mpc-train model 2\n")
    broken = mpc_train(*words)
    assert "vault:study: is not a model of this version" in broken.stderr
    for name in ("../manifest.json", "a/b", "..", ""):
        with pytest.raises(ArtifactError, match="not that of a file"):
            KeptModel.of("m", KeptModel("", {name: b""}).packed())
    gone = mpc_train("predict", "vault:none", table, "--vault", node)
    assert gone.exit_code == 5 and "has no model none" in gone.stderr
