"""`launch.py --script`: a CrypTen script, every party of it a process of this machine."""

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import Format, FormatOption, emit, reporting
from mpc_train.commands.local.children import (
    SETTLE_S,
    Logs,
    failure,
    fresh_folder,
    identities,
    last_record,
    own_code,
    ready,
    record_of,
)
from mpc_train.commands.local.script_node import NodeFile

MAX_EVALUATORS = 16


def script_command(
    script: Annotated[Path, typer.Argument(metavar="SCRIPT.py", help="The script.")],
    evaluators: Annotated[
        int,
        typer.Option(
            min=2, max=MAX_EVALUATORS, help="Parties that compute; besides, there is a dealer."
        ),
    ] = 2,
    output: FormatOption = Format.text,
    run_dir: Annotated[
        Path | None, typer.Option(help="Directory of the run; default: runs/SCRIPT-TIME.")
    ] = None,
) -> None:
    """Run a CrypTen script on this machine: every party a process with keys of its own.

    All parties and the dealer execute the same lines. Shows what the first party prints.
    """
    with reporting(output):
        from mpc_train.scripts.program import read_script
        from parties.stop import sigterm_interrupts

        read_script(script)
        folder = fresh_folder(run_dir, script.stem)
        with sigterm_interrupts():
            result = _run(script.absolute(), evaluators, folder, output)
        if output is Format.json:
            emit(result)
            return
        say(
            f"\n{evaluators} evaluators and a dealer: {result['rounds']} rounds,"
            f" {result['bytes_sent']:,} bytes sent by the first, {result['opened']} tensors opened",
            aside=True,
        )


def _run(script: Path, evaluators: int, folder: Path, output: Format) -> dict[str, Any]:
    from parties.keys.roster import Roster
    from parties.nodes.supervisor import ChildSpec, Supervisor

    names = tuple(f"party-{number}" for number in range(evaluators))
    dealer, coordinator = "dealer", "coordinator"
    homes = {name: folder / "nodes" / name for name in (*names, dealer, coordinator)}

    def shown(name: str, line: str) -> None:
        # A script may print objects of its own; these are the node's.
        record = record_of(line) or {}
        closing = "status" in record and ("peak_rss_mb" in record or "code" in record)
        if output is Format.text and not closing:
            say(line)

    with identities(homes) as (vaults, passphrases):
        roster = folder / "roster.toml"
        Roster.of(vault.card for vault in vaults.values()).save(roster)

        def spec(name: str, address: str) -> ChildSpec:
            home = homes[name]
            node = NodeFile(
                name,
                str(home),
                str(roster),
                str(home),
                str(script),
                names,
                dealer,
                coordinator,
                address,
            )
            path = home / "node.json"
            path.write_bytes(msgspec.json.encode(node))
            argv = [sys.executable, "-m", "mpc_train.commands.local.script_node", str(path)]
            argv += ["{secret_fd}", "{report_fd}"]
            environment = own_code() | {"PYTHONUNBUFFERED": "1"}
            return ChildSpec(name, argv, passphrases[name], environment)

        logs = Logs(folder, (names[0],), shown)
        with Supervisor(logs, settle_s=SETTLE_S) as supervisor:
            address = ready(supervisor, supervisor.start(spec(coordinator, "")))
            for name in (*names, dealer):
                supervisor.start(spec(name, address))
            if any(supervisor.wait().values()):
                raise failure(supervisor)
            return last_record(supervisor.children[names[0]])
