"""What the gateway counts, for Prometheus: times, rows and refusals; no value of any row."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as written

SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24)


class Metrics:
    """Labels are names and versions of models that are served, and words of `refusals`: a caller
    cannot make up new ones."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        model = ("model", "version")
        self.seconds = Histogram(
            "mpc_train_gateway_seconds",
            "Seconds from a request of predictions to its answer",
            model,
            buckets=SECONDS,
            registry=self._registry,
        )
        self.rows = Counter(
            "mpc_train_gateway_rows", "Rows that were answered", model, registry=self._registry
        )
        self.refusals = Counter(
            "mpc_train_gateway_refusals",
            "Requests that were not answered, by reason",
            ("reason",),
            registry=self._registry,
        )
        self.waiting = Gauge(
            "mpc_train_gateway_waiting", "Requests that wait now", registry=self._registry
        )

    def exposition(self) -> tuple[str, bytes]:
        """Content type and text."""
        return CONTENT_TYPE_LATEST, written(self._registry)
