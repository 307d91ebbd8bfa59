"""What people mix up: homes, identities and cards, names; and what a node says while it is busy."""

import json
import tomllib
from pathlib import Path

import pytest

from mpc_train.admission.load import load_job
from mpc_train.commands.common import Format
from mpc_train.commands.nodes import Events, _Guarded
from mpc_train.node.consent import roles_of
from parties.errors import CardError
from parties.keys.identity import Card
from parties.keys.roster import Roster
from parties.keys.vault import FileVault
from tests.support.audit_logs import audit_log
from tests.support.commands import as_json, mpc_train
from tests.support.csv_tables import csv_lines
from tests.support.jobs import JOB, write_job
from tests.support.node_files import config_of, party_toml
from tests.support.node_vaults import node_vault

ROOT = Path(__file__).resolve().parents[3]
PASSPHRASE = b"correct horse battery staple"
NAMES = ("ann", "bob", "cleo", "registry", "office")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home of ann, with the cards of all names of the job."""
    folder = tmp_path / "keys"
    vault = FileVault.create(folder, "ann", PASSPHRASE)
    others = [FileVault.create(tmp_path / name, name, PASSPHRASE).card for name in NAMES[1:]]
    Roster.of([vault.card, *others]).save(folder / "roster")
    return folder


@pytest.fixture(autouse=True)
def no_home_of_the_tester(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPC_TRAIN_HOME", str(tmp_path / "default"))


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    shown = mpc_train("--version")
    assert shown.exit_code == 0
    assert shown.stdout == f"mpc-train {project['version']}\n"
    assert "--version" in mpc_train("--help").stdout


@pytest.mark.parametrize(
    "verb",
    [
        ["identity", "card"],
        ["identity", "show"],
        ["identity", "card", "ann"],
        ["roster", "show"],
        ["roster", "add", "CARD"],
        ["open", "model.sealed"],
        ["open", "model.sealed", "--name", "ann"],
        ["job", "approve", "JOB"],
        ["job", "check", "JOB"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("wrong", ["missing", "a file"])
def test_a_home_that_is_none(tmp_path: Path, home: Path, verb: list[str], wrong: str) -> None:
    given = tmp_path / "kyes"
    if wrong == "a file":
        given.write_text("")
    named = {"CARD": str(home / "ann.card"), "JOB": str(write_job(tmp_path))}
    shown = mpc_train(*(named.get(word, word) for word in verb), "--home", given)
    assert shown.exit_code == 5
    assert str(given) in shown.stderr and "correct --home" in shown.stderr
    assert given.exists() == (wrong == "a file")  # nothing is made there by the way


def test_a_home_without_that_identity(tmp_path: Path, home: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(PASSPHRASE)
    secret.chmod(0o600)
    sealed = tmp_path / "model.sealed"
    words = ("open", sealed, "--home", home, "--passphrase-file", secret, "--name", "an")
    shown = mpc_train(*words)
    assert shown.exit_code == 5 and "there are ann in" in shown.stderr
    (tmp_path / "empty").mkdir()
    shown = mpc_train("identity", "card", "--home", tmp_path / "empty")
    assert shown.exit_code == 5 and "is this the right home?" in shown.stderr


def test_a_node_file_with_a_wrong_home(tmp_path: Path, home: Path) -> None:
    (tmp_path / "party.toml").write_text(party_toml(node='home = "kyes"'))
    shown = mpc_train("party", "--config", tmp_path / "party.toml")
    assert shown.exit_code == 5
    assert str(tmp_path / "kyes") in shown.stderr and "home under [node]" in shown.stderr


def test_an_identity_is_no_card(tmp_path: Path, home: Path) -> None:
    before = sorted(path.name for path in (home / "roster").iterdir())
    shown = mpc_train("roster", "add", tmp_path / "bob" / "bob.identity", "--home", home)
    assert shown.exit_code == 5
    assert "an identity, not a card" in shown.stderr and "card beside it, bob.card" in shown.stderr
    assert sorted(path.name for path in (home / "roster").iterdir()) == before
    renamed = tmp_path / "sent.card"
    renamed.write_bytes((tmp_path / "bob" / "bob.identity").read_bytes())
    with pytest.raises(CardError, match="never give it away"):
        Card.load(renamed)


def test_names_of_a_job_without_a_card(tmp_path: Path, home: Path) -> None:
    path = write_job(tmp_path)
    shown = mpc_train("job", "check", path, "--home", home)
    assert shown.exit_code == 0 and "Warning" not in shown.stdout
    assert mpc_train("job", "check", path, "--roster", home / "roster").exit_code == 0
    path.write_text(path.read_text().replace('"office"', '"ofice"'))
    assert "ofice" in load_job(path).recipients
    shown = mpc_train("job", "check", path, "--home", home)
    assert shown.exit_code == 0
    assert "Warning no card of ofice (recipient) in the roster" in shown.stdout
    assert "did you mean office?" in shown.stdout
    record = as_json("job", "check", path, "--home", home)
    assert record["without_card"] == ["ofice"]
    (home / "roster" / "registry.card").unlink()
    (home / "roster" / "bob.card").unlink()
    shown = mpc_train("job", "check", path, "--roster", home / "roster")
    assert shown.exit_code == 5
    for name, part in (("ofice", "recipient"), ("registry", "dealer"), ("bob", "owner")):
        assert f"no card of {name} ({part}" in shown.stderr


def test_clients_of_a_served_model_need_no_card_yet(tmp_path: Path, home: Path) -> None:
    serve = '[serve]\nclients = ["ofice", "ann"]\nvalidators = ["ethics"]\n'
    text = JOB.replace('recipients = ["ann", "office"]\n', "")
    text = text.replace("[reveal]", f'{serve}\n[reveal]\nmodel = "shares"')
    path = write_job(tmp_path, text)
    shown = mpc_train("job", "check", path, "--roster", home / "roster")
    assert shown.exit_code == 0
    assert "Warning no card of ofice (client) in the roster" in shown.stdout
    assert "did you mean office?" in shown.stdout
    assert "Warning no card of ethics (validator) in the roster" in shown.stdout
    record = as_json("job", "check", path, "--home", home)
    assert record["without_card"] == ["ofice", "ethics"]
    assert record["serve"]["clients"] == ["ofice", "ann"]
    (home / "roster" / "bob.card").unlink()
    shown = mpc_train("job", "check", path, "--roster", home / "roster")
    assert shown.exit_code == 5
    assert "no card of bob" in shown.stderr and "ofice" not in shown.stderr


def test_without_a_roster_nobody_is_unknown(tmp_path: Path) -> None:
    record = as_json("job", "check", write_job(tmp_path))
    assert record["without_card"] == []
    shown = mpc_train("job", "check", write_job(tmp_path), "--roster", tmp_path / "none")
    assert shown.exit_code == 5


@pytest.mark.parametrize("form", [Format.text, Format.json])
def test_a_node_says_what_it_does_before_it_signs(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str], form: Format
) -> None:
    (tmp_path / "ann.csv").write_text("\n".join(csv_lines(40)))
    (tmp_path / "home").mkdir()
    job = load_job(write_job(tmp_path))
    roster = Roster.load(home / "roster")
    audit = audit_log(tmp_path)
    guarded = _Guarded(
        config_of(tmp_path),
        roster,
        False,
        Events(form),
        lambda _: True,
        audit,
        node_vault(tmp_path),
    )
    guarded.prepare(job.to_bytes(), roles_of(job))
    captured = capsys.readouterr()
    if form is Format.json:
        told = [json.loads(line) for line in captured.out.splitlines()]
        assert [event["event"] for event in told][:2] == ["checking", "preparing"]
        return
    said = captured.err
    order = [
        "to ann, office",
        "checking the job against this node's rules",
        "This node may sign",
        "getting ready to sign: reading this node's table, loading PyTorch, checking the network",
    ]
    places = [said.index(words) for words in order]
    assert places == sorted(places)
