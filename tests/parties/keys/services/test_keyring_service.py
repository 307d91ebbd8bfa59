"""Keys in the system's keyring: one in memory, and a real Secret Service where it is installed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parties.errors import KeyServiceError
from parties.keys.services.keyring_service import MAX_KEYS, KeyringService, parse
from tests.support.key_contract import (
    FILE_KEY,
    INFO,
    check_doctor,
    check_rotation,
    check_wrapping,
    refused,
)

keyring: Any = pytest.importorskip("keyring", reason="keyring is not installed")

REST = "mpc-train/ann"
ENTRY = ("mpc-train", "ann")
ROOT = Path(__file__).resolve().parents[4]


class InsecureKeyring(keyring.backend.KeyringBackend):
    """Entries in memory. fails: what it raises."""

    priority = 1

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}
        self.fails: Exception | None = None
        self.forgets = False

    def get_password(self, service: str, username: str) -> str | None:
        if self.fails is not None:
            raise self.fails
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        if self.fails is not None:
            raise self.fails
        if not self.forgets:
            self.kept[service, username] = password


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InsecureKeyring]:
    monkeypatch.setenv("HOME", str(tmp_path))
    before, mine = keyring.get_keyring(), InsecureKeyring()
    keyring.set_keyring(mine)
    try:
        yield mine
    finally:
        keyring.set_keyring(before)


def test_keys_of_a_keyring(backend: InsecureKeyring) -> None:
    KeyringService.create(REST)
    check_wrapping(lambda: KeyringService(REST))
    check_doctor(lambda: KeyringService(REST))
    check_rotation(lambda: KeyringService(REST))
    (secret,) = backend.kept.values()
    assert secret not in repr(KeyringService(REST))


def test_keys_are_made_once(backend: InsecureKeyring) -> None:
    assert "makes it" in refused(lambda: KeyringService(REST))
    assert backend.kept == {}, "to open makes nothing"
    kept = KeyringService.create(REST).wrap(FILE_KEY, INFO)
    assert "never overwritten" in refused(lambda: KeyringService.create(REST))
    backend.kept.clear()
    KeyringService.create(REST)
    assert "it was destroyed" in refused(lambda: KeyringService(REST).unwrap(*kept, INFO))


def test_entries_that_hold_no_keys(backend: InsecureKeyring) -> None:
    KeyringService.create(REST)
    whole = backend.kept[ENTRY]
    for secret in ("", "!", whole[:-4], whole + "AAAA", "AAAA" * 9999):
        backend.kept[ENTRY] = secret
        said = refused(lambda: KeyringService(REST))
        assert "holds no keys" in said and whole not in said


def test_a_keyring_that_forgets_is_noticed(backend: InsecureKeyring) -> None:
    backend.forgets = True
    assert "did not keep" in refused(lambda: KeyringService.create(REST))
    backend.forgets = False
    service = KeyringService.create(REST)
    kept = service.wrap(FILE_KEY, INFO)
    backend.forgets = True
    assert "did not keep" in refused(service.rotate)
    assert service.current == kept[0] and service.unwrap(*kept, INFO) == FILE_KEY


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (keyring.errors.NoKeyringError("none"), "no keyring"),
        (keyring.errors.KeyringLocked("locked"), "unlock it"),
        (keyring.errors.InitError("locked"), "unlock it"),
        (keyring.errors.PasswordSetError("full"), "the keyring failed"),
        (OSError("no bus"), "the keyring failed"),
    ],
)
def test_keyrings_that_fail(backend: InsecureKeyring, error: Exception, said: str) -> None:
    service = KeyringService.create(REST)
    backend.fails = error
    assert said in refused(lambda: KeyringService(REST))
    assert said in refused(service.rotate)


def test_keyrings_that_protect_nothing_are_refused(backend: InsecureKeyring) -> None:
    from keyring.backends.fail import Keyring as Fail
    from keyring.backends.null import Keyring as Null

    keyring.set_keyring(Null())
    assert "does not protect" in refused(lambda: KeyringService.create(REST))
    keyring.set_keyring(Fail())
    assert "no keyring" in refused(lambda: KeyringService.create(REST))


def test_two_that_rotate_lose_no_key(backend: InsecureKeyring) -> None:
    one, two = KeyringService.create(REST), KeyringService(REST)
    made = [one.rotate(), two.rotate()]
    wrapped = one.wrap(FILE_KEY, INFO)
    assert len(set(made)) == 2 and two.unwrap(*wrapped, INFO) == FILE_KEY


def test_the_entry_has_a_bound(backend: InsecureKeyring) -> None:
    service = KeyringService.create(REST)
    for _ in range(MAX_KEYS - 1):
        service.rotate()
    assert max(map(len, backend.kept.values())) < 2560, "what Windows can hold"
    for call in (service.rotate, service.check_rotation):
        with pytest.raises(KeyServiceError, match="retire old ones"):
            call()


@pytest.mark.parametrize("rest", ["", "a", "a/", "/a", "a/b/c", "a/b c", "a/b#1", "a/b?c"])
def test_uris_that_are_wrong(rest: str) -> None:
    with pytest.raises(ValueError):
        parse(rest)


PROGRAM = """
import json, keyring
from parties.keys.services.keyring_service import KeyringService
service = KeyringService.create("mpc-train/ann")
first = service.wrap(bytes(range(32)), b"use")
service.rotate()
again = KeyringService("mpc-train/ann")
print(json.dumps({
    "backend": type(keyring.get_keyring()).__module__,
    "opens": again.unwrap(*first, b"use") == bytes(range(32)),
    "current": again.current == service.current != first[0],
    "retired": again.retire(frozenset()) == (first[0],),
}))
"""


@pytest.mark.skipif(
    not (shutil.which("dbus-run-session") and shutil.which("gnome-keyring-daemon")),
    reason="no Secret Service: dbus-run-session and gnome-keyring-daemon are not installed",
)
def test_a_real_secret_service(tmp_path: Path) -> None:
    """GNOME Keyring on a bus of its own, with a login that the test unlocks."""
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "XDG_RUNTIME_DIR": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }
    script = (
        "printf pass | gnome-keyring-daemon --unlock --components=secrets >/dev/null && "
        f"{sys.executable} program.py"
    )
    session = shutil.which("dbus-run-session")
    assert session is not None
    done = subprocess.run(
        [session, "--", "sh", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found == {
        "backend": "keyring.backends.SecretService",
        "opens": True,
        "current": True,
        "retired": True,
    }
