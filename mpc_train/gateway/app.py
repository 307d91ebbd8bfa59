"""The gateway: predictions by models in shares for programs of this machine, by the KServe v1
protocol.

    GET  /v1/models                            the models that this client may ask
    GET  /v1/models/NAME[/versions/N]          ready, its versions, columns
    POST /v1/models/NAME[/versions/N]:predict  {"instances": […]} → {"predictions": […]}
    GET  /healthz /metrics /openapi.json /docs

Rows leave this machine only as shares; predictions are put together here. Whoever asks shows the
token, but for `/`, `/healthz` and the description of the interface, which say nothing of a model.
Bodies are bounded before they are parsed. A request is one question of the service, which is
answered whole or not at all; questions wait in threads of their own, so that slow ones delay no
other request. What goes wrong is a status, a word and a sentence (`refusals`).
"""

from __future__ import annotations

import hmac
import json
import logging
import re
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from mpc_train.asking.predictions import SharedPredictor
from mpc_train.gateway import instances
from mpc_train.gateway.metrics import Metrics
from mpc_train.gateway.openapi import document
from mpc_train.gateway.refusals import AGAIN_S, Refusal, refusal_of
from mpc_train.serving.offers import described, find

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from mpc_train.serving.offered import Offered, Service

log = logging.getLogger(__name__)

ASKED = ":predict"
MAX_WAITING = 64
"""Requests of predictions at a time, each with its body and its thread."""
BODY_S = 30.0
PATIENCE_S = 5.0
"""How long a question that the service refuses for the moment is asked again, before the caller is
told."""
LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
PAGES = {
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/docs.css": ("docs.css", "text/css; charset=utf-8"),
}
OPEN = frozenset({"/", "/healthz", "/openapi.json", *PAGES})
"""What needs no token."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}


Endpoint = Callable[[Request], Awaitable[Response]]
_NUMBER = re.compile(r"[1-9][0-9]{0,8}\Z")


class Gateway:
    """The application, for an ASGI server. token: what callers show. hosts: the names by which it
    may be asked, so that a page of another site cannot reach it by a name of its own; None: any."""

    def __init__(
        self, service: Service, token: str, hosts: frozenset[str] | None = LOCAL_HOSTS
    ) -> None:
        self._service, self._hosts = service, hosts
        self._token = token.encode()
        self.metrics = Metrics()
        self.answered = 0
        """Rows."""
        self._waiting = 0
        self._threads: anyio.CapacityLimiter | None = None
        model, version = "/v1/models/{name}", "/versions/{version}"
        routes: tuple[tuple[str, Endpoint], ...] = (
            ("/", self._alive),
            ("/healthz", self._healthy),
            ("/metrics", self._metrics),
            ("/openapi.json", self._openapi),
            *((path, self._page) for path in PAGES),
            ("/v1/models", self._models),
            (model + ASKED, self._predict),
            (model + version + ASKED, self._predict),
            (model + version, self._model),
            (model, self._model),
        )
        self._app = Starlette(
            routes=[
                Route(path, self._guarded(work), methods=["POST" if ASKED in path else "GET"])
                for path, work in routes
            ],
            exception_handlers={HTTPException: self._no_route},
        )
        self._app.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise Refusal("unknown-path", "only HTTP is spoken here")  # the server opens no other

        async def send_strictly(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(key.lower().encode(), value.encode()) for key, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        request = Request(scope)
        try:
            self._admit(request)
        except Refusal as error:
            await self._refused(request, error)(scope, receive, send_strictly)
        else:
            await self._app(scope, receive, send_strictly)

    def _guarded(self, work: Endpoint) -> Endpoint:
        """An endpoint of which no error reaches the framework, which would quote it."""

        async def guarded(request: Request) -> Response:
            try:
                return await work(request)
            except ClientDisconnect:
                return Response(status_code=400)  # nobody reads it
            except Exception as error:
                return self._refused(request, error)

        return guarded

    def _admit(self, request: Request) -> None:
        """Raise Refusal unless the caller asks by a name of this machine and shows the token."""
        host = request.headers.get("host", "").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self._hosts is not None and name not in self._hosts:
            raise Refusal("host", "ask for this gateway by the address on which it listens")
        if request.scope["path"] in OPEN:
            return
        kind, _, shown = request.headers.get("authorization", "").partition(" ")
        is_ours = hmac.compare_digest(shown.strip().encode("utf-8", "replace"), self._token)
        if kind.lower() != "bearer" or not is_ours:
            raise Refusal(
                "unauthorized",
                "the token is missing or wrong; send the header Authorization: Bearer TOKEN, with "
                "the content of the file that the gateway named when it started",
            )

    def _refused(self, request: Request, error: BaseException) -> Response:
        found = refusal_of(error)
        self.metrics.refusals.labels(found.code).inc()
        if found.code == "internal":
            place = traceback.extract_tb(error.__traceback__)[-1]
            log.error("%s at %s:%s", type(error).__name__, place.filename, place.lineno)
        more = {}
        if found.again_s:
            more["Retry-After"] = str(found.again_s)
        if found.status == 401:
            more["WWW-Authenticate"] = "Bearer"
        if found.status == 405:
            more["Allow"] = "POST" if request.scope["path"].endswith(ASKED) else "GET, HEAD"
        if found.code in ("too-large", "slow"):
            more["Connection"] = "close"  # the rest of the body is not read
        return _json({"error": found.message, "code": found.code}, found.status, more)

    async def _no_route(self, request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 405:
            return self._refused(
                request, Refusal("method", "this path takes another method; see /docs")
            )
        return self._refused(
            request,
            Refusal("unknown-path", "there is nothing at this path; /docs says what there is"),
        )

    async def _alive(self, request: Request) -> Response:
        return _json({"status": "alive", "docs": "/docs"})

    async def _healthy(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def _metrics(self, request: Request) -> Response:
        kind, text = self.metrics.exposition()
        return Response(text, headers={"Content-Type": kind})

    async def _openapi(self, request: Request) -> Response:
        return _json(document())

    async def _page(self, request: Request) -> Response:
        name, kind = PAGES[request.scope["path"]]
        content = files("mpc_train.gateway").joinpath("page", name).read_bytes()
        return Response(content, headers={"Content-Type": kind})

    async def _models(self, request: Request) -> Response:
        return _json({"models": sorted(await self._offered())})

    async def _model(self, request: Request) -> Response:
        if request.scope["path"].endswith(ASKED):
            raise Refusal("method", "predictions are asked by POST")
        offered = await self._offered()
        model = _named(request, offered)
        versions = [str(one.version) for one in offered[model.name]]
        said = described(model)
        return _json({"name": said.pop("model"), "ready": True, "versions": versions, **said})

    async def _predict(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal("media-type", "send JSON, with the header Content-Type: application/json")
        if self._waiting >= MAX_WAITING:
            raise Refusal("busy", "too many requests wait already; ask again", AGAIN_S)
        self._waiting += 1
        self.metrics.waiting.set(self._waiting)
        began = time.monotonic()
        try:
            model = _named(request, await self._offered())
            body = await _body(request, instances.most_bytes(model.job))
            if self._threads is None:  # in the server's loop, not before it
                self._threads = anyio.CapacityLimiter(MAX_WAITING)
            found = await anyio.to_thread.run_sync(
                self._predictions, model, body, limiter=self._threads
            )
        finally:
            self._waiting -= 1
            self.metrics.waiting.set(self._waiting)
        named = (model.name, str(model.version))
        self.answered += len(found)
        self.metrics.rows.labels(*named).inc(len(found))
        self.metrics.seconds.labels(*named).observe(time.monotonic() - began)
        return _json({"predictions": found})

    def _predictions(self, model: Offered, body: bytes) -> list[dict[str, Any]]:
        predictor = SharedPredictor(self._service, model, patience_s=PATIENCE_S)
        columns = predictor.columns
        return [
            dict(zip(columns, record, strict=True))
            for table in predictor.tables(instances.read(model.job, body))
            for record in predictor.predicted(table)
        ]

    async def _offered(self) -> Mapping[str, tuple[Offered, ...]]:
        """In a thread, since a service that was lost makes wait."""
        return await anyio.to_thread.run_sync(lambda: self._service.models)


def _named(request: Request, offered: Mapping[str, tuple[Offered, ...]]) -> Offered:
    """The model of the path. Raises QueryRefusedError."""
    name, version = (request.path_params.get(key) for key in ("name", "version"))
    if version is not None and not _NUMBER.match(version):
        raise Refusal("unknown-model", "a version of a model is a number from 1")
    return find(offered, str(name), int(version or 0))


async def _body(request: Request, most: int) -> bytes:
    """The body, never more than `most` bytes of it. Raises Refusal."""
    too_large = Refusal(
        "too-large", f"the request: longer than {most} bytes; ask by several requests"
    )
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said[:20]) > most:
        raise too_large
    found = bytearray()
    try:
        with anyio.fail_after(BODY_S):
            async for part in request.stream():
                found += part
                if len(found) > most:
                    raise too_large
    except TimeoutError:
        raise Refusal("slow", f"the request did not arrive within {BODY_S:.0f} s") from None
    return bytes(found)


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    kind = {"Content-Type": "application/json"}
    return Response(text.encode(), status, headers={**kind, **(headers or {})})
