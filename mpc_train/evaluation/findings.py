"""From revealed words to a metric: its number, or why there is none; never an impossible number.

Rounding over shares may leave a number slightly outside its metric's range; it is moved to the end
of the range. A number far outside is not a metric: values have left the ring's range (a diverging
training, a label far outside the stated range), and everything computed with them is wrong. A
RangeError then ends the run, with the names of all such metrics.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite, log
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpc_train.evaluation.forms import AVAILABLE, REFUSED, UNDEFINED, Form, least_group
from mpc_train.training.limits import most_output
from mpc_train.training.plausible import (
    OUT_OF_RANGE,
    SLACK,
    most_label,
    most_prediction,
    out_of_range,
)
from protocols.ring.fixed_point import decode

if TYPE_CHECKING:
    from mpc_train.base.reading import Reading
    from mpc_train.jobs.job import Job

MIN_R2 = 1 - 2.0**10
"""Quotients over shares are accurate up to 2^10: an R² below that is not a result."""
_GROUPS = {
    "auc": "a class",
    "recall": "a class",
    "precision": "the rows predicted as a class",
    "f1": "a class, or the rows predicted as one,",
    "confusion": "a class, or the rows predicted as one,",
}
_UNDEFINED = {
    "auc": "all rows are of one class",
    "r2": "the labels do not vary, or by less than a hundredth of their scale",
    "precision": "no row was predicted as {class_}",
    "recall": "no row is of {class_}",
    "f1": "no row is of {class_} and none was predicted as it",
}


@dataclass(slots=True)
class Findings:
    """Metrics by name, and the reasons for those that are None or contain None."""

    metrics: dict[str, Reading] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    impossible: list[str] = field(default_factory=list)
    """Names of impossible metrics: None, with `OUT_OF_RANGE` as their reason."""

    words: dict[str, NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)
    """What each metric was read from, as `Form.words`."""

    def take(self, job: Job, name: str, form: Form, words: NDArray[np.int64]) -> None:
        """Read the metric `name` from the words of `figures.released`."""
        self.words[name] = words
        value = self.metrics[name] = _value(job, form, words)
        if _possible(job, form, value):
            self.metrics[name] = _within(job, form, value)
            reason = _reason(job, form, words[..., 0])
        else:
            self.metrics[name], reason = None, OUT_OF_RANGE
            self.impossible.append(name)
        if reason:
            self.reasons[name] = reason

    def __or__(self, other: Findings) -> Findings:
        return Findings(
            self.metrics | other.metrics,
            self.reasons | other.reasons,
            self.impossible + other.impossible,
            self.words | other.words,
        )

    def check(self) -> None:
        """Raise RangeError with the names of all impossible metrics, if any."""
        if self.impossible:
            raise out_of_range(self.impossible)


def _value(job: Job, form: Form, words: NDArray[np.int64]) -> Reading:
    """The metric from the words, with None for it, or for a group of it, if unavailable."""
    decimals = job.reveal.decimals
    numbers = decode(words[..., 1:], job.fraction_bits) / form.divisor
    if decimals is not None and not form.counts:
        numbers = words[..., 1:] / 10**decimals
    if form.each:
        return [
            row.tolist() if word == AVAILABLE else None
            for word, row in zip(words[..., 0], numbers, strict=True)
        ]
    if words[0] != AVAILABLE:
        return None
    found: Reading = numbers.reshape(form.shape).tolist()
    return found


def span(job: Job, metric: str, rows: int) -> tuple[float, float]:
    """The smallest and the largest number that a metric can have, without its rounding."""
    if metric in ("mse", "mae", "log_loss"):
        most = float(most_output(job))
        if metric == "log_loss":
            # log(1 + exp(|z|)), or the distance of two outputs and log(classes).
            return 0.0, (most if job.outputs == 1 else 2 * most) + log(job.classes)
        error = most_prediction(job) + most_label(job)
        return 0.0, error**2 if metric == "mse" else error
    if metric == "r2":
        return MIN_R2, 1.0
    return 0.0, float(rows) if metric == "confusion" else 1.0


def _flat(value: Reading) -> list[float]:
    if isinstance(value, list):
        return [number for part in value for number in _flat(part)]
    return [] if value is None else [value]


def _possible(job: Job, form: Form, value: Reading) -> bool:
    numbers = _flat(value)
    if job.reveal.noise is not None:
        return all(isfinite(number) for number in numbers)
    low, high = span(job, form.metric, form.rows)
    if form.counts and numbers:
        whole = all(number == round(number) for number in numbers)
        return whole and min(numbers) >= 0 and sum(numbers) == form.rows
    return all(low - SLACK <= number <= high + SLACK for number in numbers)


def _within(job: Job, form: Form, value: Reading) -> Reading:
    """Move a number into the range, which rounding or the job's noise may have left."""
    low, high = span(job, form.metric, form.rows)

    def moved(part: Reading) -> Reading:
        if isinstance(part, list):
            return [moved(one) for one in part]
        return None if part is None else min(max(part, low), high)

    return moved(value)


def _reason(job: Job, form: Form, status: NDArray[np.int64]) -> str:
    """Why a metric, or a group of it, is unavailable; empty if it is available."""
    if form.each:
        parts = [
            _bins(status, REFUSED, _small(job, form, "each has")),
            _bins(status, UNDEFINED, "empty"),
        ]
        return "; ".join(part for part in parts if part)
    if status == REFUSED:
        return _small(job, form, f"{_GROUPS[form.metric]} has")
    return undefined(job, form.metric) if status == UNDEFINED else ""


def _bins(status: NDArray[np.int64], which: int, why: str) -> str:
    places = [str(place) for place, word in enumerate(status, 1) if word == which]
    return f"{'bin' if len(places) == 1 else 'bins'} {', '.join(places)}: {why}" if places else ""


def _small(job: Job, form: Form, what: str) -> str:
    least = least_group(job, form.rows)
    return (
        f"refused: {what} rows, but fewer than {least} of the {form.rows} (reveal.least_group = "
        f"{job.reveal.least_group}); hold out more rows, or agree on a smaller least_group"
    )


def undefined(job: Job, metric: str) -> str:
    """Why a metric has no value for some rows."""
    class_ = "class 1" if job.outputs == 1 else "one of the classes"
    return f"undefined: {_UNDEFINED[metric].format(class_=class_)}"
