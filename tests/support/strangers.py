"""Strangers who knock at a port by the thousand: none of them has a key that is admitted there."""

import contextlib
import socket
import time

from parties.wire.zmq_transport import CurveKeys, Dialled, Transport

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00"
WITHOUT_KEYS = GREETING + b"NULL".ljust(20, b"\0") + bytes(32)
"""The greeting of a ZeroMQ peer that wants to talk in the clear."""

WITH_KEYS = GREETING + b"CURVE".ljust(20, b"\0") + bytes(32)
"""That of one that begins like a node, and then sends garbage or nothing."""

SAID = (
    b"",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    b"GET / HTTP/1.1\r\nHost: study\r\n\r\n",
    b"SSH-2.0-x\r\n",
    WITHOUT_KEYS,
    WITH_KEYS,
    WITH_KEYS + b"\x04\x27\x05HELLO" + bytes(194 - 1),
    GREETING + b"\xff" * 4096,
)
HELD = 256
"""Connections that are left open at a time: the oldest is closed for a new one."""


def knock(address: str, count: int) -> int:
    """Connect `count` times, say something different each time, and leave the connection open until
    HELD others have come. Returns how many connections the port accepted."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    held: list[socket.socket] = []
    accepted = 0
    for number in range(count):
        with contextlib.suppress(OSError):
            end = socket.create_connection((host, int(port)), timeout=10)
            held.append(end)
            accepted += 1
            end.sendall(SAID[number % len(SAID)])
        if len(held) > HELD:
            held.pop(0).close()
    for end in held:
        end.close()
    return accepted


def knock_with_keys(address: str, server_key: bytes, count: int) -> int:
    """The same by ZeroMQ, each with CURVE keys of its own that nobody knows; returns how many were
    told that they are refused."""
    refused = 0
    for number in range(0, count, 50):
        transport = Transport(CurveKeys.generate(), {})
        links = [
            Dialled(transport, address, server_key, 1024) for _ in range(min(50, count - number))
        ]
        deadline = time.monotonic() + 10
        while any(link.trouble is None for link in links) and time.monotonic() < deadline:
            for link in links:
                link.update()
            time.sleep(0.01)
        refused += sum("refuses" in (link.trouble or "") for link in links)
        assert not any(link.connected for link in links)
        for link in links:
            link.close(0)
        transport.close()
    return refused
