"""`mpc-train keys doctor`, and a vault that moves from one key service to the next."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mpc_train.cli import app
from parties.keys.services.file_service import FileService
from parties.keys.vault import FileVault
from tests.support.soft_token import PIN, SoftToken, soft_token
from tests.support.vault_server import VaultServer, vault_server

PASSPHRASE = b"correct horse"
NODE = """
node = { name = "bob", home = "home", passphrase_file = "passphrase" }
coordinator = { name = "desk", address = "tcp://127.0.0.1:7700" }
[rules]
recipients = []
dealers = []
evaluators = []
"""
CHECKS = ["open", "wrap", "unwrap", "refuse a wrong binding", "can be rotated"]


def secret(folder: Path, name: str, text: bytes) -> Path:
    (folder / name).write_bytes(text)
    (folder / name).chmod(0o600)
    return folder / name


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    FileVault.create(folder / "home", "bob", PASSPHRASE)
    secret(folder, "passphrase", PASSPHRASE)
    (folder / "t.csv").write_text("a,b\n1,2\n")
    return folder


def config(home: Path, key: str = "", passphrase_file: str = "") -> Path:
    vault = f'vault = {{ key = "{key}", passphrase_file = "{passphrase_file}" }}\n' if key else ""
    (home / "party.toml").write_text(vault + NODE)
    return home / "party.toml"


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def record(*words: str | Path) -> dict[str, Any]:
    result = run(*words, "--format", "json")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found | {"exit": result.exit_code}


def test_the_doctor_of_a_file(home: Path) -> None:
    service = FileService.create(home / "doctor.keys", PASSPHRASE)
    words = ("keys", "doctor", service.uri, "--passphrase-file", home / "passphrase")
    found = record(*words)
    assert (found["exit"], found["status"], found["key"]) == (0, "ok", service.uri)
    assert [(each["name"], each["problem"]) for each in found["checks"]] == [
        (name, "") for name in CHECKS
    ]
    assert all(each["seconds"] >= 0 for each in found["checks"])
    said = run(*words)
    assert said.exit_code == 0
    assert [line.split("  ")[0] for line in said.stdout.splitlines()] == CHECKS
    assert service.current == FileService(home / "doctor.keys", PASSPHRASE).current


def test_the_doctor_of_an_identity(home: Path) -> None:
    """It cannot be rotated, which is said, and is no failure."""
    found = record("keys", "doctor", "identity:", "--config", config(home))
    assert found["exit"] == 0
    assert "mpc-train identity rotate" in found["checks"][-1]["problem"]
    without = record("keys", "doctor", "identity:")
    assert without["exit"] == 5 and "--config" in without["checks"][0]["problem"]


def test_the_doctor_takes_the_secret_that_the_node_s_file_names(home: Path) -> None:
    service = FileService.create(home / "named.keys", PASSPHRASE)
    path = config(home, service.uri, "passphrase")
    assert record("keys", "doctor", service.uri, "--config", path)["exit"] == 0


def test_what_the_doctor_finds_wrong(home: Path) -> None:
    pytest.importorskip("hvac", reason="hvac is not installed")
    token = secret(home, "token", b"hunter2-of-vault")
    uri = "vault://127.0.0.1:1/transit/ann"
    found = record("keys", "doctor", uri, "--passphrase-file", token)
    assert (found["exit"], found["status"], found["code"]) == (5, "KeyServiceError", "key-service")
    assert [each["name"] for each in found["checks"] if each["problem"]] == [
        "wrap",
        "can be rotated",
    ]
    said = run("keys", "doctor", uri, "--passphrase-file", token)
    assert said.exit_code == 5 and "wrap" in said.stdout and "hunter2" not in said.output
    for wrong in ("vault://hunter2@host/transit/ann", "nonsense:"):
        refused = record("keys", "doctor", wrong)
        assert refused["exit"] == 5 and "hunter2" not in json.dumps(refused)
    missing = record("keys", "doctor", uri, "--passphrase-file", home / "none")
    assert missing["exit"] == 5


@pytest.fixture(scope="module")
def token() -> SoftToken:
    return soft_token()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultServer]:
    with vault_server(tmp_path_factory.mktemp("openbao")) as started:
        yield started


def test_a_vault_moves_from_service_to_service(
    home: Path, token: SoftToken, server: VaultServer
) -> None:
    """Identity → token → Vault → identity, with a rotation in each; the table opens throughout."""
    secret(home, "pin", PIN + b"\n")
    secret(home, "root", b"root-of-a-test\n")
    server.admin.secrets.transit.create_key("bob")
    path = config(home)
    table = ("vault", "show", "t", "--config", path)
    assert record("vault", "import", home / "t.csv", "t", "--config", path)["exit"] == 0
    made = record("vault", "key", token.uri("bob"), "--passphrase-file", home / "pin")
    assert (made["exit"], made["key"]) == (0, token.uri("bob"))
    assert record("vault", "key", token.uri("bob"), "--passphrase-file", home / "pin")["exit"] == 5
    for uri, file in ((token.uri("bob"), "pin"), (server.uri("bob"), "root")):
        words = ("vault", "rotate", "--config", path)
        moved = record(*words, "--to", uri, "--to-passphrase-file", home / file)
        assert (moved["exit"], moved["rewrapped"], moved["retired"]) == (0, 1, []), moved
        assert record(*table)["exit"] == 5, "the node's file names the old service"
        config(home, uri, file)
        assert record(*table)["rows"] == 1
        turned = record(*words)
        assert turned["exit"] == 0 and turned["made"], turned
        assert turned["retired"] == [moved["key"]]
        assert record(*table)["rows"] == 1
        kept = record(*words, "--keep-old")
        assert kept["made"] and kept["retired"] == []
        assert record("keys", "doctor", uri, "--config", path)["exit"] == 0
    assert record("vault", "rotate", "--to", "identity:", "--config", path)["exit"] == 0
    config(home)
    assert record(*table)["rows"] == 1


def test_keys_of_others_are_not_made_here(home: Path) -> None:
    found = record("vault", "key", "aws-kms:alias/bob")
    assert found["exit"] == 5 and "make this one where it is kept" in found["message"]
