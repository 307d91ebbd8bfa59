"""One node of a script's run, as a process.

    python -m mpc_train.commands.local.script_node FILE FD FD

Only `launch.py --script` starts it. It writes the file and passes two descriptors: the node reads
its passphrase from the first, the coordinator reports its address on the second. After the script's
output, the last line of standard output is one JSON object.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import msgspec
import typer

from mpc_train.commands.common import Format, configure_logging, emit, reporting

if TYPE_CHECKING:
    from parties.audit.log import AuditLog
    from parties.keys.roster import Roster
    from parties.keys.vault import FileVault

MAX_PASSPHRASE_BYTES = 1024


class NodeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the launcher tells a node. coordinator: its name. address: empty at the coordinator."""

    name: str
    home: str
    roster: str
    run_dir: str
    script: str
    evaluators: tuple[str, ...]
    dealer: str
    coordinator: str
    address: str = ""


class _Lines:
    """Standard output, which knows whether a line has begun."""

    def __init__(self, stream: TextIO) -> None:
        self._output = stream
        self.begun = False

    def write(self, text: str) -> int:
        if text:
            self.begun = not text.endswith("\n")
        return self._output.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._output, name)


def main() -> None:
    """Run the node; exit status and last line are those of `mpc-train`'s commands."""
    with reporting(Format.json):
        from parties.nodes.supervisor import end_with_parent

        end_with_parent()
        configure_logging()
        node = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=NodeFile)
        secret = os.read(int(sys.argv[2]), MAX_PASSPHRASE_BYTES)
        stream, lines = sys.stdout, _Lines(sys.stdout)
        sys.stdout = cast(TextIO, lines)
        try:
            summary = _run(node, secret, int(sys.argv[3]))
        finally:
            sys.stdout = stream
            if lines.begun:
                stream.write("\n")  # the record is a line of its own
        emit({"status": "ok", **summary})


def _run(node: NodeFile, secret: bytes, report_fd: int) -> dict[str, Any]:
    from parties.audit.log import AuditLog, log_folder
    from parties.keys.roster import Roster
    from parties.keys.services.identity_service import IdentityService
    from parties.keys.vault import FileVault, identity_path

    vault = FileVault.open(identity_path(Path(node.home), node.name), secret)
    roster, run_dir = Roster.load(Path(node.roster)), Path(node.run_dir)
    script = Path(node.script)
    folder = log_folder(Path(node.home), node.name)
    with AuditLog(folder, vault, IdentityService(vault)) as audit:
        return _played(node, script, run_dir, vault, roster, audit, report_fd)


def _played(
    node: NodeFile,
    script: Path,
    run_dir: Path,
    vault: FileVault,
    roster: Roster,
    audit: AuditLog,
    report_fd: int,
) -> dict[str, Any]:
    """Run the node with its log open."""
    from mpc_train.scripts.program import ScriptProgram, read_script
    from parties.agreement.contract import Roles
    from parties.nodes.coordinator import Coordinator, CoordinatorSettings
    from parties.nodes.node import NodeSettings, run_node
    from parties.nodes.supervisor import report

    if node.address:
        settings = NodeSettings(
            coordinator=node.coordinator,
            address=node.address,
            run_dir=run_dir,
            listen="tcp://127.0.0.1:*",
        )
        return dict(run_node(vault, roster, settings, ScriptProgram(script), audit).summary)
    roles = Roles(node.evaluators, node.evaluators, node.dealer, node.evaluators)
    coordinator = Coordinator(
        vault,
        roster,
        script.stem,
        (roles, read_script(script)),
        CoordinatorSettings("tcp://127.0.0.1:*", run_dir),
        audit,
    )
    report(report_fd, coordinator.address)
    return {"nodes": dict(coordinator.run().summaries)}


if __name__ == "__main__":
    try:
        main()
    except typer.Exit as end:
        sys.exit(end.exit_code)
