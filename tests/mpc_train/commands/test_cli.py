"""The command line: what it prints, where, and with which exit status."""

import subprocess
import sys
from pathlib import Path

import pytest

from mpc_train.errors import (
    EXIT_STATUS,
    ArtifactError,
    CiphertextError,
    ConfigError,
    DataError,
    JobError,
    LinkageError,
    ModelError,
    NodeFailedError,
    OwnersError,
    PortTakenError,
    QueryRefusedError,
    RefusedError,
    classify,
    explain,
)
from parties import errors as parties_errors
from protocols import errors as protocols_errors
from tests.support.commands import as_json, last_object, mpc_train
from tests.support.csv_tables import csv_lines
from tests.support.jobs import replaced, write_job
from tests.support.local_run import port_in_use
from tests.support.node_files import party_toml

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text("correct horse battery staple\n")
    path.chmod(0o600)
    return path


def test_help_names_every_verb_and_the_exit_statuses() -> None:
    text = mpc_train("--help").stdout
    for verb in (
        "identity",
        "roster",
        "job",
        "party",
        "dealer",
        "coordinator",
        "open",
        "predict",
        "run",
    ):
        assert verb in text
    for number in (*range(11), 130):
        assert str(number) in text


@pytest.mark.parametrize(
    "verb",
    [
        ["identity", "new"],
        ["identity", "card"],
        ["identity", "show"],
        ["roster", "add"],
        ["roster", "remove"],
        ["roster", "show"],
        ["job", "check"],
        ["party"],
        ["dealer"],
        ["coordinator"],
        ["open"],
        ["predict"],
        ["run"],
    ],
)
def test_every_verb_has_help_and_refuses_unknown_options(verb: list[str]) -> None:
    shown = mpc_train(*verb, "--help")
    assert shown.exit_code == 0
    assert "Usage" in shown.stdout
    assert mpc_train(*verb, "--no-such-option").exit_code == 2


def test_help_keeps_words_in_brackets() -> None:
    """The library takes [data] for a style and swallows it, unless it is escaped."""
    for verb, words in (
        (["predict"], "key of [data]"),
        (["schema", "infer"], "key of [data]"),
        (["vault", "import"], "under a key of [vault.columns]; may"),
        (["vault", "rotate"], "this key of [vault.columns], not"),
        (["vault", "rotate"], "([vault] rotate_after_…)"),
        (["keys", "doctor"], "As [vault] key names it"),
    ):
        assert words in " ".join(mpc_train(*verb, "--help").stdout.replace("│", " ").split())


def test_no_option_takes_a_passphrase() -> None:
    for verb in (["identity", "new"], ["party"], ["dealer"], ["coordinator"], ["open"]):
        text = mpc_train(*verb, "--help").stdout
        assert "--passphrase-file" in text
        assert "--passphrase-fd" in text
        assert "--passphrase " not in text


def test_module_script_and_launch_are_one_program() -> None:
    for argv in (["-m", "mpc_train", "run"], ["launch.py"]):
        done = subprocess.run(
            [sys.executable, *argv, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert "Run a whole job on this machine" in done.stdout


def test_help_starts_without_numpy() -> None:
    """Which would be half of the time that `mpc-train --help` takes."""
    program = "import sys, mpc_train.cli; print('numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_keys_and_checks_start_without_pytorch() -> None:
    program = (
        "import sys; from mpc_train.cli import app; from mpc_train.commands import nodes, vault\n"
        "from mpc_train.commands.local import run\n"
        "import mpc_train.jobs.job, mpc_train.run.node_config\n"
        "import parties.keys.vault, parties.nodes.coordinator\n"
        "import mpc_train.commands.serving.shares, mpc_train.serving.service_file\n"
        "import mpc_train.live.server, mpc_train.node.logbook\n"
        "print(sorted({'torch', 'crypten', 'polars', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_job_is_explained(tmp_path: Path) -> None:
    path = write_job(tmp_path)
    shown = mpc_train("job", "check", path)
    assert shown.exit_code == 0
    for words in (
        "logistic regression",
        "ann (40 rows)",
        "registry deals",
        "to ann, office",
        "accuracy, auc",
        "together with any one of them",
    ):
        assert words in shown.stdout
    record = as_json("job", "check", path)
    assert record["status"] == "ok"
    assert record["recipients"] == ["ann", "office"]


def test_a_wrong_job_ends_with_one_line_and_status_3(tmp_path: Path) -> None:
    path = write_job(tmp_path, replaced("seed = 7", "sed = 7"))
    shown = mpc_train("job", "check", path, "--format", "json")
    assert shown.exit_code == 3
    assert last_object(shown.stdout)["status"] == "JobError"
    assert shown.stderr.startswith(f"error: {path}:")
    assert shown.stderr.count("\n") == 1


def test_identities_cards_and_rosters(tmp_path: Path, secret: Path) -> None:
    ann, bob = tmp_path / "ann", tmp_path / "bob"
    made = mpc_train("identity", "new", "ann", "--home", ann, "--passphrase-file", secret)
    assert made.exit_code == 0, made.stderr
    other = mpc_train(
        "identity", "new", "bob", "--home", bob, "--passphrase-file", secret, "--format", "json"
    )
    fingerprint = last_object(other.stdout)["fingerprint"]
    assert as_json("identity", "show", "--home", bob)["fingerprint"] == fingerprint
    card = tmp_path / "bob.card"
    card.write_text(mpc_train("identity", "card", "--home", bob).stdout)
    printed = as_json("identity", "card", "--home", bob)
    assert printed["card"] == card.read_text()
    added = mpc_train("roster", "add", "--yes", card, "--home", ann)
    assert added.exit_code == 0
    assert str(fingerprint) in added.stdout
    cards = as_json("roster", "show", "--home", ann)["cards"]
    assert isinstance(cards, dict)
    assert set(cards) == {"ann", "bob"}
    assert cards["bob"] == fingerprint
    # A changed key under a known name, an altered card, a second identity of one name.
    third = tmp_path / "third"
    mpc_train("identity", "new", "bob", "--home", third, "--passphrase-file", secret)
    assert mpc_train("roster", "add", "--yes", third / "bob.card", "--home", ann).exit_code == 5
    assert (
        mpc_train(
            "roster", "add", "--yes", third / "bob.card", "--home", ann, "--replace"
        ).exit_code
        == 0
    )
    card.write_text(card.read_text().replace('name = "bob"', 'name = "eve"'))
    assert mpc_train("roster", "add", "--yes", card, "--home", ann).exit_code == 5
    again = mpc_train("identity", "new", "ann", "--home", ann, "--passphrase-file", secret)
    assert again.exit_code == 5
    assert "never overwritten" in again.stderr
    assert mpc_train("identity", "show", "--home", tmp_path / "none").exit_code == 5


PARTY = party_toml(node='home = "home"')


def test_nodes_refuse_wrong_files_and_passphrases(tmp_path: Path, secret: Path) -> None:
    mpc_train("identity", "new", "ann", "--home", tmp_path / "home", "--passphrase-file", secret)
    config = tmp_path / "party.toml"
    config.write_text(PARTY.replace("[rules]", "[rule]"))
    for verb in ("party", "dealer", "coordinator"):
        assert mpc_train(verb, "--config", config).exit_code == 3
        assert mpc_train(verb, "--config", tmp_path / "none.toml").exit_code == 3
    config.write_text(PARTY)
    wrong = tmp_path / "wrong"
    wrong.write_text("incorrect\n")
    wrong.chmod(0o600)
    shown = mpc_train("party", "--config", config, "--passphrase-file", wrong, "--format", "json")
    assert shown.exit_code == 5
    assert last_object(shown.stdout)["status"] == "PassphraseError"
    # A run directory that cannot be written is found before anything is joined.
    (tmp_path / "file").write_text("")
    config.write_text(PARTY.replace('home = "home"', 'home = "home"\nrun_dir = "file"'))
    shown = mpc_train("party", "--config", config, "--passphrase-file", secret)
    assert shown.exit_code == 3 and "cannot be written" in shown.stderr
    # So is one that others may enter.
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o750)
    config.write_text(PARTY)
    shown = mpc_train("party", "--config", config, "--passphrase-file", secret)
    assert shown.exit_code == 3 and "chmod 700" in shown.stderr
    (tmp_path / "runs").chmod(0o700)
    config.write_text(PARTY)
    # The right passphrase, but the coordinator's card is not there.
    shown = mpc_train("party", "--config", config, "--passphrase-file", secret)
    assert shown.exit_code == 5
    assert "no card of 'desk'" in shown.stderr


def test_a_port_in_use_is_status_7(tmp_path: Path, secret: Path) -> None:
    for name in ("ann", "bob", "cleo", "registry", "office", "desk"):
        mpc_train("identity", "new", name, "--home", tmp_path / name, "--passphrase-file", secret)
    cards = [
        tmp_path / name / f"{name}.card"
        for name in ("ann", "bob", "cleo", "registry", "office", "desk")
    ]
    mpc_train("roster", "add", "--yes", *cards, "--home", tmp_path / "desk")
    write_job(tmp_path)
    with port_in_use() as address:
        config = tmp_path / "coordinator.toml"
        config.write_text(
            f'[node]\nname = "desk"\nhome = "desk"\n[network]\nlisten = "{address}"\n'
            '[run]\njob = "job.toml"\n'
        )
        shown = mpc_train("coordinator", "--config", config, "--passphrase-file", secret)
    assert shown.exit_code == 7, shown.stderr
    assert address.rpartition(":")[2] in shown.stderr


def test_run_says_what_is_missing(tmp_path: Path) -> None:
    path = write_job(tmp_path)
    shown = mpc_train("run", path, "--format", "json")
    assert shown.exit_code == 4
    assert "local.toml" in shown.stderr
    (tmp_path / "make_data.py").write_text("")
    assert "make_data.py" in mpc_train("run", path).stderr
    (tmp_path / "local.toml").write_text('[data]\neve = "eve.csv"\n')
    shown = mpc_train("run", path)
    assert shown.exit_code == 3
    assert "local.toml:2: data.eve" in shown.stderr
    lines = "".join(f'{owner} = "{owner}.csv"\n' for owner in ("ann", "bob", "cleo"))
    (tmp_path / "local.toml").write_text(f"[data]\n{lines}")
    for owner, rows in (("ann", 40), ("bob", 30), ("cleo", 30)):
        (tmp_path / f"{owner}.csv").write_text("\n".join(csv_lines(rows)))
    full = tmp_path / "full"
    full.mkdir()
    (full / "something").write_text("")
    shown = mpc_train("run", path, "--run-dir", full)
    assert shown.exit_code == 3
    assert "not empty" in shown.stderr
    open_to_others = tmp_path / "open"
    open_to_others.mkdir()
    open_to_others.chmod(0o755)
    shown = mpc_train("run", path, "--run-dir", open_to_others)
    assert shown.exit_code == 3
    assert "open: others may enter or read it; chmod 700 it" in shown.stderr


def test_open_refuses_what_is_not_sealed(tmp_path: Path, secret: Path) -> None:
    home = tmp_path / "home"
    mpc_train("identity", "new", "ann", "--home", home, "--passphrase-file", secret)
    options = ("--home", home, "--passphrase-file", secret)
    assert mpc_train("open", tmp_path / "none.sealed", *options).exit_code == 3
    junk = tmp_path / "junk.sealed"
    junk.write_bytes(b"not a bundle")
    shown = mpc_train("open", junk, *options, "--format", "json")
    assert shown.exit_code == 9
    assert last_object(shown.stdout)["status"] == "EnvelopeError"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "junk.sealed", "passphrase"]


def test_exit_statuses() -> None:
    expected = {
        JobError("x"): 3,
        ConfigError("x"): 3,
        PortTakenError("x"): 7,
        ModelError("x"): 3,
        DataError("x"): 4,
        LinkageError("x"): 4,
        parties_errors.IdentityError("x"): 5,
        parties_errors.PassphraseError("x"): 5,
        parties_errors.CardError("x"): 5,
        parties_errors.RosterError("x"): 5,
        RefusedError("x"): 6,
        parties_errors.PolicyError("x"): 6,
        parties_errors.ContractError("x"): 6,
        parties_errors.TransportError("x"): 7,
        parties_errors.PortInUseError("x"): 7,
        protocols_errors.PeerTimeoutError("x"): 7,
        protocols_errors.PeerLostError("x"): 8,
        OwnersError("x"): 8,
        parties_errors.AbortedError("data", "bob"): 8,
        protocols_errors.AuthenticationError("x"): 9,
        protocols_errors.DesyncError("x"): 9,
        protocols_errors.EnvelopeError("x"): 9,
        protocols_errors.HandshakeError("x"): 9,
        ArtifactError("x"): 9,
        CiphertextError("x"): 9,
        QueryRefusedError("x", "quota"): 6,
        parties_errors.ControlError("x"): 9,
        protocols_errors.RangeError("x"): 10,
        KeyboardInterrupt(): 130,
        protocols_errors.InterruptedRunError("x"): 130,
        ValueError("x"): 1,
        NodeFailedError("DataError", "data", "x", 4): 4,
    }
    assert {error: classify(error)[2] for error in expected} == expected
    names = {
        *vars(parties_errors),
        *vars(protocols_errors),
        "JobError",
        "ConfigError",
        "PortTakenError",
        "ModelError",
        "OwnersError",
        "DataError",
        "LinkageError",
        "RefusedError",
        "ScriptError",
        "ArtifactError",
        "QueryError",
        "QueryRefusedError",
        "KeyboardInterrupt",
    }
    assert set(EXIT_STATUS) <= names


def test_another_nodes_word_is_explained() -> None:
    said = explain(parties_errors.AbortedError("peer-lost", "bob"))
    assert said.startswith("the run was aborted by bob: peer-lost (its connection to another")
    for code in ("lost", "coordinator-lost"):
        said = explain(parties_errors.AbortedError(code, "bob"))
        assert said.startswith("bob was lost (") and "aborted" not in said
    assert explain(parties_errors.AbortedError("odd", "bob")) == "the run was aborted by bob: odd"
    assert explain(ValueError("plain")) == "plain"


def test_a_reader_who_has_enough_gets_no_complaint() -> None:
    job = ROOT / "examples" / "breast_cancer" / "job.toml"
    done = subprocess.run(  # noqa: S602 - a pipe as a user types it
        f"{sys.executable} -u -m mpc_train job check {job} | true",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


def test_an_internal_error_shows_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message of an unexpected error might quote data."""

    def broken(path: Path) -> None:
        raise ValueError("row 5 is 77.125")

    monkeypatch.setattr("mpc_train.admission.load.load_job", broken)
    shown = mpc_train("job", "check", "x.toml")
    assert shown.exit_code == 1
    assert "ValueError at" in shown.stderr
    assert "77.125" not in shown.stderr
