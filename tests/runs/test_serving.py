"""A model in shares is served by real processes that are killed, stopped and started again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from mpc_train.errors import QueryLostError, QueryRefusedError
from parties.agreement import control
from parties.agreement.contract import CONTRACT_VERSION
from parties.agreement.control import MAX_CARRIED_BYTES
from parties.errors import AbortedError
from parties.nodes import client as client_module
from parties.wire.control_plane import ControlClient
from parties.wire.zmq_transport import CurveKeys, Transport
from protocols.errors import PeerTimeoutError
from tests.runs.test_resume import free_address
from tests.support.patience import PATIENCE_S, wait_until
from tests.support.serving_study import TOLERANCE, Asking, ServingStudy, newest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, homes: Path) -> Iterator[ServingStudy]:
    """Two versions of a model, of which the first is served."""
    folder = tmp_path_factory.mktemp("serving")
    shutil.copytree(homes, folder / "homes")
    made = ServingStudy(folder, free_address())
    try:
        made.train("one.model", 1_000_000, 0.1)
        made.train("two.model", 48, 0.2)
        made.serve("one.model")
        yield made
    finally:
        made.close()


def in_order(house: ServingStudy) -> None:
    """Nothing was used twice in all sessions, and nothing secret is left behind."""
    assert house.used_twice() == 0
    assert house.leaks() == set()


@pytest.mark.parametrize("name", ["registry", "ann", "bob", "desk"])
def test_whoever_is_killed_comes_back(house: ServingStudy, name: str) -> None:
    """Questions that wait are refused at once, later ones are answered."""
    with house.client() as service, Asking(house, service, "one.model") as asking:
        wait_until(lambda: asking.answered > 3, "answers")
        house.kill(name)
        wait_until(lambda: bool(asking.refused), "a refusal")
        before = asking.answered
        if name == "desk":
            house.offer("one.model")
        else:
            house.again(name)
        wait_until(lambda: asking.answered > before + 3, "answers again")
    assert not asking.wrong, asking.wrong
    codes, seconds = zip(*asking.refused, strict=True)
    assert set(codes) == {"unavailable"}
    assert max(seconds) < 50, "a refusal is not what a time-out says"
    in_order(house)


CLIENT = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.support.serving_study import ServingStudy, newest
study = ServingStudy.__new__(ServingStudy)
study.homes, study.folder, study.address = Path({homes!r}), Path({folder!r}), {address!r}
import numpy as np
study.rows_asked = np.full((128, 2), 0.25)
with study.client("clinic") as service:
    model = newest(service)
    print("asks", flush=True)
    while True:
        service.ask(model, study.local(128))
"""


def test_two_clients_of_which_one_is_killed(house: ServingStudy) -> None:
    root = str(Path(__file__).resolve().parents[2])
    said = {"root": root, "homes": str(house.homes), "folder": str(house.folder)}
    said["address"] = house.address
    with house.client() as service, Asking(house, service, "one.model") as asking:
        for _ in range(3):
            other = subprocess.Popen(
                [sys.executable, "-c", CLIENT.format(**said)], stdout=subprocess.PIPE
            )
            assert other.stdout is not None and other.stdout.readline() == b"asks\n"
            before = asking.answered
            wait_until(lambda: asking.answered > before + 5, "answers beside another client")  # noqa: B023
            other.kill()
            other.wait()
            before = asking.answered
            wait_until(lambda: asking.answered > before + 5, "answers after it")  # noqa: B023
    assert not asking.wrong and not asking.refused
    in_order(house)


def test_many_questions_at_once(house: ServingStudy) -> None:
    expected = house.expected("one.model", 20)
    with house.client() as one, house.client("clinic") as other, ThreadPoolExecutor(16) as pool:
        model = newest(one)

        def ask(turn: int) -> float:
            rows = house.local(1 + turn % 20)
            found = (one, other)[turn % 2].ask(model, rows)
            return float(np.abs(found - expected[: len(found)]).max())

        assert max(pool.map(ask, range(200))) <= TOLERANCE
    in_order(house)


JUNK = (
    b"",
    b"not a message",
    *(control.encode(control.Carry(to, data)) for to in ("ann", "bob") for data in (b"q", b"3")),
    control.encode(control.Carry("ann", b"1" + bytes(2000))),
    control.encode(control.Carry("bob", b"1" + bytes(MAX_CARRIED_BYTES - 1))),
    control.encode(control.Carry("registry", b"q")),
    control.encode(control.Carry("office", b"a")),
)


def resident(house: ServingStudy) -> dict[str, int]:
    """MiB of each process."""
    found = {}
    for name, process in house.running.items():
        found[name] = psutil.Process(process.pid).memory_info().rss >> 20
    return found


def test_a_client_of_its_own_making_harms_nobody(house: ServingStudy) -> None:
    """It comes and goes, says nonsense and asks for more than it reads; memory stays flat."""
    vault, roster, _ = house.entry("clinic")
    hello = control.encode(control.Hello(CONTRACT_VERSION, "clinic", None))

    def come(transport: Transport, turn: int) -> None:
        talk = ControlClient(transport, house.address, roster.card("desk").curve, 2.0)
        talk.send(hello)
        deadline = time.monotonic() + 30
        while talk.poll(0.05) is None and time.monotonic() < deadline:
            pass
        for _ in range(1 + turn % 3):
            talk.send(JUNK[turn % len(JUNK)])
        for _ in range(3):
            talk.poll(0.02)
        talk.close(0.1)
        talk.relay.close()

    transport = Transport(CurveKeys(vault.card.curve, vault.curve_secret()), {})
    try:
        with house.client() as service, Asking(house, service, "one.model") as asking:
            for turn in range(2 * len(JUNK)):
                come(transport, turn)
            before = resident(house)
            for turn in range(100):
                come(transport, turn)
            answered = asking.answered
            wait_until(lambda: asking.answered > answered + 5, "answers to another client")
            after = resident(house)
    finally:
        transport.close()
    assert not asking.wrong and not asking.refused, (asking.wrong, asking.refused)
    assert all(after[name] <= before[name] + 40 for name in before), (before, after)
    with house.client("clinic") as service:
        found = service.ask(newest(service), house.local())
    assert np.abs(found - house.expected("one.model")).max() <= TOLERANCE
    in_order(house)


class Deaf(ControlClient):
    """A connection that sends, and while `stalls` is set reads nothing."""

    stalls = threading.Event()

    def poll(self, timeout_s: float) -> bytes | None:
        if not self.stalls.is_set():
            return super().poll(timeout_s)
        time.sleep(min(timeout_s, 0.05))
        self._pass()
        return None

    def state(self) -> str:
        return "connected" if self.stalls.is_set() else super().state()


BURSTS, BURST = 10, 20


def test_a_client_that_asks_and_never_reads_holds_nobody_up(
    house: ServingStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers wait for it at the coordinator. When it asks for more than is kept its visit
    ends, and it begins anew."""
    expected = house.expected("one.model")
    with house.client() as service, Asking(house, service, "one.model") as asking:
        wait_until(lambda: asking.answered > 3, "answers")
        monkeypatch.setattr(client_module, "ControlClient", Deaf)
        monkeypatch.setattr(client_module, "MAX_ASKED", 1 << 20)
        with house.client("clinic") as deaf:
            model, patience_s = newest(deaf), deaf._answer_s
            talk = deaf._client._talk
            assert isinstance(talk, Deaf)

            def ask(count: int) -> None:
                """Ask without waiting for the answers."""
                deaf._answer_s = 0.0
                for _ in range(count):
                    with pytest.raises(QueryLostError):
                        deaf.ask(model, house.local())
                deaf._answer_s = patience_s

            def is_right() -> bool:
                try:
                    found = deaf.ask(newest(deaf), house.local())
                except (QueryRefusedError, AbortedError, PeerTimeoutError):
                    return False
                return bool(np.abs(found - expected).max() <= TOLERANCE)

            Deaf.stalls.set()
            try:
                heard, before = talk._link.received, resident(house)
                for _ in range(BURSTS):
                    ask(BURST)
                    answered = asking.answered
                    wait_until(lambda: asking.answered > answered + 5, "answers to another")  # noqa: B023
                after = resident(house)
                assert talk._link.received == heard and talk is deaf._client._talk
                assert talk._link.sent > 2 * BURSTS * BURST
            finally:
                Deaf.stalls.clear()
            # What it did not read comes late, and spoils nothing.
            wait_until(is_right, "an answer to the one that was deaf")
            assert talk._link.received >= heard + 2 * BURSTS * BURST
            Deaf.stalls.set()
            try:
                ask(40 * BURST)
                answered = asking.answered
                wait_until(lambda: asking.answered > answered + 5, "answers beside a flood")
            finally:
                Deaf.stalls.clear()
            wait_until(is_right, "an answer to the one that has flooded")
    assert not asking.wrong and not asking.refused, (asking.wrong, asking.refused)
    assert all(after[name] <= before[name] + 40 for name in before), (before, after)
    in_order(house)


def test_another_version_and_its_quota_and_the_end_of_a_model(house: ServingStudy) -> None:
    """The coordinator is stopped and started with another file: the nodes serve that, by
    themselves. What was asked today counts after each restart."""
    with house.client() as service:
        assert len(service.models["study"]) == 1
        house.stop("desk")
        kind, fields = house.logged("desk", "service-ended")[-1]
        assert (fields["by"], fields["code"]) == ("desk", "stopped")
        house.offer("one.model", "two.model")

        def is_updated() -> bool:
            try:
                return len(service.models["study"]) == 2
            except Exception as error:
                assert "did not answer" in str(error)
                return False

        wait_until(is_updated, "the other version")
        old, new = list(service.models["study"])
        for model, file in ((old, "one.model"), (new, "two.model")):
            found = service.ask(model, house.local())
            assert np.abs(found - house.expected(file)).max() <= TOLERANCE
    # 16 rows, padded, of the 48 of a day are spent.
    house.kill("ann")
    house.again("ann")
    with house.client() as service:
        new = newest(service)
        with pytest.raises(QueryRefusedError) as refused:
            for _ in range(3):
                service.ask(new, house.local())
        assert refused.value.code == "quota"
        service.ask(service.models["study"][0], house.local())
    in_order(house)
    # A model that an evaluator has retired is not served any more, and it says so.
    house.stop("bob")
    kind, fields = house.logged("bob")[-1]
    assert kind == "run-ended" and fields["code"] == "stopped"
    kind, fields = next(each for each in reversed(house.logged("bob")) if each[0] != kind)
    assert kind == "service-ended" and (fields["by"], fields["code"]) == ("bob", "stopped")
    assert fields["questions"] >= 1 and fields["rows"] >= 16 and len(fields["models"]) == 2
    house.model_command("bob", "retire", "study", "--yes")
    house.again("bob")
    bob = house.running.pop("bob")
    assert bob.wait(PATIENCE_S) != 0
    said = json.loads(house.output("bob", "out").read_text().splitlines()[-1])
    assert "study" in said["message"] and "retired" in said["message"], said
