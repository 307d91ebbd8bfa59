"""A metric before it is revealed: divided, rounded and if necessary refused, all over shares.

Each metric is revealed as one vector: a word that says whether its numbers are available, and the
numbers, which are 0 if they are not. The word is all that is revealed of the size of a group:

    REFUSED     a group (the rows of a class, those called it, a bin) has at least one row, and
                fewer than the job's `reveal.least_group`
    UNDEFINED   no group is too small, and the metric's divisor is 0
    AVAILABLE   otherwise: each of its groups has no rows, or enough of them

Nobody learns which group is too small, except for bins, which are judged one by one, or more digits
than the job states.

The groups of a confusion matrix are those of precision and recall, its rows and its columns. A cell
is a part of both: that one row of a class of 26 was predicted as another says no more about a row
than accuracy, precision and recall, which reveal the same counts. A rule that refuses every matrix
with a cell of one to nine would refuse nearly all good models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from protocols.comparison.compare import all_of, below
from protocols.functions.means import mean_of
from protocols.functions.scaling import floor_quotient
from protocols.functions.splines import divide
from protocols.shares.arithmetic import remask, select, truncate
from protocols.shares.masked import Masked, MaskedBit, concatenate, together

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

REFUSED, AVAILABLE, UNDEFINED = range(3)
QUOTIENT_BITS = 17
"""A quotient over n rows is accurate for groups of at least n / 2^17 of them."""


@dataclass(frozen=True, slots=True)
class Form:
    """The public form of a metric over `rows` rows.

    shape: of the printed metric, () for one number. divisor: the public number by which values are
    divided. each: the first axis is groups, judged one by one. counts: whole numbers, which are not
    rounded.
    """

    metric: str
    rows: int
    shape: tuple[int, ...] = ()
    divisor: int = 1
    each: bool = False
    counts: bool = False

    @property
    def words(self) -> tuple[int, ...]:
        """The shape of the revealed vector: a word before the numbers, for all groups or for
        each."""
        lead = self.shape[:1] if self.each else ()
        return (*lead, 1 + prod(self.shape[len(lead) :]))


def form_of(job: Job, metric: str, rows: int) -> Form:
    """The form of a metric over `rows` rows."""
    if metric == "confusion":
        return Form(metric, rows, (job.classes, job.classes), counts=True)
    if metric == "calibration":
        return Form(metric, rows, (job.reveal.bins, 2), each=True)
    if metric in ("precision", "recall", "f1"):
        return Form(metric, rows, divisor=1 if job.outputs == 1 else job.outputs)
    return Form(metric, rows, divisor=1 if metric in ("auc", "r2") else rows)


def least_group(job: Job, rows: int) -> int:
    """The minimum rows of a group that has any: the job's, or the minimum for accurate
    quotients."""
    return max(job.reveal.least_group, -(-rows >> QUOTIENT_BITS))


@dataclass(frozen=True, slots=True, repr=False)
class Figure:
    """A metric before it is revealed. values: as many as its form has, at scale 2^f. groups: counts
    at scale 2^f, each of which must be 0 or large enough; None: no groups. defined: bits, all of
    which must be 1 (if groups are judged one by one, each for its own group); None: always defined.
    """

    values: Masked
    groups: Masked | None = None
    defined: MaskedBit | None = None


def quotient(a: Masked, b: Masked, rows: int, fraction_bits: int) -> Masked:
    """a / b for sums over at most `rows` rows of numbers of the order of 1; 0 if b is 0.

    Relative error 2^-16 for b of at least rows / 2^18.
    """
    scale = max(0, rows.bit_length() - 9)
    if scale:
        a, b = truncate(a.shares(), scale), truncate(b.shares(), scale)
    return divide(a, b, fraction_bits)


def present(counts: Masked, fraction_bits: int) -> MaskedBit:
    """Whether counts at scale 2^f are above 0."""
    half = 1 << (fraction_bits - 1)
    return below(counts, (half,)).reshape(*counts.shape).negate()


def margins(cells: Masked, classes: int) -> Masked:
    """The rows of each class, then the rows predicted as each, from the cells of a confusion
    matrix."""
    table = cells.reshape(classes, classes)
    return concatenate([table.sum(axis=1), table.sum(axis=0)])


def released(job: Job, form: Form, figure: Figure) -> Masked:
    """The words to be revealed, in the shape of the form."""
    f, decimals = job.fraction_bits, job.reveal.decimals
    values = figure.values
    if decimals is not None and not form.counts:
        if form.divisor > 1:
            values = mean_of(values, form.divisor)
        values = _rounded(values, f, decimals)
    lead = form.words[:-1]
    flat = values.reshape(*lead, form.words[-1] - 1)
    enough = None
    if figure.groups is not None:
        enough = _enough(figure.groups, least_group(job, form.rows) << f, f, form.each)
    defined = figure.defined
    if defined is not None and not form.each:
        defined = all_of(defined.reshape(-1))
    judged = [bits for bits in (enough, defined) if bits is not None]
    if not judged:
        there = flat.select((..., slice(0, 1))).scale(0).shift(AVAILABLE)
        return concatenate([there, flat], -1)
    available = all_of(together(judged))
    # 2·enough − available: 1 if available, 2 if only the divisor is missing, otherwise 0.
    twice = -available.shares()
    twice = twice.shift(2) if enough is None else twice + enough.shares().scale(2)
    column = available.reshape(*available.shape, 1) if available.shape else available.reshape(1)
    kept = remask(select(column.broadcast_to(flat.shape), flat))
    return concatenate([remask(twice.reshape(*lead, 1)), kept], -1)


def _enough(groups: Masked, least: int, f: int, each: bool) -> MaskedBit:
    """Whether counts at scale 2^f are 0 or at least `least`, as a word for each of them, or for
    all."""
    fewer = below(groups, (1 << (f - 1), least))
    enough = all_of(together([fewer.select(0).negate(), fewer.select(1)])).negate()
    return enough if each else all_of(enough.reshape(-1))


def _rounded(values: Masked, f: int, decimals: int) -> Masked:
    """floor(10^decimals · v + 1/2), exactly for the fixed-point v."""
    half = 1 << (f - 1)
    return floor_quotient(values.scale(10**decimals).shift(half).shares(), f)


def sums(parts: Sequence[Masked]) -> Masked:
    """Numbers of shape () as a vector."""
    return concatenate([part.reshape(1) for part in parts])
