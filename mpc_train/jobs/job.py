"""The job: what is trained, by whom, on what, and what is revealed to whom.

A job file is strict TOML. Every node reads the same file, or receives the job as the canonical
bytes of `Job.to_bytes`, and signs its digest; so everything here is public to all nodes. Real
numbers are exact decimals throughout: code that needs ring elements rounds them once, in integers,
so that all machines round alike.

`[data]`, `[prepare]`, `[train]`, `[reveal]`, `[privacy]` and `[serve]` are described in `data.py`,
`prepare.py`, `train.py`, `reveal.py`, `privacy.py` and `serve.py` beside this file, every other
section here.

The numbers of rows are part of the job because every node derives the batches from them.
"""

import hashlib
from datetime import date
from fractions import Fraction
from functools import cached_property
from typing import Literal

import msgspec

from mpc_train.jobs.data import (
    Data,
    Feature,
    Label,
    features_of,
    label_of,
    schema_of,
    weight_of,
)
from mpc_train.jobs.kinds import NUMBERS
from mpc_train.jobs.pipeline import Pipeline, pipeline_of
from mpc_train.jobs.prepare import Prepare
from mpc_train.jobs.privacy import Privacy
from mpc_train.jobs.reveal import Reveal
from mpc_train.jobs.serve import Drift, Serve
from mpc_train.jobs.train import SHARES, Federated, Strict, Train
from mpc_train.networks.carried import Carried
from mpc_train.networks.graph import Graph, layers_of
from mpc_train.networks.graph_columns import looked_up
from mpc_train.networks.head import without_head
from mpc_train.tables.schema import Schema

JOB_VERSION = 1

ModelKind = Literal["linear", "logistic", "softmax", "mlp", "poisson", "gamma"]


class Roles(Strict, frozen=True):
    """`[job]`: the name of the study and who does what."""

    name: str
    owners: tuple[str, ...]
    dealer: str
    recipients: tuple[str, ...] = ()
    """Who opens the model; nobody if it stays in shares (`reveal.model`)."""
    evaluators: tuple[str, ...] = ()
    """In order: evaluator i is at index i. If omitted: the owners without the dealer."""


class Plain(Strict, frozen=True):
    """A factory's module as federated owners train it, in plain PyTorch.

    source: SHA-256 of the code. tensors: names and shapes of the floating-point tensors of its
    state_dict, in order: what updates consist of. initial: SHA-256 of their first values, float32,
    as the factory makes them under the job's seed.
    """

    source: str
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    initial: str


class Model(Strict, frozen=True):
    """`[model]`: `hidden` is only for an MLP, `classes` only for softmax and MLP.

    poisson and gamma have a logarithmic link, and are trained by optimizer name = "newton".

    With `module` or `graph` the network is the researcher's own, and `kind` describes its output: a
    number (linear), one logit (logistic) or one for each class (softmax). A Sigmoid, Softmax or
    LogSoftmax at its end is treated as that of the loss (`mpc_train.networks.head`).
    """

    kind: ModelKind
    hidden: tuple[int, ...] = ()
    classes: int = 0
    module: str = ""
    """`package.module:factory`, installed at every node; its source is part of the contract."""
    graph: str = ""
    """A file written by `mpc-train model export`; the job carries its content."""
    input_shape: tuple[int, ...] = ()
    """The shape to which a row's features are reshaped, channels first; if omitted, unchanged."""
    network: Carried | None = None
    """The network of `module` or `graph`; filled in when the job file is read."""
    plain: Plain | msgspec.UnsetType = msgspec.UNSET
    """The module of a federated job; filled in when the job file is read."""


class FixedPoint(Strict, frozen=True):
    """`[fixed_point]`: a real x is represented as the integer round(x · 2**fraction_bits)."""

    fraction_bits: int = 20
    activation_limit: int = 64
    """Largest magnitude of a layer's outputs, as the job's author states it; values beyond it (in a
    diverging training) may be wrong."""
    gradient_limit: int = 8
    """Largest magnitude of a weight's mean gradient over a batch, stated in the same way; if rows
    have weights (`data.weight`), before these are applied: the ring is sized for the largest of
    them."""


class Purpose(Strict, frozen=True):
    """`[purpose]`: what the data are used for, what kinds of data they are, and until when.

    Every node signs these statements with the job, and a node's rules may limit them. Nothing here
    changes what is computed, and no program can tell whether the statements are true. All optional.
    """

    purposes: tuple[str, ...] = ()
    """Names that rules list, like `tumour-research`: a-z, 0-9 and -."""
    description: str = ""
    """The same in one sentence, for people."""
    categories: tuple[str, ...] = ()
    """The kinds of data that all tables hold, like `health` or `financial`: names as above."""
    columns: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """By column, further kinds of data, like `postcode = ["identifier"]`."""
    legal_basis: str = ""
    """On which basis the owners provide the data, in one sentence, for people."""
    valid_until: date | None = None
    """The last day (UTC) on which nodes may sign this job; if omitted, any."""


class Job(Strict, frozen=True, dict=True):
    """A checked job. `mpc_train.admission.load` makes one from a file, or from a node's message."""

    job: Roles
    data: Data
    model: Model
    train: Train
    prepare: Prepare = Prepare()
    fixed_point: FixedPoint = FixedPoint()
    reveal: Reveal = Reveal()
    serve: Serve | None = None
    purpose: Purpose = Purpose()
    privacy: Privacy | msgspec.UnsetType = msgspec.UNSET
    """Unset instead of null in a job's bytes, so that jobs without it keep their digests."""
    version: int = JOB_VERSION

    @property
    def name(self) -> str:
        return self.job.name

    @property
    def owners(self) -> tuple[str, ...]:
        return self.job.owners

    @property
    def evaluators(self) -> tuple[str, ...]:
        return self.job.evaluators

    @property
    def dealer(self) -> str:
        return self.job.dealer

    @property
    def recipients(self) -> tuple[str, ...]:
        return self.job.recipients

    @property
    def stays_shared(self) -> bool:
        """Whether the model stays in shares at the evaluators and nobody opens it."""
        return self.reveal.model == "shares"

    @property
    def seals_model(self) -> bool:
        """Whether recipients get the model."""
        return self.reveal.model == "sealed" and not self.federates

    @property
    def refreshes(self) -> bool:
        """Whether the evaluators get new shares of the model, and nothing else is done with it."""
        return self.reveal.model == "refreshed"

    @property
    def federates(self) -> bool:
        """Whether owners train for themselves, and only their updates are added up over shares."""
        return self.train.mode == "federated"

    @property
    def sums_sizes(self) -> bool:
        """Whether each owner of a federated job shares in its number of rows with every update, so
        that the owners learn the sum."""
        return (
            self.federates
            and self.federated.sizes == "secret"
            and self.federated.weighting == "rows"
        )

    @property
    def federated(self) -> Federated:
        """`[train.federated]` of a checked job that `federates`."""
        assert self.train.federated is not msgspec.UNSET
        return self.train.federated

    @property
    def plain(self) -> Plain:
        """The module of a checked job that `federates`."""
        assert self.model.plain is not msgspec.UNSET
        return self.model.plain

    @property
    def trains(self) -> bool:
        """Whether anything is trained; otherwise the model is that of the warm start."""
        if self.federates:
            return True
        return self.train.epochs > 0 or self.train.optimizer.name == "newton"

    @property
    def starts_from_shares(self) -> bool:
        """Whether training goes on from a model in shares."""
        start = self.train.warm_start
        return start is not None and start.source == SHARES

    @property
    def has_own_statistics(self) -> bool:
        """Whether the statistics of `[prepare]` are those of this job's rows, and not those that
        come with a model."""
        start = self.train.warm_start
        return start is None or start.prepare == "own"

    @property
    def has_noisy_statistics(self) -> bool:
        """Whether the secret statistics of `[prepare]` are those of this job's rows, with noise."""
        if not self.privacy or self.federates or not self.has_own_statistics:
            return False
        return bool(self.pipeline.secret)

    @property
    def fraction_bits(self) -> int:
        return self.fixed_point.fraction_bits

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """All that run a node during the job: evaluators, other owners, the dealer. Of a federated
        job: without owners that do neither, which come and go (`visitors`)."""
        if self.federates:
            return tuple(dict.fromkeys((*self.evaluators, self.dealer)))
        return tuple(dict.fromkeys((*self.evaluators, *self.owners, self.dealer)))

    @property
    def visitors(self) -> tuple[str, ...]:
        """The owners of a federated job that run no node during it."""
        if not self.federates:
            return ()
        return tuple(name for name in self.owners if name not in self.nodes)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All names whose cards the job needs: the nodes, the recipients and the readers of
        metrics, sorted."""
        return tuple(sorted({*self.nodes, *self.owners, *self.recipients, *self.reveal.metrics_to}))

    @cached_property
    def features(self) -> tuple[Feature, ...]:
        """The columns from which the model's inputs are made, in order."""
        return features_of(self.data)

    @cached_property
    def pipeline(self) -> Pipeline:
        """The model's inputs, and how each is made from a column."""
        several = len(self.owners) > 1 or not self.has_own_statistics
        pooled = self.data.partition == "rows" and several
        return pipeline_of(self.prepare, self.features, self.schema, self.data.limit, pooled)

    @cached_property
    def looked_up(self) -> frozenset[str]:
        """The columns whose numbers choose rows of an Embedding's table."""
        terms = self.pipeline.terms
        return frozenset(terms[k].column for k in looked_up(self.graph) if k < len(terms))

    @cached_property
    def label(self) -> Label:
        return label_of(self.data)

    @cached_property
    def weight(self) -> str:
        """The column of row weights; empty if every row counts once."""
        return weight_of(self.data).name

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that owners secret-share: features, the label, and the weight if there is
        one."""
        names = (*(feature.name for feature in self.features), self.label.name)
        return (*names, self.weight) if self.weight else names

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """All kinds of data that the job says it uses, of whichever columns, sorted."""
        named = (self.purpose.categories, *self.purpose.columns.values())
        return tuple(sorted({name for names in named for name in names}))

    @cached_property
    def most_weight(self) -> Fraction:
        """The largest declared weight of a row; 1 without weights."""
        declared = self.schema[self.weight].range if self.weight else None
        return Fraction(1) if declared is None else Fraction(declared[1])

    @cached_property
    def schema(self) -> Schema:
        """The meaning of the columns: the schema that the job carries, or that of its short
        form."""
        return schema_of(self.data, self.classes)

    @property
    def most_gradient(self) -> Fraction:
        """Bound of a weight's mean gradient over a batch, including its rows' weights."""
        return self.fixed_point.gradient_limit * max(self.most_weight, Fraction(1))

    @property
    def classes(self) -> int:
        """Number of classes; 0 for a model that predicts a number."""
        if self.model.kind in NUMBERS:
            return 0
        if self.model.kind == "logistic":
            return 2
        return self.model.classes

    @property
    def outputs(self) -> int:
        """Width of the model's last layer: one, or one per class for softmax and MLP."""
        return self.model.classes if self.model.kind in ("softmax", "mlp") else 1

    @property
    def rows(self) -> int:
        """The number of rows of all owners together, which are ordered as in `owners`.

        If owners hold columns: the number of joined rows, or its maximum until it is known.
        """
        if self.data.partition == "columns":
            return self.data.joined or min(self.data.rows.values())
        return sum(self.data.rows.values())

    def with_joined(self, rows: int) -> "Job":
        """Return the job with this number of joined rows; 0: before it is known."""
        return msgspec.structs.replace(self, data=msgspec.structs.replace(self.data, joined=rows))

    def at_fold(self, number: int) -> "Job":
        """Return the job without this fold of its training rows; 0: the job itself."""
        data = msgspec.structs.replace(self.data, fold=number)
        return msgspec.structs.replace(self, data=data)

    def first_row(self, owner: str) -> int:
        """Return the number of the owner's first row among the rows of all owners."""
        if self.data.partition == "columns":
            return 0
        before = self.owners[: self.owners.index(owner)]
        return sum(self.data.rows[name] for name in before)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Widths of the layers, from the inputs to the outputs."""
        return (self.pipeline.width, *self.model.hidden, self.outputs)

    @cached_property
    def graph(self) -> Graph:
        """What the model computes; for a classifier, its logits."""
        network = self.model.network
        if network is None:
            return layers_of(self.widths)
        return without_head(network.graph, self.model.kind)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the model's tensors, in the order of its state_dict.

        One `torch.nn.Linear` for linear, logistic and softmax models; for an MLP the
        `torch.nn.Sequential` of Linear, ReLU, Linear, …, Linear. Step counters, which everybody
        knows, are not among them.
        """
        return dict(self.graph.named("parameter", "frozen", "statistic"))

    @property
    def drift(self) -> Drift | None:
        """How drift is watched where the model is served; None: it is not."""
        return None if self.serve is None else self.serve.watched

    @property
    def counts_training(self) -> bool:
        """Whether the training rows are counted into bins, with which later windows are
        compared."""
        return self.trains and self.drift is not None and self.drift.baseline is msgspec.UNSET

    def to_bytes(self) -> bytes:
        """Return the canonical bytes: JSON with sorted keys, decimals as strings."""
        return msgspec.json.encode(self, order="deterministic")

    def digest(self) -> bytes:
        """Return the 32 bytes that every node signs: SHA-256 of the canonical bytes, without the
        number of joined rows."""
        agreed = self.with_joined(0) if self.data.joined else self
        return hashlib.sha256(agreed.to_bytes()).digest()
