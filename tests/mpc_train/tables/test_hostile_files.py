"""Files from elsewhere, mutated or made to burst: a value or one of our errors, within bounds."""

from __future__ import annotations

import io
import json
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import polars
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as save_tensors

from mpc_train.admission.load import job_from_bytes, load_job
from mpc_train.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    JobError,
    ModelError,
    TrainError,
)
from mpc_train.jobs.job import Job
from mpc_train.networks.carried import read_model
from mpc_train.results.artifact import MODEL, contents_of, envelope_info
from mpc_train.results.opening import open_model
from mpc_train.results.predicting import load_predictor
from mpc_train.run.node_config import load_node_config
from mpc_train.tables.drafts.compare import digest_of, read_digest
from mpc_train.tables.loading.load import load
from mpc_train.tables.readers import columnar
from mpc_train.tables.schema import Column, Schema, load_schema
from mpc_train.tables.source import Source
from mpc_train.training.warm_start import load_start
from protocols.canonical import pack
from protocols.sealing.envelope import seal_envelope
from tests.mpc_train.results.test_artifact import NODES, Run, opened
from tests.support.jobs import JOB, replaced, write_job
from tests.support.node_files import party_toml

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = Schema((Column("age", "number"), Column("dose", "number", missing=("",), constant=True)))
FOLDER = TemporaryDirectory()
HERE = Path(FOLDER.name)


def job_of(text: str = JOB) -> Job:
    return load_job(write_job(HERE, text))


def table(name: str, content: bytes, **options: Any) -> Any:
    path = HERE / name
    path.write_bytes(content)
    return load(Source(str(path), **options), SCHEMA, names=("age", "dose"))


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


START = job_of(replaced("seed = 7", 'seed = 7\nwarm_start = { source = "ann" }'))
TENSORS = save_tensors({name: np.zeros(shape, np.float32) for name, shape in START.shapes.items()})
PARTY = party_toml(data='study = { file = "table.csv", ignore = ["x"] }').encode()


def start(content: bytes) -> Any:
    path = HERE / "start.safetensors"
    path.write_bytes(content)
    return load_start(path, START)


def in_file(name: str, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    def parse(content: bytes) -> Any:
        path = HERE / name
        path.write_bytes(content)
        return read(path)

    return parse


def manifest(content: bytes) -> Any:
    folder = HERE / "opened"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(content)
    (folder / "model.safetensors").write_bytes(TENSORS)
    return load_predictor(folder)


def stated(content: bytes) -> Any:
    """A statement that an evaluator signed and sealed, whatever is in it."""
    signer = NODES["ann"]
    key = bytes(32)
    payload = pack(content, signer.sign("mpc-train/model-statement/2", content), key, TENSORS)
    info = envelope_info(job_of(), contents_of(job_of(), MODEL), bytes(32), "ann", ("office",))
    envelope = seal_envelope(
        payload, info=info, recipient_keys=[NODES["office"].recipient_key], signer=signer
    )
    return open_model([envelope], recipient="office", private=NODES["office"], cards=NODES)


def statement(**changes: Any) -> bytes:
    said = {
        "evaluator": "ann",
        "recipients": ["office"],
        "threshold": 1,
        "contents": "model",
        "sid": bytes(32).hex(),
        "step": 16,
        "job": job_of().to_bytes().decode(),
        "metrics": {"accuracy": 0.9, "auc": None},
        "commitment": "00",
        "version": 2,
    }
    return json.dumps({**said, **changes}).encode()


PARSERS: dict[str, tuple[Callable[[bytes], Any], bytes, tuple[type[Exception], ...]]] = {
    "job file": (in_file("job.toml", load_job), JOB.encode(), (JobError,)),
    "job": (job_from_bytes, job_of().to_bytes(), (JobError,)),
    "schema": (
        in_file("schema.toml", load_schema),
        (ROOT / "examples" / "hospitals_rows" / "schema.toml").read_bytes(),
        (JobError,),
    ),
    "digest": (
        in_file("theirs.json", read_digest),
        msgspec.json.encode(digest_of(SCHEMA)),
        (JobError,),
    ),
    "configuration": (in_file("party.toml", load_node_config), PARTY, (ConfigError,)),
    "model": (
        in_file("model.json", read_model),
        (ROOT / "examples" / "lenet" / "model.json").read_bytes()[:4000],
        (ModelError,),
    ),
    "manifest": (
        manifest,
        json.dumps({"job": json.loads(job_of().to_bytes()), "model": {"file": "m"}}).encode(),
        (ArtifactError,),
    ),
    "statement": (stated, statement(), (ArtifactError,)),
    "start": (start, TENSORS, (DataError,)),
    "csv": (lambda content: table("t.csv", content), b"age,dose\n1,2\n3,\n5,6\n", (DataError,)),
    "quoted csv": (
        lambda content: table("q.csv", content, delimiter=";", encoding="cp1252"),
        b'"age";"dose"\r\n"1";"2"\r\n3;""\r\n',
        (DataError,),
    ),
    "parquet": (lambda content: table("t.parquet", content), parquet(), (DataError,)),
    "arrow": (lambda content: table("t.arrow", content), arrow(), (DataError,)),
    "npz": (lambda content: table("t.npz", content), npz(), (DataError,)),
}


def mutated(whole: bytes) -> st.SearchStrategy[bytes]:
    def alter(parts: tuple[list[tuple[int, bytes]], int]) -> bytes:
        edits, end = parts
        data = whole
        for place, piece in edits:
            at = place % (len(data) + 1)
            data = data[:at] + piece + data[at + len(piece) // 2 :]
        return data[: end % (len(data) + 1)] if end else data

    pieces = st.binary(max_size=8) | st.sampled_from(
        (b"\x1b[31m", b"\x00", b"9" * 400, b"1e999999", b"[" * 300, b"-1", b'"', b"\n", b"\xff")
    )
    edits = st.lists(st.tuples(st.integers(0, 100_000), pieces), max_size=4)
    return st.binary(max_size=300) | st.tuples(edits, st.integers(0, 100_000)).map(alter)


@pytest.mark.parametrize("kind", PARSERS)
@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_only_our_errors(kind: str, data: st.DataObject) -> None:
    parse, whole, errors = PARSERS[kind]
    drawn = data.draw(mutated(whole))
    try:
        parse(drawn)
    except errors as error:
        assert len(str(error)) < 6_000
    except TrainError as error:
        raise AssertionError(f"{type(error).__name__} is another kind of error") from error
    except Exception as error:
        assert type(error).__name__ in ("EnvelopeError",), repr(error)


@pytest.mark.parametrize("kind", sorted(set(PARSERS) - {"model", "manifest", "statement"}))
def test_what_is_whole_is_read(kind: str) -> None:
    parse, whole, _ = PARSERS[kind]
    parse(whole)


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
