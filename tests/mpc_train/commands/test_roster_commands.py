"""`mpc-train roster`: a card is stored once somebody has agreed to its fingerprint."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from parties.keys.identity import Card, IdentityKeys
from parties.keys.roster import Roster
from tests.support.commands import mpc_train
from tests.support.patience import PATIENCE_S


def card(folder: Path, name: str) -> tuple[Path, Card]:
    folder.mkdir(exist_ok=True)
    made = IdentityKeys.generate().card(name)
    path = folder / f"{name}-by-mail.card"
    path.write_text(made.to_text())
    return path, made


def at_terminal(answer: str, *words: object) -> tuple[int, str]:
    """Exit status and words of a command whose standard input is a terminal."""
    above, below = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mpc_train", *(str(word) for word in words)],
        stdin=below,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    os.close(below)
    os.write(above, f"{answer}\n".encode())
    said, _ = process.communicate(timeout=PATIENCE_S)
    os.close(above)
    return process.returncode, said


@pytest.fixture(params=["roster", "roster.toml"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_without_a_terminal_nothing_is_stored_unless_yes_is_said(
    tmp_path: Path, place: Path
) -> None:
    path, bob = card(tmp_path / "mail", "bob")
    for output in ("text", "json"):
        refused = mpc_train("roster", "add", path, "--roster", place, "--format", output)
        assert refused.exit_code == 5
        assert "--yes" in refused.stderr
        assert not place.exists()
    added = mpc_train("roster", "add", path, "--roster", place, "--yes")
    assert added.exit_code == 0 and bob.fingerprint in added.stdout
    # What is stored already needs no answer.
    again = mpc_train("roster", "add", path, "--roster", place)
    assert again.exit_code == 0 and "known already" in again.stdout


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("n", 5), ("", 5)])
def test_at_a_terminal_the_fingerprint_is_shown_and_asked_about(
    tmp_path: Path, place: Path, answer: str, status: int
) -> None:
    path, bob = card(tmp_path / "mail", "bob")
    code, said = at_terminal(answer, "roster", "add", path, "--roster", place)
    assert code == status, said
    assert said.index(bob.fingerprint) < said.index("Accept bob?")
    assert place.exists() == (status == 0)


def test_replacing_shows_both_fingerprints(tmp_path: Path, place: Path) -> None:
    path, old = card(tmp_path / "mail", "bob")
    mpc_train("roster", "add", path, "--roster", place, "--yes")
    path, new = card(tmp_path / "mail", "bob")
    refused = mpc_train("roster", "add", path, "--roster", place, "--yes")
    assert refused.exit_code == 5
    assert old.fingerprint in refused.stderr and new.fingerprint in refused.stderr
    shown = mpc_train("roster", "add", path, "--roster", place, "--replace")
    assert shown.exit_code == 5
    assert old.fingerprint in shown.stdout and new.fingerprint in shown.stdout
    assert Roster.load(place).card("bob") == old
    assert mpc_train("roster", "add", path, "--roster", place, "--replace", "--yes").exit_code == 0
    assert Roster.load(place).card("bob") == new


def test_cards_are_removed_all_or_none(tmp_path: Path, place: Path) -> None:
    paths = [card(tmp_path / "mail", name)[0] for name in ("ann", "bob", "cleo")]
    mpc_train("roster", "add", *paths, "--roster", place, "--yes")
    unknown = mpc_train("roster", "remove", "ann", "eve", "--roster", place, "--yes")
    assert unknown.exit_code == 5 and "eve" in unknown.stderr
    assert mpc_train("roster", "remove", "ann", "--roster", place).exit_code == 5
    assert Roster.load(place).names == ("ann", "bob", "cleo")
    assert at_terminal("n", "roster", "remove", "ann", "--roster", place)[0] == 5
    assert Roster.load(place).names == ("ann", "bob", "cleo")
    assert mpc_train("roster", "remove", "ann", "bob", "--roster", place, "--yes").exit_code == 0
    assert Roster.load(place).names == ("cleo",)


def test_a_card_in_a_file_of_another_name_is_removed(tmp_path: Path) -> None:
    place = tmp_path / "roster"
    card(place, "bob")
    assert mpc_train("roster", "remove", "bob", "--roster", place, "--yes").exit_code == 0
    assert Roster.load(place).names == ()
