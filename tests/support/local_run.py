"""A local run in a temporary directory: three nodes, a dealer's roles, a coordinator."""

import contextlib
import json
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parties.keys.identity import IdentityKeys
from parties.keys.roster import Roster
from parties.nodes.supervisor import Child, ChildSpec, Supervisor
from tests.support.patience import PATIENCE_S

ROOT = str(Path(__file__).resolve().parents[2])
WORKER = str(Path(__file__).with_name("party_worker.py"))
ROLES = {
    "owners": ["alice", "bob"],
    "evaluators": ["alice", "bob"],
    "dealer": "dora",
    "recipients": ["alice", "rita"],
}
LISTEN = "tcp://127.0.0.1:*"


class LocalRun:
    """Starts workers; `results` waits for them and returns what each printed last."""

    def __init__(self, root: Path, keys: dict[str, IdentityKeys]) -> None:
        self.root = root
        self.keys = keys
        self.supervisor = Supervisor(settle_s=PATIENCE_S, grace_s=2.0)
        self.address = ""
        self.roster = root / "roster"
        cards = [keys[name].card(name) for name in sorted(keys) if name != "mallory"]
        Roster.of(cards).save(self.roster)

    def start(self, name: str, config: dict[str, Any], secret: IdentityKeys | None = None) -> Child:
        path = self.root / f"{name}.json"
        base = {"name": name, "roster": str(self.roster), "run_dir": str(self.root / "run" / name)}
        path.write_text(json.dumps({**base, **config}))
        argv = [sys.executable, WORKER, str(path), "{secret_fd}", "{report_fd}"]
        private = (secret or self.keys[name]).private_bytes()
        return self.supervisor.start(ChildSpec(name, argv, private, {"PYTHONPATH": ROOT}))

    def coordinator(self, **config: Any) -> Child:
        settings = {"kind": "coordinator", "listen": LISTEN, "roles": ROLES, **config}
        child = self.start("coordinator", settings)
        self.address = self.supervisor.wait_report(child, PATIENCE_S)
        return child

    def node(
        self,
        name: str,
        options: dict[str, Any] | None = None,
        secret: IdentityKeys | None = None,
        **config: Any,
    ) -> Child:
        settings = {"kind": "node", "address": self.address, "options": options or {}, **config}
        return self.start(name, settings, secret)

    def nodes(self, options: dict[str, Any] | None = None, **config: Any) -> None:
        for name in ("alice", "bob", "dora"):
            self.node(name, options, **config)

    def results(self) -> dict[str, dict[str, Any]]:
        self.supervisor.wait(PATIENCE_S)
        found = {}
        for name, child in self.supervisor.children.items():
            last = child.stdout[-1] if child.stdout else "{}"
            found[name] = json.loads(last) if last.startswith("{") else {}
            found[name]["status"] = child.returncode
            found[name]["stderr"] = "\n".join(child.stderr)
        return found


@contextlib.contextmanager
def port_in_use() -> Iterator[str]:
    """An address at which something else listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield f"tcp://127.0.0.1:{taken.getsockname()[1]}"


@contextlib.contextmanager
def other_program(greeting: bytes) -> Iterator[str]:
    """The address of a server of another kind, which says `greeting` to whoever connects and then
    keeps quiet until they leave."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.sendall(greeting)
                while self.request.recv(4096):
                    pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"tcp://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
