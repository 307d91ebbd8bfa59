"""A gateway that answers in a thread, and a caller of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from mpc_train.gateway.app import Gateway
from mpc_train.gateway.server import Listen, Server
from mpc_train.serving.offered import Service
from tests.support.patience import PATIENCE_S

TOKEN = "a-token-of-the-tests-of-32-characters"


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes
    found: Any = field(init=False)

    def __post_init__(self) -> None:
        kind = self.headers.get("content-type", "")
        self.found = json.loads(self.content) if kind == "application/json" else None


@dataclass
class Caller:
    """Asks a gateway by an ordinary HTTP client. token: None for none."""

    url: str
    gateway: Gateway
    token: str | None = TOKEN

    def __call__(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        link = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=PATIENCE_S)
        sent = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        link.request(method, path, body, {**sent, **(headers or {})})
        answer = link.getresponse()
        names = {key.lower(): value for key, value in answer.getheaders()}
        found = Answer(answer.status, names, answer.read())
        link.close()
        return found

    def get(self, path: str) -> Answer:
        return self("GET", path)

    def predict(self, body: object, path: str = "/v1/models/study", **headers: str) -> Answer:
        """body: bytes as they are, anything else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"}
        return self("POST", f"{path}:predict", content, {**kind, **headers})


@contextlib.contextmanager
def answering(service: Service, kind: type[Gateway] = Gateway) -> Iterator[Caller]:
    """A caller of a gateway that answers while the context lasts."""
    gateway = kind(service, TOKEN)
    server = Server(gateway, Listen("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, name="gateway")
    thread.start()
    try:
        yield Caller(server.url, gateway)
    finally:
        server.stop()
        thread.join(PATIENCE_S)
