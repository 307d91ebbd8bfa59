"""A metric before it is revealed: divided, rounded and if necessary refused, all over shares; and
how it leaves.

Without readers of its own (`reveal.metrics_to`) a metric is opened to all evaluators. With readers
it is opened to nobody in the run: it leaves as halves under a fresh mask, which evaluators seal to
the readers, as they do with the model. Whether a metric is refused or undefined is decided over
shares in both cases, and is a word of what leaves, so that no other bit is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpc_train.evaluation.forms import AVAILABLE, Form, least_group
from protocols.comparison.compare import all_of, below
from protocols.functions.means import mean_of
from protocols.functions.scaling import floor_quotient
from protocols.functions.splines import divide
from protocols.shares.arithmetic import remask, select, truncate
from protocols.shares.masked import Masked, MaskedBit, concatenate, together

if TYPE_CHECKING:
    from mpc_train.evaluation.findings import Findings
    from mpc_train.jobs.job import Job
    from protocols.shares.reveal import RevealGate, SealedHalf


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


def leave(
    job: Job,
    gate: RevealGate,
    step: int,
    name: str,
    form: Form,
    value: Masked,
    found: Findings,
    halves: dict[str, SealedHalf],
) -> None:
    """Let a metric leave: into `found` if all evaluators learn it, into `halves` if readers do.

    Neither changes at the dealer.
    """
    if job.reveal.metrics_to:
        half = gate.for_recipients(name, step, value)
        if half is not None:
            halves[name] = half
        return
    words = gate.to_everybody(name, step, value)
    if words is not None:
        found.take(job, name, form, words)
