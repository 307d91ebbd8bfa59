"""Evidence: its page escapes what others wrote, its parts agree, and every file of it counts."""

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from mpc_train.admission.load import load_job
from mpc_train.cli import app
from mpc_train.errors import ArtifactError, ConfigError
from mpc_train.node.components import bill_of_materials, installed
from mpc_train.node.evidence import Evidence, Served, differing, evidence_of, read_evidence
from mpc_train.node.pack import MANIFEST, SIGNATURE, read_pack, write_pack
from mpc_train.node.provenance import Provenance, verify_record
from parties.agreement.result import Artifact
from parties.audit.entries import Entry, Kind
from parties.audit.verify import Report
from parties.errors import RosterError
from parties.keys.roster import Roster
from parties.keys.vault import MemoryVault
from tests.support.jobs import changed, loaded, write_job
from tests.support.private import PRIVATE
from tests.support.provenance import ledger_of, signed_record

NAMES = ("ann", "bob", "cleo", "office", "registry", "mallory")
SID = bytes(range(32))
HOSTILE = "<script>alert(1)</script> & \"quoted\" 'x' </td>"
MADE = "2026-11-28T05:00:00Z"


@dataclass
class Case:
    vaults: dict[str, MemoryVault]
    roster: Roster
    found: Provenance
    entries: list[tuple[int, Entry]] = field(default_factory=list)

    def evidence(self, **changes: object) -> Evidence:
        arguments: dict[str, object] = {
            "node": "ann",
            "made": MADE,
            "log": Report("mpc-train-audit/ann/0", 20, "root", ["20 entries, held by bob"]),
            "entries": self.entries,
        }
        return evidence_of(self.found, self.roster, **{**arguments, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    job = load_job(write_job(tmp_path_factory.mktemp("job")))
    vaults = {name: MemoryVault.generate(name) for name in NAMES}
    roster = Roster.of(vault.card for vault in vaults.values())
    sent = tuple(
        Artifact(name, "sealed/office/model.envelope", "0" * 64) for name in ("ann", "bob")
    )
    record = signed_record(job, roster, vaults, SID, sent)
    found = verify_record(record.to_bytes(), roster)
    said = [
        Entry(MADE, Kind.RUN_PROPOSED, fields={"contract": record.contract.digest().hex()}),
        Entry(MADE, Kind.RUN_SIGNED, fields={"contract": record.contract.digest().hex()}),
        Entry(MADE, Kind.RUN_STARTED, fields={"session": SID.hex()}),
        *(
            Entry(MADE, Kind.OPENING, fields={"output": one.output, "to": one.to})
            for one in ledger_of(job)
        ),
        Entry(MADE, Kind.RESULTS_SIGNED, fields={"statement": record.digest().hex()}),
        Entry(MADE, Kind.RUN_ENDED),
    ]
    before = [Entry(MADE, Kind.RUN_STARTED, fields={"session": "0"}), Entry(MADE, Kind.RUN_ENDED)]
    return Case(vaults, roster, found, list(enumerate([*before, *said])))


def test_what_fits_is_verified_and_survives_json(case: Case) -> None:
    found = case.evidence()
    assert found.verified and found.faults == ()
    assert read_evidence(msgspec.json.encode(found)) == found
    assert {name for one in found.revealed for name in one.outputs} >= {"accuracy", "weight"}
    assert found.log.of_run[0].kind == "run-proposed"
    assert found.log.counts["run-ended"] == 1, "the run before is not this one"
    with pytest.raises(ValueError):
        read_evidence(b"{}")
    with pytest.raises(ValueError, match="version 9"):
        read_evidence(msgspec.json.encode(msgspec.structs.replace(found, version=9)))


def test_it_says_what_privacy_was_promised(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    from mpc_train.node.evidence_page import page

    without = case.evidence()
    assert without.privacy is None and b"No differential privacy was promised" in page(without)
    record = signed_record(loaded(tmp_path, PRIVATE), case.roster, case.vaults, SID, ())
    found = evidence_of(
        verify_record(record.to_bytes(), case.roster),
        case.roster,
        node="office",
        made=MADE,
        log=Report("mpc-train-audit/office/0", 0, "root"),
        entries=(),
    )
    assert found.privacy is not None and (found.privacy.epsilon, found.privacy.unit) == (
        "3",
        "one row",
    )
    assert [one.what for one in found.privacy.costs] == ["model", "accuracy"]
    assert read_evidence(msgspec.json.encode(found)) == found
    text = " ".join(page(found).decode().split())
    assert "differentially private with ε = 3 and δ = 0.00001 for one row" in text
    assert "at most 20.1 times" in text and "rows held out" in text
    # Words of another release may differ, numbers may not.
    provenance = verify_record(record.to_bytes(), case.roster)
    privacy = msgspec.structs.replace(found.privacy, meaning="in other words")
    other = msgspec.structs.replace(found, privacy=privacy)
    assert differing(other, provenance, case.roster, words=False) == []
    assert "privacy" in differing(other, provenance, case.roster, words=True)
    for change in (msgspec.structs.replace(found.privacy, epsilon="1"), None):
        lied = msgspec.structs.replace(found, privacy=change)
        assert "privacy" in differing(lied, provenance, case.roster, words=False)


def test_it_says_who_may_ask_a_model_in_shares(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    from mpc_train.node.evidence_page import page

    assert case.evidence().served is None and b"May ask the model" not in page(case.evidence())
    serve = (
        '[serve]\nclients = ["clinic"]\nanswer = "probability"\ndecimals = 2\nvalidators = ["lab"]'
    )
    job = loaded(
        tmp_path,
        changed(
            ('recipients = ["ann", "office"]\n', ""),
            ("[reveal]", f'{serve}\n[reveal]\nmodel = "shares"'),
        ),
    )
    record = signed_record(job, case.roster, case.vaults, SID, ())
    found = evidence_of(
        verify_record(record.to_bytes(), case.roster),
        case.roster,
        node="office",
        made=MADE,
        log=Report("mpc-train-audit/office/0", 0, "root"),
        entries=(),
    )
    assert found.served == Served(("clinic",), 1000, "probability", 2, ("lab",))
    assert read_evidence(msgspec.json.encode(found)) == found
    text = " ".join(page(found).decode().split())
    assert "<td>clinic</td>" in text and "probability, rounded to 2 decimals" in text
    assert "statistics of the pooled rows are opened to nobody</td>" in text


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Kind.RESULTS_SIGNED, "did not log that it signed this statement"),
        (Kind.RUN_SIGNED, "did not log that it signed this contract"),
        (Kind.OPENING, "its openings are not those of the signed ledger"),
        (Kind.RUN_STARTED, "no entry of this run's session"),
    ],
)
def test_a_log_that_says_something_else_is_not_verified(case: Case, kind: Kind, said: str) -> None:
    less = [pair for pair in case.entries if pair[1].kind is not kind]
    found = case.evidence(entries=less)
    assert not found.verified and said in " ".join(found.faults)


def test_a_log_with_faults_is_said_plainly(case: Case) -> None:
    pytest.importorskip("jinja2")
    from mpc_train.node.evidence_page import page

    report = Report("mpc-train-audit/ann/0", 20, "root")
    report.add("is altered", 7)
    found = case.evidence(log=report, entries=[])
    assert not found.verified and "audit log: entry 7 is altered" in found.faults
    html = page(found).decode()
    assert "<strong>Not verified.</strong>" in html and "entry 7 is altered" in html
    assert "<strong>Verified.</strong>" not in html


class Tags(HTMLParser):
    """All tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_escapes_what_others_wrote(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    from mpc_train.node.evidence_page import page

    plain, hostile = case.evidence(), Tags()
    text = msgspec.json.encode(plain)

    def poisoned(value: object) -> object:
        if isinstance(value, str):
            return value + HOSTILE
        if isinstance(value, list):
            return [poisoned(one) for one in value]
        if isinstance(value, dict):
            return {key: poisoned(one) for key, one in value.items()}
        return value

    said = msgspec.convert(poisoned(msgspec.json.decode(text)), Evidence)
    html = page(said).decode()
    assert "<script" not in html and "&lt;script&gt;" in html
    hostile.feed(html)
    before = Tags()
    before.feed(page(plain).decode())
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in before.tags]
    for tag, attributes in hostile.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "form", "a")
        assert not {"src", "href", "onclick", "onload"} & set(attributes)
    assert "url(" not in html and "@import" not in html and "http://" not in html


def test_a_hostile_job_stays_text(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    from mpc_train.node.evidence_page import page

    words = "<img src=x onerror=alert(1)>"
    job = loaded(tmp_path, changed(("[model]", f'[purpose]\ndescription = "{words}"\n[model]')))
    vaults = {name: MemoryVault.generate(name) for name in NAMES}
    roster = Roster.of(vault.card for vault in vaults.values())
    found = verify_record(signed_record(job, roster, vaults, SID, ()).to_bytes(), roster)
    said = evidence_of(found, roster, node="ann", made=MADE, log=Report(), entries=[])
    assert said.data.description == words
    assert "<img" not in page(said).decode()


FILES = {"evidence.json": b"{}", "evidence.html": b"<p>", "run.record": b"record"}


def test_every_file_of_a_pack_counts(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    write_pack(folder, FILES, case.vaults["ann"], MADE)
    assert read_pack(folder, case.roster) == ("ann", FILES)
    for name in (*FILES, MANIFEST, SIGNATURE):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(b"A" + whole[1:])
        with pytest.raises(ArtifactError, match=name.split(".")[0]):
            read_pack(folder, case.roster)
        (folder / name).unlink()
        with pytest.raises(ArtifactError, match=f"{name}: cannot be read"):
            read_pack(folder, case.roster)
        (folder / name).write_bytes(whole)
    (folder / "more.html").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"more\.html: is not part of what ann signed"):
        read_pack(folder, case.roster)


def test_a_pack_is_of_the_node_that_it_names(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    write_pack(folder, FILES, case.vaults["ann"], MADE)
    said = json.loads((folder / MANIFEST).read_bytes()) | {"node": "bob"}
    (folder / MANIFEST).write_text(json.dumps(said))
    with pytest.raises(ArtifactError, match="bob did not sign it"):
        read_pack(folder, case.roster)
    with pytest.raises(RosterError, match="bob"):
        read_pack(folder, Roster.of([case.vaults["ann"].card]))
    with pytest.raises(ConfigError, match="is not empty"):
        write_pack(folder, FILES, case.vaults["ann"], MADE)


@pytest.mark.parametrize(
    ("part", "release", "status"),
    [
        (None, "", 0),
        (None, "0.0.1", 0),
        ("revealed", "", 9),
        ("revealed", "0.0.1", 9),
        ("sealed", "0.0.1", 9),
        ("parties", "0.0.1", 9),
        ("data", "0.0.1", 9),
        ("served", "0.0.1", 9),
        ("trust", "", 9),
        ("verified", "0.0.1", 9),
    ],
)
def test_a_node_that_signs_other_facts_than_all_nodes_did_is_found_out(
    case: Case, tmp_path: Path, part: str | None, release: str, status: int
) -> None:
    """Its own signature and a page that fits do not make them those of the run."""
    pytest.importorskip("jinja2")
    from mpc_train.node.evidence_page import page

    said = case.evidence()
    altered: dict[str, object] = {
        "revealed": said.revealed[1:],
        "sealed": (),
        "served": Served(("clinic",), 1000, "class", None, ()),
        "parties": said.parties[1:],
        "data": msgspec.structs.replace(said.data, purposes=("research",)),
        "trust": ("Nobody learns anything.",),
        "faults": ("the log was altered",),
    }
    if part:
        key = "faults" if part == "verified" else part
        said = msgspec.structs.replace(said, **{key: altered[key]})
    if release:
        said = msgspec.structs.replace(said, versions={**said.versions, "mpc-train": release})
    files = {
        "evidence.json": msgspec.json.encode(said),
        "evidence.html": page(said),
        "bom.cdx.json": b"{}",
        "run.record": case.found.record.to_bytes(),
    }
    write_pack(tmp_path / "pack", files, case.vaults["ann"], MADE)
    case.roster.save(tmp_path / "cards")
    words = ["evidence", "verify", str(tmp_path / "pack"), "--cards", str(tmp_path / "cards")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == status, done.output
    assert ("did not compare evidence.html" in done.stdout) == bool(release and not part)
    assert (f"its {part} are not those of run.record" in done.stderr) == bool(part)


def test_the_bill_of_materials_is_valid_and_whole() -> None:
    # Once loaded, this backport finds the distributions, and raises for keys that are missing.
    pytest.importorskip("importlib_metadata")
    pytest.importorskip("cyclonedx")
    pytest.importorskip("jsonschema")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = bill_of_materials().decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    said = json.loads(text)
    assert said["metadata"]["component"]["name"] == "mpc-train"
    names = {one["name"] for one in said["components"]}
    assert {"torch", "cryptography", "crypten", "msgspec", "pyzmq", "numpy"} <= names
    assert not {"pytest", "ruff", "mypy"} & names, "what only developers need"
    by_name = {one["name"]: one for one in said["components"]}
    assert by_name["numpy"]["licenses"] and by_name["cryptography"]["hashes"]
    needs = {one["ref"]: one.get("dependsOn", []) for one in said["dependencies"]}
    assert "pkg:pypi/torch" in needs["pkg:pypi/mpc-train"]
    assert set(installed()) == names | {"mpc-train"}
