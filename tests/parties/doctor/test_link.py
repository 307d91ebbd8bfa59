"""The way to the other side: what is measured agrees with the link, and each fault has its name."""

import socket
import time

import pytest

from parties.doctor import line as line_module
from parties.doctor import link as link_module
from parties.doctor import rates
from parties.doctor.desk import Desk
from parties.doctor.findings import Finding, Level, Place
from parties.wire import zmq_transport
from parties.wire.proxy import Proxy
from tests.bench.link import Link
from tests.support.doctors import DESK, MALLORY, VERSION, found, served
from tests.support.http_proxy import HttpProxy
from tests.support.local_run import other_program

STUDY = "tcp://study.invalid:7700"


def levels(findings: dict[str, Finding]) -> dict[str, str]:
    return {check: finding.level.value for check, finding in findings.items()}


def test_a_good_link_passes() -> None:
    with served() as address:
        findings = found(address)
    assert levels(findings) == dict.fromkeys(
        ("key", "release", "clock", "round trip", "sending", "receiving"), "passed"
    )
    assert abs(float(findings["clock"].figures["skew_s"])) < 0.5
    assert findings["round trip"].figures["count"] == link_module.PINGS


def test_rates_and_round_trip_are_those_of_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 20 %: the link delays and paces each direction."""
    monkeypatch.setattr(link_module, "PINGS", 20)
    with served() as there, Link(rtt_ms=40, mbit_s=20) as link:
        address = link.route("ann", "desk", there)
        for attempt in range(3):  # a machine that is busy with something else is late
            findings = found(address, megabytes=1.5)
            trip = float(findings["round trip"].figures["median_ms"])
            rates_ = [float(findings[way].figures["mbit_s"]) for way in ("sending", "receiving")]
            if attempt == 2 or (40 <= trip < 48 and all(16 <= rate <= 24 for rate in rates_)):
                break
    assert 40 <= trip < 48 and all(16 <= rate <= 24 for rate in rates_), findings


def test_a_slow_link_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "PINGS", 2)
    monkeypatch.setattr(rates, "RATE_S", 1.0)
    with served() as there, Link(rtt_ms=150, mbit_s=5) as link:
        findings = found(link.route("ann", "desk", there))
    for check in ("round trip", "sending", "receiving"):
        assert findings[check].level is Level.warning and findings[check].remedy, findings


def test_another_key_is_told_from_a_refusal() -> None:
    with served() as address:
        wrong = found(address, expected=MALLORY)
        stranger = found(address, keys=MALLORY)
    assert levels(wrong) == {"key": "problem"} == levels(stranger)
    assert "does not hold the key of desk's card" in wrong["key"].text
    assert "refuses this node" in stranger["key"].text
    assert wrong["key"].place is Place.other


def test_a_port_that_says_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_module.Line.connect, "__defaults__", (0.3,))
    with other_program(b"\xff" + bytes(8) + b"\x7f") as address:
        findings = found(address)
    assert levels(findings) == {"key": "problem"}
    assert findings["key"].place is Place.network and "holds back" in findings["key"].remedy


@pytest.mark.parametrize(
    ("ahead_s", "level"), [(-3600, "problem"), (130, "problem"), (30, "warning"), (2, "passed")]
)
def test_clocks_that_differ(ahead_s: float, level: str) -> None:
    desk = Desk(VERSION, clock=lambda: time.time() + ahead_s)
    with served(desk) as address:
        clock = found(address)["clock"]
    assert clock.level.value == level
    assert float(clock.figures["skew_s"]) == pytest.approx(ahead_s, abs=1)
    assert ("behind" in clock.text) == (ahead_s < 0)
    assert ("NTP" in clock.remedy) == (level != "passed")


def test_another_release() -> None:
    with served(Desk(VERSION + 1)) as address:
        findings = found(address)
    assert findings["release"].level is Level.problem
    assert f"version {VERSION + 1}, this node of {VERSION}" in findings["release"].text


def test_a_run_under_way_is_left_in_peace() -> None:
    with served(Desk(VERSION, busy=lambda: True)) as address:
        findings = found(address)
    assert findings["rate"].level is Level.skipped and "sending" not in findings
    assert findings["round trip"].level is Level.passed


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_module.Line.answer, "__defaults__", (0.3,))
    with served(deaf=True) as address:
        silent = found(address)
        assert "doctor --listen" in silent["round trip"].remedy
        with HttpProxy({"study.invalid": address}) as there:
            held = found(STUDY, proxy=Proxy.from_url(there.url))
    assert silent["round trip"].level is held["round trip"].level is Level.problem
    assert "holds back what is small" in held["round trip"].text


def test_a_proxy_that_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a connection begins with fills its buffer; a small message does not."""
    monkeypatch.setattr(line_module.Line.answer, "__defaults__", (0.5,))
    monkeypatch.setattr(zmq_transport, "HEARTBEAT_MS", 60_000)
    monkeypatch.setattr(zmq_transport, "SILENCE_MS", 60_000)
    with served() as address, HttpProxy({"study.invalid": address}) as there:
        there.hold_after = 600
        there.hold_bytes = 4096
        findings = found(STUDY, proxy=Proxy.from_url(there.url))
    assert levels(findings) == {"key": "passed", "round trip": "problem"}
    assert "buffering" in findings["round trip"].text


def test_a_proxy_with_a_limit_on_size() -> None:
    with served() as address, HttpProxy({"study.invalid": address}, cut_bytes=400_000) as there:
        findings = found(STUDY, proxy=Proxy.from_url(there.url))
    for check in ("sending", "receiving"):
        assert findings[check].level is Level.problem, findings
        assert "broke after 0." in findings[check].text
        assert "limit on the size of a body" in findings[check].remedy


def test_a_proxy_that_closes_silent_connections() -> None:
    with served(Desk(VERSION, quiet=True), quiet=True) as address:
        with HttpProxy({"study.invalid": address}, idle_s=0.6) as there:
            findings = found(STUDY, proxy=Proxy.from_url(there.url), idle_s=3.0)
        idle = findings["idle"]
        assert idle.level is Level.problem, findings
        assert 0.5 <= float(idle.figures["idle_s"]) < 2 and "wait longer" in idle.remedy
        survived = found(address, idle_s=0.5)["idle"]
        assert survived.level is Level.passed and "still works" in survived.text


def test_a_limit_that_heartbeats_stay_below_is_a_warning() -> None:
    with (
        served(Desk(VERSION, quiet=True), quiet=True) as address,
        HttpProxy({"study.invalid": address}, idle_s=0.6) as there,
    ):
        idle = found(STUDY, proxy=Proxy.from_url(there.url), idle_s=3.0, heartbeat_s=0.1)["idle"]
    assert idle.level is Level.warning and "which is enough" in idle.remedy


def test_silence_is_not_measured_where_heartbeats_are_sent() -> None:
    with served() as address:
        assert found(address, idle_s=0.5)["idle"].level is Level.skipped


def test_a_connection_that_breaks_at_the_first_message() -> None:
    with served() as address, HttpProxy({"study.invalid": address}, cut_bytes=700) as there:
        findings = found(STUDY, proxy=Proxy.from_url(there.url))
    assert findings["round trip"].level is Level.problem, findings
    assert "broke" in findings["round trip"].text


def test_lies_of_the_other_side_are_findings() -> None:
    """An answer of another size than asked for, and one that is no answer."""

    class Generous(Desk):
        def answer(self, name, parts):  # type: ignore[no-untyped-def]
            answer = super().answer(name, parts)
            return None if answer is None else (answer[0], bytes(len(answer[1]) + 1))

    class Garbled(Desk):
        def answer(self, name, parts):  # type: ignore[no-untyped-def]
            return (b"\x81\xa1n", b"")

    for desk in (Generous(VERSION), Garbled(VERSION)):
        with served(desk) as address:
            assert found(address)["release"].level is Level.problem


def test_the_socket_of_a_stranger_gets_no_answer() -> None:
    with served(Desk(VERSION)) as address:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        with socket.create_connection((host, int(port))) as end:
            end.settimeout(0.3)
            end.sendall(b"\xff" + bytes(8) + b"\x7f" + b"D" * 64)
            got = b""
            try:
                while piece := end.recv(4096):
                    got += piece
            except OSError:
                pass
    assert len(got) <= 64 and DESK.public not in got
