"""Schemas: what is accepted, what is refused and how clearly; digests; comparison among owners."""

from decimal import Decimal
from pathlib import Path

import pytest

from mpc_train.errors import JobError
from mpc_train.tables.drafts.compare import differences, digest_of
from mpc_train.tables.schema import Schema, load_schema
from tests.support.commands import last_object, mpc_train
from tests.support.jobs import replaced

SCHEMA = """
[[columns]]
name = "customer"
kind = "identifier"

[[columns]]
name = "age"
kind = "number"
unit = "years"
range = [0, 120.5]
missing = ["", "NA"]

[[columns]]
name = "region"
kind = "category"
levels = ["north", "south"]
other = true

[[columns]]
name = "since"
kind = "date"
dates = [1990-01-01, 2030-12-31]

[[columns]]
name = "member"
kind = "boolean"
constant = true
"""


def schema(folder: Path, text: str = SCHEMA, name: str = "schema.toml") -> Schema:
    path = folder / name
    path.write_text(text)
    return load_schema(path)


def test_a_schema_is_read(tmp_path: Path) -> None:
    found = schema(tmp_path)
    assert found.names == ("customer", "age", "region", "since", "member")
    assert found.identifiers == ("customer",)
    assert found["age"].range == (Decimal(0), Decimal("120.5"))
    assert found["age"].bounds == (0.0, 120.5)
    assert found["since"].bounds == (7305.0, 22279.0)
    assert [found[name].states for name in found.names] == [0, 0, 3, 0, 2]


def test_the_digest_depends_on_meaning_not_on_spelling(tmp_path: Path) -> None:
    first = schema(tmp_path)
    for old, new in [
        ("120.5", "1.205e2"),
        ('"boolean"', "'boolean'"),
        ("1990-01-01", '"1990-01-01"'),
    ]:
        assert schema(tmp_path, SCHEMA.replace(old, new)).digest() == first.digest()
    for old, new in [("years", "months"), ("120.5", "121"), ('"south"]', '"south", "east"]')]:
        assert schema(tmp_path, SCHEMA.replace(old, new)).digest() != first.digest()


def test_the_digest_is_pinned(tmp_path: Path) -> None:
    """Owners of all versions must agree on it."""
    assert schema(tmp_path).digest().hex() == (
        "761180a0273b725f22d15b44556ff7985b4eba168ed41359b122fc9b323ae3a9"
    )


WRONG = [
    ('kind = "boolean"', 'kind = "flag"', "columns[4].kind", "is not possible here; write one of"),
    ('unit = "years"', 'units = "years"', "columns[1].units", "unknown key"),
    ('"age"', '"customer"', "columns[1].name", "twice"),
    ('"age"', '" age"', "columns[1].name", "space"),
    ("[0, 120.5]", "[120.5, 0]", "columns[1].range", "least, largest"),
    ("[0, 120.5]", "[0, nan]", "", "finite number"),
    ("[1990-01-01, 2030-12-31]", "[2030-12-31, 1990-01-01]", "columns[3].dates", "first, last"),
    ("dates = [1990-01-01, 2030-12-31]", "range = [1, 2]", "columns[3].range", "write dates"),
    ('levels = ["north", "south"]\n', "", "columns[2].levels", "needs its levels"),
    ('["north", "south"]', '["north", "north"]', "columns[2].levels", "twice"),
    ('["north", "south"]', '["north", "south "]', "columns[2].levels", "space"),
    ("other = true", 'missing = ["north"]', "columns[2].missing", "is also a level"),
    (
        "constant = true",
        'missing = ["NA", "0.0"]',
        "columns[4].missing",
        "also means true or false",
    ),
    ("constant = true", 'levels = ["a"]', "columns[4].levels", "boolean does not have this"),
    (
        'kind = "identifier"',
        'kind = "identifier"\nmissing = [""]',
        "columns[0].missing",
        "does not have this",
    ),
]


@pytest.mark.parametrize(("old", "new", "key", "says"), WRONG)
def test_a_wrong_schema_names_file_line_key_and_remedy(
    tmp_path: Path, old: str, new: str, key: str, says: str
) -> None:
    with pytest.raises(JobError) as caught:
        schema(tmp_path, replaced(old, new, SCHEMA))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'schema.toml'}:")
    assert key in message
    assert says in message


def test_the_column_and_the_field_that_differ_are_named(tmp_path: Path) -> None:
    mine = digest_of(schema(tmp_path))

    def against(old: str, new: str) -> list[str]:
        other = SCHEMA.replace(old, new) if old else SCHEMA + new
        return differences({"a": mine, "b": digest_of(schema(tmp_path, other))})

    assert against("x", "x") == []
    assert against("years", "months") == ["column 'age': unit of a and b differ"]
    assert against('"NA"', '"N.A."') == ["column 'age': missing of a and b differ"]
    assert against('"south"]', '"south"]\nmissing = [""]') == [
        "column 'region': missing of a and b differ"
    ]
    assert against('name = "age"', 'name = "years"') == [
        "column 'age' is in a but not in b",
        "column 'years' is in b but not in a",
    ]
    head, tail = SCHEMA.split('[[columns]]\nname = "member"')
    turned = '[[columns]]\nname = "member"' + tail + head
    assert differences({"a": mine, "b": digest_of(schema(tmp_path, turned))}) == [
        "column 'customer' has a different place in b than in a"
    ]


def test_owners_compare_without_sending_a_schema(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.toml", tmp_path / "theirs.toml"
    ours.write_text(SCHEMA)
    theirs.write_text(SCHEMA.replace("years", "months"))
    sent = tmp_path / "theirs.json"
    sent.write_text(mpc_train("schema", "digest", theirs).stdout)
    assert not any(word in sent.read_text() for word in ("months", "north", "120.5"))
    differs = mpc_train("schema", "check", ours, sent)
    assert differs.exit_code == 3
    assert "column 'age': unit of" in differs.stderr
    same = mpc_train("schema", "check", theirs, sent, "--format", "json")
    assert same.exit_code == 0
    assert last_object(same.stdout)["columns"] == 5
    sent.write_text("{}")
    assert mpc_train("schema", "check", ours, sent).exit_code == 3
