"""`identity rotate` and `revoke`, `roster revoke`: what they change, and what they say."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from parties.keys.identity import Card
from parties.keys.roster import Roster
from parties.keys.vault import FileVault
from tests.support.commands import as_json, mpc_train


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """ann's home, which knows bob, and bob's."""
    secret = tmp_path / "secret"
    secret.write_text("correct horse")
    secret.chmod(0o600)
    for name in ("ann", "bob"):
        run(tmp_path, name, "identity", "new", name, "--days", "60")
    run(tmp_path, "ann", "roster", "add", tmp_path / "bob" / "bob.card", "--yes")
    return tmp_path


def run(root: Path, name: str, *words: object) -> dict[str, Any]:
    secret = ["--passphrase-file", root / "secret"] if words[0] == "identity" else []
    if words[1] in ("card", "show"):
        secret = []
    return as_json(*words, *secret, "--home", root / name)


def test_days_have_bounds_and_are_shown(home: Path) -> None:
    for days in ("0", "1827", "x"):
        asked = mpc_train("identity", "new", "eve", "--days", days, "--home", home / "eve")
        assert asked.exit_code == 2 and "--days" in asked.output
    card = Card.load(home / "ann" / "ann.card")
    assert run(home, "ann", "identity", "show")["expires"] == card.expires
    shown = run(home, "ann", "roster", "show")
    assert shown["expires"]["ann"] == card.expires
    text = mpc_train("roster", "show", "--home", home / "ann").stdout
    assert f"expires {card.expires}" in text


def test_rotating_makes_new_keys_and_says_how_others_learn_of_them(home: Path) -> None:
    before = Card.load(home / "bob" / "bob.card")
    done = run(home, "bob", "identity", "rotate", "--days", "90")
    after = Card.load(home / "bob" / "bob.card")
    assert (done["before"], done["fingerprint"]) == (before.fingerprint, after.fingerprint)
    assert done["sequence"] == 1
    assert Roster.load(home / "bob" / "roster").card("bob") == after
    assert FileVault.open(home / "bob" / "bob.identity", b"correct horse").card == after

    text = mpc_train("identity", "card", "--succession", "--home", home / "bob").stdout
    file = home / "bob.succession"
    file.write_text(text)
    accepted = mpc_train("roster", "add", file, "--home", home / "ann")
    assert accepted.exit_code == 0, accepted.output
    assert after.fingerprint in accepted.stdout and before.fingerprint in accepted.stdout
    assert Roster.load(home / "ann" / "roster").card("bob") == after
    again = mpc_train("roster", "add", file, "--home", home / "ann")
    assert again.exit_code == 0 and "Nothing to do" in again.stdout


def test_an_old_card_is_not_added_again(home: Path) -> None:
    old = home / "old.card"
    old.write_text((home / "bob" / "bob.card").read_text())
    run(home, "bob", "identity", "rotate")
    file = home / "bob.succession"
    file.write_text(run(home, "bob", "identity", "card", "--succession")["succession"])
    run(home, "ann", "roster", "add", file)
    refused = mpc_train("roster", "add", old, "--home", home / "ann", "--replace", "--yes")
    assert refused.exit_code == 6 and "an old card of bob" in refused.stderr


def test_an_identity_that_was_never_rotated_has_no_succession(home: Path) -> None:
    refused = mpc_train("identity", "card", "--succession", "--home", home / "ann")
    assert refused.exit_code == 5 and "never been rotated" in refused.stderr


def test_a_statement_of_revocation_is_private_and_works_later(home: Path) -> None:
    made = run(home, "bob", "identity", "revoke")
    statement = Path(made["statement"])
    assert stat.S_IMODE(statement.stat().st_mode) == 0o600
    assert run(home, "bob", "identity", "revoke")["status"] == "IdentityError"
    assert "bob" in Roster.load(home / "bob" / "roster")  # nothing has happened yet
    card = home / "bob" / "bob.card"

    words = ("roster", "revoke", "bob", "--statement", statement)
    asked = mpc_train(*words, "--home", home / "ann")
    assert asked.exit_code == 5 and "--yes" in asked.stderr
    done = run(home, "ann", *words, "--yes")
    assert (done["status"], done["by"]) == ("ok", "owner")
    shown = run(home, "ann", "roster", "show")
    assert "bob" not in shown["cards"] and shown["revoked"][0]["name"] == "bob"
    assert "REVOKED" in mpc_train("roster", "show", "--home", home / "ann").stdout
    refused = mpc_train("roster", "add", card, "--home", home / "ann", "--yes", "--replace")
    assert refused.exit_code == 6 and "was revoked" in refused.stderr


def test_a_node_revokes_by_itself_only_whom_it_knows(home: Path) -> None:
    unknown = run(home, "ann", "roster", "revoke", "eve", "--yes")
    assert unknown["status"] == "RosterError"
    made = run(home, "bob", "identity", "revoke", "--out", home / "statement")
    wrong = run(home, "ann", "roster", "revoke", "ann", "--statement", made["statement"], "--yes")
    assert "is about bob, not ann" in wrong["message"]
    (home / "statement").write_text((home / "statement").read_text().replace("made", "xade"))
    broken = run(home, "ann", "roster", "revoke", "bob", "--statement", home / "statement", "--yes")
    assert broken["status"] == "CardError" and "'xade' is unknown" in broken["message"]
    done = run(home, "ann", "roster", "revoke", "bob", "--yes")
    assert done["by"] == "operator", json.dumps(done)
    assert "bob" not in Roster.load(home / "ann" / "roster")
