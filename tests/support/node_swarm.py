"""Many nodes in one process, each with its own transport and threads: what a machine has room for.

python -m tests.support.node_swarm < CONFIG.json; prints one JSON line: the error of each node that
had one.
"""

import json
import sys
import threading
from pathlib import Path
from typing import Any

from parties.keys.identity import IdentityKeys
from parties.keys.roster import Roster
from parties.keys.vault import MemoryVault
from parties.nodes.node import NodeSettings, run_node
from tests.support.audit_logs import audit_log
from tests.support.party_worker import Exchange


class Computing(Exchange):
    """Only nodes that compute see what was opened."""

    def outcome(self) -> bytes:
        return super().outcome() if self.me in self.options["computing"] else b""


def main() -> None:
    """config: roster, address, folder, options, and by name the node's private keys in
    hexadecimal."""
    config: dict[str, Any] = json.load(sys.stdin)
    errors: dict[str, str] = {}

    def run(name: str, private: str) -> None:
        folder = Path(config["folder"]) / name
        folder.mkdir()
        keys = IdentityKeys(bytes.fromhex(private))
        roster = Roster.load(config["roster"])
        vault = MemoryVault(keys, roster.card(name))
        settings = NodeSettings("coordinator", config["address"], folder / "run")
        try:
            with audit_log(folder, vault) as audit:
                run_node(vault, roster, settings, Computing(name, config["options"]), audit)
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=run, args=each) for each in config["nodes"].items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(errors), flush=True)


if __name__ == "__main__":
    main()
