"""What a client is told of a model: what its own table has to look like, and what comes out.

A description is a job in the form of `jobs.job.Job` from which everything is taken that a client
does not need: owners, numbers of rows, training, what was revealed. What remains are the columns
with their meaning, the steps of preparation, the kind of model and the label. It contains no weight
and no statistic.

    JSON of at most 1 MiB, keys sorted; its SHA-256 is the digest by which both sides name it
"""

import hashlib
from dataclasses import dataclass

import msgspec

from mpc_train.base.problem import JobProblem
from mpc_train.base.sizes import check_sizes
from mpc_train.errors import ModelError, QueryError
from mpc_train.homomorphic.columns import Columns
from mpc_train.homomorphic.parameters import MAX_COLUMNS, MAX_OUTPUTS, MAX_PRODUCTS
from mpc_train.jobs.data import Data, Label
from mpc_train.jobs.job import Job, Model, Roles
from mpc_train.jobs.kinds import KINDS
from mpc_train.jobs.train import Optimizer, Train
from mpc_train.tables.schema import Schema
from protocols.names import NAME

SERVED = (*KINDS, "softmax")
MAX_DESCRIPTION_BYTES = 1 << 20


@dataclass(frozen=True)
class Description:
    """A model as its clients know it. job: the reduced one; data: what is sent."""

    job: Job
    data: bytes
    columns: Columns

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.data).digest()

    @property
    def name(self) -> str:
        return self.job.name

    @classmethod
    def of(cls, name: str, job: Job) -> "Description":
        """Of an opened model that is served as `name`; raises ModelError for one that cannot be."""
        check_kind(job)
        if job.data.array is not msgspec.UNSET:
            raise ModelError(
                f"{job.name}: a model of arrays cannot be served; its inputs are cells"
            )
        reduced = _reduced(name, job)
        if reduced.pipeline != job.pipeline or reduced.widths != job.widths:
            raise ModelError(f"{job.name}: its inputs cannot be described to clients")
        return cls.read(reduced.to_bytes())

    @classmethod
    def read(cls, data: bytes, name: str | None = None) -> "Description":
        """A description from the server or a file; raises QueryError. name: which it must have."""
        if len(data) > MAX_DESCRIPTION_BYTES:
            raise QueryError(f"a description has at most {MAX_DESCRIPTION_BYTES >> 20} MiB")
        try:
            job = msgspec.json.decode(data, type=Job)
            check_sizes(job)
            check_kind(job)
            columns = Columns.of(job.pipeline)
            job.schema[job.label.name]
        except ModelError as error:
            raise QueryError(str(error), "model") from error
        except (
            msgspec.MsgspecError,
            JobProblem,
            ArithmeticError,
            LookupError,
            ValueError,
            RecursionError,
        ) as error:
            raise QueryError("this is not the description of a model") from error
        if not NAME.match(job.name) or (name is not None and job.name != name):
            raise QueryError("the description is not that of this model")
        count = len(columns.names)
        if not 0 < count <= MAX_COLUMNS or job.outputs > MAX_OUTPUTS:
            raise QueryError(
                f"{count} columns to encrypt and {job.outputs} outputs; at most {MAX_COLUMNS} and "
                f"{MAX_OUTPUTS}",
                "model",
            )
        if count * job.outputs > MAX_PRODUCTS:
            raise QueryError(
                f"{count} columns times {job.outputs} outputs are more than {MAX_PRODUCTS}", "model"
            )
        return cls(job, data, columns)


def check_kind(job: Job) -> None:
    """Raise ModelError unless a model is linear in its inputs up to a link function."""
    if job.model.kind not in SERVED or job.model.network is not None or job.model.hidden:
        raise ModelError(
            f"{job.name}: a network cannot be computed on these ciphertexts, which can be added "
            "and multiplied by weights, but not by each other; keep such a model in shares "
            '(reveal.model = "shares") and serve it over shares (mpc-train serve)'
        )


def _reduced(name: str, job: Job) -> Job:
    pooled = job.data.partition == "rows" and len(job.owners) > 1
    owners = ("owner-a", "owner-b") if pooled else ("owner-a",)
    names = {job.label.name, *(feature.name for feature in job.features)}
    table = job.data.table
    return Job(
        job=Roles(name, owners, "dealer", ("recipient",)),
        data=Data(
            label=job.data.label if isinstance(job.data.label, Label) else Label(job.data.label),
            rows=dict.fromkeys(owners, 1),
            features=job.features,
            table=None
            if table is None
            else Schema(tuple(each for each in table.columns if each.name in names), table.version),
            standardize=job.data.standardize,
            limit=job.data.limit,
        ),
        model=Model(job.model.kind, classes=job.model.classes),
        train=Train(Optimizer(log_range=job.train.optimizer.log_range)),
        prepare=job.prepare,
    )
