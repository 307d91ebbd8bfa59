"""A metric on its way out: divided, rounded and refused over shares, before anybody sees it.

What leaves is one vector a metric: a word that says whether its numbers are there, and the numbers,
which are 0 where they are not. That word is all that becomes known of the size of a group:

    REFUSED     a group (the rows of a class, those called it, a bin) has at least one row, and
                fewer than the job's `reveal.least_group`
    UNDEFINED   no group is too small, and what the metric divides by is 0
    AVAILABLE   else: every group that it is made of has no row, or enough of them

Nobody learns which group it is, but for bins, which are judged one by one, nor more digits than the
job says.

The groups of a confusion matrix are those of precision and recall, its rows and its columns. A cell
is a part of both: that one row of a class of 26 was called another says no more of a row than
accuracy, precision and recall do, which give the same counts away. Refusing every matrix with a
cell of one to nine would refuse nearly all of good models.
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
"""A quotient over n rows is good for groups of at least n / 2^17 of them."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a metric of `rows` rows is read: public.

    shape: of what is printed, () for one number. divisor: the public number that values are
    divided by. each: the first axis is groups, judged one by one. counts: whole numbers, which are
    not rounded.
    """

    metric: str
    rows: int
    shape: tuple[int, ...] = ()
    divisor: int = 1
    each: bool = False
    counts: bool = False

    @property
    def words(self) -> tuple[int, ...]:
        """The shape of what is revealed: a word before the numbers, of all or of each group."""
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
    """Rows that a group has at least where it has any: as the job says, and as quotients can."""
    return max(job.reveal.least_group, -(-rows >> QUOTIENT_BITS))


@dataclass(frozen=True, slots=True, repr=False)
class Figure:
    """A metric before it is revealed. values: as many as its form has, at scale 2^f. groups: counts
    at scale 2^f, each of which has to be 0 or large enough; None: there are none. defined: bits,
    all of which have to be 1 (where groups are judged one by one, each for its own); None: always.
    """

    values: Masked
    groups: Masked | None = None
    defined: MaskedBit | None = None


def quotient(a: Masked, b: Masked, rows: int, fraction_bits: int) -> Masked:
    """a / b for sums over at most `rows` rows of numbers of the order of 1; 0 where b is 0.

    Good to 2^-16 of itself for b of at least rows / 2^18.
    """
    scale = max(0, rows.bit_length() - 9)
    if scale:
        a, b = truncate(a.shares(), scale), truncate(b.shares(), scale)
    return divide(a, b, fraction_bits)


def present(counts: Masked, fraction_bits: int) -> MaskedBit:
    """Whether there is a row, for counts at scale 2^f."""
    half = 1 << (fraction_bits - 1)
    return below(counts, (half,)).reshape(*counts.shape).negate()


def margins(cells: Masked, classes: int) -> Masked:
    """Rows of each class, and then rows called each, of the cells of a confusion matrix."""
    table = cells.reshape(classes, classes)
    return concatenate([table.sum(axis=1), table.sum(axis=0)])


def released(job: Job, form: Form, figure: Figure) -> Masked:
    """The words that are revealed, of the shape that the form says."""
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
    # 2·enough − available: 1 where it is there, 2 where only the divisor is missing, else 0.
    twice = -available.shares()
    twice = twice.shift(2) if enough is None else twice + enough.shares().scale(2)
    column = available.reshape(*available.shape, 1) if available.shape else available.reshape(1)
    kept = remask(select(column.broadcast_to(flat.shape), flat))
    return concatenate([remask(twice.reshape(*lead, 1)), kept], -1)


def _enough(groups: Masked, least: int, f: int, each: bool) -> MaskedBit:
    """Whether counts at scale 2^f are 0 or at least `least`, a word: each of them, or all."""
    fewer = below(groups, (1 << (f - 1), least))
    enough = all_of(together([fewer.select(0).negate(), fewer.select(1)])).negate()
    return enough if each else all_of(enough.reshape(-1))


def _rounded(values: Masked, f: int, decimals: int) -> Masked:
    """floor(10^decimals · v + 1/2), exactly of v as it is held."""
    half = 1 << (f - 1)
    return floor_quotient(values.scale(10**decimals).shift(half).shares(), f)


def sums(parts: Sequence[Masked]) -> Masked:
    """Numbers of shape () as a vector."""
    return concatenate([part.reshape(1) for part in parts])
