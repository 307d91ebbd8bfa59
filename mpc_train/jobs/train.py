"""`[train]` of a job: the optimizer, its rate, the loss, and what is monitored during training.

Types and defaults; `mpc_train.checks.check_train` says which combinations make sense.
"""

from decimal import Decimal
from typing import Literal

import msgspec

OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop", "newton"]
SHARES = "shares"
"""The source of a warm start that is a model in shares."""
LossName = Literal["auto", "mse", "half_mse", "l1", "huber", "bce", "cross_entropy", "poisson"]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An immutable struct that rejects unknown keys."""


class Optimizer(Strict, frozen=True):
    """The rule of this name in torch.optim; weight decay is added to the gradient, but for AdamW it
    shrinks the weights."""

    learning_rate: Decimal = Decimal(0)
    """Above 0; not for newton."""
    name: OptimizerName = "sgd"
    """newton: see `mpc_train.regression.settings`."""
    momentum: Decimal = Decimal(0)
    """sgd and rmsprop."""
    nesterov: bool = False
    """sgd."""
    weight_decay: Decimal = Decimal(0)
    betas: tuple[Decimal, Decimal] = (Decimal("0.9"), Decimal("0.999"))
    """adam and adamw: how much of the running means of gradients and of squares is kept."""
    alpha: Decimal = Decimal("0.99")
    """rmsprop: how much of the running mean of squares is kept."""
    epsilon: Decimal = Decimal("0.00001")
    """adam, adamw and rmsprop: added as its square under the root, √(v + ε²)."""
    steps: int = 0
    """newton; if omitted: 3 for a linear model without l1, 12 for poisson and gamma, otherwise
    8. With `[privacy]`, where each step of another model than a linear one costs: 8 for a linear
    model, 3 for a logistic and 4 for a poisson one."""
    l1: Decimal = Decimal(0)
    """newton: l1 · Σ|w| is added to the mean loss."""
    l2: Decimal = Decimal(0)
    """newton: l2 / 2 · Σw² is added to the mean loss. Needed with `[privacy]`: `job check` says how
    much, so that a matrix with noise has an inverse."""
    log_range: tuple[Decimal, Decimal] = (Decimal(-4), Decimal(4))
    """newton, poisson and gamma: range of the logarithms of means; values outside are moved to the
    nearer end."""


class Schedule(Strict, frozen=True):
    """The learning rate over the epochs; `schedule.learning_rate` says how each is computed. It may
    change 10,000 times, and must stay large enough for the ring to distinguish from 0."""

    name: Literal["constant", "step", "cosine"] = "constant"
    every: int = 0
    """Epochs between two steps (name = "step")."""
    factor: Decimal = Decimal("0.1")
    """The factor of the rate at a step (name = "step")."""
    warmup_steps: int = 0
    """Linear warm-up: step s of these uses s / warmup_steps of the rate."""


class Clip(Strict, frozen=True):
    """Gradients are clipped before the optimizer: each by `value`, or all together by `norm`."""

    value: Decimal | None = None
    norm: Decimal | None = None


class LossSettings(Strict, frozen=True):
    """The loss; "auto" is half the squared error, or the cross-entropy of a classifier."""

    name: LossName = "auto"
    delta: Decimal = Decimal(1)
    """huber: errors up to this are squared."""
    positive_weight: Decimal = Decimal(1)
    """bce: the weight of the rows of class 1."""
    balanced: bool = False
    """bce and cross_entropy: classes are weighted by the inverse of their frequency among the
    training rows, which nobody learns."""
    class_weights: tuple[Decimal, ...] = ()
    """cross_entropy: one weight for each class; the mean is over rows, not over weights."""
    label_smoothing: Decimal = Decimal(0)
    """cross_entropy: the part of a label that is spread over all classes."""
    most_log_rate: Decimal = Decimal(3)
    """poisson: outputs beyond this count as this."""


class EarlyStopping(Strict, frozen=True):
    """Training ends when the loss on rows held out from the training rows no longer falls.

    Nobody learns that loss. Every node learns, after each check, whether training goes on.
    """

    fraction: Decimal
    """The part of the training rows that is used for the checks and not for training."""
    every: int = 1
    """Epochs between two checks."""
    patience: int = 1
    """This many consecutive checks without improvement end the training."""
    least_improvement: Decimal = Decimal(0)
    """An improvement is larger than this."""
    keep_best: bool = True
    """The result is the model of the best check, not of the last one."""


class Guard(Strict, frozen=True):
    """Every few steps the weights, and the layers' outputs for the batch, are compared with
    fixed_point.activation_limit. Values inside a norm, an attention or a recurrent layer are not
    checked.

    At each check every node learns whether all are within the limit; if not, the run ends. This is
    in addition to the bit at the end of the run, which needs no key.
    """

    every: int


class WarmStart(Strict, frozen=True):
    """Training begins with a given state_dict instead of random weights.

    source = "public": every node has the file, whose digest the job names. source = an owner: only
    that node has the file; the others learn nothing about it. source = "shares": a model of which
    each evaluator keeps its share, and which nobody has as a file; the result stays in shares too.
    """

    source: str
    sha256: str = ""
    """The digest, in hexadecimal: of a public file, or of a model in shares (`mpc-train model
    show`)."""
    prepare: Literal["own", "model"] = "own"
    """shares: which statistics `[prepare]` uses. own: those of this training's rows; the weights
    were trained with others. model: those of the model, which stay as secret as it is."""
    frozen: tuple[str, ...] = ()
    """Tensors that are not trained: names, or beginnings of names that end in a dot."""


Rule = Literal["fedavg", "fedprox", "fedadam", "fedyogi"]


class Federated(Strict, frozen=True):
    """`[train.federated]`, with mode = "federated": what each owner does in a round, and what
    becomes of the sum of the updates (`mpc_train/docs/federated.md`)."""

    rounds: int
    local_steps: int
    """Steps of each owner on its own rows in a round."""
    batch_size: int
    """Rows of a local step; an owner with fewer takes all of them."""
    learning_rate: Decimal
    """Of the owners' own steps."""
    clip: Decimal
    """The largest Euclidean norm of an owner's update; larger ones are scaled down to it by their
    owner, and are left out if they are not. The scale of the fixed point follows from it."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Of the owners' own steps, that of torch.optim; its state is new in each round."""
    momentum: Decimal = Decimal(0)
    """sgd: of the owners' own steps."""
    rule: Rule = "fedavg"
    """fedavg: the mean update is added to the model. fedprox: the same, and the owners' loss has
    proximal / 2 · ‖w − global model‖² in addition. fedadam, fedyogi: the mean update is the
    gradient of an adaptive step."""
    proximal: Decimal = Decimal(0)
    """fedprox: above 0."""
    server_rate: Decimal = Decimal(1)
    """The factor of the mean update, or the rate of the adaptive step."""
    betas: tuple[Decimal, Decimal] = (Decimal("0.9"), Decimal("0.99"))
    """fedadam and fedyogi: how much of the running means of updates and of squares is kept."""
    epsilon: Decimal = Decimal("0.001")
    """fedadam and fedyogi: added to the root of the mean of squares, which begins as its square."""
    least_owners: int = 2
    """With fewer updates a round is not opened, and the run ends."""
    deadline_s: int = 3600
    """An owner whose update is not there so many seconds after the round began is left out of it;
    it may come back in a later one."""
    sizes: Literal["public", "secret"] = "public"
    """secret: nobody learns how many rows an owner trains on in a round; `data.rows` is then the
    most that it may have."""
    weighting: Literal["rows", "equal"] = "rows"
    """rows: an update counts as many times as its owner has training rows. equal: once."""


class Train(Strict, frozen=True):
    """`[train]`: one step uses one full batch, or for newton all training rows.

    With a `warm_start` and nothing else but `guard`, nothing is trained: the model is that of the
    warm start, and all rows are held out.
    """

    optimizer: Optimizer = Optimizer()
    epochs: int = 0
    """At least 1; not for newton."""
    batch_size: int = 0
    """At least 1; not for newton."""
    schedule: Schedule = Schedule()
    seed: int = 0
    """Public seed of the initial weights and of the order of rows."""
    clip: Clip | None = None
    loss: LossSettings = LossSettings()
    early_stopping: EarlyStopping | None = None
    guard: Guard | bool | None = None
    """Omitted, or true: at the end of training every node learns one bit, whether a value left the
    ring's range during training; if one did, the run ends without a result. false: a training that
    diverges ends like any other. { every = steps }: also a bit each time after this many steps."""
    warm_start: WarmStart | None = None
    dropout_mask: Literal["hidden", "public"] = "hidden"
    """hidden: nobody knows which values a dropout layer drops. public: the seed determines them,
    every node knows which are dropped but not their values; this costs nothing."""
    checkpoint_every: int = 0
    """Steps between the points at which evaluators may write a checkpoint, from 1 to 1,000; if
    omitted, 50. They do so at the next point when `checkpoint_s` of the first evaluator's file have
    passed."""
    mode: Literal["shares", "federated"] | msgspec.UnsetType = msgspec.UNSET
    """shares, the default: all training is over shares, and nobody sees a model on the way.
    federated: each owner trains on its own rows, and only the updates are added up over shares; the
    owners see the global model of each round."""
    federated: Federated | msgspec.UnsetType = msgspec.UNSET
    preprocess: bool = False
    """true: before training the dealer makes all its material, the evaluators store it, and the
    dealer leaves; training then needs the evaluators alone. Not with early_stopping."""

    @property
    def guards_end(self) -> bool:
        """Whether one bit is revealed at the end."""
        return self.guard is not False

    @property
    def guard_every(self) -> int:
        """Steps between two checks during training; 0: no checks."""
        return self.guard.every if isinstance(self.guard, Guard) else 0
