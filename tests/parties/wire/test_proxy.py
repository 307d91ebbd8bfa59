"""Tunnels through an HTTP proxy: what it may answer, and what a node then says."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parties.errors import ProxyError
from parties.wire import forwarder as forwarder_module
from parties.wire import proxy as proxy_module
from parties.wire.control_plane import ControlClient, ControlServer
from parties.wire.forwarder import MAX_CONNECTIONS, Forwarder
from parties.wire.proxy import MAX_ANSWER_BYTES, Proxy
from parties.wire.reach import try_address
from parties.wire.zmq_transport import CurveKeys, Transport
from tests.support.http_proxy import HttpProxy
from tests.support.patience import PATIENCE_S

STUDY = "tcp://study.invalid:7700"


@contextmanager
def echo() -> Iterator[str]:
    """The address of a server that sends everything back."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def attend(end: socket.socket) -> None:
            with end, contextlib.suppress(OSError):
                while data := end.recv(65536):
                    end.sendall(data)
                end.shutdown(socket.SHUT_WR)

        def serve() -> None:
            while True:
                try:
                    end, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=attend, args=(end,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


def dead_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def refusal(proxy: Proxy, timeout_s: float = 5.0) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        proxy.open("study.invalid", 7700, timeout_s)
    return caught.value


def test_a_tunnel_leads_to_a_name_that_only_the_proxy_knows() -> None:
    with echo() as target, HttpProxy({"study.invalid": target}) as there:
        end, early = Proxy.from_url(there.url).open("study.invalid", 7700, PATIENCE_S)
        with end:
            assert early == b""
            end.sendall(b"hello")
            assert end.recv(5) == b"hello"
        assert there.asked[0][0] == "study.invalid:7700"
        assert "proxy-authorization" not in there.asked[0][1]


def test_basic_authentication() -> None:
    with (
        echo() as target,
        HttpProxy({"study.invalid": target}, user="ann", password="päle:ale") as there,
    ):
        url = there.url.replace("//", "//ann@")
        end, _ = Proxy.from_url(url, "päle:ale".encode()).open("study.invalid", 7700, PATIENCE_S)
        end.close()
        url = there.url.replace("//", "//ann:p%C3%A4le%3Aale@")
        end, _ = Proxy.from_url(url).open("study.invalid", 7700, PATIENCE_S)
        end.close()


def test_a_rejected_password_is_tried_once_by_all_threads_together() -> None:
    with HttpProxy(user="ann", password="right", delay_s=0.2) as there:
        proxy = Proxy.from_url(there.url.replace("//", "//ann@"), b"wrong")
        found: list[ProxyError] = []
        threads = [threading.Thread(target=lambda: found.append(refusal(proxy))) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert len(there.asked) == 1 and len(found) == 5
        for error in found:
            assert error.final and "rejects the user or the password (407)" in str(error)
            assert "wrong" not in str(error) and "wrong" not in repr(proxy)


def test_a_proxy_that_wants_a_user_says_where_it_goes() -> None:
    with HttpProxy(user="ann", password="right") as there:
        error = refusal(Proxy.from_url(there.url))
        assert error.final and "proxy_password_file" in str(error)


def test_a_scheme_other_than_basic_is_named() -> None:
    with HttpProxy(
        user="ann", password="x", scheme="NTLM\r\nProxy-Authenticate: Negotiate"
    ) as there:
        error = refusal(Proxy.from_url(there.url.replace("//", "//ann@"), b"x."))
        assert error.final and "asks for NTLM or Negotiate" in str(error)


@pytest.mark.parametrize(
    ("answer", "final", "text"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", True, "refuses to connect to study.invalid:7700 (403)"),
        (b"HTTP/1.0 405 No\r\n\r\n", True, "does not allow CONNECT (405)"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", False, "cannot reach study.invalid:7700 (502)"),
        (b"HTTP/1.1 503 \r\n\r\n", False, "cannot reach"),
        (b"HTTP/1.1 504\r\n\r\n", False, "cannot reach"),
        (b"HTTP/1.1 429 Slow down\r\n\r\n", False, "status 429"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://login/\r\n\r\n", True, "status 302"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", True, "does not speak HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x16", True, "it speaks TLS"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", True, "does not speak HTTP"),
        (b"HTTP/2 200\r\n\r\n", True, "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (2 * MAX_ANSWER_BYTES), True, "more than 16 KiB"),
        (b"", False, "closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\n", False, "closed the connection without an answer"),
    ],
)
def test_each_answer_has_its_text(answer: bytes, final: bool, text: str) -> None:
    with HttpProxy(answer=answer) as there:
        error = refusal(Proxy.from_url(there.url))
        assert text in str(error) and error.final is final and there.url in str(error)


def test_a_proxy_that_is_not_there_or_does_not_answer() -> None:
    assert "nothing listens on port" in str(refusal(Proxy("127.0.0.1", dead_port())))
    assert "does not resolve" in str(refusal(Proxy("proxy.invalid", 3128)))
    with HttpProxy(delay_s=PATIENCE_S) as there:
        started = time.monotonic()
        error = refusal(Proxy.from_url(there.url), 0.3)
        assert "did not answer CONNECT" in str(error) and not error.final
        assert time.monotonic() - started < PATIENCE_S / 2


class Scripted:
    """A socket that says given pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.read = 0

    def settimeout(self, seconds: float | None) -> None:
        pass

    def sendall(self, data: bytes) -> None:
        pass

    def close(self) -> None:
        pass

    def recv(self, count: int) -> bytes:
        assert count <= proxy_module.READ_BYTES
        if not self.pieces:
            return b""
        piece, rest = self.pieces[0][:count], self.pieces[0][count:]
        self.pieces[:1] = [rest] if rest else []
        self.read += len(piece)
        return piece


ANSWERS = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=64),
        st.sampled_from([b"HTTP/1.1 ", b"200 OK", b"407 ", b"\r\n", b"\r\n\r\n", b"\n\n", b": "]),
        st.just(b"Proxy-Authenticate: Digest x\r\n"),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(ANSWERS)
def test_no_answer_does_harm(pieces: list[bytes]) -> None:
    """An answer gives a tunnel, with all bytes after the head, or ProxyError."""
    said = b"".join(pieces)
    end = Scripted(list(pieces))
    proxy = Proxy("proxy.invalid", 3128, user="ann", password=b"secret")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxy, "_dial", lambda timeout_s: end)
        try:
            _, rest = proxy.open("study.invalid", 7700, 5.0)
        except ProxyError as error:
            assert "secret" not in str(error) and str(error).isprintable()
        else:
            assert said.startswith(b"HTTP/1.") and said[9:10] == b"2"
            assert (said[: end.read]).endswith(rest)
    assert end.read <= MAX_ANSWER_BYTES + proxy_module.READ_BYTES


@pytest.mark.parametrize(
    "url",
    [
        *("proxy:3128", "https://proxy:3128", "http://proxy", "http://:3128", "http://proxy:0"),
        *(
            "http://proxy:99999",
            "http://proxy:3128/path",
            "socks5://proxy:1080",
            "",
            "http://a b:1",
        ),
        *("http://[::1:3128", "http://a%3Ab@proxy:3128"),
    ],
)
def test_malformed_addresses_of_proxies(url: str) -> None:
    with pytest.raises(ValueError, match=r"http://"):
        Proxy.from_url(url)


def test_a_malformed_target_is_not_sent() -> None:
    with HttpProxy() as there, pytest.raises(ProxyError, match="malformed"):
        Proxy.from_url(there.url).open("a\r\nX: y", 1, 1.0)
    assert not there.asked


def test_the_password_of_a_url_is_in_no_text() -> None:
    proxy = Proxy.from_url("http://ann:secret@proxy.example.org:3128")
    assert repr(proxy) == "Proxy(http://proxy.example.org:3128)" and "secret" not in proxy.url
    with pytest.raises(ValueError, match="http") as caught:
        Proxy.from_url("https://ann:secret@proxy.example.org:3128")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "covered"),
    [
        *(("study.example.org", True), ("localhost", False), ("127.0.0.1", False), ("::1", False)),
        *(("10.1.2.3", False), ("11.1.2.3", True), ("node.lan", False), ("lan", False)),
        *(("nodelan", True), ("A.Clinic.example", False), ("b.a.clinic.example", False)),
        *(("2001:db8::1", False), ("192.168.7.7", False), ("192.168.7.8", True)),
        ("fe80::1%eth0", True),
    ],
)
def test_which_hosts_are_dialled_without_the_proxy(host: str, covered: bool) -> None:
    direct = ("10.0.0.0/8", ".lan", "a.clinic.example", "2001:db8::/32", "192.168.7.7")
    assert Proxy("proxy", 3128, direct=direct).covers(host) is covered
    assert not Proxy("proxy", 3128, direct=("*",)).covers(host)


def test_the_forwarder_carries_much_in_both_directions_at_once() -> None:
    blob = bytes(range(256)) * (1 << 14)
    with echo() as target, HttpProxy({"study.invalid": target}) as there:
        forwarder = Forwarder(Proxy.from_url(there.url))
        way = forwarder.way(STUDY)
        assert way == forwarder.way(STUDY) and way.startswith("tcp://127.0.0.1:")
        assert forwarder.way("tcp://127.0.0.1:9") == "tcp://127.0.0.1:9"
        with socket.create_connection(("127.0.0.1", int(way.rpartition(":")[2]))) as end:
            threading.Thread(target=end.sendall, args=(blob,), daemon=True).start()
            got = bytearray()
            while len(got) < len(blob):
                got += end.recv(1 << 20)
            assert got == blob
            end.shutdown(socket.SHUT_WR)
            assert end.recv(1) == b""
        forwarder.close()
    assert not any(thread.name == "proxy" for thread in threading.enumerate())


def test_the_last_bytes_leave_although_the_near_end_is_gone() -> None:
    blob = bytes(4 << 20)
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with HttpProxy({"study.invalid": target}) as there:
            forwarder = Forwarder(Proxy.from_url(there.url))
            end = socket.create_connection(
                ("127.0.0.1", int(forwarder.way(STUDY).rpartition(":")[2]))
            )
            far, _ = server.accept()
            end.sendall(blob)
            end.close()
            closing = threading.Thread(target=forwarder.close)
            closing.start()
            got = 0
            while piece := far.recv(1 << 20):
                got += len(piece)
            far.close()
            closing.join(PATIENCE_S)
            assert got == len(blob)


def test_a_tunnel_that_the_proxy_keeps_open_is_closed_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forwarder_module, "CLOSE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with HttpProxy({"study.invalid": target}, keeps=True) as there:
            forwarder = Forwarder(Proxy.from_url(there.url))
            end = socket.create_connection(
                ("127.0.0.1", int(forwarder.way(STUDY).rpartition(":")[2]))
            )
            end.sendall(b"x")
            far, _ = server.accept()
            end.close()
            started = time.monotonic()
            forwarder.close()
            assert time.monotonic() - started < PATIENCE_S / 2
            far.close()


def test_a_failing_tunnel_is_not_asked_for_ten_times_a_second() -> None:
    with HttpProxy() as there:
        forwarder = Forwarder(Proxy.from_url(there.url))
        way = forwarder.way(STUDY)
        with socket.create_connection(("127.0.0.1", int(way.rpartition(":")[2]))) as end:
            end.settimeout(0.5)
            with pytest.raises(TimeoutError):
                end.recv(1)
        forwarder.close()
        assert len(there.asked) == 1


def test_tunnels_are_bounded() -> None:
    with echo() as target, HttpProxy({"study.invalid": target}) as there:
        forwarder = Forwarder(Proxy.from_url(there.url))
        port = int(forwarder.way(STUDY).rpartition(":")[2])
        ends = [socket.create_connection(("127.0.0.1", port)) for _ in range(MAX_CONNECTIONS + 1)]
        for end in ends[:-1]:
            end.sendall(b"x")
        ends[-1].settimeout(PATIENCE_S)
        assert ends[-1].recv(1) == b""
        for end in ends[:-1]:
            assert end.recv(1) == b"x"
        for end in ends:
            end.close()
        forwarder.close()


def test_control_messages_pass_and_the_proxy_cannot_read_them() -> None:
    desk, ann = CurveKeys.generate(), CurveKeys.generate()
    transport = Transport(desk, {"ann": ann.public})
    server = ControlServer(transport, "tcp://127.0.0.1:*", {})
    with HttpProxy({"study.invalid": server.address}) as there:
        own = Transport(ann, {}, proxy=Proxy.from_url(there.url))
        client = ControlClient(own, STUDY, desk.public)
        client.send(b"a plain word")
        arrival = next(server.poll(PATIENCE_S))
        assert (arrival.name, arrival.data) == ("ann", b"a plain word")
        assert server.send(arrival.process, b"an answer")
        assert client.poll(PATIENCE_S) == b"an answer"
        assert b"plain word" not in there.carried and b"answer" not in there.carried
        client.close(0)
        client.relay.close()
        own.close()
    server.close(0)
    transport.close()


def test_what_a_node_says_of_an_address_behind_a_proxy() -> None:
    with HttpProxy() as there:
        refused = try_address(STUDY, 5.0, Proxy.from_url(there.url))
        assert refused is not None and refused.final and "refuses to connect" in refused.text
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with HttpProxy({"study.invalid": target}) as there:
            held = try_address(STUDY, 0.3, Proxy.from_url(there.url))
            assert held is not None and "holds back what is not TLS" in held.text
    with echo() as target, HttpProxy({"study.invalid": target}) as there:
        away = HttpProxy({"study.invalid": f"tcp://127.0.0.1:{dead_port()}"})
        with away:
            trouble = try_address(STUDY, 5.0, Proxy.from_url(away.url))
            assert trouble is not None and not trouble.final and "(502)" in trouble.text
