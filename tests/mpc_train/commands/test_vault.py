"""`mpc-train vault`: what a data engineer does with it, and what it says."""

import datetime
import fcntl
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import polars
import pytest
from typer.testing import CliRunner, Result

from mpc_train.cli import app
from mpc_train.commands.table_options import source_like
from mpc_train.errors import ConfigError
from mpc_train.jobs.job import Job
from mpc_train.tables.source import Source
from parties.keys.vault import FileVault

PASSPHRASE = "correct horse"
CONFIG = """
node = { name = "bob", home = "home", passphrase_file = "passphrase" }
coordinator = { name = "desk", address = "tcp://127.0.0.1:7700" }
[rules]
recipients = []
dealers = []
evaluators = []
"""
TABLE = 'Alter;dose;note\n41;0,5;first\n52;1,5;"second; with ;"\n'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vault")
    FileVault.create(folder / "home", "bob", PASSPHRASE.encode())
    for name, text in {"passphrase": PASSPHRASE, "other": "another"}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    (folder / "party.toml").write_text(CONFIG)
    (folder / "t.csv").write_text(TABLE)
    return folder


def run(home: Path, *words: str | Path) -> Result:
    given = ["vault", *map(str, words), "--config", str(home / "party.toml")]
    return CliRunner().invoke(app, given)


def record(home: Path, *words: str | Path) -> dict[str, Any]:
    result = run(home, *words, "--format", "json")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found | {"exit": result.exit_code}


def put(home: Path, name: str) -> dict[str, Any]:
    return record(home, "import", home / "t.csv", name, "--delimiter", ";", "--decimal", ",")


def test_a_table_goes_in_and_comes_out(home: Path) -> None:
    assert put(home, "t1") == {
        "status": "ok",
        "name": "t1",
        "version": 1,
        "rows": 2,
        "columns": ["Alter", "dose", "note"],
        "protected": {},
        "exit": 0,
    }
    assert put(home, "t1")["version"] == 2
    listed = [each for each in record(home, "ls")["objects"] if each["name"] == "t1"]
    assert [(each["kind"], each["version"]) for each in listed] == [("table", 1), ("table", 2)]
    assert "Alter" not in run(home, "ls").stdout
    shown = record(home, "show", "t1")
    assert (shown["rows"], shown["columns"]) == (2, ["Alter", "dose", "note"])
    out = home / "out.csv"
    assert record(home, "export", "t1", "--out", out)["rows"] == 2
    assert out.read_text() == 'Alter,dose,note\n41,"0,5",first\n52,"1,5",second; with ;\n'
    assert out.stat().st_mode & 0o077 == 0
    again = record(home, "export", "t1", "--out", out)
    assert again["exit"] == 3 and "exists, and an export replaces nothing" in again["message"]


def test_columns_stay_outside_when_they_are_ignored(home: Path) -> None:
    words = ("import", home / "t.csv", "t2", "--read", "delimiter=;", "--read", "ignore=['note']")
    assert record(home, *words)["columns"] == ["Alter", "dose"]


def test_what_is_wrong_with_a_table_leaves_nothing(home: Path) -> None:
    for text, said in (("a,a\n1,2\n", "appears twice"), ("a,b\n1\n", "line 2"), ("", "empty")):
        (home / "bad.csv").write_text(text)
        found = record(home, "import", home / "bad.csv", "bad")
        assert found["exit"] == 4 and said in found["message"], found
    assert record(home, "import", home / "none.csv", "bad")["exit"] == 4
    assert record(home, "show", "bad")["exit"] == 5
    assert not list((home / "home" / "vault").rglob("bad*"))
    assert "is not a name" in record(home, "import", home / "t.csv", "a.b")["message"]


def test_keys_are_rotated(home: Path) -> None:
    put(home, "t3")
    made = CliRunner().invoke(
        app,
        ["vault", "key", str(home / "k.keys"), "--passphrase-file", str(home / "other")],
    )
    assert made.exit_code == 0, made.output
    assert f'key = "file:{home / "k.keys"}"' in made.stdout
    refused = record(home, "rotate")
    assert refused["exit"] == 5 and "mpc-train identity rotate" in refused["message"]
    uri = f"file:{home / 'k.keys'}"
    to = record(home, "rotate", "--to", uri, "--to-passphrase-file", home / "other")
    assert to["exit"] == 0 and to["key"].startswith("file:1-") and to["rewrapped"] >= 1
    closed = record(home, "show", "t3")
    assert closed["exit"] == 5 and "another identity" in closed["message"]
    config = home / "party.toml"
    config.write_text(f'vault = {{ key = "file:k.keys", passphrase_file = "other" }}\n{CONFIG}')
    try:
        assert record(home, "show", "t3")["rows"] == 2
        turned = record(home, "rotate")
        assert turned["key"].startswith("file:2-") and turned["retired"] == [to["key"]]
        assert record(home, "show", "t3")["rows"] == 2
        (home / "k.keys").rename(home / "away")
        gone = record(home, "show", "t3")
        assert gone["exit"] == 5 and "k.keys: No such file" in gone["message"]
        (home / "away").rename(home / "k.keys")
        back = record(home, "rotate", "--to", "identity:")
        assert back["exit"] == 0 and back["key"].startswith("identity:")
    finally:
        config.write_text(CONFIG)
    assert record(home, "show", "t3")["rows"] == 2


def test_a_damaged_object_is_named_and_the_others_are_listed(home: Path) -> None:
    put(home, "broken")
    put(home, "sound")
    header = home / "home" / "vault" / "table" / "broken.1.header"
    content = header.read_bytes()
    header.write_bytes(content[:-9])
    try:
        listed = record(home, "ls")
        assert listed["exit"] == 5 and listed["status"] == "VaultError"
        assert "sound" in {each["name"] for each in listed["objects"]}
        assert len(listed["damaged"]) == 1 and "table/broken.1:" in listed["damaged"][0]
        shown = run(home, "ls")
        assert shown.exit_code == 5 and "sound" in shown.stdout
        assert "table/broken.1:" in shown.stderr and "from a backup" in shown.stderr
    finally:
        header.write_bytes(content)
    assert record(home, "ls")["exit"] == 0


def test_shredding_asks_first(home: Path) -> None:
    put(home, "t4")
    words = ["vault", "shred", "t4", "--config", str(home / "party.toml")]
    asked = CliRunner().invoke(app, words, input="n\n")
    assert asked.exit_code == 3 and "nothing was destroyed" in asked.output
    assert "--yes" in asked.output
    assert record(home, "show", "t4")["rows"] == 2
    assert record(home, "shred", "t4", "--yes")["version"] == 1
    gone = record(home, "show", "t4")
    assert gone["exit"] == 5 and "has no table t4" in gone["message"]


def test_without_the_passphrase_nothing_opens(home: Path) -> None:
    put(home, "t5")
    wrong = record(home, "show", "t5", "--passphrase-file", home / "other")
    assert wrong["exit"] == 5 and "the passphrase is wrong" in wrong["message"]
    assert PASSPHRASE not in json.dumps(wrong)


def test_identifiers_become_tokens(home: Path) -> None:
    table = home / "people.csv"
    table.write_text("patient,dose\nmuller-1954,1\nmeier-1961,2\nmuller-1954,3\n")
    words = ("import", table, "people", "--tokenise", "patient")
    assert record(home, *words)["rows"] == 3
    again = home / "again.csv"
    again.write_text("dose,patient\n9,meier-1961\n")
    assert record(home, "import", again, "again", "--tokenise", "patient")["exit"] == 0
    for name in ("people", "again"):
        record(home, "export", name, "--out", home / f"{name}.out")
    people = [line.split(",") for line in (home / "people.out").read_text().splitlines()[1:]]
    assert [cells[1] for cells in people] == ["1", "2", "3"]
    assert people[0][0] == people[2][0] != people[1][0]
    assert "muller" not in (home / "people.out").read_text()
    assert (home / "again.out").read_text().splitlines()[1] == f"9,{people[1][0]}"
    listed = [each["kind"] for each in record(home, "ls")["objects"]]
    assert listed.count("key") == 1
    wrong = record(home, "import", table, "people", "--tokenise", "Patient")
    assert wrong["exit"] == 4
    assert (
        wrong["message"]
        == f"{table}: line 1: there is no column 'Patient'; there are 'patient', 'dose'"
    )


def test_a_table_that_changes_while_it_is_read_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpc_train.node import imports

    table = home / "grows.csv"
    table.write_text("a,b\n1,2\n")
    stage = imports.stage

    def meanwhile(*given: Any, **options: Any) -> int:
        rows = stage(*given, **options)
        table.write_text("a,b\n1,3\n")
        return rows

    monkeypatch.setattr(imports, "stage", meanwhile)
    found = record(home, "import", table, "grows")
    assert found["exit"] == 4 and "changed while it was read" in found["message"]
    assert not list((home / "home" / "vault").rglob("grows*"))


def test_an_export_has_a_header_and_what_csv_holds(home: Path) -> None:
    none, lists = home / "none.parquet", home / "lists.parquet"
    frame = polars.DataFrame({"a": [1], "day": [datetime.date(2020, 1, 2)]})
    frame.clear().write_parquet(none)
    frame.with_columns(pixels=polars.Series([[1, 2]])).write_parquet(lists)
    for name, table in {"none": none, "lists": lists}.items():
        assert record(home, "import", table, name)["exit"] == 0
    assert record(home, "export", "none", "--out", home / "none.out")["rows"] == 0
    assert (home / "none.out").read_text() == "a,day\n"
    found = record(home, "export", "lists", "--out", home / "lists.out")
    assert found["exit"] == 4
    assert "vault:lists: column 'pixels' is of type List(Int64)" in found["message"]
    assert not (home / "lists.out").exists()


def test_what_an_import_does_not_do_is_refused(home: Path) -> None:
    for key, value in {
        "rename": "{Alter='age'}",
        "recode": "{note={x='y'}}",
        "drop_rows": "['missing-label']",
        "array_folder": "x",
    }.items():
        words = ("import", home / "t.csv", "never", "--delimiter", ";", "--read", f"{key}={value}")
        found = record(home, *words)
        assert found["exit"] == 3 and f"--read {key}=" in found["message"], found
    rest = ("--delimiter", ";", "--read", "ignore=['Alter', 'dose', 'note']")
    found = record(home, "import", home / "t.csv", "never", *rest)
    assert found["exit"] == 4 and "no column is left" in found["message"]
    assert not list((home / "home" / "vault").rglob("never*"))


@pytest.mark.parametrize(
    ("words", "held"), [(("rotate",), fcntl.LOCK_SH), (("import",), fcntl.LOCK_EX)]
)
def test_rotation_and_import_wait_for_each_other(
    home: Path, words: tuple[str, ...], held: int
) -> None:
    put(home, "waits")
    given: tuple[str | Path, ...] = words
    if "import" in words:
        given = (*words, home / "t.csv", "waits", "--delimiter", ";")
    found: list[dict[str, Any]] = []
    other = threading.Thread(target=lambda: found.append(record(home, *given)))
    with (home / "home" / "vault" / ".lock").open() as lock:
        fcntl.flock(lock, held)
        other.start()
        other.join(1.5)
        assert other.is_alive()
    other.join(60)
    assert len(found) == 1


def test_predictions_do_not_guess_how_a_table_of_the_vault_was_written(home: Path) -> None:
    config = home / "predict.toml"
    config.write_text(CONFIG + '[data]\nstudy = { file = "vault:t1" }\n')
    with pytest.raises(ConfigError, match="is in the vault"):
        source_like(config, cast(Job, SimpleNamespace(name="study")), Source(str(home / "t.csv")))


COLUMN_KEYS = """
[vault.columns]
lab = { key = "file:lab.keys", passphrase_file = "other" }
dna = { key = "file:dna.keys", passphrase_file = "other" }
"""


@pytest.fixture(scope="module")
def guarded(home: Path) -> Path:
    """A node with two keys for columns, and a table `ill` of which each protects some."""
    (home / "party.toml").write_text(CONFIG + COLUMN_KEYS)
    for name in ("lab", "dna"):
        made = (
            "vault",
            "key",
            str(home / f"{name}.keys"),
            "--passphrase-file",
            str(home / "other"),
        )
        assert CliRunner().invoke(app, list(made)).exit_code == 0
    table = home / "ill.csv"
    table.write_text(
        "patient,hiv,gene,age\nmuller,positive77,acgt77,41\nmeier,negative78,tttt78,52\n"
    )
    words = ("--protect", "hiv=lab", "--protect", "gene=dna", "--tokenise", "patient")
    found = record(home, "import", table, "ill", *words)
    assert found["exit"] == 0 and found["protected"] == {"lab": ["hiv"], "dna": ["gene"]}
    return home


def test_protected_columns_need_their_key(guarded: Path) -> None:
    home = guarded
    shown = run(home, "show", "ill").stdout
    assert "hiv  under the key lab" in shown and "patient  (tokens)" in shown
    assert record(home, "show", "ill")["protected"] == {"lab": ["hiv"], "dna": ["gene"]}
    record(home, "export", "ill", "--out", home / "all.csv", "--leave-out", "patient")
    assert (home / "all.csv").read_text() == (
        "hiv,gene,age\npositive77,acgt77,41\nnegative78,tttt78,52\n"
    )
    # Without a key, by name of the column; what needs no key comes out.
    (home / "party.toml").write_text(CONFIG + COLUMN_KEYS.replace("lab =", "laboratory ="))
    found = record(home, "export", "ill", "--out", home / "no.csv")
    assert found["exit"] == 4 and found["message"] == (
        "vault:ill: column 'hiv' is under the key 'lab', which this node's file does not name "
        "under [vault.columns]; a job that uses such a column cannot run here"
    )
    assert not (home / "no.csv").exists()
    assert record(home, "export", "ill", "--out", home / "part.csv", "--leave-out", "hiv")["rows"]
    (home / "party.toml").write_text(CONFIG + COLUMN_KEYS.replace('"other"', '"passphrase"'))
    found = record(home, "export", "ill", "--out", home / "no.csv")
    assert found["exit"] == 4
    assert "'hiv' is under the key 'lab', which cannot be used here: " in found["message"]
    (home / "party.toml").write_text(CONFIG + COLUMN_KEYS)
    found = record(home, "export", "ill", "--out", home / "no.csv", "--leave-out", "HIV")
    assert found["message"] == "--leave-out: vault:ill has no column 'HIV'"


def test_keys_of_columns_are_rotated_by_themselves(guarded: Path) -> None:
    home = guarded

    def keys() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for each in record(home, "ls")["objects"]:
            found.setdefault(each["kind"], set()).add(each["key"])
        return found

    before = keys()
    done = record(home, "rotate", "--column-key", "lab")
    assert done["rewrapped"] == 1 and len(done["retired"]) == 1
    after = keys()
    assert after.pop("column-lab").isdisjoint(before.pop("column-lab")) and after == before
    assert record(home, "rotate", "--column-key", "none")["message"].endswith(
        "there is no key 'none' under [vault.columns], only lab, dna"
    )
    mixed = record(home, "rotate", "--column-key", "lab", "--to", "identity:")
    assert mixed["exit"] == 3 and "could open these columns, too" in mixed["message"]
    record(home, "export", "ill", "--out", home / "after.csv", "--leave-out", "patient")
    assert (home / "after.csv").read_text() == (home / "all.csv").read_text()


def test_keys_are_rotated_when_they_are_due(guarded: Path) -> None:
    home = guarded
    words = ("rotate", "--column-key", "dna", "--if-due")
    assert record(home, *words)["due"] is False
    limit = COLUMN_KEYS.replace(
        "[vault.columns]", "[vault]\nrotate_after_objects = 1\n[vault.columns]"
    )
    (home / "party.toml").write_text(CONFIG + limit)
    table = home / "ill.csv"
    assert record(home, "import", table, "more", "--protect", "gene=dna")["exit"] == 0
    done = record(home, *words)
    assert done["exit"] == 0 and done["made"] and done["rewrapped"] == 2
    (home / "party.toml").write_text(CONFIG + limit.replace("objects = 1", "days = 0"))
    assert "rotate_after_days: from 1 to 3650" in record(home, *words)["message"]
    (home / "party.toml").write_text(CONFIG + COLUMN_KEYS)
    assert record(home, "shred", "more", "--yes")["exit"] == 0


def test_what_is_wrong_with_a_protection_leaves_nothing(guarded: Path) -> None:
    home = guarded
    words = ("--protect", "HIV=lab", "--protect", "gene", "--protect", "age=lab", "--protect")
    found = record(home, "import", home / "ill.csv", "bad", *words, "age=dna")
    assert found["exit"] == 3 and found["message"].splitlines() == [
        "--protect 'HIV=lab': there is no column 'HIV'; there are 'patient', 'hiv', 'gene', 'age'",
        "  --protect 'gene': write COLUMN=KEY, a key under [vault.columns]",
        "  --protect 'age=dna': 'age' has the key 'lab' already",
    ]
    found = record(home, "import", home / "ill.csv", "bad", "--protect", "age=nobody")
    assert (
        found["exit"] == 3 and "there is no key 'nobody' under [vault.columns]" in found["message"]
    )
    assert not list((home / "home" / "vault").rglob("bad*"))


def test_shredding_a_table_takes_its_columns_along(guarded: Path) -> None:
    home = guarded
    table = home / "ill.csv"
    words = ("--protect", "hiv=lab", "--protect", "gene=dna")
    assert record(home, "import", table, "ill", *words)["version"] == 2
    assert record(home, "shred", "ill", "--kind", "column-dna", "--yes")["version"] == 2
    found = record(home, "export", "ill", "--out", home / "no.csv")
    assert "'gene' is under the key 'dna', which cannot be used here" in found["message"]
    assert "it was shredded" in found["message"]
    assert record(home, "shred", "ill", "--yes")["version"] == 2
    left = [(e["kind"], e["version"]) for e in record(home, "ls")["objects"] if e["name"] == "ill"]
    assert left == [("column-dna", 1), ("column-lab", 1), ("table", 1)]


def test_a_key_for_columns_is_not_that_of_the_vault(home: Path) -> None:
    same = COLUMN_KEYS.replace("file:lab.keys", "identity:").replace("dna =", "D_N =")
    (home / "party.toml").write_text(CONFIG + same)
    found = record(home, "ls")
    assert found["exit"] == 3
    assert "vault.columns.lab.key: name another key than the vault's own" in found["message"]
    assert "vault.columns.D_N: 'D_N' is not a name" in found["message"]
    (home / "party.toml").write_text(CONFIG)
