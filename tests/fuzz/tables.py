"""Tables in every format, as an owner's file, in its vault, or beside a table."""

from __future__ import annotations

import contextlib
import gzip
import io
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import polars
from PIL import Image

from mpc_train.errors import DataError, JobError
from mpc_train.tables.drafts.compare import digest_of, read_digest
from mpc_train.tables.loading.load import load, open_table
from mpc_train.tables.postgres_url import UrlError, parse_url
from mpc_train.tables.readers.arrays import ArrayError, Arrays, _of_file
from mpc_train.tables.readers.staged import StagedTable, stage
from mpc_train.tables.schema import Column, Schema, load_schema
from mpc_train.tables.source import Source
from tests.fuzz.parser import Parser
from tests.mpc_train.tables.test_excel import workbook

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = Schema((Column("age", "number"), Column("dose", "number", missing=("",), constant=True)))
FOLDER = TemporaryDirectory()
HERE = Path(FOLDER.name)
CSV = b"age,dose\n1,2\n3,\n5,6\n"


def table(name: str, content: bytes, **options: Any) -> Any:
    path = HERE / name
    path.write_bytes(content)
    return load(Source(str(path), **options), SCHEMA, names=("age", "dose"))


def in_file(name: str, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    def parse(content: bytes) -> Any:
        path = HERE / name
        path.write_bytes(content)
        return read(path)

    return parse


def parquet() -> bytes:
    frame = polars.DataFrame({"age": [1.0, 2.0, 3.0], "dose": [0.5, None, 1.5]})
    stream = io.BytesIO()
    frame.write_parquet(stream)
    return stream.getvalue()


def arrow() -> bytes:
    stream = io.BytesIO()
    polars.DataFrame({"age": [1.0, 2.0], "dose": [0.5, 1.5]}).write_ipc(stream)
    return stream.getvalue()


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **(arrays or {"age": np.arange(3.0), "dose": np.ones(3)}))
    return stream.getvalue()


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros((1, 2, 2), np.float32))
    return stream.getvalue()


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("t.csv", CSV)
    return stream.getvalue()


def database() -> bytes:
    path = HERE / "made.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute("create table if not exists t (age real, dose real)")
        made.execute("insert into t values (1, 2)")
        made.commit()
    return path.read_bytes()


def query(path: Path) -> Any:
    source = Source(url=f"sqlite:///{path}", query="select age, dose from t")
    return load(source, SCHEMA, names=("age", "dose"))


def staged() -> bytes:
    path = HERE / "staged.csv"
    path.write_bytes(CSV)
    source, out = Source(str(path)), io.BytesIO()
    with open_table(source) as opened:
        stage(opened, source, out, lambda done: None)
    return out.getvalue()


def unstaged(content: bytes) -> Any:
    held: Any = SimpleNamespace(reader=io.BytesIO(content), size=len(content))
    found = StagedTable(held, "vault:study")
    return list(found.chunks([name for name in ("age", "dose") if name in found.names]))


def book() -> bytes:
    path = HERE / "made.xlsx"
    workbook(path, first=[["age", "dose"], [1, 2], [3, 4]])
    return path.read_bytes()


IMAGE = Arrays("scan", (1, 2, 2), HERE)
BROKEN = (DataError,)
PARSERS: dict[str, Parser] = {
    "schema": Parser(
        in_file("schema.toml", load_schema),
        lambda: [(ROOT / "examples" / "hospitals_rows" / "schema.toml").read_bytes()],
        (JobError,),
        ("mpc_train.base.strict_toml", "mpc_train.base.toml_shape"),
    ),
    "digest": Parser(
        in_file("theirs.json", read_digest),
        lambda: [msgspec.json.encode(digest_of(SCHEMA))],
        (JobError,),
        ("mpc_train.tables.drafts.compare",),
    ),
    "csv": Parser(
        lambda content: table("t.csv", content),
        lambda: [CSV],
        BROKEN,
        ("mpc_train.tables.readers.csv_text",),
    ),
    "quoted csv": Parser(
        lambda content: table("q.csv", content, delimiter=";", encoding="cp1252"),
        lambda: [b'"age";"dose"\r\n"1";"2"\r\n3;""\r\n'],
        BROKEN,
        ("mpc_train.tables.readers.csv_text",),
    ),
    "gzip": Parser(
        lambda content: table("t.csv.gz", content),
        lambda: [gzip.compress(CSV)],
        BROKEN,
        ("mpc_train.tables.readers.packed",),
    ),
    "zip": Parser(
        lambda content: table("t.csv.zip", content),
        lambda: [zipped()],
        BROKEN,
        ("mpc_train.tables.readers.packed",),
    ),
    "parquet": Parser(
        lambda content: table("t.parquet", content),
        lambda: [parquet()],
        BROKEN,
        ("mpc_train.tables.readers.columnar",),
    ),
    "arrow": Parser(
        lambda content: table("t.arrow", content),
        lambda: [arrow()],
        BROKEN,
        ("mpc_train.tables.readers.columnar",),
    ),
    "npz": Parser(
        lambda content: table("t.npz", content),
        lambda: [npz()],
        BROKEN,
        ("mpc_train.tables.readers.columnar",),
    ),
    "workbook": Parser(
        lambda content: table("t.xlsx", content),
        lambda: [book()],
        BROKEN,
        ("mpc_train.tables.readers.excel",),
        costly=True,
    ),
    "database": Parser(
        in_file("t.sqlite", query),
        lambda: [database()],
        BROKEN,
        ("mpc_train.tables.readers.database",),
    ),
    "array": Parser(
        in_file("scan.npy", lambda path: _of_file(path, IMAGE)),
        lambda: [npy()],
        (ArrayError,),
        ("mpc_train.tables.readers.arrays",),
    ),
    "image": Parser(
        in_file("scan.png", lambda path: _of_file(path, IMAGE)),
        lambda: [png()],
        (ArrayError,),
        ("mpc_train.tables.readers.arrays",),
    ),
    "staged table": Parser(
        unstaged, lambda: [staged()], BROKEN, ("mpc_train.tables.readers.staged",)
    ),
    "url of a database": Parser(
        lambda content: parse_url(content.decode("utf-8", "replace")),
        lambda: [b"postgresql://ann@db/clinic?sslmode=verify-full"],
        (UrlError,),
        ("mpc_train.tables.postgres_url",),
    ),
}
