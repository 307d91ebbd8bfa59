"""`mpc-train audit`, and what other commands write into the log."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from typer.testing import CliRunner, Result

from mpc_train.checkpoints.keeper import token_of
from mpc_train.cli import app
from mpc_train.commands.audit import _lines
from parties.audit.entries import Entry, Kind, Value
from parties.audit.reading import read_log
from parties.audit.record import sealer
from parties.keys.vault import FileVault, MemoryVault
from tests.support.audit_logs import KeysOfAnyDay, audit_log

PASSPHRASE = "correct horse"
CONFIG = """
node = { name = "bob", home = "home", passphrase_file = "passphrase" }
coordinator = { name = "desk", address = "tcp://127.0.0.1:7700" }
[rules]
recipients = []
dealers = []
evaluators = []
"""
CELL = "417.25"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    FileVault.create(tmp_path / "home", "bob", PASSPHRASE.encode())
    for name, text in {"passphrase": PASSPHRASE, "other": "another"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    (tmp_path / "party.toml").write_text(CONFIG)
    (tmp_path / "t.csv").write_text(f"age,dose\n41,{CELL}\n")
    return tmp_path


def vault(home: Path, *words: str | Path) -> Result:
    given = ["vault", *map(str, words), "--config", str(home / "party.toml")]
    return CliRunner().invoke(app, given)


def audit(home: Path, *words: str | Path) -> Result:
    return CliRunner().invoke(app, ["audit", *map(str, words)])


def shown(home: Path, *words: str) -> list[dict[str, Any]]:
    result = audit(home, "show", "--config", home / "party.toml", "--format", "json", *words)
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])["entries"]
    return found


def kinds(home: Path) -> list[str]:
    skipped = ("log-begun", "identity-opened")
    return [each["kind"] for each in shown(home) if each["kind"] not in skipped]


def test_what_people_do_with_the_vault_is_logged(home: Path) -> None:
    assert vault(home, "import", home / "t.csv", "adm").exit_code == 0
    assert vault(home, "export", "adm", "--out", home / "out.csv").exit_code == 0
    key = home / "k.keys"
    words = ["vault", "key", str(key), "--passphrase-file", str(home / "other")]
    assert CliRunner().invoke(app, words).exit_code == 0
    to = ("--to", f"file:{key}", "--to-passphrase-file", home / "other")
    assert vault(home, "rotate", *to).exit_code == 0
    # The same again, before the node's file is changed: nothing is left to do.
    assert vault(home, "rotate", *to).exit_code == 0
    config = home / "party.toml"
    config.write_text(f'vault = {{ key = "file:k.keys", passphrase_file = "other" }}\n{CONFIG}')
    assert vault(home, "rotate").exit_code == 0
    assert vault(home, "shred", "adm", "--yes").exit_code == 0
    assert kinds(home) == [
        "log-key",
        "vault-import",
        "vault-export",
        "log-key",
        "vault-rotate",
        "vault-rotate",
        "log-key",
        "vault-rotate",
        "vault-shred",
    ]
    first, again, second = (each["fields"] for each in shown(home, "--kind", "vault-rotate"))
    assert first["key"] == again["key"] != second["key"]
    assert [each["destroyed"] for each in (first, again, second)] == [[], [], [first["key"]]]
    opened = [each["fields"]["by"] for each in shown(home, "--kind", "identity-opened")]
    assert opened[:2] == ["vault import", "vault export"] and opened[-1] == "audit show"
    text = json.dumps(shown(home))
    assert CELL not in text and PASSPHRASE not in text and "another" not in text


def test_an_altered_object_is_an_entry_and_an_alert(home: Path) -> None:
    out = home / "alerts"
    program = f"import sys; open({str(out)!r}, 'a').write(sys.stdin.read())"
    alerts = f"[audit]\ncommand = {json.dumps([sys.executable, '-c', program])}\n"
    (home / "party.toml").write_text(CONFIG + alerts)
    assert vault(home, "import", home / "t.csv", "adm").exit_code == 0
    assert not out.exists()
    (chunks,) = (home / "home" / "vault").rglob("*.chunks")
    raw = bytearray(chunks.read_bytes())
    raw[-1] ^= 1
    chunks.write_bytes(raw)
    assert vault(home, "show", "adm").exit_code != 0
    (found,) = shown(home, "--kind", "decryption-failed")
    alert = json.loads(out.read_text())
    assert alert["kind"] == "decryption-failed" and alert["entry"] == found["entry"]
    assert alert["node"] == "bob"


def test_who_keeps_failing_to_open_the_identity_raises_an_alert(home: Path) -> None:
    out = home / "alerts"
    program = f"import sys; open({str(out)!r}, 'a').write(sys.stdin.read())"
    alerts = f"[audit]\ncommand = {json.dumps([sys.executable, '-c', program])}\n"
    (home / "party.toml").write_text(CONFIG + alerts)
    for _ in range(5):
        wrong = vault(home, "import", home / "t.csv", "a", "--passphrase-file", home / "other")
        assert wrong.exit_code == 5
    told = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(each["fields"]["times"], each["entry"]) for each in told] == [(2, -1), (4, -1)]
    (found,) = shown(home, "--kind", "authentication-failed")
    assert found["fields"] == {"of": "identity", "times": 5}
    assert shown(home, "--kind", "authentication-failed") == [found]


def test_a_key_that_was_destroyed_is_an_entry(home: Path) -> None:
    """An object that was put back from a backup of before the rotation."""
    key = home / "k.keys"
    words = ["vault", "key", str(key), "--passphrase-file", str(home / "other")]
    assert CliRunner().invoke(app, words).exit_code == 0
    config = home / "party.toml"
    config.write_text(f'vault = {{ key = "file:k.keys", passphrase_file = "other" }}\n{CONFIG}')
    assert vault(home, "import", home / "t.csv", "adm").exit_code == 0
    (header,) = (home / "home" / "vault").rglob("adm*.header")
    before = header.read_bytes()
    assert vault(home, "rotate").exit_code == 0
    header.write_bytes(before)
    assert vault(home, "show", "adm").exit_code == 5
    assert [each["fields"] for each in shown(home, "--kind", "retired-key-used")] == [
        {"code": "key-service"}
    ]


def test_verify_says_which_entries_nobody_has_signed(home: Path, tmp_path: Path) -> None:
    assert vault(home, "import", home / "t.csv", "uns").exit_code == 0
    log, card = tmp_path / "bob", home / "home" / "bob.card"
    shutil.copytree(home / "home" / "audit" / "bob", log)
    result = audit(home, "verify", "--log", log, "--card", card)
    assert result.exit_code == 0 and "not signed yet" not in result.stdout
    found = read_log(log)
    number = len(found.records)
    forged = sealer(bytes(32), bytes(16))(found.origin, number, found.next_chain(), b"", b"{}")
    with (log / "records").open("ab") as stream:
        stream.write(forged)
    result = audit(home, "verify", "--log", log, "--card", card)
    assert result.exit_code == 0 and f"not signed yet: from entry {number} on" in result.stdout


def test_verify_needs_a_card(home: Path, tmp_path: Path) -> None:
    assert vault(home, "import", home / "t.csv", "adm").exit_code == 0
    log = home / "home" / "audit" / "bob"
    assert audit(home, "verify", "--home", home / "home").exit_code == 0
    result = audit(home, "verify", "--log", log)
    assert result.exit_code == 0 and "agrees: 4 entries, held by this node" in result.stdout
    for kind in ("card", "identity"):
        (home / "home" / f"bob.{kind}").rename(home / f"bob.{kind}")
    result = audit(home, "verify", "--log", log)
    assert result.exit_code == 5 and "Name the node's card: --card" in result.stderr
    assert audit(home, "verify", "--log", log, "--card", home / "bob.card").exit_code == 0
    result = audit(home, "verify", "--log", log, "--card", home / "bob.card", "--against", "none")
    assert result.exit_code == 5 and "there is no such log or checkpoint" in result.stderr
    result = audit(home, "verify", "--log", home / "none", "--card", home / "bob.card")
    assert result.exit_code == 5 and "cannot be read" in result.stderr


def test_a_log_that_was_altered_stops_a_command(home: Path) -> None:
    assert vault(home, "import", home / "t.csv", "adm").exit_code == 0
    records = home / "home" / "audit" / "bob" / "records"
    raw = bytearray(records.read_bytes())
    raw[200] ^= 1
    records.write_bytes(raw)
    result = vault(home, "export", "adm", "--out", home / "out.csv")
    assert result.exit_code == 9 and "is altered" in result.stderr
    assert not (home / "out.csv").exists()


def test_what_show_is_asked_for_has_to_exist(home: Path) -> None:
    config = home / "party.toml"
    result = audit(home, "show", "--config", config, "--kind", "nothing")
    assert result.exit_code == 5 and "'nothing' is no kind of entry; there are" in result.stderr
    result = audit(home, "show", "--config", config, "--since", "yesterday")
    assert result.exit_code == 5 and "write 2026-01-31" in result.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('webhook = "http://alerts.example.org"', "write https://host/"),
        ('webhook = "https://user:pass@host/"', "write https://host/"),
        ('command = [""]', "write ["),
        ("per_minute = 0", "between 1 and 60"),
        ("log = false", "log"),
    ],
)
def test_the_section_is_checked(home: Path, line: str, said: str) -> None:
    (home / "party.toml").write_text(f"{CONFIG}[audit]\n{line}\n")
    result = vault(home, "ls")
    assert result.exit_code == 3 and said in result.stderr


def test_an_auditor_sees_whether_the_node_signed_what_is_shown(tmp_path: Path) -> None:
    """Anybody can encrypt a log of their own making to an auditor's card."""
    eve = FileVault.create(tmp_path / "keys", "eve", PASSPHRASE.encode())
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    (tmp_path / "passphrase").chmod(0o600)
    ann, forger = MemoryVault.generate("ann"), MemoryVault.generate("ann")
    (tmp_path / "ann.card").write_text(ann.card.to_text())
    words = ["--identity", tmp_path / "keys" / "eve.identity"]
    words += ["--passphrase-file", tmp_path / "passphrase"]
    for who in (ann, forger):
        folder = tmp_path / who.card.fingerprint
        with audit_log(folder, who) as made:
            made.share_with(KeysOfAnyDay(who), [eve.card])
            made.append(
                Kind.RUN_STARTED, {"who": "one\nmpc-train: all is well\x1b[2J"}, job="study"
            )
        log = folder / "audit" / "ann"
        bare = CliRunner().invoke(app, ["audit", "show", "--log", str(log), *map(str, words)])
        assert bare.exit_code == 0 and "nobody checked that its node signed this" in bare.stderr
        given = [*words, "--card", tmp_path / "ann.card"]
        done = CliRunner().invoke(app, ["audit", "show", "--log", str(log), *map(str, given)])
        assert done.exit_code == (0 if who is ann else 9)
        assert ("the card is of mpc-train-audit/ann/" in done.stderr) == (who is forger)
        assert "who=one\\u000ampc-train: all is well\\u001b[2J" in done.stdout


def test_a_resumed_session_is_shown_by_step_and_session() -> None:
    name = token_of(350, False, bytes(range(32)))
    said: dict[str, Value] = {"session": "ab", "resumed": name.hex()}
    entry = Entry("2026-01-31T12:00:00.000Z", Kind.RUN_STARTED, fields=said)
    (line,) = _lines([(3, entry)])
    assert f"resumed=step:350,session:{bytes(range(32)).hex()}" in line
    (line,) = _lines([(3, structs.replace(entry, fields={"resumed": ""}))])
    assert line.endswith("resumed=no")
    (line,) = _lines([(3, structs.replace(entry, fields={"resumed": "no number"}))])
    assert line.endswith("resumed=no number")
