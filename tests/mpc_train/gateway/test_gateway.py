"""The gateway as programs meet it: a real server, an ordinary HTTP client, every status."""

from __future__ import annotations

import dataclasses
import http.client
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette", reason="Starlette is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from starlette.requests import Request
from starlette.responses import Response

from mpc_train.errors import ConfigError, QueryError, classify
from mpc_train.gateway import app
from mpc_train.gateway.app import HEADERS, OPEN
from mpc_train.gateway.instances import most_bytes
from mpc_train.gateway.openapi import document
from mpc_train.gateway.refusals import OURS, REFUSED, refusal_of, until_midnight
from mpc_train.gateway.server import Listen, Server, Tls
from mpc_train.results.predicting import Predictor
from mpc_train.serving.offered import MOST_ROWS, REFUSALS
from protocols.errors import PeerTimeoutError
from tests.support.gateways import TOKEN, Caller, answering
from tests.support.patience import PATIENCE_S
from tests.support.preparation_case import prepared_job, typed
from tests.support.serving import ClearService, opened_model

INSTANCE = {"age": 61, "income": 20000.5, "visits": 3, "smoker": True, "region": "north"}


@pytest.fixture(scope="module")
def clear(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("clear")
    return opened_model(folder / "model", prepared_job(folder))


@pytest.fixture(scope="module")
def shared(clear: Predictor) -> Iterator[tuple[Caller, ClearService]]:
    """One gateway for all tests that only ask."""
    service = ClearService((clear, {}), (clear, {"answer": "class", "rows_a_day": 77}))
    with answering(service) as caller:
        yield caller, service


@pytest.fixture
def caller(shared: tuple[Caller, ClearService]) -> Iterator[Caller]:
    yield shared[0]
    shared[1].refuse = lambda number: None


@pytest.fixture
def service(shared: tuple[Caller, ClearService], caller: Caller) -> ClearService:
    return shared[1]


def of_table(rows: int, seed: int) -> list[dict[str, Any]]:
    """The rows of `typed` as instances."""
    table = typed(rows, seed)
    levels = ["north", "south", "east", "elsewhere"]
    found = []
    for values, missing in zip(table.values.tolist(), table.missing.tolist(), strict=True):
        row: dict[str, Any] = dict(zip(table.names[:-1], values, strict=False))
        row |= {"smoker": bool(row["smoker"]), "region": levels[int(row["region"])]}
        gone = [name for name, gap in zip(table.names, missing, strict=True) if gap]
        found.append({**row, **dict.fromkeys(gone)})
    return found


def test_predictions_are_those_of_the_opened_model(caller: Caller, clear: Predictor) -> None:
    rows, columns = of_table(MOST_ROWS, 1), clear.columns
    found = caller.predict({"instances": rows}, "/v1/models/study/versions/1")
    assert found.status == 200
    expected = [dict(zip(columns, row, strict=True)) for row in clear.predicted(typed(128, 1))]
    assert found.found == {"predictions": expected}
    newest = caller.predict({"instances": rows})
    assert newest.found == {"predictions": [{"prediction": row["prediction"]} for row in expected]}


def test_cells_mean_what_they_mean_in_tables(caller: Caller) -> None:
    """Texts are cells as well, and other names are ignored as other columns are."""
    path = "/v1/models/study/versions/1"
    same = [
        INSTANCE,
        {**INSTANCE, "age": "61.0", "smoker": "yes", "income": "2.00005e4"},
        {**INSTANCE, "age": 61.0, "smoker": 1, "note": [1, {}], "ill": True},
        dict(reversed(INSTANCE.items())),
    ]
    found = caller.predict({"instances": same}, path).found["predictions"]
    assert found == [found[0]] * 4
    other, gap = {**INSTANCE, "region": "nowhere"}, {**INSTANCE, "region": None}
    first, second = caller.predict({"instances": [other, gap]}, path).found["predictions"]
    assert first != second


def test_models_are_shown(caller: Caller) -> None:
    assert caller.get("/").found["status"] == "alive"
    assert caller.get("/v1/models").found == {"models": ["study"]}
    found = caller.get("/v1/models/study").found
    assert (found["name"], found["ready"], found["versions"]) == ("study", True, ["1", "2"])
    assert (found["version"], found["answer"], found["rows_a_day"]) == (2, "class", 77)
    assert [column["name"] for column in found["columns"]] == list(INSTANCE)
    older = caller.get("/v1/models/study/versions/1").found
    assert (older["version"], older["answer"]) == (1, "number")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "write {"),
        (b"{", "write {"),
        (b"[1]", "Expected `object`, got `array`"),
        (b'{"rows": []}', "rows"),
        (b'{"instances": []}', "there is no instance"),
        (b'{"instances": [[61]]}', "Expected `object`, got `array` - at `$.instances[0]`"),
        (b'{"instances": ' + b"[" * 5000, "write {"),
        (b'{"instances": [{"age": 1e999}]}', "out of range"),
        (b'{"instances": [{"age": NaN}]}', "malformed"),
        ([INSTANCE, {**INSTANCE, "age": 121}], "instance 1: column 'age': outside the declared"),
        ([{**INSTANCE, "age": "old"}], "instance 0: column 'age': not a number"),
        ([{**INSTANCE, "age": 10**400}], "instance 0: column 'age': is not a number, text"),
        ([{**INSTANCE, "visits": None}], "instance 0: column 'visits': has no value, and"),
        ([INSTANCE, {**INSTANCE, "smoker": "maybe"}], "instance 1: column 'smoker': neither"),
        ([{**INSTANCE, "region": ["north"]}], "instance 0: column 'region': is not a number"),
        ([{**INSTANCE, "income": {"a": 1}}], "instance 0: column 'income': is not a number"),
        ([{"age": 61}, INSTANCE], "instance 0: column 'income': is missing; null says"),
        ([{**INSTANCE, "a\u0301": 1, "\u00e1": 2}], "instance 0: two names are the same column"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_named(
    caller: Caller, service: ClearService, body: object, said: str
) -> None:
    before = service.questions
    found = caller.predict(body if isinstance(body, bytes) else {"instances": body})
    assert found.status == 400
    assert said in found.found["error"] and found.found["code"] == "instances"
    assert service.questions == before


def test_all_faults_are_named_at_once(caller: Caller) -> None:
    rows = [{**INSTANCE, "age": 121}, {**INSTANCE, "smoker": "maybe", "visits": 99}]
    said = caller.predict({"instances": rows}).found["error"]
    assert "3 faults" in said
    for name in ("'age'", "'smoker'", "'visits'"):
        assert name in said
    assert "121" not in said and "maybe" not in said


def test_without_the_token_nothing_is_said_of_models(caller: Caller) -> None:
    for token in (None, "", TOKEN[:-1], TOKEN + "x", "é" * 32):
        stranger = dataclasses.replace(caller, token=token)
        for path in ("/v1/models", "/v1/models/study", "/v1/models/other", "/metrics", "/x"):
            found = stranger.get(path)
            assert (found.status, found.found["code"]) == (401, "unauthorized")
            assert found.headers["www-authenticate"] == "Bearer"
        assert stranger.predict({"instances": [INSTANCE]}).status == 401
        for path in OPEN:
            assert stranger.get(path).status == 200
    basic = dataclasses.replace(caller, token=None)
    assert basic("GET", "/v1/models", headers={"Authorization": TOKEN}).status == 401


def test_other_statuses(caller: Caller, clear: Predictor) -> None:
    for path in ("/v1/models/other", "/v1/models/study/versions/3", "/v1/models/study/versions/x"):
        assert (caller.get(path).status, caller.get(path).found["code"]) == (404, "unknown-model")
    assert caller.get(f"/v1/models/study/versions/{'9' * 5000}").status == 404
    assert caller.predict({}, "/v1/models/other").status == 404
    for path in ("/nowhere", "/v1", "/v1/models/", "/v1/models/study/", "/docs/../etc/passwd"):
        assert (caller.get(path).status, caller.get(path).found["code"]) == (404, "unknown-path")
    wrong = caller("POST", "/v1/models")
    assert (wrong.status, wrong.headers["allow"]) == (405, "GET, HEAD")
    for path in ("/v1/models/study:predict", "/v1/models/study/versions/1:predict"):
        wrong = caller.get(path)
        assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    for kind in ("application/x-www-form-urlencoded", "text/plain", ""):
        found = caller.predict({"instances": [INSTANCE]}, **{"Content-Type": kind})
        assert (found.status, found.found["code"]) == (415, "media-type")
    kind = "Application/JSON; charset=utf-8"
    assert caller.predict({"instances": [INSTANCE]}, **{"Content-Type": kind}).status == 200
    many = caller.predict({"instances": [INSTANCE] * (MOST_ROWS + 1)})
    assert (many.status, many.found["code"]) == (413, "too-large")


def test_a_body_is_bounded_before_it_is_read(caller: Caller, clear: Predictor) -> None:
    most = most_bytes(clear.job)
    place = urlsplit(caller.url).netloc
    for headers in ({"Content-Length": str(most + 1)}, {"Content-Length": "9" * 40}):
        link = http.client.HTTPConnection(place, timeout=PATIENCE_S)
        link.putrequest("POST", "/v1/models/study:predict")
        for name, value in {
            "Authorization": f"Bearer {TOKEN}",
            "Content-Type": "application/json",
            **headers,
        }.items():
            link.putheader(name, value)
        link.endheaders()  # and no body
        assert link.getresponse().status in (400, 413)
        link.close()
    # One that says no length, and never ends.
    link = http.client.HTTPConnection(place, timeout=PATIENCE_S)
    link.putrequest("POST", "/v1/models/study:predict")
    for name, value in (("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")):
        link.putheader(name, value)
    link.putheader("Authorization", f"Bearer {TOKEN}")
    link.endheaders(b"%x\r\n%s\r\n" % (most + 1, b"[" * (most + 1)))
    answer = link.getresponse()
    assert answer.status == 413 and "longer than" in json.loads(answer.read())["error"]
    link.close()


def test_a_body_that_does_not_arrive_is_given_up(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "BODY_S", 0.05)
    link = http.client.HTTPConnection(urlsplit(caller.url).netloc, timeout=PATIENCE_S)
    link.putrequest("POST", "/v1/models/study:predict")
    for name, value in (("Content-Type", "application/json"), ("Content-Length", "9")):
        link.putheader(name, value)
    link.putheader("Authorization", f"Bearer {TOKEN}")
    link.endheaders(b"{")
    assert link.getresponse().status == 408
    link.close()


@pytest.mark.parametrize("code", sorted(REFUSALS))
def test_refusals_of_the_service(
    caller: Caller, service: ClearService, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(app, "PATIENCE_S", 0.15)
    service.refuse = lambda number: code
    before = service.questions
    found = caller.predict({"instances": [INSTANCE]})
    assert (found.status, found.found["code"]) == (REFUSED[code], code)
    assert REFUSALS[code] in found.found["error"]
    again = found.headers.get("retry-after")
    if code == "quota":
        assert again is not None and 0 < int(again) <= 86401
    else:
        assert (again is not None) == (code in ("busy", "unavailable"))
    # Asked again in the gateway only where it may help.
    assert (service.questions - before > 1) == (code in ("busy", "unavailable"))


def test_a_quota_is_new_at_midnight_of_utc() -> None:
    assert until_midnight(datetime(2026, 2, 28, 23, 59, 30, tzinfo=UTC)) == 31
    assert until_midnight(datetime(2026, 12, 31, 0, 0, 0, tzinfo=UTC)) == 86401


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (PeerTimeoutError("bob did not answer"), 503, "bob did not answer"),
        (QueryError("not an answer"), 502, "not an answer"),
        (ValueError("age 61 of Ann"), 500, "internal error: ValueError"),
        (RuntimeError("age 61 of Ann"), 500, "internal error: RuntimeError"),
    ],
)
def test_errors_of_the_service(
    caller: Caller,
    service: ClearService,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    status: int,
    said: str,
) -> None:
    def fails(number: int) -> None:
        raise error

    service.refuse = fails
    found = caller.predict({"instances": [INSTANCE]})
    assert found.status == status and said in found.found["error"]
    assert "Ann" not in found.content.decode() and "Ann" not in caplog.text


def test_every_refusal_has_a_status() -> None:
    assert set(REFUSED) == set(REFUSALS)
    for code in (*REFUSED, *OURS):
        assert 400 <= app.Refusal(code, "").status < 600
    assert refusal_of(app.Refusal("method", "no")).code == "method"


def test_slow_answers_delay_nobody_else(clear: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MAX_WAITING", 3)
    service = ClearService((clear, {}))
    service.hold.clear()
    with answering(service) as caller:
        statuses: list[int] = []

        def ask() -> None:
            statuses.append(caller.predict({"instances": [INSTANCE]}).status)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + PATIENCE_S
        while service.at_once < 3:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert caller.get("/healthz").found == {"status": "ok"}
        assert "mpc_train_gateway_waiting 3.0" in caller.get("/metrics").content.decode()
        full = caller.predict({"instances": [INSTANCE]})
        assert (full.status, full.found["code"]) == (503, "busy")
        service.hold.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert statuses == [200] * 3
        assert caller.predict({"instances": [INSTANCE]}).status == 200


def test_metrics_count_and_say_no_value(clear: Predictor) -> None:
    service = ClearService((clear, {}))
    with answering(service) as caller:
        assert caller.predict({"instances": [INSTANCE] * 5}).status == 200
        assert caller.get("/v1/models/secret-61").status == 404
        found = caller.get("/metrics")
        assert caller.gateway.answered == 5
    text = found.content.decode()
    assert found.headers["content-type"].startswith("text/plain")
    labels = '{model="study",version="1"}'
    assert f"mpc_train_gateway_rows_total{labels} 5.0" in text
    assert f"mpc_train_gateway_seconds_count{labels} 1.0" in text
    assert 'mpc_train_gateway_refusals_total{reason="unknown-model"} 1.0' in text
    assert "secret" not in text and "20000" not in text


def test_every_answer_keeps_browsers_strict(caller: Caller) -> None:
    for path in (*OPEN, "/v1/models", "/nowhere"):
        found = caller.get(path)
        for name, value in HEADERS.items():
            assert found.headers[name.lower()] == value
        assert "access-control-allow-origin" not in found.headers
        assert "uvicorn" not in str(found.headers)


def test_a_page_of_another_site_does_not_reach_it(caller: Caller) -> None:
    for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "[::2]:80"):
        found = caller("GET", "/healthz", headers={"Host": host})
        assert (found.status, found.found["code"]) == (421, "host")
    for host in ("localhost", "localhost:9", "127.0.0.1:9", "[::1]:9", "[::1]"):
        assert caller("GET", "/healthz", headers={"Host": host}).status == 200
    # What a browser asks first before it sends a token for a page of another site.
    asked = caller("OPTIONS", "/v1/models/study:predict", headers={"Origin": "http://evil.example"})
    assert asked.status == 405


def test_the_description_names_every_path_and_status() -> None:
    found = document()
    json.dumps(found)
    patterns = set(found["paths"])
    for path in ("/", "/healthz", "/metrics", "/v1/models"):
        assert path in patterns
    statuses = {status for path in found["paths"].values() for status in _statuses(path)}
    told = {str(app.Refusal(code, "").status) for code in (*REFUSED, *OURS)}
    assert told - statuses == {"405", "421", "500"}
    references = set(_references(found))
    for reference in references:
        assert reference.removeprefix("#/components/schemas/") in found["components"]["schemas"]


def _statuses(path: dict[str, Any]) -> set[str]:
    return {status for said in path.values() for status in said["responses"]}


def _references(found: Any) -> Iterator[str]:
    if isinstance(found, dict):
        for key, value in found.items():
            if key == "$ref":
                yield value
            else:
                yield from _references(value)
    elif isinstance(found, list):
        for value in found:
            yield from _references(value)


@pytest.mark.parametrize(
    ("text", "is_local"),
    [
        ("127.0.0.1:8080", True),
        ("localhost:0", True),
        ("[::1]:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("example.org:1", False),
    ],
)
def test_only_this_machine_is_asked_without_tls(
    clear: Predictor, text: str, is_local: bool
) -> None:
    listen = Listen.of(text)
    assert listen.is_local == is_local
    if not is_local:
        with pytest.raises(ConfigError, match="without TLS"):
            Server(app.Gateway(ClearService((clear, {})), TOKEN), listen)


@pytest.mark.parametrize("wrong", ["8080", "127.0.0.1", "127.0.0.1:99999", "a b:1", "::1:80", ""])
def test_addresses_that_are_none(wrong: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        Listen.of(wrong)


def test_small_answers_are_sent_at_once(clear: Predictor) -> None:
    """With Nagle's algorithm an answer of two packets waits 40 ms for the other side's
    acknowledgement; asyncio turns it off only for a socket that says that it is TCP's."""
    server = Server(app.Gateway(ClearService((clear, {})), TOKEN), Listen("127.0.0.1", 0))
    with server.listening as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_what_cannot_be_listened_on(clear: Predictor, tmp_path: Path) -> None:
    gateway = app.Gateway(ClearService((clear, {})), TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = Listen("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ConfigError, match="the port is in use; choose another one") as said:
            Server(gateway, listen)
        assert classify(said.value) == ("PortTakenError", "port-in-use", 7)
    for name in ("certificate", "key"):
        (tmp_path / name).write_text("not PEM")
    with pytest.raises(ConfigError, match="not a certificate"):
        Server(gateway, Listen("127.0.0.1", 0), Tls(tmp_path / "certificate", tmp_path / "key"))


CLICKS = f"""
get("token").value = "{TOKEN}";
get("look").click();
setTimeout(() => get("ask").click(), 400);
"""


class Clicked(app.Gateway):
    """Its page does by itself what a person does at it."""

    async def _page(self, request: Request) -> Response:
        found = await super()._page(request)
        if request.url.path == "/docs.js":
            content = bytes(found.body) + CLICKS.encode()
            return Response(content, media_type="text/javascript")
        return found


@pytest.mark.slow
def test_a_real_browser_asks_and_shows_the_answer(clear: Predictor, tmp_path: Path) -> None:
    browser = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if browser is None:
        pytest.skip("no Chromium here")
    argv = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    with answering(ClearService((clear, {})), Clicked) as caller:
        shown = subprocess.run(
            [*argv, "--virtual-time-budget=2500", "--dump-dom", f"{caller.url}/docs"],
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
    assert "<td>POST</td><td><code>/v1/models/{name}:predict</code></td>" in shown
    assert "<td>429</td>" in shown
    assert '<option value="study">study</option>' in shown
    assert "Version 1: logistic model of ill; it answers with the number; 1000 rows a day." in shown
    assert '"prediction":' in shown and "p(true)" in shown and "Answered in" in shown


def test_a_missing_column_hides_no_other_fault_and_null_is_advised_where_it_may_be(
    caller: Caller, service: ClearService
) -> None:
    """`income` may be null, `visits` may not."""
    row = {name: cell for name, cell in INSTANCE.items() if name not in ("income", "visits")}
    before = service.questions
    said = caller.predict({"instances": [{**row, "age": 121, "smoker": "maybe"}]}).found["error"]
    assert "4 faults" in said and "'age'" in said and "'smoker'" in said
    assert "column 'income': is missing; null says" in said
    assert "column 'visits': is missing\n" in f"{said}\n"
    assert "in the schema" not in said, said
    assert service.questions == before
