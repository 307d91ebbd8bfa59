"""Everything wrong with a job file is said at once, as far as one thing does not follow from
another."""

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from mpc_train.admission.load import load_job
from mpc_train.base.toml_shape import shape_faults
from mpc_train.errors import ConfigError, JobError
from mpc_train.jobs.job import Roles
from mpc_train.run.node_config import load_node_config
from mpc_train.tables.schema import load_schema
from tests.support.jobs import JOB, changed, loaded, replaced, with_data, write_job


def said(folder: Path, text: str) -> list[str]:
    path = write_job(folder, text)
    with pytest.raises(JobError) as caught:
        load_job(path)
    head, *found = str(caught.value).split("\n  ")
    if not found:
        return [head.removeprefix(f"{path}:")]
    assert head == f"{path}: {len(found)} faults:"
    return [line.removeprefix(f"{path}:") for line in found]


def test_one_fault_is_said_as_before(tmp_path: Path) -> None:
    assert said(tmp_path, replaced("epochs = 4", "epochs = 0")) == ["22: train.epochs: at least 1"]


def test_contradictions_of_all_sections(tmp_path: Path) -> None:
    text = changed(
        ("scale = 10.0", "scale = 0"),
        ("scale = 2 }", "scale = -1 }"),
        ("range = [0, 120]", "range = [120, 0]"),
        ("cleo = 30 }", "dave = 0 }"),
        ("epochs = 4", "epochs = 0"),
        ("learning_rate = 0.5", "learning_rate = 0"),
        ("seed = 7", "seed = -1"),
        ('name = "study"', 'name = "The study"'),
        ("[reveal]", "[reveal]\nleast_group = 0\ndecimals = 9"),
    )
    found = said(tmp_path, text)
    keys = [line.split(": ")[1] for line in found]
    assert keys == [
        "job.name",
        "data.features[0].scale",
        "data.features[1].scale",
        "data.rows",
        "data.rows.dave",
        "train.epochs",
        "train.seed",
        "train.optimizer.learning_rate",
        "reveal.least_group",
        "reveal.decimals",
    ]
    assert found[1].startswith("9: ")


def test_train_and_reveal_are_looked_at_both(tmp_path: Path) -> None:
    text = changed(("batch_size = 16", "batch_size = 1000"), ('"auc"]', '"mse"]'))
    assert [line.split(": ")[1] for line in said(tmp_path, text)] == [
        "train.batch_size",
        "reveal.metrics",
    ]


def test_keys_without_a_place_and_values_of_another_type(tmp_path: Path) -> None:
    text = changed(
        ("scale = 10.0", "scale = true"),
        ('{ name = "dose", scale = 2 }', '{ name = 5, scale = 2 }, { name = "x", scal = 2 }'),
        ("test_fraction", "test_fractions"),
        ("epochs = 4", 'epochs = "four"'),
        ('kind = "logistic"', 'kind = "magic"\nhidden = 4'),
        ("[reveal]", "[prepares]\nmissing = 1\n[reveal]"),
    )
    found = said(tmp_path, text)
    assert {line.split(": ")[-2] for line in found} == {
        "data.features[0].scale",
        "data.features[1].name",
        "data.features[2].scal",
        "data.test_fractions",
        "model.kind",
        "model.hidden",
        "train.epochs",
        "prepares",
    }


def test_what_is_missing_is_said_and_hides_nothing(tmp_path: Path) -> None:
    text = changed(('label = "ill"\n', ""), ('kind = "logistic"', ""), ("epochs = 4", "epoch = 4"))
    words = "\n".join(said(tmp_path, text))
    assert 'data.label: missing; write label = "…"' in words
    assert 'model.kind: missing; write kind = "gamma" or "linear" or' in words
    assert "train.epoch: unknown key" in words
    assert words.count("\n") == 2


PRIVACY = """
[privacy]
{}

[reveal]"""


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            "",
            [
                "privacy.epsilon: missing; write a number, like epsilon = 3",
                "privacy.delta: missing; write a number, like delta = 0.00001",
                'privacy.neighbours: missing; write neighbours = "replaced" or "zeroed"',
            ],
        ),
        (
            'epsilon = "three"\ndeltta = 0.00001\nfree = 3',
            [
                "privacy.epsilon: a text is not a number; write it without quotation marks",
                "privacy.deltta: unknown key; remove it or correct its spelling; did you mean "
                "'delta'?",
                "privacy.free: unknown key; remove it or correct its spelling",
                'privacy.neighbours: missing; write neighbours = "replaced" or "zeroed"',
            ],
        ),
    ],
)
def test_all_keys_of_a_section_are_looked_at(
    tmp_path: Path, lines: str, expected: list[str]
) -> None:
    """A key that is missing because it is misspelt is one fault."""
    found = said(tmp_path, replaced("[reveal]", PRIVACY.format(lines)))
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.split(": ", 1)[1].startswith(start)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (str, 'x = "…"'),
        (int, "a whole number: x = …"),
        (Decimal, "a number: x = …"),
        (bool, "x = …"),
        (dict[str, int], "x = { NAME = … }"),
        (tuple[str, ...], 'x = ["…"]'),
        (tuple[Decimal, Decimal], "x = […, …]"),
        (Roles, "a section [x]"),
        (tuple[Roles, ...], "a section [[x]] for each"),
        (Roles | str, 'x = "…"'),
        (Annotated[tuple[str, ...], msgspec.Meta(description="names")], 'x = ["…"]: names'),
    ],
)
def test_what_to_write_for_a_key_that_is_missing(kind: Any, expected: str) -> None:
    table = msgspec.defstruct("Table", [("x", kind)], forbid_unknown_fields=True)
    assert shape_faults({}, table) == [("x", f"missing; write {expected}")]


class Entry(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    scale: int = 0
    levels: tuple[int, ...] = ()


class Entries(msgspec.Struct, forbid_unknown_fields=True):
    list: tuple[Entry, ...]


@pytest.mark.parametrize("key", ["nam", "name"])
def test_an_entry_is_not_mistaken_for_one_before_it(key: str) -> None:
    """What is wrong with an entry is taken out, so that the others have other places then."""
    tree = {"list": [{key: 3}, {"scale": 2}, {"name": "c"}, {}]}
    found = [key for key, _ in shape_faults(tree, Entries)]
    assert found == [f"list[0].{key}", "list[1].name", "list[3].name"]


def test_entries_of_a_table_are_all_looked_at() -> None:
    """The library does not say which of them it means; to find it the others are set aside."""
    table = msgspec.defstruct("Table", [("x", dict[str, dict[str, int]])])
    tree = {"x": {"a": {"one": 1, "two": "b"}, "b": {"one": 1}, "c": {"one": "d", "two": "e"}}}
    assert [key for key, _ in shape_faults(tree, table)] == ["x.a.two", "x.c.one", "x.c.two"]


def test_entries_of_entries_have_their_own_places() -> None:
    wrong: list[Any] = ["x", 1, "y"]
    tree = {
        "list": [
            {"name": "a", "levels": list(wrong), "": 1},
            {"levels": list(wrong)},
            {"name": "c", "levels": list(wrong)},
        ]
    }
    assert sorted(key for key, _ in shape_faults(tree, Entries)) == [
        "list[0].",
        "list[0].levels[0]",
        "list[0].levels[2]",
        "list[1].levels[0]",
        "list[1].levels[2]",
        "list[1].name",
        "list[2].levels[0]",
        "list[2].levels[2]",
    ]


def test_the_list_is_short(tmp_path: Path) -> None:
    many = ", ".join(f'{{ name = "c{number}", scale = 0 }}' for number in range(30))
    with pytest.raises(JobError) as caught:
        loaded(tmp_path, with_data(f"features = [{many}]"))
    head, *found, last = str(caught.value).split("\n  ")
    assert head.endswith("30 faults:") and len(found) == 20 and last == "and 10 more"


def test_every_column_of_a_schema(tmp_path: Path) -> None:
    path = tmp_path / "schema.toml"
    path.write_text(
        '[[columns]]\nname = "a"\nkind = "number"\nrange = [2, 1]\n'
        '[[columns]]\nname = "a"\nkind = "date"\n'
        '[[columns]]\nname = "b"\nkind = "category"\n'
    )
    with pytest.raises(JobError) as caught:
        load_schema(path)
    _, *found = str(caught.value).split("\n  ")
    places = [line.removeprefix(f"{path}:").split(": ")[:2] for line in found]
    assert places == [
        ["4", "columns[0].range"],
        ["6", "columns[1].name"],
        ["8", "columns[2].levels"],
    ]


def test_a_node_file_and_a_mark_of_the_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "party.toml"
    path.write_text('\ufeff[node]\nname = 4\nhom = "x"\n[coordinator]\nname = "c"\n')
    with pytest.raises(ConfigError) as caught:
        load_node_config(path)
    words = str(caught.value)
    for what in ("2: node.name", "3: node.hom: unknown key", "coordinator.address: missing"):
        assert what in words
    job = tmp_path / "job.toml"
    job.write_bytes(b"\xef\xbb\xbf" + JOB.encode())
    assert load_job(job).digest() == load_job(write_job(tmp_path)).digest()
    job.write_bytes(JOB.encode("utf-16"))
    with pytest.raises(JobError, match="not UTF-8 text; save the file as UTF-8"):
        load_job(job)
