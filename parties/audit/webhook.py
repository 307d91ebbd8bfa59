"""One JSON object to a web hook: a POST over TLS that is verified, to that address and no other."""

import ssl
import urllib.request
from email.message import Message
from typing import IO, Any
from urllib.error import HTTPError


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An alert goes where the node's file says."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, *rest: Any
    ) -> None:
        raise HTTPError(req.full_url, code, "a web hook must not redirect", Message(), fp)


def post(url: str, body: bytes, timeout_s: float, tls: ssl.SSLContext | None = None) -> None:
    """Raises OSError (URLError, HTTPError) and ValueError. url: https://…, which the node's file
    was checked for. tls: None: the system's certificates."""
    request = urllib.request.Request(  # noqa: S310
        url, body, {"Content-Type": "application/json"}, method="POST"
    )
    handlers = (
        urllib.request.HTTPSHandler(context=tls or ssl.create_default_context()),
        _NoRedirect,
    )
    with urllib.request.build_opener(*handlers).open(request, timeout=timeout_s) as answer:
        answer.read(1 << 10)
