"""What a hostile peer can make a node or the coordinator hold: bounded, and refused by name."""

import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parties.agreement import control
from parties.agreement.control import ArtifactPart
from parties.errors import ControlError, IdentityError, PassphraseError
from parties.files import private_directory
from parties.keys.passphrase import read_passphrase
from parties.keys.vault import FileVault, identity_path
from parties.nodes import artifacts
from parties.nodes.artifacts import Collector
from parties.stop import StopFlag
from parties.wire import control_plane, data_plane
from parties.wire.control_plane import (
    MAX_PART_BYTES,
    MAX_RELAYED_BYTES,
    ControlClient,
    ControlServer,
    pad,
    unpad,
)
from parties.wire.control_plane import Relay as RelayLink
from parties.wire.tally import Tally
from parties.wire.zmq_transport import CurveKeys, Dialled, Transport
from protocols.channel import MAX_FRAME_BYTES
from protocols.errors import FrameError, PeerTimeoutError
from tests.parties.wire.test_transport import connect, ends
from tests.support.audit_logs import audit_log
from tests.support.patience import PATIENCE_S, wait_until

LISTEN = "tcp://127.0.0.1:*"
JOB = ("ann", "bob", "dora", "owner")
NEIGHBOURS = {
    "ann": ("bob", "dora", "owner"),
    "bob": ("ann", "dora", "owner"),
    "dora": ("ann", "bob"),
    "owner": ("ann", "bob"),
}
KEYS = {name: CurveKeys.generate() for name in (*JOB, "office", "mallory", "desk")}


class Desk:
    """A coordinator's port, and what the nodes that dialled it get."""

    def __init__(self) -> None:
        allowed = {name: KEYS[name].public for name in (*JOB, "office")}
        self.transport = Transport(KEYS["desk"], allowed, {"mallory": KEYS["mallory"].public})
        self.server = ControlServer(self.transport, LISTEN, NEIGHBOURS)
        self.clients: dict[str, ControlClient] = {}
        self.transports = [self.transport]
        self.malformed: list[str] = []
        """Names of those whose messages were neither frames nor control messages."""

    def dial(self, name: str) -> RelayLink:
        transport = Transport(KEYS[name], {})
        self.transports.append(transport)
        client = ControlClient(transport, self.server.address, KEYS["desk"].public)
        client.send(b"hello")
        self.clients[name] = client
        return client.relay

    def serve(self, done: Callable[[], bool], what: str) -> None:
        """Take in what comes until something has happened."""

        def served() -> bool:
            for arrival in self.server.poll(0.02):
                self.server.keep(arrival.process)
                self.malformed += [] if arrival.data else [arrival.name]
            self.server.lost()
            for client in self.clients.values():
                client.poll(0)
            return done()

        wait_until(served, what)

    def received(self, name: str, count: int) -> list[tuple[str, bytes]]:
        """The next frames that were relayed to a node."""
        found: list[tuple[str, bytes]] = []

        def there() -> bool:
            frame = self.clients[name].relay.receive(wait=False)
            if frame is not None:
                found.append((frame[0], frame[1][-1].bytes))
            return len(found) >= count

        self.serve(there, f"{count} frames to {name}")
        return found

    def close(self) -> None:
        for client in self.clients.values():
            client.close(0)
            client.relay.close()
        self.server.close(0)
        for transport in self.transports:
            transport.close()


@contextmanager
def desk(*names: str) -> Iterator[Desk]:
    made = Desk()
    try:
        for name in names:
            made.dial(name)
        made.serve(lambda: set(made.server._nodes) >= set(names), "the nodes to connect")
        yield made
    finally:
        made.close()


def test_frames_pass_between_neighbours_only(caplog: pytest.LogCaptureFixture) -> None:
    with desk(*JOB) as made, caplog.at_level(logging.WARNING):
        links = {name: client.relay for name, client in made.clients.items()}
        dropped = made.server.dropped
        links["dora"].send("owner", [b"\x01a", b"to nobody it talks to"])
        links["owner"].send("nobody", [b"\x01a", b"to no name"])
        made.clients["owner"]._dialled.send([b"R", b"\xff\x1b[31m", b"to no name that can be one"])
        links["owner"].send("desk", [b"\x01a", b"to the coordinator"])
        made.serve(lambda: dropped["owner"] >= 3 and dropped["dora"] >= 1, "frames to be dropped")
        assert made.server.relayed_bytes == 0
        links["ann"].send("bob", [b"\x01a", b"to a neighbour"])
        links["ann"].send("owner", [b"\x01a", b"the first"])
        assert made.received("bob", 1) == [("ann", b"to a neighbour")]
        assert made.received("owner", 1) == [("ann", b"the first")]
        assert dropped["owner"] == 3 and dropped["dora"] == 1
    assert "dropped 1 messages of dora" in caplog.text
    assert "not for a node with which it shares a channel" in caplog.text


def test_a_recipient_of_the_job_has_no_frames_to_relay() -> None:
    with desk("ann", "bob", "office") as made:
        made.clients["office"].relay.send("ann", [b"\x01a", b"frame"])
        made.serve(lambda: made.server.dropped["office"] == 1, "it to be dropped")
        made.clients["bob"].relay.send("ann", [b"\x01a", b"the first"])
        assert made.received("ann", 1) == [("bob", b"the first")]


def test_a_card_outside_the_job_gets_no_connection(caplog: pytest.LogCaptureFixture) -> None:
    with desk("ann") as made, caplog.at_level(logging.WARNING):
        made.dial("mallory").send("ann", [b"\x01a", b"frame"])
        client = made.clients["mallory"]
        made.serve(lambda: client.trouble is not None, "the stranger to be turned away")
        assert "no role in the job" in str(client.trouble)
        assert made.transport.refused >= 1 and not made.malformed
        assert client.state() == "connecting"
    assert "of mallory, who is not admitted here" in caplog.text


def test_what_is_no_frame_is_not_relayed() -> None:
    with desk("ann", "bob") as made:
        wire = made.clients["ann"]._dialled
        wire.send((b"R", b"bob", b"one", b"part too many"))
        wire.send((b"R", b"bob"))
        wire.send([b"R", b"bob", *(bytes(1) for _ in range(100_000))])
        wire.send((b"R", b"bob", bytes(MAX_RELAYED_BYTES + 1)))
        wire.send((b"X",))
        made.clients["ann"].relay.send("bob", [b"\x01a", bytes(MAX_FRAME_BYTES + 16)])
        assert made.received("bob", 1) == [("ann", bytes(MAX_FRAME_BYTES + 16))]
        assert made.server.dropped["ann"] == 1 and made.malformed == ["ann"] * 4


def test_a_message_above_the_bound_ends_the_connection_it_came_on() -> None:
    """ZeroMQ itself refuses it, before the bytes are there."""
    with desk("ann", "bob") as made:
        wire = made.clients["ann"]._dialled
        wire.send((b"R", b"bob", bytes(1 << 26)))
        made.serve(lambda: wire.attempts > 1, "the connection to break")
        made.serve(lambda: wire.connected, "another one")
        assert made.server.relayed_bytes == 0


def test_nothing_is_kept_for_a_node_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    with desk("ann") as made, caplog.at_level(logging.INFO):
        link = made.clients["ann"].relay
        for _ in range(100):
            link.send("bob", [b"\x01a", bytes(1000)])
        made.serve(lambda: caplog.text.count("to bob waits") == 100, "all frames to be let go")
        made.dial("bob")
        made.serve(lambda: "bob" in made.server._nodes, "bob to connect")
        link.send("bob", [b"\x01a", b"the next"])
        assert made.received("bob", 1) == [("ann", b"the next")]


@given(st.integers(0, 300_000), st.integers(0, 300_000) | st.none())
def test_relayed_frames_have_few_lengths(first: int, second: int | None) -> None:
    parts = [b"a" * first] + ([] if second is None else [b"b" * second])
    size = 8 + sum(map(len, parts))
    padded = pad(parts)
    assert len(padded) in (256, 512, 1024, 2048) or len(padded) % 4096 == 0
    assert size <= len(padded) <= max(256, min(2 * size, size + 4096))
    found = [piece.bytes for piece in unpad("ann", memoryview(padded))]
    assert found == (parts if second else parts[:1])


@given(st.binary(max_size=40))
def test_a_relayed_frame_with_false_lengths_is_named(data: bytes) -> None:
    try:
        assert sum(map(len, unpad("ann", memoryview(data)))) <= len(data) - 8
    except FrameError as error:
        assert str(error) == "ann sent a relayed frame without well-formed lengths"


def test_a_flood_is_logged_ever_more_rarely() -> None:
    tally = Tally()
    assert [count for count in (tally.add("bob") for _ in range(1000)) if count] == [
        1 << bit for bit in range(10)
    ]
    assert tally["bob"] == 1000 and tally.add("ann") == 1


def test_empty_frames_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_plane, "MAX_INBOX_BYTES", 50 * data_plane.FRAME_COST_BYTES)
    with ends("ann", "bob", "cleo") as made:
        connect(made)
        ann, _, cleo = (end.plane for end in made)
        for _ in range(60):
            cleo.send("ann", b"", b"")
        with pytest.raises(
            FrameError, match="cleo sent 51 unrequested frames, more than may be buffered"
        ):
            ann.receive("bob", PATIENCE_S)


def test_small_frames_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_plane, "MAX_INBOX_FRAMES", 20)
    with ends("ann", "bob", "cleo") as made:
        connect(made)
        ann, bob, cleo = (end.plane for end in made)
        for number in range(20):
            cleo.send("ann", b"label", bytes([number]))
        while len(ann._inbox["cleo"]) < 20:
            with pytest.raises(PeerTimeoutError):
                ann.receive("bob", 0.1)
        bob.send("ann", b"b", b"")
        assert ann.receive("bob", PATIENCE_S)[0] == b"b"
        assert [bytes(ann.receive("cleo", PATIENCE_S)[1]) for _ in range(20)] == [
            bytes([number]) for number in range(20)
        ]
        for _ in range(21):
            cleo.send("ann", b"label", b"")
        with pytest.raises(FrameError, match="cleo sent 21 unrequested frames"):
            ann.receive("bob", PATIENCE_S)


def test_the_inbox_gives_back_what_was_read() -> None:
    with ends("ann", "bob", "cleo") as made:
        connect(made)
        ann, _, cleo = (end.plane for end in made)
        for _ in range(3):
            cleo.send("ann", b"label", b"payload")
        while len(ann._inbox["cleo"]) < 3:
            with pytest.raises(PeerTimeoutError):
                ann.receive("bob", 0.1)
        assert ann._inbox_bytes["cleo"] == 3 * (data_plane.FRAME_COST_BYTES + len(b"labelpayload"))
        for _ in range(3):
            ann.receive("cleo", PATIENCE_S)
        assert ann._inbox_bytes["cleo"] == 0


def test_no_node_sends_a_frame_that_another_would_refuse() -> None:
    assert MAX_FRAME_BYTES + 1 + data_plane.MAX_HEAD_BYTES + 16 <= MAX_PART_BYTES


def part(path: str, data: bytes, index: int = 0, last: bool = True) -> ArtifactPart:
    return ArtifactPart("sealed", path, index, last, data)


def test_artifacts_are_bounded_over_all_senders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "MAX_PENDING_BYTES", 100)
    collector = Collector(tmp_path / "pending")
    with pytest.raises(ControlError, match="incomplete"):
        for number in range(20):
            collector.add(f"node-{number}", part("rita/file", bytes(10), last=False))
    monkeypatch.setattr(artifacts, "MAX_ARTIFACTS_BYTES", 100)
    collector = Collector(tmp_path / "written")
    with pytest.raises(ControlError, match="node-10 sent too many"):
        for number in range(20):
            collector.add(f"node-{number}", part("rita/file", bytes(10)))
    assert len(collector.files) == 10


def test_what_was_completed_counts_no_more_as_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "MAX_PENDING_BYTES", 100)
    collector = Collector(tmp_path)
    for number in range(20):
        collector.add("ann", part(f"rita/file-{number}", bytes(40)))
    assert len(collector.files) == 20


def test_results_are_for_their_owners_eyes(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "one"
    file = Collector(root).add("ann", part("rita/model", b"sealed"))
    assert file is not None
    for path in (root, *(root / piece for piece in ("sealed", "sealed/rita", "sealed/rita/ann"))):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    assert stat.S_IMODE((tmp_path / "runs").stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_directory_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    private_directory(tmp_path / "a" / "b")
    private_directory(tmp_path / "a" / "b")
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        private_directory(tmp_path / "file")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666, 0o777])
def test_a_passphrase_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "passphrase"
    path.write_text("correct horse\n")
    path.chmod(mode)
    with pytest.raises(PassphraseError, match="others may read it; chmod 600 passphrase"):
        read_passphrase(file=path)
    path.chmod(0o600)
    assert read_passphrase(file=path) == b"correct horse"
    path.chmod(0o400)
    assert read_passphrase(file=path) == b"correct horse"


def test_a_passphrase_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "passphrase"
    path.write_text("correct horse\n")
    path.chmod(0o600)
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:  # what root gives a service is as good as its own
        assert read_passphrase(file=path) == b"correct horse"
        os.chown(path, 12345, -1)
    with pytest.raises(PassphraseError, match="another user owns it"):
        read_passphrase(file=path)


def test_an_identity_that_others_may_read_is_refused(tmp_path: Path) -> None:
    FileVault.create(tmp_path / "home", "ann", b"correct horse")
    path = identity_path(tmp_path / "home", "ann")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    with pytest.raises(IdentityError, match=r"ann\.identity: .*chmod 600 ann\.identity"):
        FileVault.open(path, b"correct horse")
    path.chmod(0o600)
    assert FileVault.open(path, b"correct horse").card.name == "ann"


class Flood:
    """A coordinator that says one thing again and again; as much of a client as a thread needs."""

    def __init__(self, message: control.FromCoordinator) -> None:
        self.data = control.encode(message)
        self.taken = 0
        self.has_room = True

    def poll(self, timeout_s: float) -> bytes | None:
        self.taken += 1
        return self.data if self.taken < 10_000 else None

    def state(self) -> str:
        return "connected" if self.taken < 10_000 else "lost"

    def send(self, data: bytes) -> None: ...

    def wake(self) -> None: ...

    def close(self, linger_s: float) -> None: ...


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (control.Propose(bytes(1000), bytes(100_000)), "unrequested messages"),
        (control.Finish(), "unrequested messages"),
        (control.Delivery("bob", part("rita/file", b"")), "not sealed to ann"),
        (
            control.Delivery("bob", ArtifactPart("notes", "ann/file", 0, True, b"")),
            "not sealed to ann",
        ),
    ],
)
def test_a_coordinator_cannot_fill_a_node(
    tmp_path: Path, message: control.FromCoordinator, said: str
) -> None:
    from parties.nodes.coordinator import ignore_event
    from parties.nodes.node import _ControlThread

    flood, stop = Flood(message), StopFlag()
    client: ControlClient = flood  # type: ignore[assignment]
    thread = _ControlThread(
        client, "ann", "desk", stop, tmp_path, ignore_event, lambda: None, print, print, print
    )
    thread.start()
    thread.join(PATIENCE_S)
    assert isinstance(stop.reason, ControlError) and said in str(stop.reason)
    assert flood.taken < 20 and not list(tmp_path.iterdir())


def test_a_coordinator_that_never_stops_talking_cannot_keep_a_node(tmp_path: Path) -> None:
    from parties.nodes.coordinator import ignore_event
    from parties.nodes.node import _ControlThread

    flood = Flood(control.Away(("bob",)))
    client: ControlClient = flood  # type: ignore[assignment]
    thread = _ControlThread(
        client, "ann", "desk", StopFlag(), tmp_path, ignore_event, lambda: None, print, print, print
    )
    thread.start()
    wait_until(lambda: flood.taken > 10, "the flood")
    thread.finish()
    assert not thread.is_alive()


def test_only_evaluators_seal(tmp_path: Path) -> None:
    from parties.agreement.contract import Roles
    from parties.keys.roster import Roster
    from parties.keys.vault import MemoryVault
    from parties.nodes.coordinator import Coordinator, CoordinatorSettings, _Faulty

    vaults = {name: MemoryVault.generate(name) for name in ("ann", "bob", "dora", "owner", "desk")}
    roster = Roster.of(vault.card for vault in vaults.values())
    roles = Roles(("ann", "owner"), ("ann", "bob"), "dora", ("ann",))
    made = Coordinator(
        vaults["desk"],
        roster,
        "job",
        (roles, b"body"),
        CoordinatorSettings(LISTEN, tmp_path),
        audit_log(tmp_path, vaults["desk"]),
    )
    try:
        for name in ("dora", "owner"):
            with pytest.raises(_Faulty, match=f"{name} sent a sealed result"):
                made._keep(name, part("ann/model.envelope", b"garbage"))
        made._keep("bob", part("ann/model.envelope", b"sealed"))
    finally:
        made._close(0)
    assert len(made._collector.files) == 1


def test_who_asks_and_is_gone_does_not_end_the_others_run() -> None:
    with desk() as made:
        said = control_plane._SESSION.pack(b"p" * 16, 1, True)  # of a coordinator before this one
        made.server._open("ann", b"gone", said)
        assert not made.server._processes


def test_who_asks_and_does_not_read_does_not_keep_the_coordinator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits = []

    def send(route: bytes, parts: object, *, wait: bool = True) -> bool:
        waits.append(wait)
        return False

    with desk() as made:
        monkeypatch.setattr(made.server._accepted, "send", send)
        monkeypatch.setattr(made.server, "_measure", lambda name, parts: (b"", b""))
        made.transports.append(Transport(KEYS["ann"], {}))
        key = KEYS["desk"].public
        asking = Dialled(made.transports[-1], made.server.address, key, 1000)
        asking.send((control_plane.MEASURE, b""))
        made.serve(lambda: bool(waits), "the question")
        asking.close(0)
        monkeypatch.undo()
    assert not any(waits)
