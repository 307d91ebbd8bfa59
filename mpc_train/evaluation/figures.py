"""A metric on its way out: divided, rounded and refused over shares, then read from the words.

What leaves is one vector a metric: a bit, whether its groups are large enough, and its numbers,
which are 0 where that bit is. Nobody learns the size of a group, nor more digits than the job says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpc_train.jobs.reading import Reading
from protocols.arithmetic import remask, select, truncate
from protocols.comparison import all_of, below
from protocols.fixed_point import decode
from protocols.functions import divide
from protocols.masked import Additive, Masked, MaskedBit, concatenate
from protocols.rational import mantissa
from protocols.scaling import floor_quotient

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

MEAN_BITS = 20
KEPT_BITS = 4
"""A sum over n rows loses all but so many of log2(n) bits before it is divided by n."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a metric is read: public.

    shape: of what is printed, () for one number. divisor: the public number that values are
    divided by. each: the first axis is groups, refused one by one. counts: whole numbers, which are
    not rounded.
    """

    shape: tuple[int, ...] = ()
    divisor: int = 1
    each: bool = False
    counts: bool = False

    @property
    def words(self) -> tuple[int, ...]:
        """The shape of what is revealed: a bit before the numbers, of all or of each group."""
        lead = self.shape[:1] if self.each else ()
        return (*lead, 1 + prod(self.shape[len(lead) :]))


def form_of(job: Job, metric: str, rows: int) -> Form:
    """The form of a metric over `rows` rows."""
    if metric == "confusion":
        return Form((job.classes, job.classes), counts=True)
    if metric == "calibration":
        return Form((job.reveal.bins, 2), each=True)
    if metric in ("precision", "recall", "f1"):
        return Form(divisor=1 if job.outputs == 1 else job.outputs)
    return Form() if metric in ("auc", "r2") else Form(divisor=rows)


@dataclass(frozen=True, slots=True, repr=False)
class Figure:
    """A metric before it is revealed. values: as many as its form has, at scale 2^f. groups: counts
    at scale 2^f, each of which has to be large enough; None: there are none."""

    values: Masked
    groups: Masked | None = None


def mean_of(total: Additive | Masked, rows: int) -> Masked:
    """A sum over `rows` rows divided by their number: some units of error."""
    summands = total if isinstance(total, Additive) else total.shares()
    lost = max(0, (rows - 1).bit_length() - KEPT_BITS)
    if lost:
        summands = truncate(summands, lost).shares()
    whole, shift = mantissa(Fraction(1 << lost, rows), MEAN_BITS)
    scaled = summands.scale(whole)
    return truncate(scaled, shift) if shift else remask(scaled)


def quotient(a: Masked, b: Masked, rows: int, fraction_bits: int) -> Masked:
    """a / b for sums over at most `rows` rows of numbers of the order of 1; 0 where b is 0.

    Good to 2^-16 of itself for b of at least rows / 2^18.
    """
    scale = max(0, rows.bit_length() - 9)
    if scale:
        a, b = truncate(a.shares(), scale), truncate(b.shares(), scale)
    return divide(a, b, fraction_bits)


def released(job: Job, form: Form, figure: Figure) -> Masked:
    """The words that are revealed, of the shape that the form says."""
    f, least, decimals = job.fraction_bits, job.reveal.least_group, job.reveal.decimals
    values = figure.values
    if decimals is not None and not form.counts:
        if form.divisor > 1:
            values = mean_of(values, form.divisor)
        values = _rounded(values, f, decimals)
    lead = form.words[:-1]
    flat = values.reshape(*lead, form.words[-1] - 1)
    ones = np.ones((*lead, 1), np.int64)
    if figure.groups is None:
        return concatenate([flat.select((..., slice(0, 1))).scale(0).shift(ones), flat], -1)
    enough = below(figure.groups, (least << f,)).negate().reshape(*figure.groups.shape)
    if not form.each:
        enough = all_of(enough)
    kept = remask(select(_spread(enough, flat.shape), flat))
    return concatenate([remask(enough.reshape(*lead, 1).shares()), kept], -1)


def _rounded(values: Masked, f: int, decimals: int) -> Masked:
    """floor(10^decimals · v + 1/2), exactly of v as it is held."""
    half = 1 << (f - 1)
    return floor_quotient(values.scale(10**decimals).shift(half).shares(), f)


def _spread(bits: MaskedBit, shape: tuple[int, ...]) -> MaskedBit:
    column = bits.reshape(*bits.shape, 1) if bits.shape else bits.reshape(1)
    return MaskedBit(
        bits.role,
        shape,
        column.beta.map(lambda words: np.broadcast_to(words, shape)),
        np.broadcast_to(column.mu, shape),
    )


def read(job: Job, form: Form, words: NDArray[np.int64]) -> Reading:
    """The metric from the revealed words of `released`."""
    decimals = job.reveal.decimals
    numbers = decode(words[..., 1:], job.fraction_bits) / form.divisor
    if decimals is not None and not form.counts:
        numbers = words[..., 1:] / 10**decimals
    if form.each:
        return [
            [float(number) for number in row] if bit else None
            for bit, row in zip(words[..., 0], numbers, strict=True)
        ]
    if not words[0]:
        return None
    found: Reading = numbers.reshape(form.shape).tolist()
    return found


def sums(parts: Sequence[Masked]) -> Masked:
    """Numbers of shape () as a vector."""
    return concatenate([part.reshape(1) for part in parts])
