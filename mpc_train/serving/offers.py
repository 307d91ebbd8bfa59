"""What a service offers to a client: a model by its name, what its owners allow, and the columns
of a question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from mpc_train.errors import QueryError, QueryRefusedError
from mpc_train.evaluation.histograms import histograms
from mpc_train.jobs.serve import decimals_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mpc_train.jobs.job import Job
    from mpc_train.jobs.serve import Serve
    from mpc_train.serving.offered import Offered


def find(models: Mapping[str, tuple[Offered, ...]], name: str, version: int = 0) -> Offered:
    """The model of this name and version, 0 for the newest, of `Service.models`. Raises
    QueryRefusedError."""
    offered = models.get(name, ())
    if not offered:
        there = ", ".join(sorted(models)) or "none"
        raise QueryRefusedError(
            f"no model of the name {name} is served to this client; there are: {there}",
            "unknown-model",
        )
    if not version:
        return offered[-1]
    for model in offered:
        if model.version == version:
            return model
    there = ", ".join(str(model.version) for model in offered)
    raise QueryRefusedError(
        f"no version {version} of the model {name} is served; there are: {there}", "unknown-model"
    )


def allowed(model: Offered) -> Serve:
    """What the model's owners allow. Raises QueryError for a job that does not say."""
    serve = model.job.serve
    if serve is None:
        raise QueryError(f"the job of the model {model.name} does not say how it is served")
    return serve


def answers_with(serve: Serve) -> str:
    """What leaves, and how often, for people."""
    rounded = "" if serve.decimals is None else f", {decimals_words(serve.decimals)}"
    return f"{serve.answer}{rounded}; {serve.rows_a_day:,} rows a day"


def left_words(model: Offered, left: int) -> str:
    """How many of a day's rows are left, for people."""
    said = f"of the {allowed(model).rows_a_day:,} rows that the owners of {model.name} allow this"
    return f"{said} client today (until 00:00 UTC), {left:,} are left"


def described(offered: Offered) -> dict[str, Any]:
    """What a client needs to know of a model to ask it, for JSON."""
    job, serve = offered.job, allowed(offered)
    return {
        "model": offered.name,
        "version": offered.version,
        "digest": offered.digest,
        "kind": job.model.kind,
        "label": job.label.name,
        "answer": serve.answer,
        "decimals": serve.decimals,
        "rows_a_day": serve.rows_a_day,
        "drift": _counted(job),
        "columns": asked_columns(job),
    }


def _counted(job: Job) -> dict[str, Any] | None:
    """What is counted of a client's rows, for JSON; None: nothing. Evaluators see the counts."""
    drift = job.drift
    if drift is None:
        return None
    baseline = "training rows" if job.counts_training else "first window"
    return {
        "every_rows": drift.every_rows,
        "epsilon": str(drift.epsilon),
        "histograms": [one.name for one in histograms(job)],
        "baseline": baseline,
    }


def counted_words(job: Job) -> str:
    """The same for people; empty: nothing is counted."""
    said = _counted(job)
    if said is None:
        return ""
    return (
        f"the evaluators learn how many of each {said['every_rows']:,} rows, of all clients "
        f"together, fall into which bin, with noise of ε = {said['epsilon']} for a row, to see "
        f"whether they shift from the {said['baseline']}"
    )


def asked_columns(job: Job) -> list[dict[str, Any]]:
    """The columns of a question, as the job's schema describes them."""
    array = job.data.array
    if array is not UNSET:  # it is all features of the job
        return [{"name": array.name, "kind": "array", "shape": list(array.shape)}]
    found = []
    for feature in job.features:
        column = job.schema[feature.name]
        said: dict[str, Any] = {"name": column.name, "kind": column.kind}
        if column.unit:
            said["unit"] = column.unit
        if column.levels:
            said["levels"] = list(column.levels)
            said["other"] = column.other
        if column.range is not None:
            said["range"] = [float(end) for end in column.range]
        if column.dates is not None:
            said["dates"] = [day.isoformat() for day in column.dates]
        said["nullable"] = "" in column.missing
        found.append(said)
    return found
