"""Nodes in network namespaces of their own, with links that delay and lose packets between them.

The kernel's TCP does what it does on such a line: it repeats, backs off and shrinks its window. The
links are `netem` queues where the kernel has them. Where it has none, `Tunnels` carries the packets
of TUN devices from one namespace to another in this process, with the same delay and loss.
Both need root, `ip` and network namespaces; `unavailable` says what is missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence

NETWORK = "10.77.0."
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
SEED = 12


class Missing(Exception):
    """This machine lacks something."""


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"`{' '.join(words)}` says: {done.stderr.strip()}")


class Places:
    """A namespace for each name, with an address of its own.

    kind: "netem" or "tun". delay_s: of each packet on its way to another namespace. loss: the share
    of packets that do not arrive.
    """

    def __init__(self, kind: str, names: Sequence[str], delay_s: float, loss: float) -> None:
        self.kind, self.names = kind, tuple(names)
        self.delay_s, self.loss = delay_s, loss
        self.addresses = {name: f"{NETWORK}{place}" for place, name in enumerate(names, 1)}
        self._spaces = {name: f"mpc{os.getpid()}-{name}" for name in names}
        self._middle = f"mpc{os.getpid()}-"
        self._tunnels: Tunnels | None = None

    def words(self, name: str) -> list[str]:
        """What stands before a command that runs in this place."""
        return ["ip", "netns", "exec", self._spaces[name]]

    def make(self) -> None:
        """Raises Missing."""
        if os.geteuid() or shutil.which("ip") is None or shutil.which("tc") is None:
            raise Missing("network namespaces need root, and the programs ip and tc")
        for space in self._spaces.values():
            _run("ip", "netns", "add", space)
            _run("ip", "-n", space, "link", "set", "lo", "up")
        if self.kind == "tun":
            self._tunnels = Tunnels(
                {self.addresses[name]: space for name, space in self._spaces.items()},
                self.delay_s,
                self.loss,
            )
        else:
            self._bridge()

    def _bridge(self) -> None:
        """Every place at one bridge, which lies in a namespace as well."""
        _run("ip", "netns", "add", self._middle)
        inside = ("ip", "-n", self._middle, "link")
        _run(*inside, "add", "middle", "type", "bridge")
        _run(*inside, "set", "middle", "up")
        for place, (name, space) in enumerate(self._spaces.items()):
            port = f"port{place}"
            _run(*inside, "add", port, "type", "veth", "peer", "name", "line", "netns", space)
            _run(*inside, "set", port, "master", "middle", "up")
            _run("ip", "-n", space, "addr", "add", f"{self.addresses[name]}/24", "dev", "line")
            _run("ip", "-n", space, "link", "set", "line", "up")
        self._queues("add", 100 * self.loss)

    def _queues(self, verb: str, percent: float) -> None:
        words = ("delay", f"{1000 * self.delay_s:g}ms", "loss", f"{percent:g}%", "limit", "10000")
        for space in self._spaces.values():
            _run("tc", "-n", space, "qdisc", verb, "dev", "line", "root", "netem", *words)

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """No packet arrives in here."""
        if self._tunnels is not None:
            self._tunnels.loss = 1.0
            yield
            self._tunnels.loss = self.loss
        else:
            self._queues("change", 100)
            yield
            self._queues("change", 100 * self.loss)

    def counts(self) -> str:
        return "" if self._tunnels is None else self._tunnels.counts()

    def close(self) -> None:
        if self._tunnels is not None:
            self._tunnels.close()
        for space in (*self._spaces.values(), self._middle):
            with contextlib.suppress(Missing):
                _run("ip", "netns", "del", space)


@contextlib.contextmanager
def far_apart(kind: str, names: Sequence[str], delay_s: float, loss: float) -> Iterator[Places]:
    """Places for these names. Raises Missing."""
    places = Places(kind, names, delay_s, loss)
    try:
        places.make()
        yield places
    finally:
        places.close()


class Tunnels:
    """A TUN device in each namespace; packets go from one to the other by their address."""

    def __init__(self, spaces: dict[str, str], delay_s: float, loss: float) -> None:
        self._delay_s, self.loss = delay_s, loss
        self._chance = random.Random(SEED)
        self._ends = {
            socket.inet_aton(address): _device_in(space, address)
            for address, space in spaces.items()
        }
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self.passed = self.lost = 0
        self._wake, self._over = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="tunnels", daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        devices = [*self._ends.values(), self._wake]
        number = 0
        while True:
            now = time.monotonic()
            while self._waiting and self._waiting[0][0] <= now:
                _, _, device, packet = heapq.heappop(self._waiting)
                with contextlib.suppress(OSError):
                    os.write(device, packet)
            pause = self._waiting[0][0] - now if self._waiting else None
            for device in select.select(devices, [], [], pause)[0]:
                if device == self._wake:
                    return
                packet = os.read(device, 65536)
                target = self._ends.get(packet[16:20])  # of an IPv4 header
                if target is None:
                    continue
                if self._chance.random() < self.loss:
                    self.lost += 1
                    continue
                self.passed += 1
                number += 1
                due = time.monotonic() + self._delay_s
                heapq.heappush(self._waiting, (due, number, target, packet))

    def counts(self) -> str:
        return f"{self.passed} packets passed, {self.lost} lost"

    def close(self) -> None:
        os.close(self._over)
        self._thread.join()
        for device in (self._wake, *self._ends.values()):
            os.close(device)


def _device_in(space: str, address: str) -> int:
    """A descriptor of a new TUN device in a namespace. Raises Missing."""
    found: list[int | OSError] = []

    def enter() -> None:
        """In a thread of its own, since the namespace of a thread is its own."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{space}", "rb") as there:
            if libc.setns(there.fileno(), CLONE_NEWNET):
                found.append(OSError(ctypes.get_errno(), "setns"))
                return
        try:
            device = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", b"line", IFF_TUN | IFF_NO_PI))
            found.append(device)
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    (device,) = found
    if isinstance(device, OSError):
        raise Missing(f"/dev/net/tun: {device}")
    _run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "line")
    _run("ip", "-n", space, "link", "set", "line", "up")
    return device
