"""Tables of a vault at their owner: columns that it may not open, and tokens."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mpc_train.errors import DataError
from mpc_train.owners.table import Table, load_table
from mpc_train.tables.loading.load import open_table
from mpc_train.tables.readers.staged import Content, Part, stage
from mpc_train.tables.source import Source
from tests.support.csv_tables import csv_lines
from tests.support.jobs import (
    JOB,
    SCHEMA_FILE,
    column,
    duplicates_toml,
    job_toml,
    loaded,
    replaced,
    schema_toml,
)


class Refusing:
    """A staged table of which no part can be opened."""

    def __init__(self, content: bytes) -> None:
        self.reader, self.size = io.BytesIO(content), len(content)

    @contextlib.contextmanager
    def part(self, key: str, columns: Sequence[str]) -> Iterator[Part]:
        raise DataError(f"{' '.join(columns)} under {key}")
        yield


def from_vault(
    folder: Path,
    lines: Sequence[str],
    job: str,
    schema: str = "",
    protected: str = "",
    tokenised: str = "",
) -> Table:
    """Load bob's table for a job from a vault, under the name `Patient` for `patient`."""
    path = folder / "t.csv"
    path.write_text("\n".join(lines) + "\n")
    out = io.BytesIO()
    parts = {"lab": ((protected,), io.BytesIO())} if protected else {}
    with open_table(Source(str(path))) as table:
        tokens = (tokenised,) if tokenised else ()
        stage(table, Source(), out, lambda done: None, parts=parts, tokenised=tokens)

    @contextlib.contextmanager
    def vault(name: str) -> Iterator[Content]:
        yield Refusing(out.getvalue())

    renamed = {"Patient": "patient"} if "Patient" in lines[0] else {}
    source = Source("vault:adm", rename=renamed)
    return load_table(source, loaded(folder, job, schema), "bob", vault=vault)


def test_a_column_under_a_key_that_is_not_to_be_had(tmp_path: Path) -> None:
    assert from_vault(tmp_path, csv_lines(30), JOB).rows == 30
    with pytest.raises(DataError, match="dose under lab"):
        from_vault(tmp_path, csv_lines(30), JOB, protected="dose")


GROUPED = job_toml(
    label="ill",
    rows={"ann": 100, "bob": 61},
    data=f'{SCHEMA_FILE}\nsplit_by = "patient"\ntest_fraction = 0.25',
)
SCHEMA = schema_toml(
    column("patient", "identifier"), column("age", range=[0, 1000]), column("ill", "boolean")
)


def test_tokens_in_place_of_identifiers(tmp_path: Path) -> None:
    lines = ["Patient,age,ill", *(f"p{n // 2},{n % 9},{n % 2}" for n in range(61))]
    assert from_vault(tmp_path, lines, GROUPED, SCHEMA, tokenised="Patient").rows == 61
    uniform = replaced("test_fraction", 'split_normalise = ["case"]\ntest_fraction', GROUPED)
    assert from_vault(tmp_path, lines, uniform, SCHEMA).rows == 61
    with pytest.raises(DataError, match=r"vault:adm: column 'patient'.*split_normalise.*tokens"):
        from_vault(tmp_path, lines, uniform, SCHEMA, tokenised="Patient")


def test_tokens_join_nobody(tmp_path: Path) -> None:
    job = duplicates_toml({"ann": 30, "bob": 20}, 1)
    lines = ["id,age,ill", *(f"{n},{n % 9},{n % 2}" for n in range(20))]
    assert from_vault(tmp_path, lines, job).tokens is not None
    with pytest.raises(DataError, match="column 'id': the job joins records by its identifiers"):
        from_vault(tmp_path, lines, job, tokenised="id")
