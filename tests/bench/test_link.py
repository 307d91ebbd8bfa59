"""The emulated link is as late and as slow as it says, and changes no byte."""

import math
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psutil
import pytest

from tests.bench.link import Link
from tests.support.patience import PATIENCE_S

RTT_S = 0.040
MBIT_S = 100
BYTES_PER_S = MBIT_S * 1e6 / 8


def dial(address: str) -> socket.socket:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


@contextmanager
def connected(
    link: Link, source: str, target: str
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection from `source` to `target`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = link.route(source, target, f"tcp://127.0.0.1:{server.getsockname()[1]}")
        with dial(address) as near:
            far, _ = server.accept()
            far.settimeout(PATIENCE_S)
            with closing(far):
                yield near, far


def read(source: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        piece = source.recv(1 << 20)
        assert piece, f"ended after {len(found)} of {size} bytes"
        found += piece
    return bytes(found)


def transfer(source: socket.socket, target: socket.socket, size: int) -> float:
    """Seconds from the first byte's sending to the last one's arrival; the bytes are the same."""
    data = os.urandom(size)
    begin = time.monotonic()
    sender = threading.Thread(target=source.sendall, args=(data,))
    sender.start()
    found = read(target, size)
    seconds = time.monotonic() - begin
    sender.join()
    assert found == data
    return seconds


def at_least(measure: Callable[[], float], least: float, most: float) -> None:
    """Never faster than `least`, on any machine; the sender is a moment ahead of the clock."""
    assert measure() >= least - 0.01


def at_best(measure: Callable[[], float], least: float, most: float) -> None:
    """Also at most `most` once in some tries: on a machine with nothing else to do."""
    for _ in range(5):
        seconds = measure()
        assert seconds >= least
        if seconds <= most:
            return
    raise AssertionError(f"{seconds:.3f} s, and no try took at most {most:.3f} s")


Bound = Callable[[Callable[[], float], float, float], None]
bounded = pytest.mark.parametrize(
    "bound",
    [
        pytest.param(at_least, id="not faster"),
        pytest.param(at_best, id="not slower", marks=pytest.mark.timed),
    ],
)


@bounded
def test_a_ping_takes_the_round_trip(bound: Bound) -> None:
    with Link(40, MBIT_S) as link, connected(link, "a", "b") as (near, far):

        def measure() -> float:
            times = []
            for _ in range(10):
                begin = time.monotonic()
                near.sendall(b"ping")
                far.sendall(read(far, 4))
                read(near, 4)
                times.append(time.monotonic() - begin)
            assert min(times) >= RTT_S
            return statistics.median(times)

        bound(measure, RTT_S, RTT_S + 0.003)


@bounded
@pytest.mark.parametrize("turned", [False, True], ids=["as dialled", "back"])
def test_a_transfer_takes_its_bytes_by_the_rate(turned: bool, bound: Bound) -> None:
    expected = 5_000_000 / BYTES_PER_S + RTT_S / 2

    def measure() -> float:
        with Link(40, MBIT_S) as link, connected(link, "a", "b") as (near, far):
            source, target = (far, near) if turned else (near, far)
            return transfer(source, target, 5_000_000)

    bound(measure, expected - 0.001, 1.1 * expected)


def at_once(*ways: tuple[socket.socket, socket.socket]) -> list[float]:
    """Seconds of a transfer of 1 MB on each way, all begun together."""
    times = [0.0] * len(ways)

    def take(index: int) -> None:
        times[index] = transfer(*ways[index], 1_000_000)

    threads = [threading.Thread(target=take, args=(index,)) for index in range(len(ways))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


@bounded
@pytest.mark.parametrize("what", ["uplink", "downlink"])
def test_two_connections_share_a_nodes(what: str, bound: Bound) -> None:
    expected = 2_000_000 / BYTES_PER_S + 0.005

    def measure() -> float:
        with Link(10, MBIT_S) as link:
            pairs = [("a", "b"), ("a", "c")] if what == "uplink" else [("a", "c"), ("b", "c")]
            with connected(link, *pairs[0]) as first, connected(link, *pairs[1]) as second:
                times = at_once(first, second)
        # They take turns: neither is through much earlier than the other one.
        return max(times) if min(times) > 0.7 * expected else math.inf

    bound(measure, expected - 0.001, 1.1 * expected)


@bounded
def test_both_ways_are_paced_apart(bound: Bound) -> None:
    expected = 1_000_000 / BYTES_PER_S + 0.005

    def measure() -> float:
        with Link(10, MBIT_S) as link, connected(link, "a", "b") as (near, far):
            return max(at_once((near, far), (far, near)))

    bound(measure, expected - 0.001, 1.1 * expected)


def test_an_end_arrives_after_the_last_byte() -> None:
    with Link(40) as link, connected(link, "a", "b") as (near, far):
        begin = time.monotonic()
        near.sendall(bytes(100_000))
        near.shutdown(socket.SHUT_WR)
        assert len(read(far, 100_000)) == 100_000
        assert far.recv(1) == b""
        assert time.monotonic() - begin >= RTT_S / 2
        far.sendall(b"still open this way")
        assert read(near, 19) == b"still open this way"
        far.close()
        assert near.recv(1) == b""


def test_what_was_sent_before_a_close_still_arrives() -> None:
    with Link(40) as link, connected(link, "a", "b") as (near, far):
        far.sendall(b"on its way to a closed socket")
        near.sendall(b"farewell")
        near.close()
        time.sleep(0.1)
        assert read(far, 8) == b"farewell"
        assert far.recv(1) == b""


def test_who_does_not_read_stops_the_sender() -> None:
    with Link(0) as link, connected(link, "a", "b") as (near, far):
        near.settimeout(0.5)
        with pytest.raises(TimeoutError):
            near.sendall(bytes(100 << 20))
        assert psutil.Process(link.process.pid).memory_info().rss < 60 << 20
        assert far.recv(1) == b"\0"


def test_nobody_who_listens_is_a_closed_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with Link(0) as link, dial(link.route("a", "b", f"tcp://127.0.0.1:{port}")) as near:
        assert near.recv(1) == b""


def test_it_ends_with_its_owner() -> None:
    link = Link(0)
    assert link.process.stdin is not None
    link.process.stdin.close()
    assert link.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(("rtt_ms", "mbit_s"), [(-1, None), (0, 0)])
def test_a_link_that_cannot_be_is_refused(rtt_ms: float, mbit_s: float | None) -> None:
    with pytest.raises(ValueError, match="round trip"):
        Link(rtt_ms, mbit_s)
