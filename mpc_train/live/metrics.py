"""A run's state for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PHASES = ("gathering", "agreeing", "running", "suspended", "done", "failed")
STATES = (
    *("missing", "connected", "returning", "computing", "reconnecting"),
    *("done", "lost", "failed", "stopped"),
)

SERVICE = {
    "questions": ("questions", "Questions that an evaluator has answered", 1),
    "rows": ("rows", "Rows of them, padding included", 1),
    "batches": ("batches", "Batches in which they were computed", 1),
    "refused": ("refused", "Questions that an evaluator has refused", 1),
    "waiting": ("waiting", "Questions that wait", 1),
    "median_ms": ("latency_median_seconds", "Time of a question at an evaluator, median", 1e-3),
    "slow_ms": ("latency_99_seconds", "Time of a question, 99th percentile", 1e-3),
}
"""Name, meaning and unit of what evaluators tell of a service."""


def exposition(state: Mapping[str, Any]) -> tuple[str, bytes] | None:
    """Content type and text; None without prometheus-client. state: `Board.snapshot`.

    Names of nodes, of the job, of models and of their columns are labels; nothing else of a run is.
    """
    try:
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Enum, Gauge
        from prometheus_client import generate_latest as written
    except ImportError:
        return None
    registry = CollectorRegistry()
    job = {"job_name": state["job"]}

    def gauge(name: str, what: str, value: float, **labels: str) -> None:
        found = known.get(name)
        if found is None:
            found = Gauge(f"mpc_train_{name}", what, [*job, *labels], registry=registry)
            known[name] = found
        found.labels(**job, **labels).set(value)

    known: dict[str, Any] = {}
    gauge("step", "Steps that the slowest node has finished", state["step"])
    gauge("steps", "Steps of the whole training", state["steps"])
    gauge("steps_per_second", "Steps a second since training began", state["rate"])
    gauge("elapsed_seconds", "Seconds since the run began", state["seconds"])
    if state["left_s"] is not None:
        gauge("left_seconds", "Seconds left at this rate", state["left_s"])
    gauge(
        "sessions_lost", "Sessions that broke off and were followed by another", state["suspended"]
    )
    gauge("rounds", "Rounds of communication between evaluators", state["rounds"])
    for name, node in state["nodes"].items():
        gauge("node_step", "Steps that a node has finished", node["step"], node=name)
        gauge("node_sent_bytes", "Bytes that a node has sent", node["bytes_sent"], node=name)
        for word, value in node["served"].items():
            metric, what, scale = SERVICE[word]
            gauge(f"service_{metric}", what, scale * value, node=name)
    for window in state["drift"]:
        which = {"model": window["model"], "digest": window["digest"]}
        gauge(
            "drift_window", "Windows of a model's rows whose counts left", window["window"], **which
        )
        for name, shift in window["shifts"].items():
            each = {**which, "histogram": name, "against": window["against"]}
            what = "Population stability index of the newest window against the baseline"
            gauge("drift_index", what, shift["index"], **each)
            gauge("drift_chance", "What it is without a shift, about", shift["chance"], **each)
    phase = Enum("mpc_train_phase", "Phase of the run", [*job], states=PHASES, registry=registry)
    phase.labels(**job).state(state["phase"])
    there = Enum(
        "mpc_train_node_state", "State of a node", [*job, "node"], states=STATES, registry=registry
    )
    for name, node in state["nodes"].items():
        there.labels(**job, node=name).state(node["state"])
    return CONTENT_TYPE_LATEST, written(registry)
