"""Traces of a run: which spans, how many, what is in them, and that a collector gets them."""

import http.server
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from mpc_train.errors import DataError
from mpc_train.live.traces import MAX_PHASES, MAX_STEP_SPANS, Traces, traced, traces_of, wanted

pytest.importorskip("opentelemetry.sdk.trace")
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

NODES = ("ann", "bob", "registry")


class Recorded:
    """Traces into memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.traces = Traces("study", NODES, provider)

    def started(self) -> None:
        self.traces.event("gathering", {"missing": NODES})
        self.traces.event("proposed", {"job": "study"})
        self.traces.event("started", {"nodes": NODES})

    def step(self, number: int, steps: int, phase: str = "training") -> None:
        for node in NODES:
            news = {"phase": phase, "step": number, "steps": steps, "bytes_sent": 1}
            self.traces.event("progress", {"node": node, "fields": news})

    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans() if span.name == name]


def said(span: ReadableSpan) -> Mapping[str, Any]:
    return dict(span.attributes or {})


def test_a_run_is_one_trace() -> None:
    run = Recorded()
    run.started()
    for number in range(1, 11):
        run.step(number, 10)
    run.traces.event("progress", {"node": "ann", "fields": {"phase": "evaluating"}})
    run.traces.end()
    (whole,) = run.named("run")
    assert whole.parent is None and said(whole)["mpc_train.job"] == "study"
    assert whole.status.is_ok and said(whole)["mpc_train.exit"] == 0
    assert len({span.context.trace_id for span in run.spans() if span.context}) == 1
    for name in ("gather", "agree", "session"):
        (stage,) = run.named(name)
        assert stage.parent == whole.context
    (session,) = run.named("session")
    trained = run.named("training")
    assert {said(span)["mpc_train.node"] for span in trained} == set(NODES)
    assert all(span.parent == session.context for span in (*trained, *run.named("steps")))
    blocks = [(said(s)["mpc_train.first"], said(s)["mpc_train.last"]) for s in run.named("steps")]
    assert blocks == [(number, number) for number in range(2, 11)]
    assert said(run.named("evaluating")[0]) == {"mpc_train.node": "ann"}


@pytest.mark.parametrize("steps", [99, 100, 101, 7777])
def test_the_number_of_spans_is_bounded(steps: int) -> None:
    run = Recorded()
    run.started()
    for number in range(1, steps + 1):
        run.step(number, steps)
    # Words that a node makes up, and numbers that fall.
    for number in range(1000):
        run.step(1, steps, phase=f"phase-{number}")
        run.step(number % 3, steps)
    run.traces.end()
    assert 1 < len(run.named("steps")) <= MAX_STEP_SPANS
    assert len(run.spans()) <= MAX_STEP_SPANS + MAX_PHASES * len(NODES) + 4


def test_a_lost_node_ends_a_session_and_another_follows() -> None:
    run = Recorded()
    run.started()
    run.step(1, 10)
    run.traces.event("suspended", {"node": "bob", "code": "lost"})
    run.started()
    run.step(2, 10)
    run.traces.end()
    first, second = run.named("session")
    assert said(first) == {"mpc_train.code": "lost", "mpc_train.node": "bob"}
    assert said(second) == {}


def test_no_value_and_no_text_of_an_error_leaves() -> None:
    run = Recorded()
    run.started()
    run.traces.event("loss", {"step": 1, "loss": 0.123456})
    news = {"phase": "training", "step": 1, "steps": 5, "accuracy": 0.654321}
    run.traces.event("progress", {"node": "ann", "fields": news})
    run.traces.event("progress", {"node": "stranger", "fields": news})
    run.traces.event("progress", {"node": "ann", "fields": "nonsense"})
    run.traces.end(DataError("row 17 of patients.csv"))
    text = "".join(span.to_json() for span in run.spans())
    assert not any(word in text for word in ("0.123456", "0.654321", "row 17", "stranger"))
    (whole,) = run.named("run")
    assert not whole.status.is_ok
    assert (said(whole)["mpc_train.code"], said(whole)["mpc_train.exit"]) == ("data", 4)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "x", "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "x", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
    ],
)
def test_the_standard_variables_decide(environment: dict[str, str], expected: bool) -> None:
    assert wanted(environment) is expected


def test_nothing_leaves_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    assert traces_of("study", NODES) is None


def test_a_collector_on_this_machine_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever, args=(0.01,))
        thread.start()
        where = f"http://127.0.0.1:{collector.server_address[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", where)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        try:
            with pytest.raises(KeyboardInterrupt), traced("study", NODES) as trace:
                trace("started", {"nodes": NODES})
                raise KeyboardInterrupt
        finally:
            collector.shutdown()
            thread.join()
    assert {path for path, _ in got} == {"/v1/traces"}
    sent = b"".join(body for _, body in got)
    assert b"session" in sent and b"study" in sent and b"mpc-train" in sent
