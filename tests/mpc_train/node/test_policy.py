"""A node accepts its policy only signed, whole, for this node and day, and not an older one."""

import base64
import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from mpc_train.admission.policy import PolicyRefusedError, Seen, read_policy, read_signatures
from mpc_train.admission.rules import check_rules
from mpc_train.errors import ConfigError, RefusedError
from mpc_train.node.policy import accepted, in_force, remember
from mpc_train.run.approval import approve
from mpc_train.run.node_config import load_node_config
from parties.audit.entries import Kind
from parties.keys.roster import Roster
from parties.keys.vault import MemoryVault
from tests.support.audit_logs import KeysOfAnyDay, audit_log
from tests.support.csv_tables import csv_lines
from tests.support.jobs import loaded
from tests.support.node_vaults import node_vault
from tests.support.policies import DAY, NODE, node_with_policy, policy_toml


@pytest.fixture(scope="module")
def people() -> dict[str, MemoryVault]:
    return {name: MemoryVault.generate(name) for name in ("board", "dpo", "mallory", "ann")}


@pytest.fixture(scope="module")
def roster(people: dict[str, MemoryVault]) -> Roster:
    return Roster.of([keys.card for keys in people.values()])


@pytest.fixture(scope="module")
def both(people: dict[str, MemoryVault]) -> list[MemoryVault]:
    return [people["board"], people["dpo"]]


def codes(caught: "pytest.ExceptionInfo[PolicyRefusedError]") -> set[str]:
    assert "Nothing was shared" in str(caught.value)
    return set(caught.value.codes)


def test_its_rules_are_the_node_s(tmp_path: Path, roster: Roster, both: list[MemoryVault]) -> None:
    config = node_with_policy(tmp_path, both)
    job = loaded(tmp_path)
    with pytest.raises(RefusedError, match="registry would deal"):
        check_rules(config.rules, job, "ann", DAY)  # until the policy is accepted, none is allowed
    config = accepted(config, roster, DAY)
    check_rules(config.rules, job, "ann", DAY)
    text = policy_toml(rules='models = ["linear"]\npurposes = ["teaching"]')
    config = accepted(node_with_policy(tmp_path, both, text), roster, DAY)
    with pytest.raises(RefusedError) as caught:
        check_rules(config.rules, job, "ann", DAY)
    assert "a logistic model is not listed under models" in str(caught.value)
    assert "purposes are limited here" in str(caught.value)


def test_each_signer_has_to_sign_unless_fewer_are_enough(
    tmp_path: Path, roster: Roster, people: dict[str, MemoryVault]
) -> None:
    board = people["board"]
    for signers in ([], [board], [board, people["mallory"]]):
        with pytest.raises(PolicyRefusedError, match=r"missing: .*dpo") as caught:
            accepted(node_with_policy(tmp_path, signers), roster, DAY)
        assert codes(caught) == {"unsigned"}
    assert "mallory signed, but is not a signer here" in str(caught.value)
    one = NODE + "least_signers = 1\n"
    assert accepted(node_with_policy(tmp_path, [board], node=one), roster, DAY).accepted
    with pytest.raises(PolicyRefusedError, match="no valid card of dpo"):
        without = roster.remove("dpo")
        accepted(node_with_policy(tmp_path, [board, people["dpo"]]), without, DAY)


@pytest.mark.parametrize("part", ["text", "comment", "signature", "day", "name"])
def test_an_altered_byte_is_found(
    tmp_path: Path, roster: Roster, both: list[MemoryVault], part: str
) -> None:
    config = node_with_policy(tmp_path, both, "# for the study\n" + policy_toml())
    path, beside = tmp_path / "policy.toml", tmp_path / "policy.toml.sig"
    record = json.loads(beside.read_bytes())
    first: dict[str, Any] = record["signatures"][0]
    if part in ("text", "comment"):
        old, new = ("= 9", "= 1") if part == "text" else ("study", "studY")
        path.write_text(path.read_text().replace(old, new))
    elif part == "signature":
        raw = bytearray(base64.b64decode(first["signature"]))
        raw[-1] ^= 1
        first["signature"] = base64.b64encode(raw).decode()
    elif part == "day":
        first["day"] = "2030-05-18"
    else:
        first["signer"], record["signatures"][1]["signer"] = "dpo", "board"
    beside.write_text(json.dumps(record))
    with pytest.raises(PolicyRefusedError) as caught:
        accepted(config, roster, DAY)
    assert codes(caught) == {"altered", "unsigned"}


def test_another_signature_that_is_wrong_is_not_passed_over(
    tmp_path: Path, roster: Roster, both: list[MemoryVault]
) -> None:
    """Enough others verify; but a signer's does not, so that somebody changed something."""
    config = node_with_policy(tmp_path, both, node=NODE + "least_signers = 1\n")
    beside = tmp_path / "policy.toml.sig"
    record = json.loads(beside.read_bytes())
    record["signatures"][0]["digest"] = "0" * 64
    beside.write_text(json.dumps(record))
    with pytest.raises(PolicyRefusedError, match="board signed another text") as caught:
        accepted(config, roster, DAY)
    assert codes(caught) == {"altered"}


def test_it_holds_from_its_first_day_to_its_last(
    tmp_path: Path, roster: Roster, both: list[MemoryVault]
) -> None:
    config = node_with_policy(tmp_path, both)
    for day in (date(2030, 1, 1), date(2030, 12, 31)):
        assert accepted(config, roster, day).accepted
    for day, code in ((date(2029, 12, 31), "not-yet-valid"), (date(2031, 1, 1), "expired")):
        with pytest.raises(PolicyRefusedError) as caught:
            accepted(config, roster, day)
        assert codes(caught) == {code}


def test_it_is_for_this_node_and_its_operator(
    tmp_path: Path, roster: Roster, both: list[MemoryVault]
) -> None:
    with pytest.raises(PolicyRefusedError, match="it is for bob, and this node is ann") as caught:
        accepted(node_with_policy(tmp_path, both, policy_toml(nodes="bob")), roster, DAY)
    assert codes(caught) == {"other-node"}
    text = policy_toml(rules='operators = ["carol"]')
    with pytest.raises(PolicyRefusedError, match="ann is not one of its operators") as caught:
        accepted(node_with_policy(tmp_path, both, text), roster, DAY)
    assert codes(caught) == {"operator"}


def test_an_older_policy_is_not_accepted_again(
    tmp_path: Path, roster: Roster, both: list[MemoryVault], people: dict[str, MemoryVault]
) -> None:
    keys = KeysOfAnyDay(people["ann"])
    with audit_log(tmp_path, people["ann"]) as audit:
        second = node_with_policy(tmp_path, both, policy_toml(2))
        assert in_force(second, roster, DAY, audit, keys).accepted
        assert in_force(second, roster, DAY, audit, keys).accepted  # the same once more
        first = node_with_policy(tmp_path, both, policy_toml(1))
        with pytest.raises(PolicyRefusedError, match="has accepted number 2") as caught:
            in_force(first, roster, DAY, audit, keys)
        assert codes(caught) == {"replayed"}
        other = node_with_policy(tmp_path, both, policy_toml(2, rules="least_parties = 3"))
        with pytest.raises(PolicyRefusedError, match="another policy of number 2; count up"):
            in_force(other, roster, DAY, audit, keys)
        third = node_with_policy(tmp_path, both, policy_toml(3))
        assert in_force(third, roster, DAY, audit, keys).accepted
        entries = [entry for _, entry in audit.entries()]
    digest = read_policy(tmp_path / "policy.toml").digest
    kinds = [(entry.kind, entry.fields) for entry in entries if "policy" in entry.kind]
    assert [kind for kind, _ in kinds] == [
        *(Kind.POLICY_ACCEPTED, Kind.POLICY_ACCEPTED, Kind.POLICY_REFUSED, Kind.POLICY_REFUSED),
        Kind.POLICY_ACCEPTED,
    ]
    assert kinds[2][1] == {"why": ("replayed",)}
    assert kinds[-1][1] == {"policy": digest, "number": 3}


def test_what_is_remembered_never_counts_down(
    tmp_path: Path, roster: Roster, both: list[MemoryVault]
) -> None:
    """Two processes of one node; and a memory that cannot be read stops the node."""
    config = node_with_policy(tmp_path, both, policy_toml(2))
    for number in (5, 4):
        node_with_policy(tmp_path, both, policy_toml(number))
        remember(config.place, read_policy(tmp_path / "policy.toml"))
    path = tmp_path / "home" / "ann.policy"
    assert json.loads(path.read_bytes())["number"] == 5
    path.write_text("{}x")
    with pytest.raises(ConfigError, match="which policy this node accepted last"):
        accepted(config, roster, DAY)
    path.write_text(json.dumps({"number": 1, "digest": "", "version": 2}))
    with pytest.raises(ConfigError, match="which policy"):
        accepted(config, roster, DAY)
    assert Seen().number == 0


def test_everything_that_is_wrong_is_said_at_once(
    tmp_path: Path, roster: Roster, people: dict[str, MemoryVault]
) -> None:
    config = node_with_policy(tmp_path, [people["board"]], policy_toml(1, nodes="bob"))
    (tmp_path / "home" / "ann.policy").write_text('{"number": 7}')
    with pytest.raises(PolicyRefusedError) as caught:
        accepted(config, roster, date(2031, 1, 1))
    assert codes(caught) == {"expired", "unsigned", "other-node", "replayed"}


FAULTS = """
[policy]
nodes = ["Ann B"]
number = 0
valid_from = 2030-01-02
valid_until = 2030-01-01
[rules]
recipients = []
dealers = []
evaluators = []
purposes = ["For teaching"]
least_group = 0
approvers = ["board", "dpo"]
approvals = 3
jobs = ["ab"]
"""


def test_faults_of_the_file_are_said_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(FAULTS)
    with pytest.raises(ConfigError) as caught:
        read_policy(path)
    said = str(caught.value)
    for words in (
        ":3: policy.nodes: 'Ann B' is not a name",
        ":4: policy.number: between 1 and",
        ":6: policy.valid_until: is before valid_from",
        ":11: rules.purposes: 'For teaching' is not a name",
        ":12: rules.least_group: at least 1",
        ":14: rules.approvals: 3 are needed, and only 2",
        ":15: rules.jobs: a digest has 64",
        ":15: rules.jobs: approvals = 3 makes a listed digest insufficient",
    ):
        assert words in said
    path.write_text(policy_toml().replace('dealers = ["registry"]', ""))
    with pytest.raises(ConfigError, match=r"rules.dealers: missing; write dealers = \["):
        read_policy(path)
    path.write_text(policy_toml() + "[audit]\n")
    with pytest.raises(ConfigError, match="unknown key"):
        read_policy(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}x", b'{"version": 2}', b'{"signatures": [1]}', b"[" * 10_000, b"\xff" * 600_000],
)
def test_a_malformed_file_of_signatures(tmp_path: Path, content: bytes) -> None:
    node_with_policy(tmp_path, [])
    (tmp_path / "policy.toml.sig").write_bytes(content)
    with pytest.raises(ConfigError, match=r"policy\.toml\.sig: "):
        read_signatures(read_policy(tmp_path / "policy.toml"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[policy]", "[rules]\nrecipients=[]\ndealers=[]\nevaluators=[]\n[policy]", "either"),
        ("[policy]", "[vault]", "either"),
        ('["board", "dpo"]', "[]", "at least one name"),
        ('["board", "dpo"]', '["board", "board"]', "each once"),
        ('["board", "dpo"]', '["board", "The DPO"]', "is not a name"),
        ('["board", "dpo"]', '["board"]\nleast_signers = 2', "between 0, which means all, and 1"),
    ],
)
def test_what_a_node_s_file_says_of_it(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = NODE.replace(old, new)
    if "[vault]" in text:
        text = text[: text.index("[vault]")]
    (tmp_path / "party.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_node_config(tmp_path / "party.toml")


def test_an_independent_reader_verifies_the_signatures(
    tmp_path: Path, people: dict[str, MemoryVault]
) -> None:
    """Written from docs/policy.md alone."""
    from hashlib import sha256

    node_with_policy(tmp_path, [people["board"]])

    def packed(*fields: bytes) -> bytes:
        return b"".join(len(field).to_bytes(4, "big") + field for field in fields)

    record = json.loads((tmp_path / "policy.toml.sig").read_bytes())
    (one,) = record["signatures"]
    digest = sha256((tmp_path / "policy.toml").read_bytes())
    assert record["version"] == 1 and one["digest"] == digest.hexdigest()
    statement = packed(b"board", digest.digest(), one["day"].encode())
    algorithms = b"mpc-train/signature/1/Ed25519+ML-DSA-65"
    signed = packed(algorithms, b"mpc-train/policy/1", statement)
    signature, card = base64.b64decode(one["signature"]), people["board"].card
    Ed25519PublicKey.from_public_bytes(card.ed25519).verify(signature[:64], signed)
    MLDSA65PublicKey.from_public_bytes(card.mldsa65).verify(signature[64:], signed)


def test_each_job_is_signed_under_a_policy_that_is_valid_then(
    tmp_path: Path,
    roster: Roster,
    both: list[MemoryVault],
    people: dict[str, MemoryVault],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The node accepted it days ago and has waited; and the log says which one it was."""
    from mpc_train.admission import rules
    from mpc_train.commands.common import Format
    from mpc_train.commands.nodes import Events, _Guarded
    from mpc_train.node.consent import roles_of

    monkeypatch.setattr(rules, "today", lambda: DAY)
    text = policy_toml(4, rules='approvers = ["board", "dpo"]\napprovals = 2')
    config = accepted(node_with_policy(tmp_path, both, text), roster, DAY)
    job = loaded(tmp_path)
    (tmp_path / "ann.csv").write_text("\n".join(csv_lines(40)))
    config.place.approvals.mkdir()
    for keys in both:
        name = keys.card.name
        body = approve(job, name, DAY, keys)
        (config.place.approvals / f"{name}.approval").write_bytes(body)
    with audit_log(tmp_path, people["ann"]) as audit:
        vault = node_vault(tmp_path)
        guarded = _Guarded(config, roster, False, Events(Format.json), None, audit, vault)
        assert len(guarded.prepare(job.to_bytes(), roles_of(job))) == 32
        monkeypatch.setattr(rules, "today", lambda: date(2031, 1, 1))
        with pytest.raises(RefusedError, match="it was valid until 2030-12-31"):
            guarded.prepare(job.to_bytes(), roles_of(job))
        (entry,) = (e for _, e in audit.entries() if e.kind == Kind.JOB_APPROVED)
    assert config.accepted is not None
    assert entry.fields == {
        "why": "board, dpo have approved it",
        "approvers": ("board", "dpo"),
        "policy": config.accepted.digest,
        "number": 4,
    }


def test_a_node_that_waits_says_so_to_machines_as_well(
    tmp_path: Path,
    roster: Roster,
    both: list[MemoryVault],
    people: dict[str, MemoryVault],
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mpc_train.commands.common import Format
    from mpc_train.commands.nodes import Events, _Guarded
    from mpc_train.node.consent import roles_of

    text = policy_toml(
        terms="valid_from = 2020-01-01\nvalid_until = 2120-01-01",
        rules='approvers = ["board", "dpo"]\napprovals = 2',
    )
    node = NODE.replace("[data]", "[timeouts]\njoin_s = 1\n[data]")
    config = accepted(node_with_policy(tmp_path, both, text, node), roster, DAY)
    job = loaded(tmp_path)
    for output in (Format.json, Format.text):
        with audit_log(tmp_path, people["ann"]) as audit:
            vault = node_vault(tmp_path)
            guarded = _Guarded(config, roster, False, Events(output), None, audit, vault)
            with pytest.raises(RefusedError, match="has 0 of the 2 approvals"):
                guarded.prepare(job.to_bytes(), roles_of(job))
        said = capsys.readouterr()
        if output is Format.json:
            event = json.loads(said.out.splitlines()[-1])
            assert event["event"] == "approvals" and "still possible: board" in event["missing"]
        else:
            assert "waiting for approvals: the job 'study'" in said.err
