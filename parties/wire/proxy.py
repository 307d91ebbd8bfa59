"""Tunnels through an HTTP proxy: the CONNECT method of RFC 9110, section 9.3.6.

Guarantees that an answer of the proxy, which anybody on the way may have written, is read in
bounded memory and time and causes only ProxyError, with a text that says what to do; that a
password goes to the proxy alone and appears in no text; and that a password which the proxy has
rejected is not tried again, so that no account gets locked.

What passes the tunnel is protected by CURVE, tickets and the handshake, as on any other network:
the proxy sees ciphertext, sizes and times. The password is not: Basic (RFC 7617) is the only scheme
here, and whoever can read the network between this machine and the proxy can read it.
"""

import base64
import contextlib
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from parties.errors import ProxyError

MAX_ANSWER_BYTES = 16 << 10
"""The head of an answer to CONNECT; proxies send a few hundred bytes."""

MAX_SCHEMES = 8
"""How many schemes of authentication an error repeats."""

READ_BYTES = 4096

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9][0-9])(?:[ \r\n]|\Z)")
_SCHEME = re.compile(rb"(?im)^proxy-authenticate:[ \t]*([A-Za-z0-9-]{1,32})(?:[ \t\r\n,]|\Z)")
_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,255}\Z")
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
_UNREACHABLE = (500, 502, 503, 504)
_TRY_AGAIN = (*_UNREACHABLE, 408, 425, 429)
_NO_CONNECT = (405, 501)


class Proxy:
    """One HTTP proxy, and for which hosts it is used. Any thread may use it.

    user, password: for Basic; without a user nothing is sent. direct: hosts that are dialled
    without the proxy, each a name, a domain that begins with a dot, an address or a network
    (10.0.0.0/8). This machine itself is always dialled without it. Raises ValueError for a
    malformed network.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        user: str = "",
        password: bytes = b"",
        direct: Sequence[str] = (),
    ) -> None:
        self.host, self.port, self.user = host, port, user
        self.lacks_password = bool(user) and not password
        """Whether a user is known and no password."""
        self._credentials = b"Basic " + base64.b64encode(user.encode() + b":" + password)
        self._names = tuple(name.lower() for name in direct if "/" not in name)
        self._networks = [ipaddress.ip_network(each, False) for each in direct if "/" in each]
        self._first = threading.Lock()
        self._known = not user
        self._rejected: str | None = None

    @classmethod
    def from_url(cls, url: str, password: bytes = b"", direct: Sequence[str] = ()) -> "Proxy":
        """The proxy of http://[user[:password]@]host:port; `password` is used if the URL has none.

        Raises ValueError, which does not quote the URL: it may contain a password.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ValueError("write http://proxy.example.org:3128") from None
        if parts.scheme != "http":
            raise ValueError(
                "only http:// proxies can be used; write http://proxy.example.org:3128"
            )
        if not host or not port or not _HOST.match(host) or parts.path.strip("/"):
            raise ValueError("write http://proxy.example.org:3128, with a port")
        user = unquote(parts.username or "")
        if ":" in user:
            raise ValueError("a user of http://USER@proxy.example.org:3128 has no colon")
        return cls(
            host,
            port,
            user=user,
            password=unquote(parts.password).encode() if parts.password else password,
            direct=direct,
        )

    def __repr__(self) -> str:
        return f"Proxy({self.url})"

    @property
    def url(self) -> str:
        """Its address without the user: for texts."""
        return f"http://{_bracketed(self.host)}:{self.port}"

    def covers(self, host: str) -> bool:
        """Whether `host`, a name or an address, is dialled through the proxy."""
        name = host.lower().rstrip(".")
        if name == "localhost" or any(_matches(name, each) for each in self._names):
            return False
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(name.split("%")[0])
            return not (address.is_loopback or any(address in net for net in self._networks))
        return True

    def open(self, host: str, port: int, timeout_s: float) -> tuple[socket.socket, bytes]:
        """A connection to `host`:`port` through the proxy, and what has already come from there.

        The proxy resolves the name. Takes `timeout_s` at most, except for the look-up of the
        proxy's own name, which is the system's. Raises ProxyError.
        """
        if not _HOST.match(host):
            raise ProxyError(
                "an address that is to be dialled through the proxy is malformed", True
            )
        # Until the proxy has accepted the password once, one connection after the other: several at
        # once could get the account locked.
        with contextlib.nullcontext() if self._known else self._first:
            if self._rejected is not None:
                raise ProxyError(self._rejected, final=True)
            deadline = time.monotonic() + timeout_s
            plain = self._dial(timeout_s)
            try:
                rest = self._connect(plain, f"{_bracketed(host)}:{port}", deadline, timeout_s)
                plain.settimeout(None)
            except BaseException:
                plain.close()
                raise
            self._known = True
            return plain, rest

    def _dial(self, timeout_s: float) -> socket.socket:
        try:
            plain = socket.create_connection((self.host, self.port), timeout_s)
        except (socket.gaierror, UnicodeError):
            raise ProxyError(
                f"the name of the proxy, {self.host}, does not resolve to an address: check its "
                "spelling and this machine's name server"
            ) from None
        except ConnectionRefusedError:
            raise ProxyError(
                f"nothing listens on port {self.port} of the proxy {self.host}: check the port"
            ) from None
        except TimeoutError:
            raise ProxyError(
                f"the proxy {self.url} does not answer: check its address, and whether this "
                "machine may use it"
            ) from None
        except OSError as error:
            raise ProxyError(
                f"the proxy {self.url} cannot be reached ({error.strerror}): check the network"
            ) from None
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            if hasattr(socket, option):  # not everywhere
                plain.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        return plain

    def _connect(
        self, plain: socket.socket, target: str, deadline: float, timeout_s: float
    ) -> bytes:
        lines = [
            f"CONNECT {target} HTTP/1.1".encode(),
            f"Host: {target}".encode(),
            b"User-Agent: mpc-train",
        ]
        if self.user:
            lines.append(b"Proxy-Authorization: " + self._credentials)
        try:
            plain.sendall(b"\r\n".join([*lines, b"", b""]))
            head, rest = self._read(plain, deadline)
        except TimeoutError:
            raise ProxyError(
                f"the proxy {self.url} did not answer CONNECT to {target} within {timeout_s:.0f} "
                f"s: check that {target} is right and running; ask the proxy's administrator"
            ) from None
        except OSError as error:
            raise ProxyError(
                f"the proxy {self.url} broke the connection ({error.strerror}) when asked for "
                f"{target}: ask its administrator"
            ) from None
        found = _STATUS.match(head)
        if found is None:
            raise self._no_proxy()
        status = int(found[1])
        if not 200 <= status < 300:
            raise self._refusal(status, head, target)
        return rest

    def _read(self, plain: socket.socket, deadline: float) -> tuple[bytes, bytes]:
        """The head of the answer, and the bytes after it. Raises OSError and ProxyError."""
        said = b""
        while True:
            for end in (b"\r\n\r\n", b"\n\n"):
                head, found, rest = said.partition(end)
                if found:
                    return head, rest
            if not b"HTTP/1.".startswith(said[:7]):
                raise self._no_proxy("TLS" if said[:1] in (b"\x15", b"\x16") else "")
            if len(said) > MAX_ANSWER_BYTES:
                raise ProxyError(
                    f"the proxy {self.url} answers with a header of more than "
                    f"{MAX_ANSWER_BYTES >> 10} KiB: is it an HTTP proxy?",
                    final=True,
                )
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            plain.settimeout(left)
            piece = plain.recv(READ_BYTES)
            if not piece:
                raise ProxyError(
                    f"the proxy {self.url} closed the connection without an answer to CONNECT: ask "
                    "its administrator whether this machine may use it"
                )
            said += piece

    def _no_proxy(self, speaks: str = "") -> ProxyError:
        what = f"speaks {speaks}" if speaks else "does not speak HTTP"
        return ProxyError(
            f"what answers at {self.url} is no HTTP proxy: it {what}; check the address and the "
            "port of the proxy",
            final=True,
        )

    def _refusal(self, status: int, head: bytes, target: str) -> ProxyError:
        me = f"the proxy {self.url}"
        if status == 407:
            self._rejected = text = f"{me} {self._unauthenticated(head)}"
            return ProxyError(text, final=True)
        if status in _NO_CONNECT:
            text = f"{me} does not allow CONNECT ({status}): ask its administrator"
        elif status in (403, 404):
            text = (
                f"{me} refuses to connect to {target} ({status}): ask its administrator to allow "
                f"CONNECT to {target}; where only port 443 is allowed, the coordinator may listen "
                "on that"
            )
        elif status in _UNREACHABLE:
            text = (
                f"{me} cannot reach {target} ({status}): check the address, that the program there "
                "is running, and the firewalls between the proxy and it"
            )
        else:
            text = f"{me} answers CONNECT to {target} with status {status}: ask its administrator"
        return ProxyError(text, final=status not in _TRY_AGAIN)

    def _unauthenticated(self, head: bytes) -> str:
        offered = [name.decode() for name in _SCHEME.findall(head)[:MAX_SCHEMES]]
        if offered and "basic" not in {name.lower() for name in offered}:
            return (
                f"asks for {' or '.join(offered)}, but only Basic is known here (407): ask for "
                "Basic or for an exemption of this machine, or name a local program that logs in "
                "for you"
            )
        if not self.user:
            return (
                "asks for a user and a password (407): write the user into proxy under [network], "
                "as http://user@…, and the password into proxy_password_file"
            )
        return (
            "rejects the user or the password (407): correct them; they are not tried again, so "
            "that no account gets locked"
        )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _matches(name: str, pattern: str) -> bool:
    """As NO_PROXY is read by most programs: with or without a dot or *. before it."""
    ending = pattern.removeprefix("*").strip(".")
    return pattern == "*" or name == ending or (bool(ending) and name.endswith(f".{ending}"))
