"""Recipients whose keys are not post-quantum: refused unless listed, and always pointed out."""

import json
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from typer.testing import CliRunner

from mpc_train.admission.load import load_job
from mpc_train.admission.recipient_keys import check_recipient_keys, key_cautions
from mpc_train.admission.rules import KeyKind, Rules
from mpc_train.cli import app
from mpc_train.commands.keys import RecipientKind
from mpc_train.errors import RefusedError
from parties.keys.roster import Roster
from parties.keys.vault import MemoryVault
from protocols.sealing.recipient_keys import HYBRID, KINDS, P384, RSA, RecipientKey
from tests.support.jobs import write_job

RULES = Rules(recipients=("office",), dealers=("registry",), evaluators=("ann",))
KEYS = {"office": RecipientKey(P384, b""), "ann": RecipientKey(HYBRID, b"")}


def test_every_kind_is_known_everywhere() -> None:
    assert set(get_args(KeyKind)) == set(KINDS) == {kind.value for kind in RecipientKind}


def test_a_key_that_is_not_post_quantum_is_refused_unless_listed(tmp_path: Path) -> None:
    job = load_job(write_job(tmp_path))
    listed = '"x25519-mlkem768", "p384"'
    with pytest.raises(RefusedError, match=rf"office \(p384\).*recipient_keys = \[{listed}\]"):
        check_recipient_keys(RULES, job, KEYS)
    for kind, allowed in ((P384, (HYBRID, P384)), (RSA, (HYBRID, RSA)), (HYBRID, (HYBRID,))):
        rules = msgspec.structs.replace(RULES, recipient_keys=allowed)
        check_recipient_keys(rules, job, {**KEYS, "office": RecipientKey(kind, b"")})
    with pytest.raises(RefusedError, match=r"office \(x25519-mlkem768\)"):
        rules = msgspec.structs.replace(RULES, recipient_keys=(P384,))
        check_recipient_keys(rules, job, {"office": RecipientKey(HYBRID, b"")})


def test_people_are_told_whose_key_is_not_post_quantum(tmp_path: Path) -> None:
    job = load_job(write_job(tmp_path))
    assert job.recipients == ("ann", "office")
    (line,) = key_cautions(job, KEYS)
    assert "p384 key of office" in line and "not post-quantum" in line
    # Names that receive nothing do not matter, nor do names without a card.
    assert key_cautions(job, {"bob": RecipientKey(RSA, b"")}) == []


def test_job_check_points_the_key_out(tmp_path: Path) -> None:
    path = write_job(tmp_path)
    cards = [
        MemoryVault.generate(name, P384 if name == "office" else HYBRID).card
        for name in load_job(path).names
    ]
    roster = tmp_path / "roster.toml"
    Roster.of(cards).save(roster)
    command = ["job", "check", str(path), "--roster", str(roster), "--home", str(tmp_path)]
    text = CliRunner().invoke(app, command)
    assert text.exit_code == 0 and "  beware     results are sealed to a p384 key" in text.stdout
    found = json.loads(CliRunner().invoke(app, [*command, "--format", "json"]).stdout)
    assert any("p384 key of office" in line for line in found["cautions"])
