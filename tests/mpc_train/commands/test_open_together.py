"""`mpc-train open --contribute` and `--with`: people see what they agree to, and are asked."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mpc_train.admission.load import load_job
from mpc_train.cli import app
from mpc_train.results.artifact import ENVELOPE_FILE
from parties.agreement.result import Artifact
from parties.keys.roster import Roster
from parties.keys.vault import FileVault, MemoryVault
from protocols.sealing.bundle import pack_bundle
from tests.mpc_train.results.test_artifact import METRICS, Run
from tests.support.jobs import changed, write_job
from tests.support.node_files import party_toml
from tests.support.provenance import signed_record


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recipients' homes, their roster, and a model that both are needed for."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "secret").write_text("correct horse battery")
    (folder / "secret").chmod(0o600)
    job = load_job(write_job(folder, changed(("[reveal]", "[reveal]\nthreshold = 2"))))
    passphrase = b"correct horse battery"
    vaults: dict[str, MemoryVault] = {
        name: FileVault.create(folder / name, name, passphrase) for name in ("ann", "office")
    }
    vaults |= {name: MemoryVault.generate(name) for name in ("bob", "cleo", "registry")}
    roster = Roster.of(vault.card for vault in vaults.values())
    roster.save(folder / "roster.toml")
    run, group = Run(job), ("ann", "office")
    keys = [vaults[name].card.recipient_key for name in group]
    envelopes = [
        run.seal(name, recipients=group, recipient_keys=keys, signer=vaults[name])
        for name in job.evaluators
    ]
    sent = tuple(
        Artifact(name, f"sealed/{to}/{ENVELOPE_FILE}", sha256(envelope).hexdigest())
        for to in group
        for name, envelope in zip(job.evaluators, envelopes, strict=True)
    )
    record = signed_record(job, roster, vaults, run.sid, sent)
    (folder / "model.sealed").write_bytes(pack_bundle(record.to_bytes(), envelopes))
    return folder


def run_open(place: Path, me: str, *arguments: str, sealed: str = "model.sealed") -> Result:
    command = ["open", str(place / sealed), "--home", str(place / me)]
    command += ["--roster", str(place / "roster.toml"), "--passphrase-file", str(place / "secret")]
    return CliRunner().invoke(app, [*command, *arguments])


def test_a_mistyped_path_is_no_altered_result(place: Path) -> None:
    result = run_open(place, "ann", sealed="none.sealed")
    assert result.exit_code == 3, result.stderr
    assert "none.sealed: there is no such file" in result.stderr


def test_one_contributes_and_the_other_opens(place: Path, tmp_path: Path) -> None:
    part, job = tmp_path / "office.part", load_job(place / "job.toml")
    ask = ("--contribute", "--for", "ann", "--out", str(part))
    unasked = run_open(place, "office", *ask)
    assert unasked.exit_code and "there is no terminal to ask at" in unasked.output
    assert not part.exists()
    said = run_open(place, "office", *ask, "--job", str(place / "job.toml"))
    assert said.exit_code == 0, said.output
    for words in (f"the model of job study, digest {job.digest().hex()}", "ann opens it"):
        assert words in said.output
    alone = run_open(place, "ann", "--out", str(tmp_path / "none"))
    assert alone.exit_code and "2 of ann, office together open this file" in alone.output
    opened = run_open(
        place, "ann", "--with", str(part), "--out", str(tmp_path / "m"), "--format", "json"
    )
    assert json.loads(opened.stdout)["metrics"] == METRICS
    assert (tmp_path / "m" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--contribute"], ["--for", "ann"], ["--contribute", "--for", "ann", "--with", "x"]],
)
def test_options_that_do_not_fit_are_refused(place: Path, arguments: list[str]) -> None:
    assert run_open(place, "office", *arguments).exit_code == 2


def test_a_model_is_opened_into_the_vault(place: Path, tmp_path: Path) -> None:
    """Its files are nowhere in the clear, and the audit log says who opened what."""
    part = tmp_path / "office.part"
    made = run_open(place, "office", "--contribute", "--for", "ann", "--out", str(part), "--yes")
    assert made.exit_code == 0, made.output
    text = party_toml(node='home = "ann"\nroster = "roster.toml"\npassphrase_file = "secret"')
    (place / "party.toml").write_text(text)
    node = ("--config", str(place / "party.toml"))
    words = ["open", str(place / "model.sealed"), "--with", str(part), *node, "--keep", "study"]
    opened = CliRunner().invoke(app, [*words, "--format", "json"])
    assert opened.exit_code == 0, opened.output
    assert json.loads(opened.stdout)["model"] == "vault:study"
    assert not list(place.rglob("*.safetensors")) and not list(place.rglob("manifest.json"))
    shown = CliRunner().invoke(app, ["audit", "show", *node, "--format", "json"])
    entries = json.loads(shown.stdout.splitlines()[-1])["entries"]
    (entry,) = [each for each in entries if each["kind"] == "model-opened"]
    digest = sha256((place / "model.sealed").read_bytes()).hexdigest()
    assert entry["fields"] == {"sealed": digest, "to": "study"} and entry["job"] == "study"
    export = ["vault", "export", "study", "--kind", "model", *node, "--out", str(tmp_path / "m")]
    assert CliRunner().invoke(app, export).exit_code == 0
    verify = ["model", "verify", str(tmp_path / "m"), "--cards", str(place / "roster.toml")]
    verified = CliRunner().invoke(app, verify)
    assert verified.exit_code == 0, verified.output


@pytest.mark.parametrize(
    "more",
    [("--keep", "m"), ("--config", "x", "--keep", "m", "--out", "o"), ("--config", "x")],
)
def test_a_vault_needs_its_node(place: Path, more: tuple[str, ...]) -> None:
    assert run_open(place, "ann", *more).exit_code == 2


def test_what_is_no_contribution_is_named(place: Path, tmp_path: Path) -> None:
    other = tmp_path / "job.toml"
    other.write_text("[job]\n")
    refused = run_open(place, "ann", "--with", str(other))
    assert refused.exit_code == 9 and f"{other}: not a contribution" in refused.stderr
