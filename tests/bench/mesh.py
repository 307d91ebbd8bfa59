"""Worker processes on loopback that share a real session, without coordinator and contract.

For benchmarks: the parent makes fresh keys, starts one process per node and hands each its own
secrets through a pipe; the workers connect with CURVE, shake hands and confirm with the same
functions that a run uses, and get a `Session` whose channel is the real one.

    parent:  mesh = Mesh([sys.executable, __file__, "--worker", ...], roles)
             results = mesh.results(timeout_s=120)           # {node: dict that it returned}
    worker:  with join() as session: finish({"seconds": ...})

A worker must leave stdin and stdout to this module; what it prints goes to stderr.
"""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from parties.agreement.contract import Roles
from parties.agreement.session import Session, confirm, session_info, shake_hands
from parties.stop import StopFlag
from parties.wire.data_plane import DataPlane, choose_route
from parties.wire.secure_channel import SecureChannel
from parties.wire.zmq_transport import CurveKeys, Transport
from protocols.sealing.session import VERSION, identity_digest, session_id
from protocols.sealing.signatures import SigningKeys
from tests.bench.link import Link

_BYE = b"bye"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Mesh:
    """One worker process per node of `roles`, each running `argv`.

    link: what the connections between nodes pass, None for loopback as it is. `with` or `close`
    ends what is left of the workers.
    """

    def __init__(
        self,
        argv: Sequence[str],
        roles: Roles,
        env: dict[str, str] | None = None,
        link: Link | None = None,
    ):
        self.roles = roles
        secrets = {name: os.urandom(64) for name in roles.nodes}
        curve = {name: CurveKeys.generate() for name in roles.nodes}
        public = {
            name: {
                "signing": _text(SigningKeys(secrets[name]).public),
                "curve": _text(curve[name].public),
                "nonce": _text(os.urandom(32)),
            }
            for name in roles.nodes
        }
        root = str(Path(__file__).resolve().parents[2])
        environment = {**os.environ, **(env or {})}
        paths = [root, environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
        self.workers = {
            name: subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                text=True,
            )
            for name in roles.nodes
        }
        for name in roles.nodes:
            self._tell(
                name,
                {
                    "me": name,
                    "signing": _text(secrets[name]),
                    "curve": _text(curve[name].secret),
                    "public": public,
                    "roles": [roles.owners, roles.evaluators, roles.dealer, roles.recipients],
                },
            )
        listens = {name: self._hear(name)["address"] for name in roles.nodes}
        for name in roles.nodes:
            addresses = dict(listens)
            for peer in roles.neighbours(name):
                if link is not None and choose_route(name, peer, listens).kind == "dial":
                    addresses[peer] = link.route(name, peer, listens[peer])
            self._tell(name, addresses)

    def _tell(self, name: str, message: dict[str, Any]) -> None:
        pipe = self.workers[name].stdin
        assert pipe is not None
        pipe.write(json.dumps(message) + "\n")
        pipe.flush()

    def _hear(self, name: str) -> dict[str, Any]:
        pipe = self.workers[name].stdout
        assert pipe is not None
        line = pipe.readline()
        if not line:
            self.close()
            raise RuntimeError(f"worker {name} ended without a result")
        return dict(json.loads(line))

    def results(self, timeout_s: float) -> dict[str, dict[str, Any]]:
        """What each worker passed to `finish`."""
        found = {name: self._hear(name) for name in self.roles.nodes}
        deadline = time.monotonic() + timeout_s
        for worker in self.workers.values():
            worker.wait(max(0.1, deadline - time.monotonic()))
        return found

    def close(self) -> None:
        for worker in self.workers.values():
            if worker.poll() is None:
                worker.terminate()
                worker.wait(10)

    def __enter__(self) -> "Mesh":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def join(timeout_s: float = 60.0) -> Iterator[Session]:
    """In a worker: the session, connected and confirmed. Leaves when all neighbours are done."""
    mine = json.loads(sys.stdin.readline())
    me: str = mine["me"]
    owners, evaluators, dealer, recipients = mine["roles"]
    roles = Roles(tuple(owners), tuple(evaluators), dealer, tuple(recipients))
    public = {
        name: {kind: base64.b64decode(text) for kind, text in keys.items()}
        for name, keys in mine["public"].items()
    }
    signer = SigningKeys(base64.b64decode(mine["signing"]))
    signing = {name: keys["signing"] for name, keys in public.items()}
    own_curve = CurveKeys(public[me]["curve"], base64.b64decode(mine["curve"]))
    transport = Transport(own_curve, {name: keys["curve"] for name, keys in public.items()})
    plane = DataPlane(transport, me, StopFlag(), listen="tcp://127.0.0.1:*")
    try:
        finish({"address": plane.address})
        listens = json.loads(sys.stdin.readline())
        job, roster = sha256(b"bench").digest(), sha256(b"roster").digest()
        sid = session_id(
            VERSION,
            job,
            roster,
            [
                (roles.title(name), identity_digest(name, signing[name]), public[name]["nonce"])
                for name in roles.nodes
            ],
        )
        neighbours = roles.neighbours(me)
        plane.open(sid, {name: listens[name] for name in (me, *neighbours)}, None, timeout_s)
        info = session_info(sid, job, roster)
        keys = shake_hands(plane, info, roles, me, signing, signer, timeout_s)
        channel = SecureChannel(plane, me, sid, keys, timeout_s)
        confirm(channel, sid, neighbours)
        yield Session(me, sid, roles, channel, signer, {}, Path.cwd(), keys)
        for peer in neighbours:
            channel.send(peer, _BYE, b"")
        for peer in neighbours:
            channel.receive(peer, 0)
    finally:
        plane.close(linger_s=5)
        transport.close()


def finish(result: dict[str, Any]) -> None:
    """In a worker: hand the parent what it measured."""
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
