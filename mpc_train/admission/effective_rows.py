"""How many rows effectively make up the result of a training: public, from the job alone.

An update rule that is linear in gradients ends with weights

    w_T = a · w_0 + Σ_s c_s · g_s,    g_s: the mean gradient of step s's batch,

and the c_s follow from rate, schedule, momentum and decay alone. Row i has the share Σ |c_s| /
batch over its steps. An owner's effective number of rows is the sum of its rows' shares over the
largest of them: the number of its rows if each counts alike, and 1 if rate times decay is 1, so
that a step forgets everything before it, and one of the owner's rows lies in the last batch. Others
can subtract what their own rows add, so each owner counts its own.

The c_s of SGD with momentum, Nesterov, decay and any schedule are exact, and so is the schedule of
rows. The rest is assumed. For rules that divide by the root of a mean square, that root stays
constant, at the least favourable constant where the decay is divided along with the gradient.
Gradients of all rows are equally large except for weights of classes and rows and for dropout,
which are taken at their least favourable. Running means of a norm are sums of the same kind, and
the smallest count is used. Curvature makes training forget as well, to an extent that depends on
the data: the argument `curvature` below says how far, and `first_to_forget` gives the worst case.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from math import exp, inf, sqrt

import numpy as np
from numpy.typing import NDArray

from mpc_train.admission.load import fewest
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import (
    epochs_alike,
    held_out_sizes,
    is_newton,
    learning_rate,
    order_of,
    split,
    split_sizes,
    steps_per_epoch,
)
from mpc_train.jobs.training import loss_name

Shares = NDArray[np.float64]
Rows = NDArray[np.int64]
RowsBetween = Callable[[int, int], float]

MAX_ENTRIES = 3_000_000
"""How many rows times epochs are followed one by one, the heaviest epochs first: about a second."""
MAX_STEPS = 1 << 20
"""How many steps may have their coefficients in memory together; in longer trainings no row is
followed."""
DEVIATIONS = 6
"""For rows that are not followed, the seed mixes an owner's with the others': the owner has its
part of the sum, less this many standard deviations, which nobody exceeds by trying seeds."""
MAX_ENDS = 8
"""If early stopping may end a training after more epochs than this, only this many ends are
examined."""
KEPT_BITS = 6
"""A gradient with fewer bits left than this says little about a row."""
INTERPRETED_STEPS = 20_000
"""For more steps compiled code computes the sum: ten million take a second."""
_LARGE, _LARGE_BITS = 2.0**500, 500


@dataclass(frozen=True)
class Effective:
    """The smallest effective number of rows: of all owners together, and of each. steps: the
    effective number of steps that the weights are a sum of; infinite for Newton steps, each of
    which takes all rows."""

    pooled: float
    owners: dict[str, float]
    steps: float

    def least(self, other: "Effective") -> "Effective":
        """The smaller numbers of two results."""
        owners = {name: min(rows, other.owners[name]) for name, rows in self.owners.items()}
        return Effective(min(self.pooled, other.pooled), owners, min(self.steps, other.steps))


def effective_rows(job: Job, curvature: float = 0.0) -> Effective:
    """The smallest effective numbers of rows over all possible ends of the training.

    curvature: the loss's, which forgets like a decay of this size. Takes at most some seconds and a
    hundred MB, whatever the job says.
    """
    found = [_effective(one, curvature) for one in (job, *fewest(job))]
    least = found[0]
    for other in found[1:]:
        least = least.least(other)
    return least


def first_to_forget(job: Job) -> float:
    """The curvature, among those that the loss can have, at which a training forgets most.

    It is the curvature of the constant input, the bias, at the outputs: 1 or 2 for squared errors,
    at most 1/4 for two classes; inputs scaled to about 1 have about the same. It is never so large
    that a step would overshoot: such a training diverges, and the range guard detects that. 0 for
    Newton steps.
    """
    if is_newton(job):
        return 0.0
    rate, decay = _largest_rate(job), float(job.train.optimizer.weight_decay)
    return min(_curvature(job), max(1 / rate - decay, 0.0))


def row_shares(job: Job) -> Shares | None:
    """Each row's share in the result after the last epoch, float64[rows], relative to the largest;
    None if computing it would take too long. Newton: 1 for a training row."""
    followed = _Followed(job)
    if max(job.train.epochs, 1) > followed.epochs or not followed.rows:
        return None
    shares = np.zeros(job.rows)
    if is_newton(job):
        shares[followed.training] = 1.0
        return shares
    for total in _sums(job, job.train.epochs, 0.0):
        if total.steps is None:
            return None
        mine = followed.shares(total.steps, range(job.train.epochs))
        shares = np.maximum(shares, mine / mine.max())
    return shares


def held_out_rows(job: Job) -> dict[str, int]:
    """How many of each owner's rows are held out; a lower bound if there are very many rows."""
    if job.rows <= MAX_ENTRIES:
        return held_out_sizes(job)
    held_out = split_sizes(job)[1]
    parts = {owner: rows / job.rows for owner, rows in job.data.rows.items()}
    return {
        owner: max(0, int(held_out * part - DEVIATIONS * sqrt(held_out * part)))
        for owner, part in parts.items()
    }


class _Followed:
    """The rows of a job and the orders of its epochs, as far as memory allows.

    epochs: how many can be followed. rows: whether rows are followed one by one at all.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self.rows = job.rows <= MAX_ENTRIES
        self.epochs = MAX_ENTRIES // job.rows
        self._orders: dict[int, Rows] = {}

    @cached_property
    def training(self) -> Rows:
        """The training rows."""
        return split(self._job)[0]

    def shares(self, steps: Shares, epochs: Iterable[int]) -> Shares:
        """For each row, Σ |c_s| over the steps of these epochs that include it, float64[rows].

        steps: |c_s|, float64[epochs, steps].
        """
        found = np.zeros(self._job.rows)
        for epoch in epochs:
            found[self._order(epoch)] += np.repeat(steps[epoch], self._job.train.batch_size)
        return found

    def _order(self, epoch: int) -> Rows:
        found = self._orders.get(epoch)
        if found is None:
            found = order_of(self._job, self.training, epoch)
            if len(self._orders) < self.epochs:
                self._orders[epoch] = found
        return found


@dataclass(frozen=True)
class _Sum:
    """A sum of gradients. total: Σ |c_s|; squares: Σ c_s²; most: the sum over epochs of the largest
    |c_s|, which bounds a row's share; steps: |c_s|, float64[epochs, steps], None if there are too
    many."""

    total: float
    squares: float
    most: float
    steps: Shares | None

    @classmethod
    def of(cls, steps: Shares) -> "_Sum":
        squares = float((steps**2).sum())
        return cls(float(steps.sum()), squares, float(steps.max(axis=1).sum()), steps)


def _effective(job: Job, curvature: float) -> Effective:
    followed, spread = _Followed(job), float(lightest(job))
    if is_newton(job):
        rows = split_sizes(job)[0]
        whole = _counted(job, lambda low, high: _training_between(job, followed, low, high))
        return _thinned(Effective(rows, whole, inf), spread)
    found: Effective | None = None
    for end in _ends(job):
        for total in _sums(job, end, curvature):
            one = _of_sum(job, total, followed)
            found = one if found is None else found.least(one)
    assert found is not None
    return _thinned(found, spread)


def _training_between(job: Job, followed: _Followed, low: int, high: int) -> float:
    rows = split_sizes(job)[0]
    if followed.rows:
        return float(np.count_nonzero((followed.training >= low) & (followed.training < high)))
    return _mixed(rows, rows, (high - low) / job.rows)


def _mixed(total: float, squares: float, part: float) -> float:
    """The least that an owner has in a sum over random rows, `part` of which are its own."""
    return max(0.0, total * part - DEVIATIONS * sqrt(squares * part))


def _curvature(job: Job) -> float:
    """The largest second derivative of the loss with respect to an output."""
    loss, name = job.train.loss, loss_name(job)
    if name in ("half_mse", "huber"):
        return 1.0
    if name == "mse":
        return 2.0
    if name == "bce":
        return max(1.0, float(loss.positive_weight)) / 4
    if name == "cross_entropy":
        return max((1.0, *map(float, loss.class_weights))) / 2
    if name == "poisson":
        return exp(float(loss.most_log_rate))
    if name == "l1":
        return 0.0
    raise ValueError(f"no curvature is known of the loss {name}")


def _thinned(found: Effective, spread: float) -> Effective:
    """The same sum if one row counts fully and all others count only this much."""

    def less(rows: float) -> float:
        return min(rows, 1 + (rows - 1) * spread)

    owners = {name: less(rows) for name, rows in found.owners.items()}
    return Effective(less(found.pooled), owners, found.steps)


def lightest(job: Job) -> Fraction:
    """The smallest possible weight of a row in the loss over the largest one, by the job."""
    loss, found = job.train.loss, Fraction(1)
    weights = [Fraction(weight) for weight in loss.class_weights]
    if not weights:
        weights = [Fraction(1), Fraction(loss.positive_weight)]
    found *= min(weights) / max(weights) if max(weights) else 0
    declared = job.schema[job.weight].range if job.weight else None
    if declared is not None and job.data.partition == "columns":
        # Here one owner weights the rows of all; otherwise each weights its own rows as it likes.
        found *= Fraction(declared[0]) / Fraction(declared[1])
    dropped = [node.real("p") for node in job.graph.nodes if node.op == "dropout"]
    return found * (1 - max(dropped, default=Fraction(0)))


def _ends(job: Job) -> list[int]:
    """The numbers of epochs after which the result may be taken; a selection if there are many."""
    last, stopping = job.train.epochs, job.train.early_stopping
    every = last if stopping is None else stopping.every
    checks = range(every, last, every)
    half = 1 if last * steps_per_epoch(job) > MAX_STEPS else MAX_ENDS // 2
    if len(checks) < 2 * half:
        return [*checks, last]
    spread = [checks[len(checks) * part // half] for part in range(1, half)]
    return sorted({*checks[:half], *spread, last})


def _sums(job: Job, epochs: int, curvature: float) -> list[_Sum]:
    """The sums of gradients, and of batches' means, that leave the run."""
    found = [_sum(job, epochs, curvature, more) for more in _magnifications(job)]
    momenta = {
        float(node.real("momentum"))
        for node in job.graph.nodes
        if node.op == "batch_norm" and "running_mean" in node.tensors
    }
    each = steps_per_epoch(job)
    # Older steps count less; leaving them out lowers the number of rows and never raises it.
    recent = max(1, min(epochs, MAX_STEPS // each))
    for momentum in momenta - {0.0}:
        ages = np.arange(min(recent * each, MAX_STEPS))[::-1]
        steps: Shares = np.asarray(momentum * (1 - momentum) ** ages)
        if recent * each > MAX_STEPS:
            found.append(_Sum(float(steps.sum()), float((steps**2).sum()), momentum, None))
            continue
        one = _Sum.of(steps.reshape(recent, each))
        whole = np.concatenate([np.zeros((epochs - recent, each)), steps.reshape(recent, each)])
        found.append(replace(one, steps=whole if epochs * each <= MAX_STEPS else None))
    return found


def _sum(job: Job, epochs: int, curvature: float, magnified: float) -> _Sum:
    """The sum of gradients after this many epochs, in blocks of whole epochs from the last one back
    if there are very many steps, or of a part of an epoch."""
    each = steps_per_epoch(job)
    steps = epochs * each
    block = MAX_STEPS // each * each or MAX_STEPS
    state, total, squares, most = _State(), 0.0, 0.0, 0.0
    for end in range(steps, 0, -block):
        first = max(0, end - block)
        rates = _rates(job, first, end)
        found, grown = gradient_weights(job, rates, curvature, magnified, first, state)
        found = np.abs(found)
        if steps <= MAX_STEPS:
            return _Sum.of(found.reshape(epochs, each))
        total, squares = total * grown + found.sum(), squares * grown**2 + (found**2).sum()
        # A part of an epoch is treated as a whole one: this lowers the number of rows and never
        # raises it.
        tops = found.reshape(-1, each).max(axis=1) if each <= MAX_STEPS else found.max()
        most = most * grown + float(np.sum(tops))
    return _Sum(float(total), float(squares), most, None)


def _rates(job: Job, first: int, end: int) -> Shares:
    """The declared learning rates of the steps first … end - 1, counted from 0."""
    each, alike = steps_per_epoch(job), epochs_alike(job)
    epochs = np.arange(first, end) // (each * alike)
    table = [
        float(learning_rate(job, int(change) * alike))
        for change in range(int(epochs[0]), int(epochs[-1]) + 1)
    ]
    rates = np.array(table)[epochs - epochs[0]]
    warmup = np.arange(first + 1, min(end, job.train.schedule.warmup_steps) + 1)
    rates[: len(warmup)] *= warmup / max(job.train.schedule.warmup_steps, 1)
    return rates


def _largest_rate(job: Job) -> float:
    return float(job.train.optimizer.learning_rate)


def _magnifications(job: Job) -> list[float]:
    """The inverse of the divisor that gradient and decay may have in common; 1 without one."""
    settings = job.train.optimizer
    if settings.name not in ("adam", "rmsprop") or not settings.weight_decay:
        return [1.0]
    most = min(1 / float(settings.epsilon), 2.0 ** (job.fraction_bits - KEPT_BITS))
    forgets = 1 / (_largest_rate(job) * float(settings.weight_decay))
    return [1.0, min(most, forgets)]


@dataclass
class _State:
    """The coefficients, in the final weights, of the weights and the optimizer's state after a
    step."""

    of_weight: float = 1.0
    of_kept: float = 0.0


def gradient_weights(
    job: Job,
    rates: Shares,
    curvature: float,
    magnified: float = 1.0,
    first: int = 0,
    state: _State | None = None,
) -> tuple[Shares, float]:
    """c_s of the steps first, first + 1, …, which have these rates, computed from the last one
    back.

    state: after the last of them; moved to before the first. The caller multiplies the c_s by one
    common factor, and those of later steps by the second result.

    The weights w and the optimizer's state m follow d = g + (decay + curvature) · w by

        m ← kept · m + taken · d,    w ← (1 − shrunk) · w − left · (ahead · d + along · m).
    """
    settings, number = job.train.optimizer, np.arange(first + 1, first + len(rates) + 1)
    kept, ahead, along = float(settings.momentum), 0.0, 1.0
    taken, left = np.ones(len(rates)), rates * magnified
    decay, shrunk = float(settings.weight_decay) + curvature * magnified, 0.0 * rates
    if settings.name in ("adam", "adamw"):
        kept = float(settings.betas[0])
        left = left / (1 - kept**number)
        taken *= 1 - kept
    elif settings.name == "rmsprop":
        taken = left / np.sqrt(1 - float(settings.alpha) ** number)
        left = np.ones(len(rates))
    if settings.name == "adamw":
        decay, shrunk = curvature * magnified, rates * float(settings.weight_decay)
    if settings.nesterov:
        ahead, along = 1.0, kept
    found, scales = np.zeros(len(rates)), np.zeros(len(rates), np.int64)
    at = _State() if state is None else state
    backwards = _backwards if len(rates) <= INTERPRETED_STEPS else _compiled()
    constants = (kept, decay, ahead, along)
    at.of_weight, at.of_kept, scale = backwards(
        left, taken, shrunk, *constants, at.of_weight, at.of_kept, found, scales
    )
    shift = np.maximum((scales - scale) * _LARGE_BITS, -(1 << 20))
    return np.ldexp(found, shift), float(np.ldexp(1.0, max(-scale * _LARGE_BITS, -(1 << 20))))


def _backwards(
    left: Shares,
    taken: Shares,
    shrunk: Shares,
    kept: float,
    decay: float,
    ahead: float,
    along: float,
    of_weight: float,
    of_kept: float,
    found: Shares,
    scales: Rows,
) -> tuple[float, float, int]:
    """`gradient_weights`, into `found`. Coefficients that have grown are scaled down, so that they
    do not overflow: by 2^500 as many times as `scales` says, and at the end as the last result
    says."""
    scale = 0
    for step in range(len(left) - 1, -1, -1):
        moved = left[step] * of_weight
        state = of_kept - along * moved
        gradient = state * taken[step] - ahead * moved
        found[step], scales[step] = gradient, scale
        of_weight = of_weight * (1 - shrunk[step]) + gradient * decay
        of_kept = state * kept
        if abs(of_weight) > _LARGE or abs(of_kept) > _LARGE:
            of_weight, of_kept, scale = of_weight / _LARGE, of_kept / _LARGE, scale + 1
    return of_weight, of_kept, scale


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., tuple[float, float, int]]:
    """`_backwards` as machine code; numba is loaded only for trainings with that many steps."""
    from numba import njit

    compiled: Callable[..., tuple[float, float, int]] = njit(cache=True)(_backwards)
    return compiled


def _of_sum(job: Job, total: _Sum, followed: _Followed) -> Effective:
    """The effective number of rows of a sum."""
    batch, steps = job.train.batch_size, total.steps
    shares = np.zeros(0)
    later = total
    if followed.rows and steps is not None:
        heaviest = np.argsort(-steps.sum(axis=1), kind="stable")
        shares = followed.shares(steps, heaviest[: followed.epochs].tolist())
        later = _Sum.of(steps[heaviest[followed.epochs :]])

    def rows(low: int, high: int) -> float:
        mine = shares[low:high]
        largest = mine.max(initial=0.0) + later.most
        part = (high - low) / job.rows
        whole = mine.sum() + _mixed(batch * later.total, batch * later.squares, part)
        return float(whole / largest) if largest else 0.0

    pooled = float((shares.sum() + batch * later.total) / (shares.max(initial=0.0) + later.most))
    return Effective(pooled, _counted(job, rows), total.total**2 / total.squares)


def _counted(job: Job, rows: RowsBetween) -> dict[str, float]:
    """`rows` for each owner's number of rows; owners of columns have a part of every row."""
    if job.data.partition == "columns":
        return dict.fromkeys(job.owners, float(rows(0, job.rows)))
    firsts = {owner: job.first_row(owner) for owner in job.owners}
    return {
        owner: float(rows(first, first + job.data.rows[owner])) for owner, first in firsts.items()
    }
