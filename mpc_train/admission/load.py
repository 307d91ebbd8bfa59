"""Jobs from files and from other nodes: read, completed and checked before anything else.

A file is checked completely. A job that another node proposes is read and checked for
contradictions at once; the check that its numbers fit the ring (`check_ranges`) takes time, and
comes after a node's rules.
"""

from collections.abc import Collection
from pathlib import Path

import msgspec

from mpc_train.admission.network import check_network
from mpc_train.admission.plain_module import plainly
from mpc_train.admission.ranges import check_ranges
from mpc_train.base.problem import JobProblem
from mpc_train.base.sizes import check_sizes
from mpc_train.base.strict_toml import MAX_MESSAGE, all_at, at, clipped, load_toml
from mpc_train.checks.check import check_job
from mpc_train.checks.check_data import check_data
from mpc_train.errors import JobError, ModelError, RefusedError
from mpc_train.jobs.job import Job
from mpc_train.linkage.partners import least_joined
from mpc_train.networks.carried import made_by, read_model
from mpc_train.tables.schema import load_schema


def load_job(path: Path | str, modules: Collection[str] | None = None) -> Job:
    """Read and check a job file; raise JobError with file, line, key and what to write.

    modules: the factories that may be called (`[rules]`), of a job that somebody else has written;
    RefusedError before another one is. None: any.
    """
    path = Path(path)
    job, text = load_toml(path, Job, JobError)
    if modules is not None and job.model.module and job.model.module not in modules:
        raise RefusedError(
            f"{path}: {job.model.module} would be called but is not listed under modules; if your "
            f'organisation agrees, write modules = ["{job.model.module}"] under [rules]'
        )
    try:
        check_sizes(job)
        job = _finish(_with_network(_with_schema(job, path), path))
        if job.data.joined:
            raise JobProblem("data.joined", "is filled in during a run; remove it")
        if job.federates:
            return job
        for one in (job, *fewest(job)):
            check_ranges(one)
    except ModelError as error:
        key = "model.graph" if job.model.graph else "model.module"
        raise at(JobError, path, text, key, str(error).removeprefix(f"{key}: ")) from error
    except JobProblem as problem:
        raise all_at(JobError, path, text, problem.said) from problem
    except JobError as error:
        key, _, message = str(error).partition(": ")
        raise at(JobError, path, text, key, message) from error
    return job


def job_from_bytes(body: bytes) -> Job:
    """Read a job from its canonical bytes, as another node sent them; raise JobError."""
    try:
        job = _finish(msgspec.json.decode(body, type=Job))
    except msgspec.MsgspecError as error:
        what = clipped(str(error), MAX_MESSAGE)
        raise JobError(f"the proposed job cannot be read: {what}") from error
    except JobProblem as problem:
        what = clipped(_listed(problem), MAX_MESSAGE)
        raise JobError(f"the proposed job: {what}") from problem
    except (ArithmeticError, ValueError, RecursionError) as error:
        what = clipped(str(error), MAX_MESSAGE)
        raise JobError(f"the proposed job: {what}") from error
    if job.to_bytes() != body:
        raise JobError("the proposed job is not in canonical form; same version at all nodes?")
    return job


def resolved(job: Job, rows: int) -> Job:
    """Return the job with the number of joined rows, from which the schedule follows.

    Raises JobError if the job does not allow this number. Its digest stays the same.
    """
    job = job.with_joined(rows)
    try:
        check_job(job)
    except JobProblem as problem:
        raise JobError(f"with {rows} joined rows: {_listed(problem)}") from problem
    check_ranges(job)
    return job


def _listed(problem: JobProblem) -> str:
    return "; ".join(f"{clipped(key)}: {message}" for key, message in problem.said)


def _with_schema(job: Job, path: Path) -> Job:
    """The job with the content of its schema file."""
    data = job.data
    if data.table is not None:
        raise JobProblem("data.table", "is filled in; write schema = the name of a schema file")
    if not data.schema:
        return job
    try:
        table = load_schema(path.parent / data.schema)
    except JobError as error:
        # It names the schema's file, which is not a key of the job.
        raise JobProblem("data.schema", str(error)) from error
    return msgspec.structs.replace(job, data=msgspec.structs.replace(data, schema="", table=table))


def _with_network(job: Job, path: Path) -> Job:
    """The job with its network: the content of the file, or the graph that the factory makes."""
    model = job.model
    if model.network is not None or (model.module and model.graph):
        raise JobProblem("model", "write either module or graph; network is filled in")
    if model.graph:
        found = read_model(path.parent / model.graph)
        model = msgspec.structs.replace(
            model, graph="", network=found, input_shape=found.graph.input_shape
        )
    elif model.module and job.federates:
        if model.plain is not msgspec.UNSET:
            raise JobProblem("model.plain", "is filled in; remove it")
        _, plain = plainly(model.module, job.train.seed)
        model = msgspec.structs.replace(model, plain=plain)
    elif model.module:
        check_data(job)
        array = job.data.array
        shape = model.input_shape or (array.shape if array else (job.pipeline.width,))
        made = made_by(model.module, shape, job.train.seed)
        network = msgspec.structs.replace(made, weights={})
        model = msgspec.structs.replace(model, network=network, input_shape=shape)
    job = msgspec.structs.replace(job, model=model)
    if model.network is not None:
        check_network(job)
    return job


def _finish(job: Job) -> Job:
    """Fill in missing values, then check; raise JobProblem."""
    if not job.job.evaluators:
        evaluators = tuple(name for name in job.owners if name != job.dealer)
        roles = msgspec.structs.replace(job.job, evaluators=evaluators)
        job = msgspec.structs.replace(job, job=roles)
    named = job.label.classes
    if job.model.kind in ("softmax", "mlp") and not job.model.classes and named:
        model = msgspec.structs.replace(job.model, classes=len(named))
        job = msgspec.structs.replace(job, model=model)
    check_job(job)
    for one in fewest(job):
        check_job(one)
    return job


def fewest(job: Job) -> list[Job]:
    """The job with the fewest joined rows that it allows, if their number is not known yet: what
    holds for the fewest and for the most rows holds between them."""
    if job.data.join is None or job.data.joined:
        return []
    return [job.with_joined(least_joined(job))]
