"""`mpc-train policy`, and what `job check` and `job approve` do with a node's policy."""

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from parties.keys.roster import Roster
from parties.keys.vault import FileVault
from tests.support.commands import as_json, mpc_train
from tests.support.jobs import JOB, write_job
from tests.support.policies import NODE, RULES, policy_toml

PASSPHRASE = b"correct horse battery staple"
THIS_YEAR = f"valid_from = 2020-01-01\nvalid_until = {datetime.now(UTC).year + 2}-01-01"
PEOPLE = ("ann", "board", "dpo", "mallory")
TWO = 'approvers = ["board", "dpo"]\napprovals = 2'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for each of ann's people, and one roster."""
    folder = tmp_path_factory.mktemp("people")
    cards = [FileVault.create(folder / f"of-{name}", name, PASSPHRASE).card for name in PEOPLE]
    Roster.of(cards).save(folder / "roster")
    (folder / "passphrase").write_bytes(PASSPHRASE)
    (folder / "passphrase").chmod(0o600)
    return folder


@pytest.fixture
def folder(tmp_path: Path, made: Path) -> Iterator[Path]:
    """Ann's node with a policy that nobody has signed yet, and the job."""
    shutil.copytree(made, tmp_path / "it")
    here = tmp_path / "it"
    node = NODE.replace(
        'home = "home"', 'home = "of-ann", roster = "roster", passphrase_file = "passphrase"'
    )
    (here / "party.toml").write_text(node)
    (here / "policy.toml").write_text(policy_toml(terms=THIS_YEAR, rules=TWO))
    write_job(here)
    yield here


def by(folder: Path, name: str) -> tuple[object, ...]:
    return ("--home", folder / f"of-{name}", "--passphrase-file", folder / "passphrase")


def sign(folder: Path, name: str) -> dict[str, Any]:
    return as_json("policy", "sign", folder / "policy.toml", *by(folder, name))


def checked(folder: Path) -> dict[str, Any]:
    return as_json("job", "check", folder / "job.toml", "--config", folder / "party.toml")


def test_the_people_of_an_organisation_sign_its_policy(folder: Path) -> None:
    policy, config = folder / "policy.toml", folder / "party.toml"
    said = checked(folder)
    assert (said["status"], said["code"]) == ("PolicyRefusedError", "policy")
    assert "missing: board, dpo" in said["message"]
    assert as_json("policy", "verify", policy, "--roster", folder / "roster")["code"] == "policy"
    assert sign(folder, "board")["signers"] == ["board"]
    assert "missing: dpo" in checked(folder)["message"]
    record = sign(folder, "dpo")
    assert record["signers"] == ["board", "dpo"]
    assert sign(folder, "dpo")["signers"] == ["board", "dpo"]  # once more changes nothing
    shown = as_json("policy", "show", policy)
    assert shown["digest"] == record["digest"] and set(shown["named"]) == {"board", "dpo"}
    assert shown["rules"]["approvals"] == 2 and shown["policy"]["nodes"] == ["ann"]
    verified = as_json("policy", "verify", "--config", config)
    assert verified["signers"] == ["board", "dpo"]
    assert as_json("policy", "verify", policy, "--roster", folder / "roster")["status"] == "ok"
    assert checked(folder)["status"] == "ok"
    text = mpc_train("job", "check", folder / "job.toml", "--config", config).stdout
    assert f"The rules of {policy} allow the job to ann; earlier runs over its table count" in text
    # Who changes it asks everybody again.
    policy.write_text(policy_toml(2, terms=THIS_YEAR, rules='models = ["linear"]'))
    assert "signed another text" in checked(folder)["message"]
    assert sign(folder, "board")["signers"] == ["board"]
    sign(folder, "dpo")
    assert "a logistic model is not listed under models" in checked(folder)["message"]


def test_what_it_shows_to_people(folder: Path) -> None:
    text = mpc_train("policy", "show", folder / "policy.toml").stdout
    for words in ("for ann, number 1, valid from 2020-01-01", "not verified: none"):
        assert words in text
    assert "purposes" in text and '["registry"]' in text
    forged = {"signer": "board\nSigned by", "digest": "", "day": "2026-01-01", "signature": ""}
    beside = folder / "policy.toml.sig"
    beside.write_text(json.dumps({"signatures": [forged], "version": 1}))
    text = mpc_train("policy", "show", folder / "policy.toml").stdout
    assert "not verified: board\\u000aSigned by (2026-01-01)" in text
    beside.unlink()
    result = mpc_train("policy", "sign", folder / "policy.toml", *by(folder, "board"))
    assert "Signed by board" in result.stdout
    result = mpc_train("policy", "verify", folder / "policy.toml", "--roster", folder / "roster")
    assert "Signed by board; the signatures verify." in result.stdout
    assert mpc_train("policy", "verify").exit_code == 3
    both = mpc_train("policy", "verify", folder / "policy.toml", "--config", folder / "party.toml")
    assert both.exit_code == 3


def test_approvals_at_a_node(folder: Path) -> None:
    """Its approvers put theirs into its directory and its log, and nobody else can."""
    sign(folder, "board")
    sign(folder, "dpo")

    def approve(name: str) -> dict[str, Any]:
        config = ("--config", folder / "party.toml")
        return as_json("job", "approve", folder / "job.toml", *config, *by(folder, name))

    for name in ("mallory", "ann"):
        said = approve(name)
        assert said["status"] == "RefusedError" and "Nothing was signed" in said["message"]
        assert f"{name} is not an approver of ann: its rules list board, dpo" in said["message"]
    assert not (folder / "of-ann" / "approvals").exists()
    record = approve("board")
    assert record["logged"] is True
    assert Path(record["approval"]).parent == folder / "of-ann" / "approvals"
    config = ("--config", folder / "party.toml", "--kind", "approval-given")
    (entry,) = as_json("audit", "show", *config)["entries"]
    policy = as_json("policy", "show", folder / "policy.toml")["digest"]
    assert entry["fields"] == {"by": "board", "policy": policy, "number": 1}
    assert entry["digest"] == record["digest"]
    write_job(folder, JOB.replace('["accuracy", "auc"]', '["log_loss"]'))
    assert "log_loss would be revealed but is not listed" in approve("dpo")["message"]
    write_job(folder)
    node = (folder / "party.toml").read_text()
    (folder / "party.toml").write_text(node.replace(', passphrase_file = "passphrase"', ""))
    assert approve("dpo")["logged"] is False
    names = sorted(path.name for path in (folder / "of-ann" / "approvals").iterdir())
    assert [name.rsplit("-", 1)[1] for name in names] == ["board.approval", "dpo.approval"]
    statement = json.loads((folder / "of-ann" / "approvals" / names[0]).read_bytes())["statement"]
    assert statement["day"] == f"{datetime.now(UTC):%Y-%m-%d}"


def test_the_log_is_for_its_auditors(folder: Path) -> None:
    """Whom the rules name reads it with an identity of their own, and the operator does not."""
    config, log = folder / "party.toml", folder / "of-ann" / "audit" / "ann"
    node = config.read_text()
    own = node[: node.index("[policy]")] + f"[rules]{RULES}"
    own = own.replace("[rules]", "[timeouts]\njoin_s = 1\n[rules]")
    config.write_text(own)
    assert as_json("audit", "show", "--config", config)["entries"]
    config.write_text(f'{own}auditors = ["dpo"]\n')
    said = as_json("audit", "show", "--config", config)
    assert (said["status"], mpc_train("audit", "show", "--config", config).exit_code) == (
        "RefusedError",
        6,
    )
    assert "is for its auditors: dpo" in said["message"]
    secret = ("--passphrase-file", folder / "passphrase")
    reader = ("--log", log, "--identity", folder / "of-dpo" / "dpo.identity", *secret)
    assert "is not sealed to dpo" in as_json("audit", "show", *reader)["message"]
    started = as_json("party", "--config", config)  # nobody listens there, which ends it
    assert started["status"] != "ok"
    entries = as_json("audit", "show", *reader)["entries"]
    assert [each["fields"] for each in entries if each["kind"] == "log-shared"] == [
        {"with": ["dpo"]}
    ]
    stranger = ("--log", log, "--identity", folder / "of-mallory" / "mallory.identity", *secret)
    assert "is not sealed to mallory" in as_json("audit", "show", *stranger)["message"]
    assert "name a node's own file" in as_json("audit", "show", "--log", log)["message"]
    config.write_text(f'{own}auditors = ["dpo", "ann"]\n')
    assert as_json("audit", "show", "--config", config)["entries"]
    config.write_text(f'{own}auditors = ["absent"]\n')
    assert "no card of 'absent'" in as_json("party", "--config", config)["message"]
