"""An evaluator's `Visitors` and a client's handshake with it, in one process."""

from __future__ import annotations

from functools import cache

from parties.agreement import control
from parties.agreement.contract import Contract, Roles
from parties.agreement.visitors import NUMBER, QUESTION, Visitors, service_info
from parties.keys.identity import Card
from parties.keys.roster import Roster
from parties.keys.vault import MemoryVault
from parties.stop import StopFlag
from protocols.sealing.handshake import Initiator, Keys
from protocols.sealing.record import RecordSealer, record_context
from protocols.sealing.session import Endpoint
from protocols.sealing.signatures import VerifyKeys

SID = bytes(range(32))
ROLES = Roles((), ("ann", "bob"), "registry", (), clients=("clinic", "practice"))
VISIT = bytes(15) + b"1"


@cache
def vaults() -> dict[str, MemoryVault]:
    return {name: MemoryVault.generate(name) for name in ROLES.names}


def contract() -> Contract:
    roster = Roster.of(vault.card for vault in vaults().values())
    return Contract.of("house", ROLES, b"body", roster.digest())


def visitors(accepts: object = None, me: str = "ann") -> tuple[Visitors, list[control.Carry]]:
    """Those of an evaluator, and what it sends."""
    said: list[control.Carry] = []
    cards = {name: vault.card for name, vault in vaults().items()}

    def accepted(card: Card) -> None:
        if callable(accepts):
            accepts(card)

    found = Visitors(contract(), SID, cards, vaults()[me], me, said.append, accepted, StopFlag())
    return found, said


def initiator(client: str = "clinic", identity: MemoryVault | None = None) -> Initiator:
    """A client's side; identity: another than that of the contract."""
    owner = identity or vaults()[client]
    mine, peer = (
        Endpoint(card.name, ROLES.title(card.name), card.signing_public)
        for card in (owner.card, vaults()["ann"].card)
    )
    verifier = VerifyKeys(peer.signing_public)
    return Initiator(service_info(contract(), SID), mine, peer, owner, verifier)


def first_message() -> bytes:
    return b"1" + initiator().message1()


class Visiting:
    """A client that has shaken hands."""

    def __init__(
        self,
        evaluator: Visitors,
        said: list[control.Carry],
        client: str = "clinic",
        visit: bytes = VISIT,
    ) -> None:
        self._evaluator, self.client, self.visit = evaluator, client, visit
        side = initiator(client)
        self.send(b"1" + side.message1())
        self.send(b"3" + side.on_message2(said.pop().data[1:]))
        self.keys: Keys = side.on_message4(said.pop().data[1:])
        self.sealer = RecordSealer(self.keys.send, record_context(SID, client, "ann"))

    def send(self, data: bytes) -> None:
        self._evaluator.take(control.Carried(self.client, data, self.visit))

    def ask(self, number: int, data: bytes) -> None:
        self.send(b"q" + self.sealer.seal(QUESTION, NUMBER.pack(number) + data))
