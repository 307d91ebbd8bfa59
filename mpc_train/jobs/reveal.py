"""`[reveal]` of a job: what is revealed besides the sealed model, to whom, and how exactly."""

from decimal import Decimal
from typing import Literal

from mpc_train.jobs.train import Strict

Metric = Literal[
    "mse",
    "mae",
    "r2",
    "accuracy",
    "auc",
    "log_loss",
    "precision",
    "recall",
    "f1",
    "confusion",
    "calibration",
]

_CLASSES = ("accuracy", "log_loss", "precision", "recall", "f1", "confusion")
SENSITIVITY = {"accuracy": 1, "confusion": 2}
"""Of the metrics that are counts, which can have noise: how much one row changes all counts of one
together."""
METRICS: dict[str, tuple[str, ...]] = {
    "linear": ("mse", "mae", "r2"),
    "poisson": ("mse", "mae", "r2"),
    "gamma": ("mse", "mae", "r2"),
    "logistic": (*_CLASSES, "auc", "calibration"),
    "softmax": _CLASSES,
    "mlp": _CLASSES,
}
"""The metrics that each kind of model can reveal. With several classes, precision, recall and F1
are means over the classes ("macro")."""


class Noise(Strict, frozen=True):
    """Discrete Laplace noise on the counts of `metrics`: each of them is ε-differentially private
    for one held-out row, even against all evaluators except one together."""

    epsilon: Decimal


class Reveal(Strict, frozen=True):
    """`[reveal]`: the metrics that everybody learns; the model goes to the recipients only."""

    model: Literal["sealed", "shares", "none", "refreshed"] = "sealed"
    """sealed: to the recipients, who open it. shares: nobody opens it; each evaluator keeps its
    share in its vault, and all of them together can compute with it later. none: the model of the
    warm start is measured, and nobody gets it. refreshed: the evaluators get new shares of it, and
    the old ones are worth nothing. Without sealed, the job has no recipients."""
    threshold: int = 1
    """How many recipients together can open what is sealed to them; 1: each alone. With more, no
    recipient learns the model without the contributions of others (`mpc-train open
    --contribute`)."""
    metrics: tuple[Metric, ...] = ()
    per_party: tuple[Metric, ...] = ()
    """Metrics over each owner's own held-out rows: only that owner learns them."""
    metrics_to: tuple[str, ...] = ()
    """Who reads the metrics, those of `per_party` and means over folds included: they are sealed to
    these names, each of whom opens them alone, and nobody in the run learns one. If omitted, every
    node learns `metrics`. Readers need a card, but not a node."""
    least_test_rows: int = 20
    """No metric is revealed over fewer rows than this."""
    least_group: int = 10
    """A metric of groups (the rows of a class and the rows predicted as one, which are the rows and
    columns of the confusion matrix; a bin of the calibration) is refused if a group has rows, but
    fewer than this; with bins only that bin is refused. A group without rows does not count: an
    empty cell is a count of 0, and a division by 0 is undefined. It is revealed that a metric is
    refused or undefined, but not because of which group. The mean that fills missing cells is also
    over at least this many rows, of all owners together and of each owner that has any."""
    decimals: int | None = None
    """Metrics are rounded to this many decimals over shares, before anybody sees them. Counts of
    the confusion matrix stay whole."""
    noise: Noise | None = None
    """For accuracy and confusion: counts are revealed with noise that nobody knows."""
    folds: int = 0
    """This many additional trainings, each without one fold of the training rows. For each metric
    that is one number the mean over folds is also revealed (`cv_accuracy`), but nothing of a single
    fold."""
    bins: int = 10
    """calibration: bins of equal width between 0 and 1."""
    statistics: bool = False
    """newton: only the recipients get the numbers that give standard errors, p-values and variance
    inflation factors of the coefficients."""
    training_loss_every: int = 0
    """Steps between two revealed batch losses; 0: none is revealed."""
