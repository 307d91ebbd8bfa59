"""Services that keep the vault's keys: what they wrap opens with them, for the same use, only."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from parties.errors import KeyServiceError, PassphraseError
from parties.keys.services.by_uri import check_uri, create_service, open_service
from parties.keys.services.file_service import MAX_KEYS, FileService
from parties.keys.services.identity_service import IdentityService
from parties.keys.vault import MemoryVault

ROOT = Path(__file__).resolve().parents[3]
ANN = MemoryVault.generate("ann")
FILE_KEY, INFO = bytes(range(32)), b"what it is for"
PASSPHRASE = b"correct horse"


@pytest.fixture(params=["identity", "file"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> IdentityService | FileService:
    if request.param == "identity":
        return IdentityService(ANN)
    return FileService.create(tmp_path / "vault.keys", PASSPHRASE)


def test_what_is_wrapped_opens_for_the_same_use_only(
    service: IdentityService | FileService,
) -> None:
    key_id, wrapped = service.wrap(FILE_KEY, INFO)
    assert key_id == service.current
    assert FILE_KEY not in wrapped
    assert service.unwrap(key_id, wrapped, INFO) == FILE_KEY
    assert service.wrap(FILE_KEY, INFO)[1] != wrapped
    for changed in (wrapped[:-1], b"", bytes([wrapped[0] ^ 1]) + wrapped[1:], wrapped + b"\0"):
        with pytest.raises(KeyServiceError, match="does not open"):
            service.unwrap(key_id, changed, INFO)
    with pytest.raises(KeyServiceError, match="does not open"):
        service.unwrap(key_id, wrapped, b"another use")
    for other in ("file:7", "file:", "file:x", "identity:00", "", "aws:1"):
        with pytest.raises(KeyServiceError):
            service.unwrap(other, wrapped, INFO)
    assert "correct" not in repr(service)


def test_an_identity_does_not_rotate(tmp_path: Path) -> None:
    with pytest.raises(KeyServiceError, match="mpc-train identity rotate"):
        IdentityService(ANN).rotate()
    other = IdentityService(MemoryVault.generate("ann"))
    key_id, wrapped = IdentityService(ANN).wrap(FILE_KEY, INFO)
    with pytest.raises(KeyServiceError, match="another identity than the present one of ann"):
        other.unwrap(key_id, wrapped, INFO)


def test_a_file_of_keys_rotates_and_retires(tmp_path: Path) -> None:
    path = tmp_path / "vault.keys"
    service = FileService.create(path, PASSPHRASE)
    first = service.wrap(FILE_KEY, INFO)
    assert first[0].startswith("file:1-")
    assert service.rotate().startswith("file:2-")
    second = service.wrap(FILE_KEY, INFO)
    assert FileService(path, PASSPHRASE).unwrap(*first, INFO) == FILE_KEY
    assert second[0] == service.current
    assert service.retire(frozenset([first[0]])) == ()
    assert service.retire(frozenset()) == (first[0],)
    for each in (service, FileService(path, PASSPHRASE)):
        assert each.unwrap(*second, INFO) == FILE_KEY
        with pytest.raises(KeyServiceError, match="does not have the key file:1"):
            each.unwrap(*first, INFO)
    assert service.rotate().startswith("file:3-")  # a number is never used for two keys


def test_two_processes_that_rotate_lose_no_key(tmp_path: Path) -> None:
    path = tmp_path / "vault.keys"
    one = FileService.create(path, PASSPHRASE)
    two = FileService(path, PASSPHRASE)
    assert [one.rotate()[:7], two.rotate()[:7]] == ["file:2-", "file:3-"]
    wrapped = one.wrap(FILE_KEY, INFO)
    assert two.unwrap(*wrapped, INFO) == FILE_KEY


def test_files_that_are_not_keys(tmp_path: Path) -> None:
    path = tmp_path / "vault.keys"
    FileService.create(path, PASSPHRASE)
    with pytest.raises(KeyServiceError, match="never overwritten"):
        FileService.create(path, PASSPHRASE)
    with pytest.raises(PassphraseError, match=r"vault\.keys: the passphrase is wrong"):
        FileService(path, b"another")
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole[:40], b"mpc-train identity 1\n" + whole[23:]):
        path.write_bytes(content)
        with pytest.raises(KeyServiceError, match=r"vault\.keys"):
            FileService(path, PASSPHRASE)
    path.write_bytes(whole)
    path.chmod(0o644)
    with pytest.raises(KeyServiceError, match="chmod 600"):
        FileService(path, PASSPHRASE)
    path.chmod(0o600)
    with pytest.raises(KeyServiceError, match="No such file"):
        FileService(tmp_path / "none", PASSPHRASE)


def test_a_file_of_keys_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = FileService.create(tmp_path / "vault.keys", PASSPHRASE)
    with service._changing() as keys:
        keys.update({number: os.urandom(32) for number in range(1, MAX_KEYS + 1)})
    assert FileService(tmp_path / "vault.keys", PASSPHRASE).current.startswith(f"file:{MAX_KEYS}-")
    with pytest.raises(KeyServiceError, match="retire old ones"):
        service.rotate()


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("identity:", None),
        ("file:keys/vault.keys", None),
        ("identity:ann", "nothing stands behind it"),
        ("file:", "needs the path"),
        ("vault.keys", "begins with one of identity:, file:"),
        ("keyring:mpc-train/ann", None),
        ("keyring:ann", "SERVICE/NAME"),
        ("vault://vault.example.org/transit/ann", None),
        ("vault://vault.example.org/transit", "//HOST"),
        ("vault://token@vault.example.org/transit/ann", "no user or token"),
        ("aws-kms:alias/ann?region=eu-central-1", None),
        ("aws-kms:ann", "ARN"),
        ("gcp-kms:projects/p/locations/l/keyRings/r/cryptoKeys/k", None),
        ("gcp-kms:k", "projects/P"),
        ("pkcs11:token=t;object=o?module-path=/l.so", None),
        ("pkcs11:token=t;object=o?module-path=/l.so&pin-value=1234", "no PIN"),
        ("file:" + "k" * 2000, "at most 1024"),
        ("file:k\n", "printable"),
        ("http://keys", "begins with one of"),
    ],
)
def test_uris(uri: str, problem: str | None) -> None:
    said = check_uri(uri)
    assert said is None if problem is None else problem in str(said)
    if problem is not None:
        with pytest.raises(KeyServiceError, match=str(problem)):
            open_service(uri, ANN, lambda: PASSPHRASE)


@pytest.mark.parametrize(
    "uri",
    [
        "vault://s.hunter2@vault/transit/ann",
        "pkcs11:token=t;object=o?module-path=/l.so&pin-value=hunter2",
        "aws-kms:alias/a?endpoint=https://key:hunter2@host",
    ],
)
def test_a_secret_that_stands_in_a_uri_is_not_repeated(uri: str) -> None:
    for call in (open_service, lambda uri, _, secret: create_service(uri, secret)):
        with pytest.raises(KeyServiceError) as told:
            call(uri, None, lambda: PASSPHRASE)
        assert "hunter2" not in str(told.value)


LIBRARIES = {
    "keyring:mpc-train/ann": ("keyring", "keyring"),
    "vault://vault.example.org/transit/ann": ("hvac", "hashicorp"),
    "aws-kms:alias/ann?region=eu-central-1": ("boto3", "aws"),
    "gcp-kms:projects/p/locations/l/keyRings/r/cryptoKeys/k": ("google.cloud.kms_v1", "gcp"),
    "pkcs11:token=t;object=o?module-path=/l.so": ("pkcs11", "pkcs11"),
}


@pytest.mark.parametrize("uri", LIBRARIES)
def test_a_missing_library_names_the_extra_to_install(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, extra = LIBRARIES[uri]
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(KeyServiceError, match=rf"pip install 'mpc-train\[{extra}\]'"):
        open_service(uri, None, lambda: PASSPHRASE)
    assert (
        extra
        in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )


def test_libraries_are_imported_when_they_are_used() -> None:
    names = {library.partition(".")[0] for library, _ in LIBRARIES.values()} | {"grpc", "botocore"}
    code = f"import sys, parties.keys.services.by_uri; print({names} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "set()"


def test_keys_of_others_are_not_made_here() -> None:
    for uri in ("identity:", "aws-kms:alias/ann?region=eu-central-1"):
        with pytest.raises(KeyServiceError, match="make this one where it is kept"):
            create_service(uri, lambda: PASSPHRASE)
    with pytest.raises(KeyServiceError, match="--config"):
        open_service("identity:", None, lambda: PASSPHRASE)


def test_a_service_is_opened_by_its_uri(tmp_path: Path) -> None:
    service = FileService.create(tmp_path / "vault.keys", PASSPHRASE)
    wrapped = service.wrap(FILE_KEY, INFO)
    opened = open_service(service.uri, ANN, lambda: PASSPHRASE)
    assert opened.unwrap(*wrapped, INFO) == FILE_KEY

    def unasked() -> bytes:
        raise AssertionError("an identity needs no passphrase of its own")

    assert open_service("identity:", ANN, unasked).current == IdentityService(ANN).current
