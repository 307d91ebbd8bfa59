"""Files from elsewhere that are made to burst or to mislead: one of our errors, within bounds.

`tests/fuzz` tries every parser with drawn and mutated bytes.
"""

from __future__ import annotations

import io
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest

from mpc_train.admission.load import load_job
from mpc_train.errors import ArtifactError, ConfigError, DataError, JobError
from mpc_train.run.node_config import load_node_config
from mpc_train.tables.loading.load import load
from mpc_train.tables.readers import columnar
from mpc_train.tables.schema import load_schema
from mpc_train.tables.source import Source
from tests.fuzz.jobs import job_of, stated, statement
from tests.fuzz.tables import HERE, ROOT, SCHEMA, npz, table
from tests.mpc_train.results.test_artifact import Run, opened


@pytest.mark.parametrize(
    "content",
    [
        b"a = " + b"[" * 50_000,
        b"a = " + b"{ b = " * 20_000,
        b"[" + b"a." * 20_000 + b"a]",
        b"a = 1" + b"0" * 50_000,
        b"a = 1e999999999",
        b"a = 1" + b"0" * 50_000 + b".0",
        b"a = nan",
        b"a = 0x" + b"f" * 50_000,
        b"a" * (5 << 20),
        b"\xff\xfe",
        b"",
    ],
    ids=[
        "deep",
        "deep tables",
        "dotted",
        "whole",
        "exponent",
        "real",
        "nan",
        "hex",
        "long",
        "utf-16",
        "empty",
    ],
)
def test_a_toml_file_of_any_size_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(content)
    for read, error in (
        (load_job, JobError),
        (load_schema, JobError),
        (load_node_config, ConfigError),
    ):
        with pytest.raises(error, match=r"job\.toml") as caught:
            read(path)
        assert len(str(caught.value)) < 3_000


def test_a_toml_file_without_an_end_is_an_error() -> None:
    with pytest.raises(JobError, match="longer than"):
        load_job(Path("/dev/zero"))


@pytest.mark.parametrize(
    "metrics",
    [
        {"accuracy": [[[[[1]]]]]},
        {"accuracy": ["\x1b[31m"]},
        {"accuracy": {"value": 1}},
        {"accuracy": [1] * 20_000},
        {"accuracy": 1e300},
        {"accuracy": "high"},
        {"accuracy": True},
    ],
    ids=lambda metrics: str(metrics)[:40],
)
def test_a_signed_metric_that_is_none_is_not_shown(metrics: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="ann"):
        stated(statement(metrics=metrics))


def test_a_statement_as_deep_as_it_is_long_is_refused() -> None:
    deep = statement().replace(b"0.9", b"[" * 300_000 + b"]" * 300_000)
    with pytest.raises(ArtifactError, match="ann sealed a statement that is malformed"):
        stated(deep)


def bomb(rows: int) -> bytes:
    """An npz file of a column of zeros: a thousandth of what it unpacks to."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("age", "dose"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {"descr": "<f8", "fortran_order": False, "shape": (rows,)}
                np.lib.format.write_array_header_1_0(member, header)
                for _ in range(rows // (1 << 20)):
                    member.write(bytes(8 << 20))
    return stream.getvalue()


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "SURELY_FINE_BYTES", 1 << 20)
    monkeypatch.setattr(columnar.np, "load", lambda *a, **k: pytest.fail("it was unpacked"))
    with pytest.raises(DataError, match="would become 33554688 when unpacked"):
        table("bomb.npz", bomb(2 << 20))


def test_a_zip_bomb_of_terabytes_is_not_unpacked() -> None:
    """A header that claims more than the member has, which NumPy would make room for."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, archive.open("age.npy", "w") as member:
        header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(bytes(800))
    with pytest.raises(DataError, match="not an npz file of plain arrays"):
        table("claims.npz", stream.getvalue())


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "touched"

    class Touch:
        def __reduce__(self) -> Any:
            return Path.touch, (path,)

    with pytest.raises(DataError, match="without objects"):
        table("objects.npz", npz(age=np.array([Touch(), Touch()], dtype=object)))
    assert not path.exists()


def test_a_parquet_file_of_another_length_is_refused_unread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A few kilobytes can say that a value stands there a thousand million times."""
    path = HERE / "long.parquet"
    polars.DataFrame({"age": np.zeros(100_000), "dose": np.zeros(100_000)}).write_parquet(path)
    monkeypatch.setattr(columnar.FrameTable, "chunks", lambda *a: pytest.fail("rows were read"))
    with pytest.raises(DataError, match="the table's rows are 100000, but the job says 40"):
        load(Source(str(path)), SCHEMA, names=("age", "dose"), rows=40)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"age,dose\n1," + b"2" * (20 << 20), "line 2: longer than 16 MiB"),
        (b"a," * 300_000 + b"b\n", "line 1: more than 200000 columns"),
        (b'age,dose\n"1,' + b"2\n" * (10 << 20), "quotation mark"),
        (b"x" * (20 << 20), "line 1: longer than 16 MiB"),
    ],
    ids=["a long line", "many columns", "an open quotation", "one line"],
)
def test_a_csv_file_that_bursts_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        table("burst.csv", content)
    assert len(str(caught.value)) < 1_000


def test_giant_cells_of_sqlite_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.sqlite"
    sqlite3.connect(path).close()
    source = Source(
        url=f"sqlite:///{path}", query="select 1 as age, hex(zeroblob(500000000)) as dose"
    )
    with pytest.raises(DataError, match="SQLite refused"):
        load(source, SCHEMA, names=("age", "dose"))


def test_an_endless_query_ends_with_the_jobs_rows(tmp_path: Path) -> None:
    path = tmp_path / "data.sqlite"
    sqlite3.connect(path).close()
    query = (
        "with recursive n(age, dose) as (select 1, 2 union all select age + 1, dose from n) "
        "select * from n"
    )
    with pytest.raises(DataError, match="the job says 100"):
        load(Source(url=f"sqlite:///{path}", query=query), SCHEMA, names=("age", "dose"), rows=100)


WITHIN = """
import resource, sys
from pathlib import Path
from tests.mpc_train.tables import test_hostile_files as files
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + (int(sys.argv[1]) << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    files.table(sys.argv[2], Path(sys.argv[3]).read_bytes())
except files.DataError as error:
    print("DataError", str(error)[:200])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["npz", "csv", "commas"])
def test_bursting_tables_fit_half_a_gigabyte(tmp_path: Path, kind: str) -> None:
    content = {
        "npz": lambda: bomb(256 << 20),
        "csv": lambda: b"age,dose\n" + b"1" * (60 << 20),
        "commas": lambda: b"age,dose\n" + b"," * (60 << 20),
    }[kind]()
    path = tmp_path / "content"
    path.write_bytes(content)
    name = "t.npz" if kind == "npz" else "t.csv"
    done = subprocess.run(
        [sys.executable, "-c", WITHIN, "512", name, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("DataError"), (done.stdout, done.stderr[-2000:])


def test_the_sealed_model_still_opens() -> None:
    job = job_of()
    assert opened(Run(job).envelopes()).job == job
