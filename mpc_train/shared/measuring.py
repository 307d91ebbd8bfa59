"""Jobs that train nothing, as files: in which an owner measures a model in shares on rows of its
own, or the evaluators get new shares of it.

Everything that must be as in the model's training is taken from what is public about it
(`description`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mpc_train.admission.load import load_job
from mpc_train.base.toml_text import toml_text
from mpc_train.jobs.data import TEST_FRACTION
from mpc_train.jobs.prepare import ColumnSteps
from mpc_train.jobs.reveal import Metric, Reveal
from mpc_train.jobs.train import SHARES, Train, WarmStart
from parties.files import write_atomic

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.shared.description import Description


def measuring_job(
    model: Description,
    name: str,
    owner: str,
    rows: int,
    metrics: tuple[Metric, ...],
    metrics_to: tuple[str, ...] = (),
) -> Job:
    """The job in which `owner` measures the model on `rows` of its own rows. Not checked.

    Metrics have the protection of the model's own job.
    """
    kept = model.job.reveal
    reveal = Reveal(
        model="none",
        metrics=metrics,
        metrics_to=metrics_to,
        least_test_rows=kept.least_test_rows,
        least_group=kept.least_group,
        decimals=kept.decimals,
        noise=kept.noise,
        bins=kept.bins,
    )
    return _using(model, name, {owner: rows}, reveal)


def refreshing_job(model: Description, name: str) -> Job:
    """The job that gives the evaluators new shares of the model. Not checked."""
    rows = dict.fromkeys(model.job.evaluators, 0)
    return _using(model, name, rows, Reveal(model="refreshed"), guard=False)


def _using(
    model: Description, name: str, rows: dict[str, int], reveal: Reveal, guard: bool | None = None
) -> Job:
    """A job that trains nothing, by the nodes of the model and owners with so many rows."""
    job = model.job
    steps, start = job.prepare, WarmStart(SHARES, model.digest)
    if job.pipeline.secret:
        start = msgspec.structs.replace(start, prepare="model")
        steps = msgspec.structs.replace(steps, columns=_steps(job))
    data = msgspec.structs.replace(
        job.data,
        rows=rows,
        features=() if job.data.array is not msgspec.UNSET else job.features,
        weight="",
        partition="rows",
        columns={},
        join=None,
        check_duplicates=None,
        joined=0,
        test_fraction=TEST_FRACTION,
        split_seed=0,
        split_by="",
        split_normalise=(),
    )
    roles = msgspec.structs.replace(job.job, name=name, owners=tuple(rows), recipients=())
    return msgspec.structs.replace(
        job,
        job=roles,
        data=data,
        prepare=steps,
        train=Train(warm_start=start, guard=guard),
        reveal=reveal,
        serve=None,
        purpose=msgspec.structs.replace(job.purpose, valid_until=None),
    )


def _steps(job: Job) -> dict[str, ColumnSteps]:
    """The steps of single columns, which say of each column whether it may be missing: a job that
    uses the statistics of a model assumes otherwise that any may."""
    found = dict(job.prepare.columns)
    whole = {term.column for term in job.pipeline.terms if not term.takes_missing}
    for name in whole:
        steps = found.get(name, ColumnSteps())
        if (steps.missing or job.prepare.missing) == "mean":
            found[name] = msgspec.structs.replace(steps, missing="error")
    return found


def write_job(job: Job, path: Path) -> Job:
    """Write the job's file, and its schema and its network beside it; returns it as it is read
    again. Raises JobError if it contradicts itself, and then writes nothing more."""
    data, model, stem = job.data, job.model, path.with_suffix("")
    if data.table is not None:
        schema = Path(f"{stem}.schema.toml")
        write_atomic(schema, toml_text(data.table).encode())
        data = msgspec.structs.replace(data, table=None, schema=schema.name)
    if model.network is not None:
        if not model.module:
            graph = Path(f"{stem}.network.json")
            write_atomic(graph, msgspec.json.encode(model.network))
            model = msgspec.structs.replace(model, graph=graph.name, input_shape=())
        model = msgspec.structs.replace(model, network=None)
    text = toml_text(msgspec.structs.replace(job, data=data, model=model))
    write_atomic(path, text.encode())
    return load_job(path)
