"""Where a model comes from: every signature, every digest and every file counts."""

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from mpc_train.admission.load import load_job
from mpc_train.cli import app
from mpc_train.errors import ArtifactError
from mpc_train.jobs.job import Job
from mpc_train.jobs.sealed import sealed_tensors
from mpc_train.node.provenance import verify_opened, verify_record, verify_sealed
from mpc_train.results.artifact import ENVELOPE_FILE, MODEL, contents_of, seal_result
from mpc_train.results.outcome import Opening, check, outcome_of, progressions, read_outcome
from parties.agreement.contract import Contract
from parties.agreement.result import Artifact, Record, Statement, sign_result
from parties.errors import ContractError, RosterError
from parties.keys.roster import Roster
from parties.keys.vault import FileVault, MemoryVault
from protocols.sealing.bundle import pack_bundle, unpack_bundle
from tests.support.jobs import changed, loaded, write_job
from tests.support.provenance import ledger_of, signed_record

NAMES = ("ann", "bob", "cleo", "office", "registry", "mallory")
SID = bytes(range(32))
PASSPHRASE = b"correct horse battery staple"


@dataclass
class Sealed:
    """A run that was never run: its sealed file for office, and everybody's keys."""

    job: Job
    vaults: dict[str, FileVault]
    roster: Roster
    record: Record
    envelopes: list[bytes]
    homes: Path

    def file(self, record: Record | None = None, envelopes: list[bytes] | None = None) -> bytes:
        return pack_bundle((record or self.record).to_bytes(), envelopes or self.envelopes)

    def signed_again(self, **changes: Any) -> Record:
        """The record with another statement, which all nodes sign."""
        statement = replace(self.record.statement, **changes)
        return self._by_all(self.record, statement)

    def _by_all(self, record: Record, statement: Statement) -> Record:
        text = statement.to_bytes()
        nodes = record.contract.roles.nodes
        signatures = tuple(sign_result(name, text, self.vaults[name]) for name in nodes)
        return replace(record, statement=statement, signatures=signatures)


def envelope(job: Job, vaults: dict[str, FileVault], me: str, seed: int, to: str) -> bytes:
    shapes = sealed_tensors(job)
    draw = np.random.default_rng(seed).integers
    mask = {name: draw(-(2**62), 2**62, shape) for name, shape in shapes.items()}
    total = sum(range(len(job.evaluators)))
    delta = {name: np.full(shape, total, np.int64) for name, shape in shapes.items()}
    return seal_result(
        job,
        contents_of(job, MODEL),
        sid=SID,
        me=me,
        recipients=(to,),
        recipient_keys=[vaults[to].card.recipient_key],
        delta=delta,
        mask=mask,
        metrics={},
        unavailable={},
        signer=vaults[me],
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    folder = tmp_path_factory.mktemp("provenance")
    job = load_job(write_job(folder))
    homes = folder / "homes"
    vaults = {name: FileVault.create(homes / name, name, PASSPHRASE) for name in NAMES}
    roster = Roster.of(vault.card for vault in vaults.values())
    for name in NAMES:
        roster.save(homes / name / "roster")
    sent, envelopes = [], []
    for recipient in job.recipients:
        for number, name in enumerate(job.evaluators):
            blob = envelope(job, vaults, name, number, recipient)
            path = f"sealed/{recipient}/{ENVELOPE_FILE}"
            sent.append(Artifact(name, path, sha256(blob).hexdigest()))
            if recipient == "office":
                envelopes.append(blob)
    record = signed_record(job, roster, vaults, SID, tuple(sent))
    return Sealed(job, vaults, roster, record, envelopes, homes)


@pytest.fixture(scope="module")
def opened(made: Sealed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model that office opened, with the command."""
    folder = tmp_path_factory.mktemp("opened")
    sealed, passphrase = folder / "model.sealed", folder / "passphrase"
    sealed.write_bytes(made.file())
    passphrase.write_bytes(PASSPHRASE)
    passphrase.chmod(0o600)
    home = ["--home", str(made.homes / "office"), "--passphrase-file", str(passphrase)]
    done = CliRunner().invoke(app, ["open", str(sealed), *home, "--out", str(folder / "model")])
    assert done.exit_code == 0, done.output
    return folder / "model"


def test_a_sealed_file_says_who_signed_it_and_what_left(made: Sealed, tmp_path: Path) -> None:
    path, cards = tmp_path / "model.sealed", tmp_path / "cards"
    path.write_bytes(made.file())
    made.roster.save(cards)
    words = ["model", "verify", str(path), "--cards", str(cards)]
    done = CliRunner().invoke(app, [*words, "--format", "json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["signed_by"] == ["ann", "bob", "cleo", "registry"]
    assert (said["recipient"], said["session"], said["unchecked"]) == ("office", SID.hex(), [])
    left = {name for one in said["openings"] for name, _ in one["outputs"]}
    assert left == {one.output for one in ledger_of(made.job)}
    text = CliRunner().invoke(app, words)
    assert "signed by ann, bob, cleo, registry" in text.output
    path.write_bytes(made.file()[:-1])
    broken = CliRunner().invoke(app, words)
    assert broken.exit_code == 9 and broken.stderr.startswith("error: ")


Change = Callable[[Sealed], bytes]


def forged(made: Sealed) -> bytes:
    other = sign_result("bob", made.record.statement.to_bytes(), made.vaults["mallory"])
    signatures = (made.record.signatures[0], other, *made.record.signatures[2:])
    return made.file(replace(made.record, signatures=signatures))


def reordered(made: Sealed) -> bytes:
    first, second, *rest = made.record.signatures
    return made.file(replace(made.record, signatures=(second, first, *rest)))


def dropped(made: Sealed) -> bytes:
    return made.file(replace(made.record, signatures=made.record.signatures[:-1]))


def of_another_statement(made: Sealed) -> bytes:
    other = made.signed_again(sid=bytes(32))
    return made.file(replace(made.record, signatures=other.signatures))


def another_contract(made: Sealed) -> bytes:
    body = msgspec.structs.replace(
        made.job, train=msgspec.structs.replace(made.job.train, epochs=made.job.train.epochs + 1)
    ).to_bytes()
    roles, roster = made.record.contract.roles, made.record.contract.roster_digest
    contract = Contract.of(made.job.name, roles, body, roster)
    return made.file(replace(made.record, contract=contract, body=body))


def other_roles(made: Sealed) -> bytes:
    agreed = made.record.contract
    roles = replace(agreed.roles, readers=("office",))
    contract = Contract.of(agreed.name, roles, made.record.body, agreed.roster_digest)
    statement = replace(made.record.statement, contract=contract.digest())
    return made.file(made._by_all(replace(made.record, contract=contract), statement))


def another_initial(made: Sealed) -> bytes:
    outcome = read_outcome(made.record.statement.outcome)
    initial = msgspec.structs.replace(outcome.initial, digest="0" * 64)
    other = msgspec.structs.replace(outcome, initial=initial)
    return made.file(made.signed_again(outcome=other.to_bytes()))


def more_was_opened(made: Sealed) -> bytes:
    ledger = [*ledger_of(made.job), Opening("weight", 1, ("mallory",), "job.recipients", 2)]
    return made.file(made.signed_again(outcome=outcome_of(made.job, ledger).to_bytes()))


def another_envelope(made: Sealed) -> bytes:
    blob = envelope(made.job, made.vaults, "bob", 7, "office")
    return made.file(envelopes=[made.envelopes[0], blob, made.envelopes[2]])


def an_envelope_less(made: Sealed) -> bytes:
    return made.file(envelopes=made.envelopes[:2])


def an_envelope_twice(made: Sealed) -> bytes:
    return made.file(envelopes=[*made.envelopes, made.envelopes[0]])


def artifact_of_a_stranger(made: Sealed) -> bytes:
    more = (*made.record.statement.artifacts, Artifact("mallory", "sealed/office/x", "0" * 64))
    return made.file(made.signed_again(artifacts=more))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (forged, "bob did not sign the statement of results"),
        (reordered, "ann did not sign the statement of results"),
        (dropped, "does not hold one signature of each of ann, bob, cleo, registry"),
        (of_another_statement, "ann did not sign the statement of results"),
        (another_contract, "the statement of results is about another contract"),
        (other_roles, "the contract has other roles than the job"),
        (another_initial, "training began with other weights"),
        (more_was_opened, "'weight' was opened to mallory"),
        (another_envelope, "the envelope of bob for office is not the one that all nodes signed"),
        (an_envelope_less, "the file holds envelopes of ann, bob; expected one of each"),
        (an_envelope_twice, "the file holds envelopes of ann, bob, cleo, ann"),
        (artifact_of_a_stranger, "results of mallory, who had no role"),
    ],
)
def test_whatever_is_changed_in_a_sealed_file_is_named(
    made: Sealed, tmp_path: Path, change: Change, said: str
) -> None:
    data = change(made)
    with pytest.raises(ArtifactError, match=said):
        verify_sealed(data, made.roster)
    sealed = tmp_path / "model.sealed"
    sealed.write_bytes(data)
    passphrase = tmp_path / "passphrase"
    passphrase.write_bytes(PASSPHRASE)
    passphrase.chmod(0o600)
    home = ["--home", str(made.homes / "office"), "--passphrase-file", str(passphrase)]
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["open", str(sealed), *home, "--out", str(out)])
    assert done.exit_code == 9 and not out.exists()


def test_a_record_of_a_threshold_and_readers_is_that_of_its_job(tmp_path: Path) -> None:
    keys = 'metrics = ["accuracy", "auc"]\nthreshold = 2\nmetrics_to = ["office"]'
    job = loaded(tmp_path, changed(('metrics = ["accuracy", "auc"]', keys)))
    vaults = {name: MemoryVault.generate(name) for name in NAMES}
    roster = Roster.of(vault.card for vault in vaults.values())
    record = signed_record(job, roster, vaults, SID, ())
    assert verify_record(record.to_bytes(), roster).job == job


def test_every_byte_of_a_record_counts(made: Sealed) -> None:
    raw, envelopes = unpack_bundle(made.file())
    for at in range(0, len(raw), 211):
        altered = bytearray(raw)
        altered[at] ^= 1
        with pytest.raises((ArtifactError, RosterError)):
            verify_sealed(pack_bundle(bytes(altered), envelopes), made.roster)


def test_cards_are_those_of_the_contract(made: Sealed, tmp_path: Path) -> None:
    other = FileVault.create(tmp_path, "bob", PASSPHRASE)
    cards = {card.name: card for card in made.roster} | {"bob": other.card}
    with pytest.raises(ArtifactError, match="another card of bob"):
        verify_sealed(made.file(), Roster.of(cards.values()))
    del cards["bob"]
    with pytest.raises(RosterError, match="bob"):
        verify_sealed(made.file(), Roster.of(cards.values()))


def test_a_signature_is_of_one_name_only(made: Sealed) -> None:
    text = made.record.statement.to_bytes()
    signature = sign_result("cleo", text, made.vaults["bob"])
    signatures = (made.record.signatures[0], signature, *made.record.signatures[2:])
    with pytest.raises(ContractError, match="bob did not sign"):
        replace(made.record, signatures=signatures).verify(made.roster)


def test_an_opened_model_is_tied_to_its_run(made: Sealed, opened: Path) -> None:
    found = verify_opened(opened, made.roster)
    assert found.recipient == "office" and "model.safetensors" in found.files
    assert found.record.to_bytes() == made.record.to_bytes()
    words = ["model", "verify", str(opened), "--home", str(made.homes / "ann")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "Model opened by office: model.safetensors" in done.output


def test_whatever_is_changed_in_an_opened_model_is_named(
    made: Sealed, opened: Path, tmp_path: Path
) -> None:
    for name in ("model.safetensors", "manifest.json", "manifest.sig"):
        folder = tmp_path / name
        shutil.copytree(opened, folder)
        raw = bytearray((folder / name).read_bytes())
        at = len(raw) // 2
        raw[at] = ord("b") if raw[at] != ord("b") else ord("c")
        (folder / name).write_bytes(raw)
        with pytest.raises(ArtifactError, match=name.split(".")[0]):
            verify_opened(folder, made.roster)
        (folder / name).unlink()
        with pytest.raises(ArtifactError, match=f"{name}: cannot be read"):
            verify_opened(folder, made.roster)


def test_a_recipient_promises_no_privacy_that_nobody_signed(
    made: Sealed, opened: Path, tmp_path: Path
) -> None:
    from mpc_train.node.provenance import sign_manifest

    folder = tmp_path / "model"
    shutil.copytree(opened, folder)
    said = json.loads((folder / "manifest.json").read_bytes())
    assert said["privacy"] is None
    raw = json.dumps(said | {"privacy": {"epsilon": "1", "delta": "0.00001"}}).encode()
    (folder / "manifest.json").write_bytes(raw)
    (folder / "manifest.sig").write_bytes(sign_manifest(raw, made.vaults["office"]))
    with pytest.raises(ArtifactError, match="promises another privacy than the job"):
        verify_opened(folder, made.roster)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("metrics", {"accuracy": 0.99}),
        ("unavailable", {"accuracy": "too few rows"}),
        ("job", {}),
        ("step", 0),
        ("threshold", 2),
        ("recipients", ["office", "mallory"]),
    ],
)
def test_a_recipient_says_nothing_else_than_the_evaluators_signed(
    made: Sealed, opened: Path, tmp_path: Path, key: str, value: object
) -> None:
    """Its own signature under better metrics does not make them those of the run."""
    from mpc_train.node.provenance import sign_manifest

    folder = tmp_path / "model"
    shutil.copytree(opened, folder)
    said = json.loads((folder / "manifest.json").read_bytes())
    assert said[key] != value
    raw = json.dumps(said | {key: value}).encode()
    (folder / "manifest.json").write_bytes(raw)
    (folder / "manifest.sig").write_bytes(sign_manifest(raw, made.vaults["office"]))
    with pytest.raises(ArtifactError, match=f"the manifest says another {key} than ann signed"):
        verify_opened(folder, made.roster)


def test_a_manifest_that_somebody_else_signed_is_refused(
    made: Sealed, opened: Path, tmp_path: Path
) -> None:
    from mpc_train.node.provenance import sign_manifest

    folder = tmp_path / "copy"
    shutil.copytree(opened, folder)
    raw = (folder / "manifest.json").read_bytes()
    (folder / "manifest.sig").write_bytes(sign_manifest(raw, made.vaults["mallory"]))
    with pytest.raises(ArtifactError, match="office, who opened the model, did not sign it"):
        verify_opened(folder, made.roster)
    said = json.loads(raw) | {"recipient": "mallory"}
    raw = json.dumps(said).encode()
    (folder / "manifest.json").write_bytes(raw)
    (folder / "manifest.sig").write_bytes(sign_manifest(raw, made.vaults["mallory"]))
    with pytest.raises(ArtifactError, match="mallory is not a recipient of the signed job"):
        verify_opened(folder, made.roster)
    said = json.loads((opened / "manifest.json").read_bytes())
    said["statements"] = said["statements"][::-1]
    raw = json.dumps(said).encode()
    (folder / "manifest.json").write_bytes(raw)
    (folder / "manifest.sig").write_bytes(sign_manifest(raw, made.vaults["office"]))
    with pytest.raises(ArtifactError, match="expected those of ann, bob, cleo"):
        verify_opened(folder, made.roster)


@pytest.mark.parametrize("part", ["job_digest", "record"])
def test_a_manifest_and_its_record_are_of_one_run(
    made: Sealed, opened: Path, tmp_path: Path, part: str
) -> None:
    from mpc_train.node.provenance import sign_manifest

    folder = tmp_path / "copy"
    shutil.copytree(opened, folder)
    other = made.signed_again(sid=bytes(32)).to_bytes()
    lies = {"job_digest": "0" * 64, "record": base64.b64encode(other).decode()}
    said = json.loads((folder / "manifest.json").read_bytes())
    raw = json.dumps(said | {part: lies[part]}).encode()
    (folder / "manifest.json").write_bytes(raw)
    (folder / "manifest.sig").write_bytes(sign_manifest(raw, made.vaults["office"]))
    with pytest.raises(ArtifactError, match="is about another run than its record"):
        verify_opened(folder, made.roster)


@pytest.mark.parametrize("part", ["evaluator", "statement", "signature"])
def test_a_manifest_with_half_a_character_is_malformed(
    made: Sealed, opened: Path, tmp_path: Path, part: str
) -> None:
    from mpc_train.node.provenance import sign_manifest

    folder = tmp_path / "copy"
    shutil.copytree(opened, folder)
    said = json.loads((folder / "manifest.json").read_bytes())
    said["statements"][0][part] = "\ud800"
    raw = json.dumps(said).encode()
    (folder / "manifest.json").write_bytes(raw)
    (folder / "manifest.sig").write_bytes(sign_manifest(raw, made.vaults["office"]))
    with pytest.raises(ArtifactError, match=r"not a manifest|has the statements of"):
        verify_opened(folder, made.roster)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], ()),
        ([3], ((3, 1, 1),)),
        ([9, 3, 6], ((3, 3, 3),)),
        ([1, 2, 3, 10, 20, 30], ((1, 1, 3), (10, 10, 3))),
        ([1, 5], ((1, 4, 2),)),
    ],
)
def test_steps_are_few_progressions(
    steps: list[int], expected: tuple[tuple[int, int, int], ...]
) -> None:
    found = progressions(steps)
    assert found == expected
    assert sorted(steps) == [a + d * n for a, d, count in found for n in range(count)]


def test_the_ledger_of_a_run_is_that_of_its_job(tmp_path: Path) -> None:
    job = loaded(
        tmp_path,
        changed(
            (
                'metrics = ["accuracy", "auc"]',
                'metrics = ["accuracy", "auc"]\ntraining_loss_every = 2',
            ),
            ("batch_size = 16", "batch_size = 20"),
        ),
    )
    losses = [
        Opening("training_loss", step, job.names, "reveal.training_loss_every", 1)
        for step in (2, 4, 6)
    ]
    ledger = [*ledger_of(job), *losses]
    outcome = outcome_of(job, ledger)
    check(job, outcome)
    assert outcome_of(job, ledger[::-1]) == outcome == read_outcome(outcome.to_bytes())
    for faulty, said in (
        ([*ledger, losses[0]], "twice|steps"),
        ([*ledger, losses[0]._replace(step=10**9)], "steps"),
        ([*ledger, losses[0]._replace(to=("ann",), step=8)], "opened to ann"),
        ([one for one in ledger if one.output != "weight"], "lacks what was sealed: weight"),
        ([one._replace(values=one.values + 1) for one in ledger], "than the job seals"),
    ):
        with pytest.raises(ArtifactError, match=said):
            check(job, outcome_of(job, faulty))
    for data in (b"", b"{}", outcome.to_bytes() + b" ", b"\xff"):
        with pytest.raises(ArtifactError):
            read_outcome(data)


def test_a_dealer_that_left_signed_for_what_it_saw(made: Sealed) -> None:
    """Only if the job says that it leaves, and nobody but the dealer."""
    record = made.record
    nodes = record.contract.roles.nodes
    parting = record.statement.parting().to_bytes()

    def signed(*early: str) -> Record:
        signatures = tuple(
            sign_result(name, parting, made.vaults[name]) if name in early else signature
            for name, signature in zip(nodes, record.signatures, strict=True)
        )
        return replace(record, signatures=signatures)

    dealer, evaluator = made.job.dealer, made.job.evaluators[0]
    signed(dealer).verify(made.roster, (dealer,))
    for early, leaving in (((dealer,), ()), ((), (dealer,)), ((dealer, evaluator), (dealer,))):
        with pytest.raises(ContractError, match="did not sign the statement of results"):
            signed(*early).verify(made.roster, leaving)
    with pytest.raises(ArtifactError, match=f"{dealer} did not sign"):
        verify_record(signed(dealer).to_bytes(), made.roster)
