"""The plaintext twin's metrics: scikit-learn's values for pooled rows, in float64.

None if scikit-learn finds a metric undefined and warns. `reveal.least_group` does not apply here:
the twin computes the metric, not who may know it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import floor

import numpy as np
from numpy.typing import NDArray

from mpc_train.base.reading import Reading
from mpc_train.jobs.job import Job
from protocols.arrays import Reals


def twin_metric(name: str, job: Job, outputs: Reals, labels: Reals) -> Reading:
    """A metric of outputs [rows, outputs] and labels [rows]; None if it is undefined."""
    if name == "calibration":
        return _calibration(job, outputs[:, 0], labels)
    if name == "auc":
        return _auc(job, outputs[:, 0], labels)
    if name in ("confusion", "precision", "recall", "f1"):
        return _by_class(name, job, outputs, labels)
    if name == "r2" and not labels.std():
        return None
    return digits(job, PLAIN[name](job, outputs, labels))


def digits(job: Job, value: float) -> float:
    """The value, rounded to the job's decimals."""
    decimals = job.reveal.decimals
    return value if decimals is None else floor(value * 10**decimals + 0.5) / 10**decimals


def guesses(job: Job, outputs: Reals) -> NDArray[np.int64]:
    """The predicted class of each row."""
    if job.outputs == 1:
        return (outputs[:, 0] >= 0).astype(np.int64)
    return outputs.argmax(axis=1)


def counts(job: Job, outputs: Reals, labels: Reals) -> Reals:
    """The number of rows by true class (down) and predicted class (across)."""
    table = np.zeros((job.classes, job.classes))
    np.add.at(table, (labels.astype(np.int64), guesses(job, outputs)), 1)
    return table


def bins_of(job: Job, scores: Reals) -> NDArray[np.int64]:
    """The calibration's bin of each row."""
    guess = 1 / (1 + np.exp(-scores))
    return np.minimum((guess * job.reveal.bins).astype(np.int64), job.reveal.bins - 1)


def _accuracy(job: Job, outputs: Reals, labels: Reals) -> float:
    return float(np.mean(guesses(job, outputs) == labels))


def _log_loss(job: Job, outputs: Reals, labels: Reals) -> float:
    if job.outputs == 1:
        z = outputs[:, 0]
        return float(np.mean(np.logaddexp(0, z) - labels * z))
    top = outputs.max(axis=1, keepdims=True)
    log = top[:, 0] + np.log(np.exp(outputs - top).sum(axis=1))
    return float(np.mean(log - outputs[np.arange(len(labels)), labels.astype(np.int64)]))


def _mse(job: Job, outputs: Reals, labels: Reals) -> float:
    return float(np.mean((outputs[:, 0] - labels) ** 2))


def _mae(job: Job, outputs: Reals, labels: Reals) -> float:
    return float(np.mean(np.abs(outputs[:, 0] - labels)))


def _r2(job: Job, outputs: Reals, labels: Reals) -> float:
    errors = outputs[:, 0] - labels
    return float(1 - np.sum(errors**2) / np.sum((labels - labels.mean()) ** 2))


PLAIN: dict[str, Callable[[Job, Reals, Reals], float]] = {
    "accuracy": _accuracy,
    "log_loss": _log_loss,
    "mse": _mse,
    "mae": _mae,
    "r2": _r2,
}


def _by_class(name: str, job: Job, outputs: Reals, labels: Reals) -> Reading:
    table = counts(job, outputs, labels)
    if name == "confusion":
        return table.tolist()
    classes = slice(1, None) if job.outputs == 1 else slice(None)
    hits, called, true = (
        part[classes] for part in (np.diag(table), table.sum(axis=0), table.sum(axis=1))
    )
    above, beneath = {
        "precision": (hits, called),
        "recall": (hits, true),
        "f1": (2 * hits, called + true),
    }[name]
    return digits(job, float(np.mean(above / beneath))) if beneath.all() else None


def _auc(job: Job, scores: Reals, labels: Reals) -> Reading:
    """The share of (positive, negative) pairs in the right order; a tie counts half."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    if not len(positive) or not len(negative):
        return None
    order = np.sort(negative)
    below = np.searchsorted(order, positive, "left") + np.searchsorted(order, positive, "right")
    return digits(job, float(below.mean() / (2 * len(negative))))


def _calibration(job: Job, scores: Reals, labels: Reals) -> Reading:
    """For each bin its mean probability and the share of positives; None if it is empty."""
    guess, place = 1 / (1 + np.exp(-scores)), bins_of(job, scores)
    found: list[list[float] | None] = []
    for number in range(job.reveal.bins):
        mine = place == number
        some = [digits(job, float(x[mine].mean())) for x in (guess, labels)] if mine.any() else None
        found.append(some)
    return found
