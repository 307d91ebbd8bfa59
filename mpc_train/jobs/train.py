"""`[train]` of a job: the optimizer, its rate, the loss, and what is watched on the way.

Types and defaults; `mpc_train.checks.check_train` says which combinations make sense.
"""

from decimal import Decimal
from typing import Literal

import msgspec

OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop", "newton"]
LossName = Literal["auto", "mse", "half_mse", "l1", "huber", "bce", "cross_entropy", "poisson"]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A struct that cannot be changed and takes no key that it does not know."""


class Optimizer(Strict, frozen=True):
    """The rule of torch.optim of this name; weight decay is added to the gradient, for AdamW it
    shrinks the weights."""

    learning_rate: Decimal = Decimal(0)
    """Above 0; newton has none."""
    name: OptimizerName = "sgd"
    """newton: see `mpc_train.regression.settings`."""
    momentum: Decimal = Decimal(0)
    """sgd and rmsprop."""
    nesterov: bool = False
    """sgd."""
    weight_decay: Decimal = Decimal(0)
    betas: tuple[Decimal, Decimal] = (Decimal("0.9"), Decimal("0.999"))
    """adam and adamw: how much of the means of gradients and of squares is kept."""
    alpha: Decimal = Decimal("0.99")
    """rmsprop: how much of the mean of squares is kept."""
    epsilon: Decimal = Decimal("0.00001")
    """adam, adamw and rmsprop: added as its square under the root, √(v + ε²)."""
    steps: int = 0
    """newton; left out: 3 for a linear model without l1, 12 for poisson and gamma, else 8."""
    l1: Decimal = Decimal(0)
    """newton: l1 · Σ|w| is added to the mean loss."""
    l2: Decimal = Decimal(0)
    """newton: l2 / 2 · Σw² is added to the mean loss."""
    log_range: tuple[Decimal, Decimal] = (Decimal(-4), Decimal(4))
    """newton, poisson and gamma: logarithms of means, taken as the nearer end beyond."""


class Schedule(Strict, frozen=True):
    """The learning rate over the epochs; `schedule.learning_rate` says how each is computed. It may
    change 10,000 times, and stays above what the ring can tell from 0."""

    name: Literal["constant", "step", "cosine"] = "constant"
    every: int = 0
    """Epochs between two steps (name = "step")."""
    factor: Decimal = Decimal("0.1")
    """What the rate is multiplied with at a step (name = "step")."""
    warmup_steps: int = 0
    """Linear warm-up: step s of these has s / warmup_steps of the rate."""


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
    """bce: of the rows of class 1."""
    balanced: bool = False
    """bce and cross_entropy: classes are weighted by the inverse of their frequency among the
    training rows, which nobody learns."""
    class_weights: tuple[Decimal, ...] = ()
    """cross_entropy: one for each class; the mean is over rows, not over weights."""
    label_smoothing: Decimal = Decimal(0)
    """cross_entropy: the share of a label that is spread over all classes."""
    most_log_rate: Decimal = Decimal(3)
    """poisson: outputs up to this are told apart."""


class EarlyStopping(Strict, frozen=True):
    """Training ends when the loss on rows held out from the training rows no longer falls.

    Nobody learns that loss. Every node learns, after each check, whether training goes on.
    """

    fraction: Decimal
    """Of the training rows: those that are checked on, and not trained on."""
    every: int = 1
    """Epochs between two checks."""
    patience: int = 1
    """So many checks in a row without improvement end the training."""
    least_improvement: Decimal = Decimal(0)
    """An improvement is larger than this."""
    keep_best: bool = True
    """The result is the model of the best check instead of the last one."""


class Guard(Strict, frozen=True):
    """Every few steps weights, and whatever layers put out for the batch, are compared with
    fixed_point.activation_limit. What lies inside a norm, an attention or a recurrent layer is not
    looked at.

    Every node learns, at each check, whether all are within; if not, the run ends. This is beside
    the one bit at the end of the run, which needs no key.
    """

    every: int


class WarmStart(Strict, frozen=True):
    """Training begins with a given state_dict in place of random weights.

    source = "public": every node has the file, whose digest the job names. source = an owner: that
    node alone has the file; the others learn nothing of it.
    """

    source: str
    sha256: str = ""
    """Of a public file, hexadecimal."""
    frozen: tuple[str, ...] = ()
    """Tensors that are not trained: names, or beginnings of names that end in a dot."""


class Train(Strict, frozen=True):
    """`[train]`: one step is one full batch, for newton all training rows."""

    optimizer: Optimizer
    epochs: int = 0
    """At least 1; newton has none."""
    batch_size: int = 0
    """At least 1; newton has none."""
    schedule: Schedule = Schedule()
    seed: int = 0
    """For the initial weights and the order of rows; public."""
    clip: Clip | None = None
    loss: LossSettings = LossSettings()
    early_stopping: EarlyStopping | None = None
    guard: Guard | bool | None = None
    """Left out, or true: when training is over, every node learns one bit, whether a value left the
    ring's range on the way; if so the run ends without a result. false: a training that diverges
    ends like any other. { every = steps }: a bit at these steps as well."""
    warm_start: WarmStart | None = None
    dropout_mask: Literal["hidden", "public"] = "hidden"
    """hidden: nobody knows which values a dropout layer drops. public: they follow from the seed,
    every node knows which ones, none their values; it costs nothing."""

    @property
    def guards_end(self) -> bool:
        """Whether one bit is told at the end."""
        return self.guard is not False

    @property
    def guard_every(self) -> int:
        """Steps between two checks on the way; 0: there are none."""
        return self.guard.every if isinstance(self.guard, Guard) else 0
