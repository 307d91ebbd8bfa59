"""`[reveal]` of a job: what becomes known besides the sealed model, to whom, and how exactly."""

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
METRICS: dict[str, tuple[str, ...]] = {
    "linear": ("mse", "mae", "r2"),
    "poisson": ("mse", "mae", "r2"),
    "gamma": ("mse", "mae", "r2"),
    "logistic": (*_CLASSES, "auc", "calibration"),
    "softmax": _CLASSES,
    "mlp": _CLASSES,
}
"""Which metrics each kind of model can reveal. Of several classes, precision, recall and F1 are
means over the classes ("macro")."""


class Noise(Strict, frozen=True):
    """Discrete Laplace noise on the counts of `metrics`: each of them is ε-differentially private
    for one held-out row, also to all evaluators but one together."""

    epsilon: Decimal


class Reveal(Strict, frozen=True):
    """`[reveal]`: the metrics that everybody learns; the model goes to the recipients only."""

    metrics: tuple[Metric, ...] = ()
    per_party: tuple[Metric, ...] = ()
    """Metrics over each owner's own held-out rows: that owner alone learns them."""
    least_test_rows: int = 20
    """No metric is revealed over fewer rows than this."""
    least_group: int = 10
    """A metric of groups (the rows of a class, those called one, which are the rows and columns of
    the confusion matrix, a bin of the calibration) is refused where one has rows, but fewer than
    this; of bins that one is. A group without rows is none: an empty cell is a count of 0, and what
    would be divided by 0 is undefined. That it is refused or undefined becomes known, not by which
    group. The mean that stands in missing cells is of at least so many rows as well, of all owners
    together and of each that has any."""
    decimals: int | None = None
    """Metrics are rounded to so many decimals over shares, before anybody sees them. Counts of the
    confusion matrix stay whole."""
    noise: Noise | None = None
    """For accuracy and confusion: their counts are revealed with noise that nobody knows."""
    folds: int = 0
    """So many trainings more, each without one fold of the training rows. Of each metric that is
    one number the mean over folds is revealed as well (`cv_accuracy`), nothing of a single fold."""
    bins: int = 10
    """calibration: bins of equal width between 0 and 1."""
    statistics: bool = False
    """newton: the recipients, and nobody else, get what standard errors, p-values and variance
    inflation factors of the coefficients follow from."""
    training_loss_every: int = 0
    """Steps between two revealed losses of a batch; 0: none is revealed."""
