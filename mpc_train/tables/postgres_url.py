"""The URL of a PostgreSQL database, read strictly: libpq gets only what the URL says.

    postgresql://user@host:port/database?sslrootcert=/path/to/ca.pem

libpq has about fifty parameters, and several of them bypass the check of the server's certificate:
another address for the same name (`hostaddr`), a file of settings (`service`), several hosts of
which one is local. Here one host is named once, `PARAMETERS` may follow the `?`, and everything
else is refused by name. A URL never contains a password.
"""

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

PARAMETERS = (
    "host",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslcrl",
    "channel_binding",
    "application_name",
)
"""The allowed parameters; `host` is for the directory of a server's socket on this machine."""

CHECKED_TLS = "verify-full"
LOCAL_HOSTS = ("", "localhost", "127.0.0.1", "::1")

_HOST = re.compile(r"[A-Za-z0-9._-]*|[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?")
_DIRECTORY = re.compile(r"/[^,\x00-\x1f\x7f]*")


class UrlError(ValueError):
    """A fault of a URL, with a text that does not repeat it."""


@dataclass(frozen=True)
class DatabaseUrl:
    """One server and one of its databases. host: "" or a directory is a socket on this machine."""

    host: str
    database: str
    port: int | None = None
    user: str = ""
    parameters: dict[str, str] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        """Whether the connection stays on this machine, so that no certificate is needed."""
        return self.host in LOCAL_HOSTS or self.host.startswith("/")


def parse_url(url: str) -> DatabaseUrl:
    """Read a URL that begins with postgresql:// or postgres://; raises UrlError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise UrlError(
            "write postgresql://user@host:port/database, one host and one port"
        ) from error
    if parts.password is not None or any(key == "password" for key, _ in given):
        raise UrlError("contains a password; put it into a file: password_file = …")
    if host.startswith("%"):
        # A directory, encoded as in libpq's manual; urlsplit has lower-cased it.
        host = unquote(parts.netloc.rpartition("@")[2].partition(":")[0])
    parameters: dict[str, str] = {}
    for key, value in given:
        if key not in PARAMETERS:
            raise UrlError(
                f"the parameter {key!r} is not allowed; write {', '.join(PARAMETERS)}, and "
                "before them user@host:port/database"
            )
        if key in parameters or not value:
            raise UrlError(f"the parameter {key!r} appears twice, or is empty")
        parameters[key] = value
    if "host" in parameters:
        if host:
            raise UrlError("names two hosts; write one, before the name of the database")
        host = parameters.pop("host")
    if not (_HOST.fullmatch(host) or _DIRECTORY.fullmatch(host)):
        raise UrlError("one host is needed: a name, an address, or the directory of a socket")
    if parts.fragment or "#" in url:
        raise UrlError("contains a #; write %23 for one that belongs to a name")
    found = DatabaseUrl(
        host, unquote(parts.path.removeprefix("/")), port, unquote(parts.username or ""), parameters
    )
    if "\0" in found.database + found.user + "".join(parameters.values()):
        raise UrlError("contains a zero byte")
    if not found.is_local and parameters.get("sslmode", CHECKED_TLS) != CHECKED_TLS:
        raise UrlError(
            f"sslmode = {CHECKED_TLS} is required for another machine; for a server with a "
            "certificate of your own add sslrootcert=/path/to/ca.pem to the URL"
        )
    return found
