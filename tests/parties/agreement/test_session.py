"""How a session begins: with a nonce of this start, and a confirmation of this id."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parties.agreement import control
from parties.agreement.contract import Contract, Roles
from parties.agreement.session import CONFIRM_LABEL, confirm
from parties.keys.vault import MemoryVault
from parties.nodes.node import NodeSettings, _Node
from protocols.errors import HandshakeError
from protocols.sealing.session import NONCE_BYTES

SID = bytes(range(32))
VAULT = MemoryVault.generate("ann")


class Answering:
    """A channel on which every peer confirms what it is told to."""

    def __init__(self, label: bytes, payload: bytes) -> None:
        self.answer = label, memoryview(bytearray(payload))
        self.sent: list[tuple[str, bytes, bytes]] = []

    def send(self, peer: str, label: bytes, payload: bytes) -> None:
        self.sent.append((peer, label, payload))

    def receive(self, peer: str, max_bytes: int) -> tuple[bytes, memoryview]:
        return self.answer


def test_the_id_is_confirmed_to_every_neighbour() -> None:
    channel: Any = Answering(CONFIRM_LABEL, SID)
    confirm(channel, SID, ("bob", "dora"))
    assert channel.sent == [(peer, CONFIRM_LABEL, SID) for peer in ("bob", "dora")]


@pytest.mark.parametrize(
    ("label", "payload"), [(CONFIRM_LABEL, bytes(32)), (CONFIRM_LABEL, b""), (b"handshake", SID)]
)
def test_a_neighbour_that_confirms_anything_else_is_named(label: bytes, payload: bytes) -> None:
    channel: Any = Answering(label, payload)
    with pytest.raises(HandshakeError, match="bob did not confirm"):
        confirm(channel, SID, ("bob",))


class EnoughSeen(Exception):
    """The node has said what the test waits for."""


def said_acceptances(folder: Path) -> list[control.Accept]:
    """What a node answers to a proposal, and to the same one again because another node left."""
    said: list[Any] = []
    contract = Contract.of("study", Roles(("ann",), ("ann", "bob"), "dora", ("ann",)), b"", SID)
    proposal = control.Propose(contract.to_bytes(), b"")

    def expect(kind: Any, timeout_s: float, what: str) -> Any:
        if control.Accepted not in kind:
            return proposal
        if len(said) == 2:
            raise EnoughSeen
        return control.Propose(proposal.contract, proposal.body, attempt=2)

    node: Any = _Node.__new__(_Node)
    node._me, node._vault = "ann", VAULT
    node._audit = SimpleNamespace(append=lambda *what, **of: 0, held=dict)
    node._job = node._digest = ""
    node._settings = NodeSettings("desk", "tcp://desk:1", folder)
    node._control = SimpleNamespace(expect=expect, say=said.append)
    program = {"prepare": lambda body, roles: bytes(32), "checkpoints": tuple, "insists": bool}
    node._program = SimpleNamespace(**program)
    node._stop = SimpleNamespace(check=lambda what: None)
    node._connect = lambda: None
    node._check = lambda first: (contract, dict.fromkeys(contract.roles.nodes, VAULT.card))
    node._event = lambda kind, **fields: None
    with pytest.raises(EnoughSeen):
        node._run()
    assert [accept.attempt for accept in said] == [1, 2]
    return said


def test_every_start_has_a_nonce_of_its_own(tmp_path: Path) -> None:
    """Two starts of one job under one nonce of each node would be one session, and one mask."""
    nonces = {accept.nonce for _ in range(3) for accept in said_acceptances(tmp_path)}
    assert len(nonces) == 6 and {len(nonce) for nonce in nonces} == {NONCE_BYTES}
