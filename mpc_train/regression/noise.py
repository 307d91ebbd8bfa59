"""The noise of a regression's sums, on the grid of their words, before anything is rounded.

`mpc_train.privacy.newton` says what one unit changes in them, and why that is a promise.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from mpc_train.privacy import newton
from mpc_train.privacy.accounting import noise_multiplier

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from protocols.shares.masked import Additive


@dataclass(frozen=True, slots=True)
class Noise:
    """σ of the dealer's noise on g, on H's diagonal and on the sum of labels, in the units of
    these. No communication. Whoever checks a job needs the numbers alone, without the samplers,
    which load a compiler."""

    gradient: Fraction
    information: Fraction
    labels: Fraction

    def on_gradient(self, blocks: Additive, bits: int) -> Additive:
        """Summands of g in blocks of rows, [blocks, columns, 1] at scale 2^bits."""
        from protocols.noise.summands import noisy_first

        return noisy_first(blocks, variance_of(self.gradient, bits))

    def on_information(self, blocks: Additive, bits: int) -> Additive:
        """Summands of H in blocks of rows, [blocks, columns, columns] at scale 2^bits."""
        from protocols.noise.summands import noisy_first_symmetric

        return noisy_first_symmetric(blocks, variance_of(self.information, bits))

    def on_labels(self, total: Additive, bits: int) -> Additive:
        """Summands of the sum of labels at scale 2^bits."""
        from protocols.noise.summands import noisy

        return noisy(total, variance_of(self.labels, bits))


def variance_of(deviation: Fraction, bits: int) -> Fraction:
    """σ² in squared words at scale 2^bits."""
    return (deviation * (1 << bits)) ** 2


def noise_of(job: Job) -> Noise | None:
    """The noise that the job's budget demands; None without `[privacy]`. Needs the library."""
    if not job.privacy:
        return None
    multiplier, changes = noise_multiplier(job), newton.changes_of(job)
    return Noise(
        multiplier * changes.gradient,
        multiplier * changes.information,
        multiplier * changes.labels,
    )
