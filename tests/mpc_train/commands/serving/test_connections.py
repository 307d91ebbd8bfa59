"""Clients and a server over real connections, in one process: who gets in, and what ends what."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from mpc_train.commands.serving import connections
from mpc_train.owners.local import local_terms
from parties.errors import RosterError
from parties.keys.identity import IdentityKeys
from parties.keys.vault import MemoryVault
from parties.wire.zmq_transport import Dialled, Transport
from protocols.errors import PeerLostError, PeerTimeoutError
from tests.support.patience import PATIENCE_S, wait_until
from tests.support.preparation_case import prepared_job, typed

pytest.importorskip("tenseal", reason="TenSEAL is not installed")

from mpc_train.commands.serving.connections import (
    MAX_PART_BYTES,
    Port,
    ServerLine,
    curve_keys,
)
from mpc_train.homomorphic.asking import EncryptedPredictor, Question, describe
from mpc_train.homomorphic.messages import Ask, encode
from tests.support.homomorphic import Desk, pair, served
from tests.support.serving import opened_model

VAULTS = {name: MemoryVault.generate(name) for name in ("company", "ann", "bob", "mallory")}


class Running:
    """A server in a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self.predictor = opened_model(folder, prepared_job(folder))
        self.model = served(self.predictor, clients=("ann", "bob"), rows=1 << 20)
        self.desk = Desk({"risk": self.model})
        self.refused: list[str] = []
        self.address = ""
        self._ready, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)

    def _serve(self) -> None:
        with Port(
            VAULTS["company"],
            {name: VAULTS[name].card for name in ("ann", "bob")},
            {"mallory": VAULTS["mallory"].card.curve},
            "tcp://127.0.0.1:*",
            lambda who, times: self.refused.append(who),
        ) as port:
            self.address = port.address
            self._ready.set()
            while not self._done.is_set():
                port.attend(self.desk.service)

    @contextmanager
    def line(self, name: str) -> Iterator[ServerLine]:
        with ServerLine(VAULTS[name], VAULTS["company"].card, self.address) as line:
            line.connect()
            yield line

    def stop(self) -> None:
        self._done.set()
        self._thread.join(PATIENCE_S)


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(connections, "TEND_S", 0.02)
    running = Running(tmp_path)
    yield running
    running.stop()


def test_two_clients_at_once_get_their_own_predictions(running: Running) -> None:
    found: dict[str, list[list[object]]] = {}

    def ask(name: str, seed: int) -> None:
        with running.line(name) as line:
            asking = Question(line, pair(name), describe(line, "risk"))
            found[name] = EncryptedPredictor.of(asking).predicted(typed(50, seed))

    threads = [threading.Thread(target=ask, args=each) for each in (("ann", 1), ("bob", 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    for name, seed in (("ann", 1), ("bob", 2)):
        plain = running.predictor.predicted(typed(50, seed))
        assert [row[0] for row in found[name]] == [row[0] for row in plain]
        ours = np.array([row[1:] for row in found[name]], float)
        np.testing.assert_allclose(
            ours, np.array([row[1:] for row in plain], float), rtol=0, atol=2**-13
        )
    assert sorted(said[1] for said in running.desk.written) == ["ann", "bob"]


def test_who_is_not_named_does_not_get_in(running: Running) -> None:
    line = ServerLine(VAULTS["mallory"], VAULTS["company"].card, running.address)
    with line, pytest.raises(PeerTimeoutError, match="refuses"):
        line.connect()
    wait_until(lambda: bool(running.refused), "a refusal")
    assert "mallory" in running.refused[0]
    # Nor does who has the key of ann's connections alone, which is not post-quantum.
    private = IdentityKeys.generate().private_bytes()[:-32] + VAULTS["ann"].curve_secret()
    keys = IdentityKeys(private)
    line = ServerLine(MemoryVault(keys, keys.card("ann")), VAULTS["company"].card, running.address)
    with line, pytest.raises(RosterError, match=r"ann: here .* at company"):
        line.connect()
    assert not running.desk.written
    # A server with another key than its card's is not spoken to.
    line = ServerLine(VAULTS["ann"], VAULTS["bob"].card, running.address)
    with line, pytest.raises(PeerTimeoutError, match="does not hold the expected key"):
        line.connect()


def test_a_client_that_leaves_or_floods_harms_nobody(running: Running) -> None:
    whole = encode(Ask("risk", running.model.description.digest), pair().public)
    with running.line("ann") as line:
        line.send(whole)
        line.receive()
        assert len(running.desk.service._requests) == 1
    wait_until(lambda: not running.desk.service._requests, "the end of the request")
    # A part that is too long ends the connection on which it comes.
    transport = Transport(curve_keys(VAULTS["ann"]), {})
    dialled = Dialled(transport, running.address, VAULTS["company"].card.curve, MAX_PART_BYTES)
    try:
        for _ in range(50):
            dialled.send((b"x" * 9, b"", b"", b"", b"", b"", b""), wait=False)
        dialled.send((bytes(MAX_PART_BYTES + 1),), wait=False)
        wait_until(lambda: (dialled.update(), dialled.lost)[1], "the end of the connection")
    finally:
        dialled.close(0)
        transport.close()
    with running.line("bob") as line, running.line("ann") as other:
        asking = Question(line, pair("bob"), describe(line, "risk"))
        # What does not verify under its keys ends the connection on which it comes.
        other.send(whole)
        other.receive()
        other._dialled.send((b"not sealed", b"at all"))
        with pytest.raises(PeerLostError, match="company ended the connection"):
            describe(other, "risk")
        asking.outputs(local_terms(running.model.description.job.pipeline, typed(2, 1)))
    assert [said[1] for said in running.desk.written] == ["bob"]


def test_a_server_that_ends_is_noticed(running: Running) -> None:
    with running.line("ann") as line:
        running.stop()
        with pytest.raises(PeerLostError, match="company broke"):
            describe(line, "risk")
