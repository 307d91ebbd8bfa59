"""A node or a coordinator as a process, with a program that only exchanges frames.

python worker.py CONFIG.json SECRET_FD REPORT_FD; prints one JSON line at the end.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import parties.nodes.members
import parties.nodes.node
import parties.nodes.rotation
from parties.agreement import control
from parties.agreement.contract import Contract, Roles
from parties.agreement.result import Artifact, Record, Statement
from parties.agreement.session import Session
from parties.audit.entries import Kind
from parties.errors import AuditError, PolicyError
from parties.keys.identity import IdentityKeys
from parties.keys.roster import Roster
from parties.keys.vault import FileVault, MemoryVault
from parties.nodes.coordinator import Coordinator, CoordinatorSettings
from parties.nodes.node import NodeSettings, run_node
from parties.nodes.supervisor import end_with_parent, report
from parties.wire.proxy import Proxy
from parties.wire.resume import MESSAGE_BYTES
from protocols.errors import RangeError
from tests.support.audit_logs import audit_log


class Exchange:
    """Every node sends `rounds` frames to each neighbour and checks those that come."""

    def __init__(self, me: str, options: dict[str, Any]) -> None:
        self.me = me
        self.options = options

    def prepare(self, body: bytes, roles: Roles) -> bytes:
        if self.options.get("policy") == self.me:
            raise PolicyError("this node's rules forbid the job")
        if self.options.get("constants") == self.me:
            return sha256(b"another table").digest()
        return sha256(b"constants").digest()

    def run(self, session: Session) -> dict[str, object]:
        peers = session.roles.neighbours(session.me)
        size = self.options.get("size", 1000)
        received = 0
        for number in range(self.options.get("rounds", 3)):
            label = f"round {number}".encode()
            if number == 1:
                print("running", flush=True)
            if number == 1 and self.options.get("fail") == self.me:
                raise RangeError("a value is out of range")
            for peer in peers:
                session.channel.send(peer, label, self._payload(session, peer, number, size))
            for peer in peers:
                got, payload = session.channel.receive(peer, size + 64)
                wanted = bytes([number % 256]) * size
                assert got == label and payload[:size] == wanted, (got, peer)
                received += len(payload)
            session.progress(round=number)
            time.sleep(self.options.get("pause", 0))
        for recipient in session.roles.recipients:
            if session.is_evaluator:
                session.emit("sealed", f"{recipient}/model.bin", session.me.encode() * 600_000)
        secrets = {peer: sha256(session.export(peer, "test")).hexdigest() for peer in peers}
        keys = {peer: sha256(session.channel._sealers[peer]._key).hexdigest() for peer in peers}
        first = {peer: sha256(session.keys[peer].send).hexdigest() for peer in peers}
        fresh = [peer for peer in peers if keys[peer] != first[peer]]
        return {"received": received, "sid": session.sid.hex(), "secrets": secrets, "fresh": fresh}

    def outcome(self) -> bytes:
        return b"what was opened"

    def checkpoints(self) -> tuple[bytes, ...]:
        return ()

    def insists(self) -> bool:
        return False

    def leaving(self, body: bytes) -> tuple[str, ...]:
        return ()

    def check_outcome(self, outcome: bytes) -> None:
        assert outcome == b"what was opened"
        if self.options.get("dies") == self.me:
            os._exit(1)

    def _payload(self, session: Session, peer: str, number: int, size: int) -> bytes:
        return bytes([number % 256]) * size + session.sid[:16]


class InsecureSabotage:
    """A coordinator that lies to bob about one thing."""

    def __init__(self, coordinator: Coordinator, what: str) -> None:
        self.what = what
        self.contract = coordinator.contract
        self.send = coordinator._send
        self.forward = coordinator._server._forward
        self.frames = 0
        if what == "frame":
            coordinator._server._forward = self.relay  # type: ignore[method-assign]
        elif what:
            coordinator._send = self.lie  # type: ignore[method-assign]

    def lie(self, name: str, message: Any) -> None:
        if name == "bob":
            if isinstance(message, control.Propose):
                message = self.propose(message)
            elif isinstance(message, control.Accepted) and self.what == "another":
                message = control.Propose(self.contract.to_bytes(), b"another body", attempt=2)
            elif isinstance(message, control.Accepted) and self.what == "nonce":
                alice = message.acceptances["alice"]
                forged = control.Accept(bytes(32), alice.constants, alice.signature)
                message = control.Accepted({**message.acceptances, "alice": forged})
            elif isinstance(message, control.Accepted) and self.what == "missing":
                rest = {n: a for n, a in message.acceptances.items() if n != "alice"}
                message = control.Accepted(rest)
            elif isinstance(message, control.Start) and self.what == "session":
                swapped = {**message.signatures, "alice": message.signatures["dora"]}
                message = control.Start(swapped, message.addresses, checkpoints=message.checkpoints)
            elif isinstance(message, control.Start) and self.what == "checkpoint":
                swapped = {**message.checkpoints, "alice": message.checkpoints["dora"]}
                message = control.Start(message.signatures, message.addresses, checkpoints=swapped)
            elif isinstance(message, control.Results):
                message = self.results(message)
            elif isinstance(message, control.Finish) and self.what == "record":
                run = Record.from_bytes(message.record)
                others = run.signatures[1:]
                message = control.Finish(replace(run, signatures=(others[0], *others)).to_bytes())
        self.send(name, message)

    def results(self, message: control.Results) -> control.Results:
        said = Statement.from_bytes(message.statement)
        if self.what == "outcome":
            said = replace(said, outcome=b"more was opened")
        elif self.what == "files":
            kept = [one for one in said.artifacts if one.sender != "bob"]
            said = replace(said, artifacts=(*kept, Artifact("bob", "sealed/x/y", "0" * 64)))
        elif self.what == "run":
            said = replace(said, sid=bytes(32))
        return control.Results(said.to_bytes())

    def relay(self, sender: str, receiver: str, frame: Any) -> None:
        """Flip one bit of a frame to bob, once the handshakes are over."""
        data = bytearray(memoryview(frame))
        size = int.from_bytes(data[:4], "big")
        if (sender, receiver) == ("alice", "bob") and size != MESSAGE_BYTES:
            self.frames += 1
            if self.frames == 20:
                data[8 + size - 1] ^= 1
                frame = bytes(data)
        self.forward(sender, receiver, frame)

    def propose(self, message: Any) -> Any:
        if self.what == "body":
            return control.Propose(message.contract, b"another body")
        if self.what == "contract":
            other = Contract.of(
                "test job", self.contract.roles, b"another body", self.contract.roster_digest
            )
            return control.Propose(other.to_bytes(), b"another body")
        if self.what == "dealer":
            roles = replace(self.contract.roles, dealer="alice")
            return control.Propose(replace(self.contract, roles=roles).to_bytes(), b"body")
        if self.what == "roster":
            changed = replace(self.contract, roster_digest=bytes(32))
            return control.Propose(changed.to_bytes(), b"body")
        return message


def full_at(append: Callable[..., int], kind: str) -> Callable[..., int]:
    """A disk that is full when an entry of this kind is due."""

    def appending(due: Kind, *arguments: Any, **more: Any) -> int:
        if due == kind:
            raise AuditError("the audit log cannot be written: No space left on device")
        return append(due, *arguments, **more)

    return appending


def say(kind: str, fields: object) -> None:
    if kind != "progress":
        # In one call: two threads may say something at the same time.
        sys.stderr.write(f"{kind}\n")


def main() -> None:
    end_with_parent()
    config = json.loads(Path(sys.argv[1]).read_text())
    keys = IdentityKeys(os.read(int(sys.argv[2]), 4096))
    card = keys.card(config["name"])
    if config.get("rotated"):
        card = Roster.load(config["roster"]).card(config["name"])
    vault = MemoryVault(keys, card)
    if config.get("rotated"):
        vault = vault.successor()
    if config.get("identity"):
        vault = FileVault.open(config["identity"], b"correct horse")
    parties.nodes.members.LOOK_S = parties.nodes.rotation.LOOK_S = config.get("look_s", 2.0)
    settings = {"reconnect_s": 1.0, **config.get("settings", {})}
    result: dict[str, Any]
    started = time.monotonic()
    status = 0
    try:
        roster = Roster.load(config["roster"])
        audit = audit_log(Path(config["roster"]).parent, vault)
        if config.get("full"):
            audit.append = full_at(audit.append, config["full"])  # type: ignore[method-assign]
        if config["kind"] == "coordinator":
            roles = config["roles"]
            coordinator = Coordinator(
                vault,
                roster,
                "test job",
                (
                    Roles(
                        tuple(roles["owners"]),
                        tuple(roles["evaluators"]),
                        roles["dealer"],
                        tuple(roles["recipients"]),
                    ),
                    b"body",
                ),
                CoordinatorSettings(config["listen"], Path(config["run_dir"]), **settings),
                audit,
            )
            InsecureSabotage(coordinator, config.get("sabotage", ""))
            report(int(sys.argv[3]), coordinator.address)
            done = coordinator.run()
            files = [str(file.relative_to(config["run_dir"])) for file in done.files]
            result = {"summaries": done.summaries, "files": files, "relayed": done.relayed_bytes}
        else:
            if config.get("version"):
                parties.nodes.node.CONTRACT_VERSION = config["version"]
            node_settings = NodeSettings(
                "coordinator",
                config["address"],
                Path(config["run_dir"]),
                listen=config.get("listen"),
                proxy=Proxy.from_url(config["proxy"]) if config.get("proxy") else None,
                **settings,
            )
            program = Exchange(config["name"], config["options"])
            node = run_node(vault, roster, node_settings, program, audit, say)
            result = {"summary": node.summary, "files": [str(file) for file in node.files]}
            result["cards"] = {card.name: card.fingerprint for card in node.roster}
    except KeyboardInterrupt:
        result, status = {"error": "KeyboardInterrupt"}, 130
    except Exception as error:
        result, status = {"error": type(error).__name__, "message": str(error)}, 8
    print(json.dumps({**result, "seconds": time.monotonic() - started}), flush=True)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
