"""Where the gateway listens: on this machine alone, or elsewhere by TLS."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from mpc_train.errors import ConfigError, PortTakenError

if TYPE_CHECKING:
    from mpc_train.gateway.app import Gateway

MAX_CONNECTIONS = 256
MAX_HEAD_BYTES = 16 << 10
END_S = 10
"""How long requests that are being answered may take when the gateway ends."""
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})\Z")


@dataclass(frozen=True)
class Listen:
    """host: an address or a name, without brackets. port: 0 for a free one."""

    host: str
    port: int

    @classmethod
    def of(cls, text: str) -> Listen:
        """Of HOST:PORT. Raises ConfigError."""
        found = _ADDRESS.match(text)
        if found is None or int(found[2]) > 65535:
            raise ConfigError(f"--listen {text}: write HOST:PORT, like 127.0.0.1:8080")
        return cls(found[1].strip("[]"), int(found[2]))

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def shown(self, port: int) -> str:
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


@dataclass(frozen=True)
class Tls:
    """Files in PEM: a certificate with its chain, and its private key."""

    certificate: Path
    key: Path

    def check(self) -> None:
        """Raise ConfigError unless the two belong together."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password=lambda: b"")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--certificate {self.certificate} and --key {self.key}: not a certificate and its "
                f"private key, in PEM and without a passphrase ({error})"
            ) from error


class Server:
    """Listens from the start, and answers in `run`. url: where it is."""

    def __init__(self, gateway: Gateway, listen: Listen, tls: Tls | None = None) -> None:
        """Raises ConfigError for an address that others reach without TLS, and for one that cannot
        be listened on; PortTakenError."""
        if tls is None and not listen.is_local:
            raise ConfigError(
                f"--listen {listen.shown(listen.port)}: other machines reach this address, and "
                "without TLS they could read every row and the token; give --certificate and "
                "--key, or listen on 127.0.0.1"
            )
        if tls is not None:
            tls.check()
        self.listening = _tcp_socket(listen)
        try:
            self.listening.bind((listen.host, listen.port))
            self.listening.listen(MAX_CONNECTIONS)
        except (OSError, OverflowError) as error:
            self.listening.close()
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                raise PortTakenError(
                    f"--listen {listen.shown(listen.port)}: the port is in use; choose another one "
                    "or end the program that holds it"
                ) from error
            raise ConfigError(
                f"--listen {listen.shown(listen.port)}: cannot listen there ({error}); choose "
                "another port"
            ) from error
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://{listen.shown(self.listening.getsockname()[1])}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                gateway,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=END_S,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                ssl_certfile=None if tls is None else tls.certificate,
                ssl_keyfile=None if tls is None else tls.key,
            )
        )

    def run(self) -> None:
        """Answer until interrupted (KeyboardInterrupt), or until `stop`."""
        self._server.run(sockets=[self.listening])

    def stop(self) -> None:
        """From another thread."""
        self._server.should_exit = True


def _tcp_socket(listen: Listen) -> socket.socket:
    """A socket that says that it is TCP's, as `socket.create_server` does not: only then asyncio
    turns Nagle's algorithm off, with which each answer takes 40 ms more on a kept connection."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return found
