"""The public order of rows: which rows are in which step, the same at every node.

Nothing here is secret and nothing depends on a library's random generator. A permutation of n
rows is made from n 64-bit keys, the SHAKE-256 output of a label that names seed, purpose and
epoch; rows are sorted by key, equal keys by row number. Any SHAKE-256 and any stable sort give
the same order.

Rows are numbered over all owners, in the order of `job.owners`. Every step uses one full batch;
rows left over at the end of an epoch are not used in it.
"""

import hashlib
from decimal import Decimal, localcontext
from fractions import Fraction
from math import prod

import numpy as np
from numpy.typing import NDArray

from mpc_train.jobs.job import Job

RATE_DENOMINATOR = 2**40
"""Cosine rates are rounded to multiples of 2^-40, far below one unit of the fixed point."""
POWER_BITS = 256
"""Powers of a factor are exact up to this many bits and rounded beyond, so that they do not grow
without limit."""


def permutation(count: int, purpose: str, seed: int, epoch: int = 0) -> NDArray[np.int64]:
    """Return the numbers 0 … count-1 in the public order for (purpose, seed, epoch)."""
    label = f"mpc-train/v1/{purpose}/{seed}/{epoch}/{count}".encode()
    keys = np.frombuffer(hashlib.shake_256(label).digest(8 * count), dtype="<u8")
    return np.argsort(keys, kind="stable").astype(np.int64)


def split_sizes(job: Job) -> tuple[int, int]:
    """Return how many rows train and how many are held out for the metrics (rounded down)."""
    training, held_out = _whole_sizes(job)
    if not job.data.fold:
        return training, held_out
    fold = len(range(job.data.fold - 1, training, job.reveal.folds))
    return training - fold, fold


def _whole_sizes(job: Job) -> tuple[int, int]:
    parts = [_sizes(job, rows) for rows in _split_apart(job)]
    return sum(training for training, _, _ in parts), sum(held_out for _, _, held_out in parts)


def fold_jobs(job: Job) -> list[Job]:
    """Return, for each fold, the job that trains without it and is evaluated on it."""
    return [job.at_fold(number) for number in range(1, job.reveal.folds + 1)]


def _without_fold(
    job: Job, parts: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The fold is held out; rows that the job holds out for its metrics are not used."""
    training, checked, _ = parts
    order = permutation(len(training), "folds", job.data.split_seed)
    fold = np.sort(training[order[job.data.fold - 1 :: job.reveal.folds]])
    return np.setdiff1d(training, fold), checked, fold


def _split_apart(job: Job) -> list[int]:
    """The numbers of rows that are split separately: all rows together, or with groups owner by
    owner."""
    return [job.data.rows[owner] for owner in job.owners] if job.data.split_by else [job.rows]


def _sizes(job: Job, rows: int) -> tuple[int, int, int]:
    """Rows for training, for early stopping, and held out."""
    if not job.trains:
        return 0, 0, rows
    held_out, stopping = int(Fraction(job.data.test_fraction) * rows), job.train.early_stopping
    checked = 0 if stopping is None else int(Fraction(stopping.fraction) * (rows - held_out))
    return rows - held_out - checked, checked, held_out


def group_parts(job: Job, owner: str) -> tuple[int, int, int]:
    """Return the sizes of an owner's parts if groups stay together. Its rows are in this order:
    training rows first, held-out rows last."""
    return _sizes(job, job.data.rows[owner])


def split(job: Job) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the row numbers for training and for testing, each ascending."""
    training, _, held_out = _three_parts(job)
    return training, held_out


def held_out_sizes(job: Job) -> dict[str, int]:
    """Return how many of each owner's rows are held out, if owners hold rows."""
    held_out = split(job)[1]
    ends = np.cumsum([0, *(job.data.rows[owner] for owner in job.owners)])
    counts = np.diff(np.searchsorted(held_out, ends))
    return dict(zip(job.owners, counts.tolist(), strict=True))


def training_of(job: Job, owner: str) -> NDArray[np.int64]:
    """Return the numbers of an owner's training rows, in the order of `split`."""
    return _owned(job, owner, split(job)[0])


def held_out_of(job: Job, owner: str) -> NDArray[np.int64]:
    """Return the numbers of an owner's held-out rows, ascending."""
    return _owned(job, owner, split(job)[1])


def _owned(job: Job, owner: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    first = job.first_row(owner)
    return rows[(rows >= first) & (rows < first + job.data.rows[owner])]


def checked_size(job: Job) -> int:
    """Return how many rows early stopping uses, without computing which."""
    return sum(checked for _, checked, _ in (_sizes(job, rows) for rows in _split_apart(job)))


def checked_rows(job: Job) -> NDArray[np.int64]:
    """Return the rows, ascending, that early stopping uses; none without it."""
    return _three_parts(job)[1]


def is_checked(job: Job, epoch: int) -> bool:
    """Whether early stopping is decided after this epoch; after the last it is pointless."""
    stopping = job.train.early_stopping
    return stopping is not None and (epoch + 1) % stopping.every == 0


def _three_parts(
    job: Job,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    if job.data.split_by:
        return _grouped_parts(job)
    order = permutation(job.rows, "split", job.data.split_seed)
    training, held_out = _whole_sizes(job)
    kept = job.rows - held_out
    parts = np.sort(order[:training]), np.sort(order[training:kept]), np.sort(order[kept:])
    return _without_fold(job, parts) if job.data.fold else parts


def _grouped_parts(
    job: Job,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    found: tuple[list[NDArray[np.int64]], ...] = ([], [], [])
    for owner in job.owners:
        start = job.first_row(owner)
        for part, size in zip(found, group_parts(job, owner), strict=True):
            part.append(np.arange(start, start + size))
            start += size
    training, checked, held_out = (np.concatenate(part) for part in found)
    return training, checked, held_out


def is_newton(job: Job) -> bool:
    """Whether a step uses all training rows, without epochs and batches."""
    return job.train.optimizer.name == "newton"


def steps_per_epoch(job: Job) -> int:
    if is_newton(job):
        return total_steps(job)
    if not job.trains:
        return 0
    return split_sizes(job)[0] // job.train.batch_size


GROUP_WORDS = 1 << 24
"""Updates of a federated round whose norms are checked at once have so many words at most, unless
it is one update."""


def training_sizes(job: Job) -> dict[str, int]:
    """How many rows each owner of a federated job trains on, if that is public."""
    return {owner: len(training_of(job, owner)) for owner in job.owners}


def secret_training_size(job: Job, rows: int) -> int:
    """How many of its rows an owner of a federated job trains on, if only it knows their number:
    the last ones are held out."""
    return rows - int(job.data.test_fraction * rows)


def round_steps(job: Job) -> int:
    """How many steps a round of a federated job counts as: one for each group of owners of which is
    disclosed at once whose updates are within the limit."""
    size = sum(prod(shape) for _, shape in job.plain.tensors)
    return -(-len(job.owners) // max(1, GROUP_WORDS // size))


def total_steps(job: Job) -> int:
    if job.federates:
        return job.federated.rounds * round_steps(job)
    if is_newton(job):
        return job.train.optimizer.steps or _usual_steps(job)
    return job.train.epochs * steps_per_epoch(job)


def _usual_steps(job: Job) -> int:
    """Newton steps of a job that does not say how many. With `[privacy]` those of a linear model
    are over the same noisy sums, and all others pay for each."""
    kind = job.model.kind
    if job.privacy:
        return {"linear": 8, "logistic": 3}.get(kind, 4)
    if kind == "linear" and not job.train.optimizer.l1:
        return 3
    return 12 if kind in ("poisson", "gamma") else 8


def batches(job: Job, epoch: int) -> list[NDArray[np.int64]]:
    """Return the row numbers of each batch of an epoch (epochs count from 0)."""
    size, order = job.train.batch_size, order_of(job, split(job)[0], epoch)
    return [order[at : at + size] for at in range(0, len(order), size)]


def order_of(job: Job, training: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
    """Return the training rows in the order of an epoch, batch by batch, without the left-over
    rows. With noise that depends on steps before, each row is in the same step of every epoch."""
    if job.privacy and job.privacy.bands > 1:
        epoch = 0
    order = training[permutation(len(training), "batches", job.train.seed, epoch)]
    return order[: steps_per_epoch(job) * job.train.batch_size]


def learning_rate(job: Job, epoch: int, step: int | None = None) -> Fraction:
    """Return the exact learning rate of an epoch (from 0) at a step (from 1; None: warmed up).

    constant: the declared rate. step: times factor**(epoch // every). cosine: times
    (1 + cos(π · epoch / epochs)) / 2, rounded to a multiple of 2^-40. All times
    step / warmup_steps in the first warmup_steps steps.
    """
    rate, schedule = Fraction(job.train.optimizer.learning_rate), job.train.schedule
    if step is not None and step < schedule.warmup_steps:
        rate *= Fraction(step, schedule.warmup_steps)
    if schedule.name == "step":
        return rate * _power(Fraction(schedule.factor), epoch // schedule.every)
    if schedule.name == "cosine":
        rate *= (1 + _cosine_of_pi_times(Fraction(epoch, job.train.epochs))) / 2
        return Fraction(round(rate * RATE_DENOMINATOR), RATE_DENOMINATOR)
    return rate


def distinct_rates(job: Job) -> list[tuple[int, int | None]]:
    """Return (epoch, step) wherever a rate may differ from the previous one, for checks.

    `checks.check_train` bounds their number.
    """
    found: list[tuple[int, int | None]] = []
    warmup = min(job.train.schedule.warmup_steps, total_steps(job) + 1)
    found += [((step - 1) // steps_per_epoch(job), step) for step in range(1, warmup)]
    return [*found, *((epoch, None) for epoch in range(0, job.train.epochs, epochs_alike(job)))]


def rate_changes(job: Job) -> int:
    """Return in how many epochs the rate may differ from that of the previous epoch."""
    return -(-job.train.epochs // epochs_alike(job))


def epochs_alike(job: Job) -> int:
    """The number of consecutive epochs with one rate."""
    schedule = job.train.schedule
    if schedule.name == "step":
        return schedule.every
    return 1 if schedule.name == "cosine" else max(job.train.epochs, 1)


def _power(factor: Fraction, exponent: int) -> Fraction:
    """factor ** exponent by squaring, with rational rounding that is the same on every machine."""
    result, square = Fraction(1), factor
    while exponent:
        if exponent & 1:
            result = _shortened(result * square)
        square, exponent = _shortened(square * square), exponent >> 1
    return result


def _shortened(value: Fraction) -> Fraction:
    """The value rounded to at most POWER_BITS significant bits."""
    length = max(value.numerator.bit_length(), value.denominator.bit_length())
    if length <= POWER_BITS:
        return value
    shift = POWER_BITS - value.numerator.bit_length() + value.denominator.bit_length()
    return round(value * Fraction(2) ** shift) / Fraction(2) ** shift


def _cosine_of_pi_times(turn: Fraction) -> Fraction:
    """Return cos(π · turn) for 0 <= turn <= 1 by its series, exact to far below 2^-40.

    Decimal arithmetic of a given precision is the same on every machine; math.cos is not.
    """
    with localcontext(prec=50):
        pi = Decimal("3.14159265358979323846264338327950288419716939937511")
        angle = pi * turn.numerator / turn.denominator
        term = total = Decimal(1)
        for k in range(1, 40):
            term = -term * angle * angle / ((2 * k - 1) * (2 * k))
            total += term
        return Fraction(total)
