"""Why an address cannot be dialled: its name, its port, or the program that answers there.

ZeroMQ dials again and again and does not say what is wrong. This module makes a plain TCP
connection, sends nothing, and reads the ten bytes with which every ZeroMQ peer begins. It does not
identify the peer: CURVE keys, tickets and the handshake do.
"""

import contextlib
import ipaddress
import queue
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from parties.errors import ProxyError
from parties.wire.proxy import Proxy

SIGNATURE_BYTES = 10
"""A ZMTP greeting begins with FF, eight bytes, 7F."""

AGAIN_S = 2.0
"""The time from one try to the next while nobody answers."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A text that says why a node cannot reach an address, and what to check."""

    text: str
    final: bool = False
    """Whether waiting cannot help: the name does not exist, or another program answers."""


def split(address: str) -> tuple[str, int]:
    """Host, without brackets, and port of tcp://host:port."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host.strip("[]"), int(port)


def by_ipv6(address: str) -> bool:
    """Whether ZeroMQ has to dial `address` by IPv6: it tries only one address of a name.

    A name with both kinds of address is dialled by IPv4, on which every node can listen.
    """
    host, port = split(address)
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.split("%")[0]).version == 6
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    families = {family for family, *_ in found}
    return socket.AF_INET6 in families and socket.AF_INET not in families


def numeric_addresses(address: str) -> list[str]:
    """`address` once for each address of its host, IPv4 first; itself if the name is not known now.

    The look-up is the system's and takes its time.
    """
    try:
        host, port = split(address)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError, OverflowError):
        return [address]
    hosts = {str(place[0]): family for family, _, _, _, place in found}
    ordered = sorted(hosts, key=lambda each: hosts[each] != socket.AF_INET)
    return [
        f"tcp://[{each}]:{port}" if hosts[each] == socket.AF_INET6 else f"tcp://{each}:{port}"
        for each in ordered
    ] or [address]


def try_address(address: str, timeout_s: float, proxy: Proxy | None = None) -> Trouble | None:
    """Dial `address` once, through `proxy` if that covers it; None if a ZeroMQ peer answers. Each
    step takes at most `timeout_s`, except the look-up of a name, which is the system's."""
    host, port = split(address)
    if proxy is not None and proxy.covers(host):
        return _through(proxy, host, port, timeout_s)
    found = resolve(address)
    if isinstance(found, Trouble):
        return found
    preferred = socket.AF_INET6 if by_ipv6(address) else socket.AF_INET
    chosen = [each for each in found if each[0] == preferred] or found
    return try_one(*chosen[0], address, timeout_s)


Resolved = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]
"""One address of a name, as `socket` takes it."""


def resolve(address: str) -> list[Resolved] | Trouble:
    """All addresses of the host of `address`, in the system's order."""
    host, port = split(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        return Trouble(f"{host} is not a machine's name: correct the address", final=True)
    except socket.gaierror as error:
        final = error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None))
        return Trouble(
            f"the name {host} does not resolve to an address: check its spelling and this "
            "machine's name server",
            final,
        )
    known: dict[Resolved, None] = {}
    for family, _, _, _, where in found:
        if family in (socket.AF_INET, socket.AF_INET6):
            known[family, where] = None  # type: ignore[index]
    return list(known)


def try_one(
    family: socket.AddressFamily,
    where: tuple[str, int] | tuple[str, int, int, int],
    address: str,
    timeout_s: float,
) -> Trouble | None:
    """Dial one resolved address of `address`; None if a ZeroMQ peer answers."""
    host, port = split(address)
    with socket.socket(family, socket.SOCK_STREAM) as plain:
        plain.settimeout(timeout_s)
        try:
            plain.connect(where)
        except ConnectionRefusedError:
            return Trouble(
                f"nothing listens on port {port} of {host}: check the port, and that the program "
                "there is running"
            )
        except TimeoutError:
            return Trouble(
                f"{host} does not answer on port {port}: check the address, and the firewalls in "
                "between"
            )
        except OSError as error:
            return Trouble(f"{host} cannot be reached ({error.strerror}): check the network")
        return _greeted(plain, host, port, timeout_s)


def _through(proxy: Proxy, host: str, port: int, timeout_s: float) -> Trouble | None:
    try:
        plain, early = proxy.open(host, port, timeout_s)
    except ProxyError as error:
        return Trouble(str(error), error.final)
    with plain:
        trouble = _greeted(plain, host, port, timeout_s, early)
    if trouble is None or trouble.final:
        return trouble
    return Trouble(
        f"the proxy {proxy.url} opened a tunnel to {host}:{port}, but nothing comes through it: "
        "check that the program there is running; if it is, the proxy holds back what is not TLS, "
        "and its administrator has to exempt this address from inspection"
    )


def _greeted(
    plain: socket.socket, host: str, port: int, timeout_s: float, said: bytes = b""
) -> Trouble | None:
    """Read the first bytes of the other end, of which `said` have come: a bounded number, for a
    bounded time."""
    other = f"another program than mpc-train answers on port {port} of {host}: check the port"
    said, deadline = said[:SIGNATURE_BYTES], time.monotonic() + timeout_s
    if not b"\xff".startswith(said[:1]):
        return Trouble(other, final=True)
    while len(said) < SIGNATURE_BYTES:
        plain.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            piece = plain.recv(SIGNATURE_BYTES - len(said))
        except OSError:
            return Trouble(f"{other} (it says nothing)")
        if not piece:
            return Trouble(f"{other} (it closes the connection)")
        said += piece
        if said[0] != 0xFF or time.monotonic() > deadline:
            return Trouble(other, final=True)
    return None if said[-1] == 0x7F else Trouble(other, final=True)


def try_all(
    addresses: Mapping[str, str], timeout_s: float, proxy: Proxy | None = None
) -> dict[str, Trouble]:
    """Try all addresses at once, as `try_address` does; return what is wrong with those that did
    not answer within `timeout_s`."""
    answers: queue.SimpleQueue[tuple[str, Trouble | None]] = queue.SimpleQueue()

    def attempt(name: str, address: str) -> None:
        answers.put((name, try_address(address, timeout_s / 2, proxy)))

    for name, address in addresses.items():
        threading.Thread(target=attempt, args=(name, address), daemon=True).start()
    found = {name: Trouble("it does not answer in time") for name in addresses}
    deadline = time.monotonic() + timeout_s
    for _ in addresses:
        try:
            name, trouble = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        del found[name]
        if trouble is not None:
            found[name] = trouble
    return found


class Lookout:
    """Tries one address again and again in a thread of its own, until it is closed."""

    def __init__(self, address: str, timeout_s: float = 4.0, proxy: Proxy | None = None) -> None:
        self._proxy = proxy
        self._over = threading.Event()
        self.trouble: Trouble | None = None
        self.tried = False
        """Whether the first try has ended."""
        threading.Thread(
            target=self._watch, args=(address, timeout_s), name="lookout", daemon=True
        ).start()

    def _watch(self, address: str, timeout_s: float) -> None:
        while not self._over.is_set():
            self.trouble = try_address(address, timeout_s, self._proxy)
            self.tried = True
            self._over.wait(AGAIN_S)

    def close(self) -> None:
        self._over.set()

    def __enter__(self) -> "Lookout":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
