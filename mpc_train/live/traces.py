"""OpenTelemetry traces of a run, for organisations that collect them.

On if the standard variables name a collector: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, or
OTEL_EXPORTER_OTLP_ENDPOINT. OTEL_SDK_DISABLED=true or OTEL_TRACES_EXPORTER=none switches them off;
the other OTEL_ variables of the SDK and the exporter (headers, certificates, service name) apply.

A run is one trace: a span for the run, below it one for each stage (gathering, agreement, each
session), below a session one for each phase of a node and at most MAX_STEP_SPANS for steps, each of
as many steps as that takes. Attributes are names, counts and codes: no value, loss, share or key,
and no text of an error.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mpc_train.errors import classify

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)

MAX_STEP_SPANS = 100
"""Of one session."""
MAX_PHASES = 16
"""Spans for phases of one node in one session: nodes choose the words."""
FLUSH_MS = 5000
SERVICE = "mpc-train"


def wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment names a collector of traces."""
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    exporter = environment.get("OTEL_TRACES_EXPORTER", "otlp")
    places = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return not off and exporter == "otlp" and any(environment.get(place) for place in places)


class Traces:
    """Turns events into spans; `end` closes them. Called from one thread."""

    def __init__(self, job: str, nodes: Iterable[str], provider: "TracerProvider") -> None:
        from opentelemetry.trace import set_span_in_context

        self._in: Callable[[Span], Any] = set_span_in_context
        self._provider = provider
        self._tracer = provider.get_tracer("mpc_train.live")
        self._run = self._tracer.start_span("run", attributes={"mpc_train.job": job})
        self._stage: Span | None = None
        self._phases: dict[str, tuple[str, Span]] = {}
        self._opened = dict.fromkeys(nodes, 0)
        self._steps: dict[str, int] = {}
        self._block: tuple[int, Span] | None = None
        self._blocks = 0

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        match kind:
            case "gathering" if self._stage is None:
                self._enter("gather")
            case "proposed":
                self._enter("agree")
            case "started":
                self._enter("session")
            case "suspended" | "aborted":
                if self._stage is not None:
                    self._stage.set_attribute("mpc_train.code", str(fields.get("code")))
                    self._stage.set_attribute("mpc_train.node", str(fields.get("node")))
                self._leave()
            case "progress":
                node, news = fields.get("node"), fields.get("fields")
                if isinstance(node, str) and node in self._opened and isinstance(news, Mapping):
                    self._progress(node, news)
            case _:
                pass

    def end(self, error: BaseException | None = None) -> None:
        """Close all spans and send them; a collector that is away costs at most FLUSH_MS. error:
        what ended the run; of it only the code and the exit status are told."""
        from opentelemetry.trace import Status, StatusCode

        self._leave()
        _, code, status = ("", "ok", 0) if error is None else classify(error)
        self._run.set_attribute("mpc_train.code", code)
        self._run.set_attribute("mpc_train.exit", status)
        self._run.set_status(Status(StatusCode.OK if status == 0 else StatusCode.ERROR))
        self._run.end()
        self._provider.force_flush(FLUSH_MS)
        self._provider.shutdown()

    def _start(self, name: str, above: "Span", **attributes: str | int) -> "Span":
        named = {f"mpc_train.{key}": value for key, value in attributes.items()}
        return self._tracer.start_span(name, self._in(above), attributes=named)

    def _enter(self, stage: str) -> None:
        self._leave()
        self._stage = self._start(stage, self._run)

    def _leave(self) -> None:
        self._close_block()
        for _, span in self._phases.values():
            span.end()
        self._phases.clear()
        self._steps.clear()
        self._opened = dict.fromkeys(self._opened, 0)
        self._blocks = 0
        if self._stage is not None:
            self._stage.end()
            self._stage = None

    def _progress(self, node: str, news: Mapping[str, Any]) -> None:
        if self._stage is None:
            return
        phase = str(news.get("phase", ""))[:40]
        now = self._phases.get(node)
        if phase and (now is None or now[0] != phase) and self._opened[node] < MAX_PHASES:
            if now is not None:
                now[1].end()
            self._opened[node] += 1
            self._phases[node] = phase, self._start(phase, self._stage, node=node)
        step, steps = news.get("step"), news.get("steps")
        if phase == "training" and isinstance(step, int) and isinstance(steps, int) and steps > 0:
            self._steps[node] = step
            self._stepped(min(self._steps.values()), steps)

    def _stepped(self, step: int, steps: int) -> None:
        """A span from one progress event to the next, but for no fewer steps than make
        MAX_STEP_SPANS of all; the numbers are those of a node's reports."""
        if self._stage is None:
            return
        size = -(-steps // MAX_STEP_SPANS)
        if self._block is None:
            if self._blocks >= MAX_STEP_SPANS or step >= steps:
                return
            self._blocks += 1
            self._block = step, self._start("steps", self._stage, first=step + 1)
        elif step - self._block[0] >= size or step >= steps:
            self._block[1].set_attribute("mpc_train.last", step)
            self._close_block()
            self._stepped(step, steps)

    def _close_block(self) -> None:
        if self._block is not None:
            self._block[1].end()
            self._block = None


def traces_of(job: str, nodes: Iterable[str]) -> Traces | None:
    """Traces to the collector that the environment names; None if it names none, or, with a
    warning, if the libraries are not installed: the run does not depend on them."""
    if not wanted():
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning(
            "no traces: OTEL_ variables name a collector, but %s is not installed: python -m pip "
            "install 'mpc-train[telemetry]'",
            error.name,
        )
        return None
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over our name.
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": SERVICE}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(job, nodes, provider)


@contextmanager
def traced(job: str, nodes: Iterable[str]) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
    """Inside this context what is yielded takes the events of a run and makes spans of them, if the
    environment names a collector."""
    traces = traces_of(job, nodes)
    if traces is None:
        yield lambda kind, fields: None
        return
    try:
        yield traces.event
    except BaseException as error:
        traces.end(error)
        raise
    traces.end()
