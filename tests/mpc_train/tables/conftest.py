"""A PostgreSQL server of the tests' own, on a socket in a temporary directory and on TCP."""

import contextlib
import grp
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PASSWORD = "a password: with \\ signs"


@dataclass(frozen=True)
class Server:
    """user `reader` may log in over TCP with `password_file`; `admin` through the socket."""

    folder: Path
    port: int
    bin: Path
    as_user: dict[str, str]

    @property
    def url(self) -> str:
        return f"postgresql://reader@127.0.0.1:{self.port}/study"

    def psql(self, script: str, database: str = "study") -> None:
        command = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-U", "admin"]
        subprocess.run(
            [*command, "-h", str(self.folder), "-p", str(self.port)],
            input=script,
            text=True,
            check=True,
            capture_output=True,
        )

    def password_file(self, folder: Path, password: str = PASSWORD) -> Path:
        path = folder / "pgpass"
        escaped = password.replace("\\", "\\\\").replace(":", "\\:")
        path.write_text(f"127.0.0.1:{self.port}:study:reader:{escaped}\n")
        path.chmod(0o600)
        return path


def _binaries() -> Path | None:
    found = shutil.which("initdb")
    candidates = [Path(found).resolve().parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((path for path in candidates if (path / "postgres").exists()), None)


def _somebody() -> dict[str, str]:
    for user in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(user)
            return {"user": user, "group": grp.getgrgid(entry.pw_gid).gr_name}
    pytest.skip("nobody but root is here to run a PostgreSQL server")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    binaries = _binaries()
    if binaries is None or shutil.which("psql") is None:
        pytest.skip("no PostgreSQL server is installed (initdb, postgres and psql)")
    pytest.importorskip("psycopg")
    # The server refuses to run as root, and an ordinary user has to reach its directory.
    as_user = _somebody() if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp())
    if as_user:
        shutil.chown(folder, **as_user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    secret = folder / "superuser"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    data = folder / "data"
    initdb = [binaries / "initdb", "-D", data, "-U", "admin", "--no-sync", "--pwfile", secret]
    initdb += ["--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C"]
    process = None
    try:
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **as_user)  # type: ignore[call-overload]
        server = Server(folder, port, binaries, as_user)
        settings = [f"port={port}", f"unix_socket_directories={folder}", "fsync=off"]
        settings += ["listen_addresses=127.0.0.1", "log_statement=all"]
        options = [part for setting in settings for part in ("-c", setting)]
        log = (folder / "log").open("wb")
        process = subprocess.Popen(
            [binaries / "postgres", "-D", data, *options],
            cwd=folder,
            stdout=log,
            stderr=log,
            **as_user,  # type: ignore[call-overload]
        )
        _wait(server, process)
        server.psql("create database study", "postgres")
        quoted = PASSWORD.replace("'", "''")
        server.psql(f"create role reader login password '{quoted}'")
        yield server
    finally:
        if process is not None:
            process.terminate()
            process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(server: Server, process: "subprocess.Popen[bytes]") -> None:
    ready: list[str | Path] = [
        server.bin / "pg_isready",
        "-h",
        str(server.folder),
        "-p",
        str(server.port),
        "-t",
        "20",
    ]
    for _ in range(100):
        if process.poll() is not None:
            raise RuntimeError((server.folder / "log").read_text())
        if subprocess.run(ready, capture_output=True).returncode == 0:
            return
    raise RuntimeError("the server does not answer")
