"""CSV files: each fault is named with file, line and column, and no value is repeated."""

from pathlib import Path

import numpy as np
import pytest

from mpc_train.admission.load import load_job
from mpc_train.errors import DataError
from mpc_train.jobs.job import Job
from mpc_train.owners.table import load_table
from mpc_train.tables.source import Source
from tests.support.csv_tables import csv_lines
from tests.support.jobs import replaced, write_job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return load_job(write_job(tmp_path))


def write(folder: Path, lines: list[str]) -> Source:
    path = folder / "bob.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Source(str(path))


def ignoring(source: Source, *names: str) -> Source:
    return Source(source.file, ignore=names)


def test_values_are_centred_and_scaled(tmp_path: Path, job: Job) -> None:
    lines = csv_lines(30)
    lines[1] = "65.5,-3,1"
    table = load_table(write(tmp_path, lines), job, "bob")
    assert table.features.dtype == table.labels.dtype == np.float64
    assert table.features.shape == (30, 2)
    assert table.features[0].tolist() == [1.55, -1.5]
    assert table.labels[0] == 1.0
    assert repr(table) == "Table(rows=30, features=2)"


def test_columns_may_stand_in_any_order_and_cells_may_be_quoted(tmp_path: Path, job: Job) -> None:
    plain = load_table(write(tmp_path, csv_lines(30)), job, "bob")
    turned = [
        ",".join(
            f'" {cell} "' if at and cell != "ill" else cell for cell in reversed(line.split(","))
        )
        for at, line in enumerate(csv_lines(30))
    ]
    again = load_table(write(tmp_path, turned), job, "bob")
    assert np.array_equal(plain.features, again.features)
    assert np.array_equal(plain.labels, again.labels)


def test_windows_files_are_read(tmp_path: Path, job: Job) -> None:
    path = tmp_path / "bob.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(csv_lines(30)).encode())
    assert load_table(Source(str(path)), job, "bob").rows == 30


def test_the_file_is_not_modified(tmp_path: Path, job: Job) -> None:
    source = write(tmp_path, csv_lines(30))
    path = Path(source.file)
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    load_table(source, job, "bob")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


SECRET = "77.125"

FAULTS = [
    (8, f"{SECRET}x,1.0,0", "line 9", "age", "not a number"),
    (8, f"12,{SECRET}.1,0", "line 9", "dose", "not a number"),
    (1, ",1.0,0", "line 2", "age", "empty"),
    (30, "50,  ,1", "line 31", "dose", "empty"),
    (5, "NaN,1.0,0", "line 6", "age", "NaN"),
    (5, "50,inf,0", "line 6", "dose", "infinite"),
    (5, "50,-inf,0", "line 6", "dose", "infinite"),
    (5, "50,1e400,0", "line 6", "dose", "infinite"),
    (7, "1777.125,1.0,0", "line 8", "age", "declared range [0, 120]"),
    (7, f"50,{SECRET},0", "line 8", "dose", "beyond ±16"),
    (9, f"50,1.0,{SECRET}", "line 10", "ill", "levels '0', '1'"),
    (9, "50,1.0,", "line 10", "ill", "empty"),
    (9, "50,1.0", "line 10", "2 fields", "header has 3"),
    (9, "", "line 10", "blank", "blank"),
    (9, "50,1.0,0,1", "line 10", "4 fields", "header has 3"),
]


@pytest.mark.parametrize(("at", "line", "where", "column", "what"), FAULTS)
def test_a_bad_cell_is_named(
    tmp_path: Path, job: Job, at: int, line: str, where: str, column: str, what: str
) -> None:
    lines = csv_lines(30)
    lines[at] = line
    source = write(tmp_path, lines)
    with pytest.raises(DataError) as caught:
        load_table(source, job, "bob")
    message = str(caught.value)
    assert message.startswith(f"{source.file}: {where}:")
    assert column in message
    assert what in message
    assert SECRET not in message
    assert "1777" not in message


def test_lines_are_counted_past_cells_of_several_lines(tmp_path: Path, job: Job) -> None:
    lines = [f'{line},"a\nb"' if at else f"{line},note" for at, line in enumerate(csv_lines(30))]
    lines[10] = '50,oops,1,"x\ny\nz"'
    with pytest.raises(DataError, match="line 20: column 'dose'"):
        load_table(ignoring(write(tmp_path, lines), "note"), job, "bob")


def test_blank_lines_at_the_end_are_nothing(tmp_path: Path, job: Job) -> None:
    assert load_table(write(tmp_path, [*csv_lines(30), "", ""]), job, "bob").rows == 30


HEADERS = [
    ("age,dose", "missing column 'ill'"),
    ("age,dosage,ill", "missing column 'dose'; not in the schema: 'dosage'"),
    ("age,dose,ill,ill", "'ill' appears twice"),
    ("age,dose,ill,name", "'name' is not in the schema"),
]


@pytest.mark.parametrize(("header", "what"), HEADERS)
def test_a_party_whose_columns_differ(tmp_path: Path, job: Job, header: str, what: str) -> None:
    width = header.count(",") + 1
    source = write(tmp_path, [header, *[",".join(["1"] * width)] * 30])
    with pytest.raises(DataError) as caught:
        load_table(source, job, "bob")
    assert str(caught.value).startswith(f"{source.file}: line 1: ")
    assert what in str(caught.value)


def test_columns_can_be_ignored(tmp_path: Path, job: Job) -> None:
    lines = [f"{line},x{at}" for at, line in enumerate(csv_lines(30))]
    assert load_table(ignoring(write(tmp_path, lines), "x0"), job, "bob").rows == 30


def test_files_that_are_not_there_or_not_text(tmp_path: Path, job: Job) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_table(Source(str(tmp_path / "none.csv")), job, "bob")
    with pytest.raises(DataError, match="cannot be read"):
        load_table(Source(f"{tmp_path}", format="csv"), job, "bob")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match="utf-8"):
        load_table(Source(str(binary)), job, "bob")
    with pytest.raises(DataError, match="the file is empty"):
        load_table(write(tmp_path, [""]), job, "bob")
    with pytest.raises(DataError, match="no row"):
        load_table(write(tmp_path, csv_lines(0)), job, "bob")


def test_the_number_of_rows_is_the_jobs(tmp_path: Path, job: Job) -> None:
    with pytest.raises(DataError, match="rows are 29, but the job says 30"):
        load_table(write(tmp_path, csv_lines(29)), job, "bob")


def test_named_classes(tmp_path: Path) -> None:
    text = replaced('label = "ill"', 'label = { name = "ill", classes = ["no", "yes"] }')
    job = load_job(write_job(tmp_path, text))
    lines = [
        line[:-1] + ("yes" if line.endswith("1") else "no") if at else line
        for at, line in enumerate(csv_lines(30))
    ]
    labels = load_table(write(tmp_path, lines), job, "bob").labels
    assert labels.tolist() == [float(line.endswith("yes")) for line in lines[1:]]
    with pytest.raises(DataError, match="line 2: column 'ill': not one of the declared levels"):
        load_table(write(tmp_path, csv_lines(30)), job, "bob")


def test_the_label_of_a_linear_model_is_scaled(tmp_path: Path) -> None:
    text = replaced('label = "ill"', 'label = { name = "ill", center = 1, scale = 4 }')
    text = text.replace('"logistic"', '"linear"').replace('["accuracy", "auc"]', '["mse"]')
    job = load_job(write_job(tmp_path, text))
    labels = load_table(write(tmp_path, csv_lines(30)), job, "bob").labels
    assert set(labels.tolist()) == {-0.25, 0.0}
