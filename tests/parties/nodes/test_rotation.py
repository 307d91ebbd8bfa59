"""A rotation during a run, without processes: what each side does, and what it refuses."""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parties.agreement import control
from parties.agreement.contract import Contract, Roles
from parties.audit.entries import Kind
from parties.errors import CardError, ContractError, ControlError, IdentityError, RosterError
from parties.keys.live import LiveIdentity
from parties.keys.roster import Roster
from parties.keys.vault import FileVault, MemoryVault
from parties.nodes import rotation as rotation_module
from parties.nodes.members import Members
from parties.nodes.rotation import RotationDesk, Rotations, Running
from parties.wire.secure_channel import SecureChannel
from protocols.channel import Buffer
from protocols.errors import AuthenticationError, HandshakeError
from protocols.sealing.handshake import Keys
from tests.support.audit_logs import audit_log

NAMES = ("ann", "bob", "dora")
ROLES = Roles(("ann", "bob"), ("ann", "bob"), "dora", ("ann",))
VAULTS = {name: MemoryVault.generate(name) for name in (*NAMES, "desk")}
ROSTER = Roster.of(one.card for one in VAULTS.values())
CONTRACT = Contract.of("job", ROLES, b"body", ROSTER.subset(ROLES.names).digest())
SID = bytes(range(32))


class Wire:
    def __init__(self) -> None:
        self.frames: dict[tuple[str, str], deque[tuple[bytes, Buffer]]] = {}

    def end(self, me: str) -> Any:
        wire = self

        class End:
            def send(self, peer: str, label: bytes, payload: Buffer) -> None:
                wire.frames.setdefault((me, peer), deque()).append((label, payload))

            def receive(self, peer: str, timeout_s: float) -> tuple[bytes, Buffer]:
                return wire.frames[peer, me].popleft()

        return End()


class One:
    """A node's part of a run, and what it has said."""

    def __init__(self, root: Path, name: str, wire: Wire, vault: Any = None) -> None:
        self.name = name
        self.identity = LiveIdentity(vault or VAULTS[name])
        self.noted: list[Kind] = []
        self.said: deque[Any] = deque()
        self.members = Members(ROSTER, self.identity, lambda kind, _: self.noted.append(kind))
        self.audit = audit_log(root / name, self.identity)
        self.rotations = Rotations(
            self.identity,
            self.members,
            self.audit,
            self.said.append,
            lambda kind, **_: None,
            "desk",
        )
        pairs = {
            peer: Keys(_key(name, peer), _key(peer, name), b"t" * 32, b"e" * 32)
            for peer in ROLES.neighbours(name)
        }
        self.channel = SecureChannel(wire.end(name), name, SID, pairs, 1.0)
        cards = {each: VAULTS[each].card for each in NAMES}
        self.run = Running(CONTRACT, SID, cards, self.channel)
        self.rotations.begin(self.run)
        self.rotations.started()

    def announce(self, vault: MemoryVault) -> None:
        """As if the node had found this in its identity's file."""
        self.identity.renewed = lambda: vault  # type: ignore[method-assign]
        self.rotations._next_look = 0.0
        self.rotations.check()
        self.identity.renewed = lambda: None  # type: ignore[method-assign]


def _key(sender: str, receiver: str) -> bytes:
    return f"{sender}>{receiver}".encode().ljust(32, b".")


class Net:
    """Three nodes and a coordinator, whose messages are delivered one after the other."""

    def __init__(self, root: Path) -> None:
        wire = Wire()
        self.nodes = {name: One(root, name, wire) for name in NAMES}
        self.desk_members = Members(ROSTER, VAULTS["desk"], lambda *_: None)
        neighbours = {name: ROLES.neighbours(name) for name in NAMES}
        self.sent: deque[tuple[str, Any]] = deque()
        self.desk = RotationDesk(
            self.desk_members, NAMES, neighbours, lambda *each: self.sent.append(each)
        )
        self.lie: Callable[[str, Any], Any] = lambda name, message: message

    def deliver(self) -> None:
        while True:
            for name, node in self.nodes.items():
                while node.said:
                    self.desk.take(name, node.said.popleft())
            if not self.sent:
                return
            name, message = self.sent.popleft()
            message = self.lie(name, message)
            if message is not None:
                self.nodes[name].rotations.take(message)

    def exchange(self) -> None:
        """A frame on every connection, which must arrive."""
        for name, node in self.nodes.items():
            for peer in ROLES.neighbours(name):
                node.channel.send(peer, b"label", name.encode())
        for name, node in self.nodes.items():
            for peer in ROLES.neighbours(name):
                label, payload = node.channel.receive(peer, 10)
                assert (label, bytes(payload)) == (b"label", peer.encode())

    def keys(self) -> set[bytes]:
        found = set()
        for node in self.nodes.values():
            for end in (*node.channel._sealers.values(), *node.channel._openers.values()):
                found.add(end._key)
        return found


@pytest.fixture
def net(tmp_path: Path) -> Net:
    return Net(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_all_hold_the_new_card_and_its_pairs_have_fresh_keys(net: Net, name: str) -> None:
    before = net.keys()
    net.exchange()
    # A frame that is still on its way when the keys change.
    for peer in ROLES.neighbours(name):
        net.nodes[peer].channel.send(name, b"early", b"x")
    new = VAULTS[name].successor()
    net.nodes[name].announce(new)
    net.deliver()
    for peer in ROLES.neighbours(name):
        assert net.nodes[name].channel.receive(peer, 1)[0] == b"early"
    net.exchange()
    net.exchange()
    for node in net.nodes.values():
        assert node.run.cards[name] == new.card
        assert node.members.roster.card(name) == new.card
        assert not node.rotations._open and not node.rotations._ready
    assert net.nodes[name].identity.card == new.card
    pairs = len(ROLES.neighbours(name))
    assert len(net.keys() - before) == 2 * pairs, "each direction of each pair"
    log = [entry.kind for _, entry in net.nodes[name].audit.entries()]
    assert Kind.IDENTITY_ROTATED in log


def test_two_rotate_at_once_one_after_the_other(net: Net) -> None:
    new = {name: VAULTS[name].successor() for name in ("bob", "ann")}
    for name, vault in new.items():
        net.nodes[name].announce(vault)
    net.deliver()
    net.exchange()
    again = new["ann"].successor()
    net.nodes["ann"].announce(again)
    net.deliver()
    net.exchange()
    for node in net.nodes.values():
        assert node.run.cards["ann"] == again.card and node.run.cards["bob"] == new["bob"].card


def test_nothing_changes_before_everybody_has_signed(net: Net) -> None:
    new = VAULTS["ann"].successor()
    net.nodes["ann"].announce(new)
    net.lie = lambda name, message: None if name == "dora" else message
    net.deliver()
    for node in net.nodes.values():
        assert node.identity.card == VAULTS[node.name].card
        assert node.run.cards["ann"] == VAULTS["ann"].card
    net.exchange()


def test_signatures_are_those_of_all_nodes_over_the_same_cards(net: Net) -> None:
    def swapped(name: str, message: Any) -> Any:
        if isinstance(message, control.Switch):
            signatures = {**message.signatures, "bob": message.signatures["dora"]}
            return replace_struct(message, signatures)
        return message

    net.lie = swapped
    net.nodes["ann"].announce(VAULTS["ann"].successor())
    with pytest.raises(ContractError, match="bob did not sign the new card of ann"):
        net.deliver()


def replace_struct(message: control.Switch, signatures: dict[str, bytes]) -> control.Switch:
    return control.Switch(message.name, signatures)


def test_the_old_keys_do_not_sign_the_switch(net: Net) -> None:
    """R signs with its new keys: so it is shown to have them."""
    new = VAULTS["ann"].successor()
    net.nodes["ann"].announce(new)
    real = new.sign
    new.sign = VAULTS["ann"].sign  # type: ignore[method-assign]
    with pytest.raises(ContractError, match="ann did not sign the new card of ann"):
        net.deliver()
    new.sign = real  # type: ignore[method-assign]


def test_a_coordinator_cannot_invent_a_rotation(net: Net) -> None:
    bob = net.nodes["bob"].rotations
    rival = MemoryVault.generate("ann").successor()
    texts = tuple(each.to_text() for each in rival.successions)
    with pytest.raises(RosterError, match="do not contain"):
        bob.take(control.Rotated("ann", texts))
    with pytest.raises(CardError):
        bob.take(control.Rotated("ann", ("nonsense",)))
    own = tuple(each.to_text() for each in VAULTS["bob"].successor().successions)
    with pytest.raises(ControlError, match="claims that bob has new keys"):
        bob.take(control.Rotated("bob", own))
    with pytest.raises(ControlError, match="not due"):
        bob.take(control.Rotated("mallory", ()))
    with pytest.raises(ControlError, match="not due"):
        bob.take(control.Switch("ann", {}))
    with pytest.raises(ControlError, match="not due"):
        bob.take(control.Handshaken("ann", b"x"))
    assert net.nodes["bob"].run.cards["ann"] == VAULTS["ann"].card


def test_an_old_succession_is_no_rotation(net: Net) -> None:
    second = VAULTS["ann"].successor()
    net.nodes["ann"].announce(second)
    net.deliver()
    texts = tuple(each.to_text() for each in second.successions)
    for replayed in (texts, ()):
        with pytest.raises(ControlError, match="old card of ann"):
            net.nodes["bob"].rotations.take(control.Rotated("ann", replayed))


def test_an_altered_handshake_ends_the_run(net: Net) -> None:
    def flipped(name: str, message: Any) -> Any:
        if isinstance(message, control.Handshaken) and len(message.data) > 100:
            data = bytearray(message.data)
            data[-1] ^= 1
            return control.Handshaken(message.by, bytes(data))
        return message

    net.lie = flipped
    net.nodes["ann"].announce(VAULTS["ann"].successor())
    with pytest.raises((HandshakeError, AuthenticationError)):
        net.deliver()


def test_the_coordinator_relays_nothing_that_is_not_due(net: Net) -> None:
    desk = net.desk
    for message in (
        control.Handshake("bob", b"x"),
        control.Kept("ann", bytes(3373)),
        control.RotationDone(),
    ):
        with pytest.raises(ControlError):
            desk.take("ann", message)
    with pytest.raises(RosterError):
        rival = MemoryVault.generate("ann").successor()
        desk.take("ann", control.Rotate(tuple(one.to_text() for one in rival.successions)))
    with pytest.raises(CardError, match="successions of others"):
        chain = VAULTS["bob"].successor().successions
        desk.take("ann", control.Rotate(tuple(one.to_text() for one in chain)))
    assert not net.sent


def test_before_a_run_there_is_nothing_to_rotate(tmp_path: Path) -> None:
    node = One(tmp_path, "ann", Wire())
    node.rotations._run = None
    node.rotations.check()
    with pytest.raises(ControlError, match="before the run"):
        node.rotations.take(control.Rotated("bob", ()))


def test_record_keys_are_replaced_by_age(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    before = net.keys()
    monkeypatch.setattr(rotation_module.time, "monotonic", lambda: 1e12)
    for node in net.nodes.values():
        node.rotations.check()
    net.exchange()
    assert not net.keys() & before
    net.exchange()


def test_a_node_finds_its_new_identity_in_its_file(tmp_path: Path) -> None:
    vault = FileVault.create(tmp_path, "ann", b"correct horse")
    live = LiveIdentity(vault)
    assert live.renewed() is None
    new = vault.rotate()
    found = live.renewed()
    assert found is not None and found.card == new.card
    assert live.renewed() is None  # looked at once
    live.succeed(found)
    assert live.card == new.card and live.opens_for(vault.card.digest)
    with pytest.raises(IdentityError, match="not a successor"):
        live.succeed(MemoryVault.generate("ann"))


def test_an_exchanged_file_is_not_taken(tmp_path: Path, net: Net) -> None:
    vault = FileVault.create(tmp_path / "one", "ann", b"correct horse")
    live = LiveIdentity(vault)
    other = FileVault.create(tmp_path / "two", "ann", b"correct horse")
    vault.path.write_bytes(other.path.read_bytes())
    with pytest.raises(IdentityError, match="another passphrase"):
        live.renewed()
    # Under the same passphrase, and yet nobody's successor.
    FileVault(MemoryVault.generate("ann"), vault.path, vault._file_key)._write(replace=True)
    with pytest.raises(IdentityError, match="holds another identity"):
        live.renewed()
    assert live.card == vault.card
    vault.path.unlink()
    assert live._state() == ()


def test_a_file_that_cannot_be_used_does_not_end_the_run(tmp_path: Path) -> None:
    vault = FileVault.create(tmp_path / "home", "ann", b"correct horse")
    node = One(tmp_path, "ann", Wire())
    node.rotations._identity = LiveIdentity(vault)
    vault.path.write_bytes(b"damaged")
    node.rotations.check()
    assert not node.said


def test_a_card_that_is_old_enough_is_rotated_by_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import timedelta

    from parties.keys import lifetime

    long_ago = lifetime.now() - timedelta(days=30)
    vault = FileVault.create(tmp_path, "ann", b"correct horse", issued=long_ago)
    assert LiveIdentity(vault).renewed() is None
    assert LiveIdentity(vault, 31).renewed() is None
    live = LiveIdentity(vault, 30)
    found = live.renewed()
    assert found is not None and found.card.sequence == 1
    live.succeed(found)
    assert live.renewed() is None


def test_what_is_public_only_is_said(net: Net) -> None:
    shown = repr(net.nodes["ann"].identity)
    assert "private" not in shown.lower() or VAULTS["ann"]._keys.private_bytes().hex() not in shown
    assert replace(net.nodes["ann"].run, sid=SID).sid == SID
