"""Names and ports, each address of a name by itself."""

import socket
from typing import Any

import pytest

from parties.doctor.addresses import address
from parties.doctor.findings import Finding, Level
from parties.doctor.listening import port
from parties.wire.proxy import Proxy
from tests.support.http_proxy import HttpProxy
from tests.support.local_run import other_program, port_in_use

GREETING = b"\xff" + bytes(8) + b"\x7f"


def said(where: str, proxy: Proxy | None = None) -> list[tuple[str, str]]:
    return [(each.check, each.level.value) for each in looked(where, proxy)]


def looked(where: str, proxy: Proxy | None = None) -> list[Finding]:
    return list(address("desk", where, proxy, 2.0))


@pytest.fixture(autouse=True)
def no_proxy_of_the_tester(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_port_that_answers() -> None:
    with other_program(GREETING) as where:
        assert said(where) == [("name", "passed"), ("reach", "passed")]


def test_a_name_that_does_not_resolve() -> None:
    (finding,) = looked("tcp://nowhere.invalid:7700")
    assert (finding.check, finding.level) == ("name", Level.problem)
    assert "does not resolve" in finding.text and "name server" in finding.remedy


def test_a_refused_port_and_another_program() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    _, refused = looked(closed)
    assert refused.level is Level.problem and "nothing listens on port" in refused.text
    with other_program(b"SSH-2.0-x\r\n") as where:
        _, other = looked(where)
    assert other.level is Level.problem and "another program" in other.text
    assert other.remedy == "check the port"


def test_every_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPv4 and IPv6: one that does not answer is a warning as long as another does."""
    with other_program(GREETING) as where:
        number = int(where.rpartition(":")[2])

        def resolved(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
            return [
                (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
            ]

        monkeypatch.setattr(socket, "getaddrinfo", resolved)
        name, six, four = looked(f"tcp://study.example:{number}")
    assert "::1, 127.0.0.1" in name.text and name.figures["addresses"] == 2
    assert (six.level, four.level) == (Level.warning, Level.passed)
    assert six.figures["address"] == "::1"


def test_a_proxy_resolves_the_name_itself() -> None:
    with other_program(GREETING) as where, HttpProxy({"study.invalid": where}) as there:
        findings = looked("tcp://study.invalid:7700", Proxy.from_url(there.url))
        assert [each.level for each in findings] == [Level.skipped, Level.passed]
        _, refused = looked("tcp://elsewhere.invalid:7700", Proxy.from_url(there.url))
    assert refused.level is Level.problem and "ask its administrator" in refused.remedy


def test_a_proxy_of_the_environment_that_is_not_used_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://ann:secret@proxy:3128")
    with other_program(GREETING) as where:
        last = looked(where)[-1]
    assert last.check == "proxy" and "HTTPS_PROXY is set" in last.text
    assert "secret" not in last.text


def test_whether_a_node_can_listen() -> None:
    assert port("tcp://127.0.0.1:*").level is Level.passed
    with port_in_use() as where:
        assert "in use" in port(where).text
    foreign = port("tcp://192.0.2.1:7700")
    assert foreign.level is Level.problem and "cannot listen" in foreign.text
