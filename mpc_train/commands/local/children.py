"""Nodes of a local run as child processes: their keys, their logs, and their results."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpc_train.errors import EXIT_STATUS, NodeFailedError

if TYPE_CHECKING:
    from parties.keys.vault import FileVault
    from parties.nodes.supervisor import Child, Supervisor

READY_TIMEOUT_S = 120.0
SETTLE_S = 30.0
"""How long the other nodes may take to end by themselves after one has failed. They need a moment,
or some seconds on a busy machine. A node that is ended too early cannot report what was wrong."""

CONSEQUENCES = {"AbortedError", "PeerLostError", "PeerTimeoutError", "KeyboardInterrupt"}
"""Errors that a node reports because another node failed; the cause is elsewhere."""


NOT_AGAIN = (
    "Nothing starts a killed node of a local run again, and its keys end with the run: give the "
    "same command once more"
)


def fresh_folder(run_dir: Path | None, name: str) -> Path:
    """Return an empty directory for a run that nobody else may enter; raise ConfigError."""
    from mpc_train.errors import ConfigError
    from parties.files import open_to_others, private_directory

    folder = run_dir or Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}"
    try:
        private_directory(folder)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder}: is not empty; choose another directory for the run")
        if problem := open_to_others(folder):
            raise ConfigError(f"{folder}: {problem}")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be created ({error.strerror})") from error
    return folder.absolute()


@contextlib.contextmanager
def identities(
    homes: Mapping[str, Path],
) -> "Iterator[tuple[dict[str, FileVault], dict[str, bytes]]]":
    """Make keys for this run only, encrypted under passphrases that nobody writes down.

    homes: the directory of each identity, by name.
    """
    from parties.keys.vault import FileVault, identity_path

    passphrases = {name: os.urandom(24).hex().encode() for name in homes}
    try:
        vaults = {
            name: FileVault.create(home, name, passphrases[name]) for name, home in homes.items()
        }
        yield vaults, passphrases
    finally:
        # The passphrases end with this process; without them the files are of no use.
        for name, home in homes.items():
            identity_path(home, name).unlink(missing_ok=True)


class Logs:
    """Writes every line of every node to a file, and passes what the nodes `shown` print to
    `on_line`, with their names."""

    def __init__(
        self, folder: Path, shown: Collection[str], on_line: Callable[[str, str], None]
    ) -> None:
        from parties.files import private_directory

        self._folder, self._shown, self._on_line = folder / "logs", shown, on_line
        private_directory(self._folder)

    def __call__(self, name: str, stream: str, line: str) -> None:
        with (self._folder / f"{name}.{stream}.log").open("a", encoding="utf-8") as log:
            log.write(line + "\n")
        if name in self._shown and stream == "stdout":
            self._on_line(name, line)


def own_code() -> dict[str, str]:
    """The environment in which children run the same code as this process, installed or not."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def record_of(line: str) -> dict[str, Any] | None:
    """The JSON object in a line of a node's output; None if there is none."""
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(line)
        if isinstance(record, dict):
            return record
    return None


def last_record(child: "Child") -> dict[str, Any]:
    """The last object that a node printed, or a substitute if it was killed."""
    for line in reversed(child.stdout):
        record = record_of(line)
        if record is not None and "status" in record:
            return record
    code = child.returncode or 0
    how = f"its process was ended by signal {-code}" if code < 0 else f"exit status {code}"
    errors = [line for line in child.stderr if line.startswith(("error:", "Usage:", "Error"))]
    detail = f": {errors[-1].removeprefix('error: ')}" if errors else ""
    return {
        "status": "PeerLostError",
        "code": "peer-lost",
        "message": f"{how}{detail}",
        "exit": 8 if code < 0 else code,
    }


def ready(supervisor: "Supervisor", child: "Child") -> str:
    """What a child reports when it is ready; raises NodeFailedError or TransportError."""
    from parties.errors import TransportError

    try:
        return supervisor.wait_report(child, READY_TIMEOUT_S)
    except TransportError:
        deadline = time.monotonic() + 2
        while child.returncode is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if child.returncode:
            raise failure(supervisor) from None
        raise


def failure(supervisor: "Supervisor") -> NodeFailedError:
    """The error of the node that failed first for a reason of its own."""
    for child in supervisor.children.values():
        for thread in child.threads:
            thread.join(timeout=1.0)
    failed = [child for child in supervisor.children.values() if child.returncode]
    first = supervisor.first_failure
    failed.sort(key=lambda child: child is not first)
    records = [(child, last_record(child)) for child in failed]
    killed = [pair for pair in records if (pair[0].returncode or 0) < 0]
    causes = [pair for pair in records if pair[1]["status"] not in CONSEQUENCES]
    child, record = (causes or killed or records)[0]
    status = int(record.get("exit", child.returncode or 1))
    if status < 0:  # it had reported its error, and was ended while it was closing
        status = EXIT_STATUS.get(str(record["status"]), 1)
    message = str(record.get("message", "failed"))
    if (child.returncode or 0) < 0 and not causes:
        message += f". {NOT_AGAIN}"
    if record.get("code") == "policy":
        message += " If all rows are invented, [rules] in local.toml beside the job may relax this."
    return NodeFailedError(
        str(record["status"]),
        str(record.get("code", "internal")),
        f"{child.name}: {message}",
        status,
    )
