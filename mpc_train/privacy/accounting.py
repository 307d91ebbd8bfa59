"""How much noise the budget of `[privacy]` demands, and what everything that a job reveals costs.

**Training.** Each training row is in one batch of an epoch, so that a unit changes the sums of
clipped gradients of an epoch, all its steps taken together as one vector, by at most the norm C
(`clip`), or 2C if it is replaced: one Gaussian mechanism an epoch, also though a step depends on
the noisy result of the one before. The order of rows is public, so nothing is gained by sampling
and nothing is counted for it.

**Weights.** Where rows have weights, 0 … w by their declared range, a row counts as many times as
its weight says, and its gradient times that is clipped to w times the usual norm: so Δ is w · C.
Owners share weights in parts of w, at most 1 whatever they have read, so that nothing else changes.

**Newton steps** are Gaussian mechanisms on the sums of each step, see `privacy.newton`.

**Federated rounds.** A unit is an owner. The norm of its update is at most C, whatever its rows
are, and the sum of a round counts it w times: one Gaussian mechanism a round with sensitivity w ·
C, for the largest w of the job, also though an update depends on the noisy models of the rounds
before. No owner is sampled, and nothing is counted for sampling. Besides the sums one bit of each
update leaves in each round, whether its norm is within C. An owner that runs this software keeps to
C, so that its bit is the same whatever its rows are, but for a chance of REFUSED_CHANCE at most,
which counts towards δ as the sampler does.

**Composition.** Which rows of a unit are in which step is the same in both data sets, so that each
step has a fixed bound Δ_t of what a unit changes. Gaussian mechanisms with noise N(0, σ²) in each
coordinate and sensitivities Δ_t are together as private as one with sensitivity √(Σ Δ_t²), also if
what each computes depends on what those before it said (Dong, Roth, Su: Gaussian Differential
Privacy, JRSS B 2022, corollary 2). For one the least ε is known exactly (`library`).

**From discrete to continuous.** Noise N_Z(0, σ²) on an integer x is nearly what somebody says who
has only y = x + N(0, s²), continuous, with s² = σ² - r² and r = ROUND_DEVIATION: an integer k drawn
with probability proportional to exp(-(k - y)²/2r²) (Peikert, CRYPTO 2010, theorem 3.1). By
Poisson's summation the sum of these weights over all k is r√(2π) up to a factor of 1 ± η for every
y, with η < 2.1 exp(-2π²r²); so k has the law of x + N_Z(0, σ²) up to a factor of at most
exp(5 exp(-2π²r²)) at every point. What is drawn from y costs nothing more than y. So each number is
accounted for as one with continuous noise of variance s² >= (1 - GRID_PART) σ². That holds in any
number of coordinates. By concentrated differential privacy, as discrete noise is usually
accounted for, σ would be 6 to 8% larger.

**Statistics** of `[prepare]` are one more Gaussian mechanism (`privacy.statistics`), before those
of the steps. `statistics.share` says which part of Σ Δ² / σ² they may have, and training gets the
rest, so that all together have what the budget allows.

**Bands.** Noise may depend on that of steps before, so that less of it adds up over a training
(`protocols.noise.banded`, with the proof). Then what a unit changes in an epoch is ‖(1, c_1, …)‖
times as large; each row is in the same step of every epoch, and an epoch has at least as many steps
as there are bands. Rounding adds up to a step of the grid in each element of each step, within
ROUNDED_PART (`admission.noise`).

**Whose noise.** The dealer draws its own noise with variance σ², each of the N evaluators with
σ²/N. What is left that a coalition does not know:

    recipients, or anybody else outside       2σ²
    the dealer with recipients                 σ²   (the noise of N evaluators)
    N - 1 evaluators with recipients      σ² + σ²/N  (the dealer's, and one evaluator's)

The least is σ², and σ is what the budget is computed for. The dealer with an evaluator can read all
data, so that nothing is promised against them.

**Sums of discrete Gaussians** are not quite discrete Gaussians. If the summands have parameters of
at least 1/2, the probabilities of a sum of two with variances v and w, and of the discrete Gaussian
with variance v + w, differ by a factor of at most exp(5 exp(-2π² / (1/v + 1/w))) at every point
(Kairouz, Liu, Steinke: The Distributed Discrete Gaussian Mechanism, ICML 2021). With at least
LEAST_DEVIATION steps of the grid each, over all values of all steps of the largest job together,
this and the step to continuous noise are a factor of exp(κ) with κ < 2^-300; it changes ε by 2κ and
δ by that factor, far less than the margins by which the budget is used less than fully.

**The sampler.** The law of a number is within SAMPLER_DISTANCE of the exact one in total variation.
For n numbers together that adds at most (1 + e^ε) · n · SAMPLER_DISTANCE to δ, for which a margin
of DELTA_MARGIN · δ is kept (`sampler_fits`).

**Metrics** are over held-out rows, in which no unit is that trains: the split is public, or made by
unit at its owner. So a unit is on one side only, and neither side adds to what the other may cost
(parallel composition): for a unit that trains metrics follow from weights that already have their
noise. A count with discrete Laplace noise of `reveal.noise`, which every evaluator draws in full,
is purely ε-differentially private for a row, and for a unit of m rows with m·ε; k such metrics cost
the sum, or what k mechanisms of ε²/2-zCDP cost at δ (Bun, Steinke, TCC 2016, proposition 1.4), if
that is less.

**Counts of the training rows** (`serve.drift`) have discrete Laplace noise, too, which every
evaluator draws in full. They cost m·ε for a unit of m rows, twice that if it is replaced, and the
steps of training what is left of the budget (simple composition; that the outputs which are counted
are those of the trained model is adaptive composition).
"""

from __future__ import annotations

from fractions import Fraction
from math import exp, log, prod, sqrt
from typing import TYPE_CHECKING

from mpc_train.jobs.schedule import is_newton, total_steps, training_sizes
from mpc_train.privacy import newton
from mpc_train.privacy.library import epsilon_of_gaussian, least_multiplier
from protocols.noise.banded import square

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.jobs.privacy import Privacy

STEPS_OF_ONE = 4096
"""Noise multipliers are whole numbers of this part of 1, which all machines round alike."""
MARGIN = Fraction(1, 1 << 30)
"""This part of ε stays unused: for sums of discrete Gaussians, and for the last places of the
library's floating-point numbers."""
DELTA_MARGIN = Fraction(1, 1 << 10)
"""This part of δ stays unused: for the same, and for the sampler."""
SAMPLER_DISTANCE = Fraction(1, 1 << 111)
"""How far the law of a number of the sampler is from the exact one, in total variation."""
REFUSED_CHANCE = Fraction(1, 1 << 59)
"""A bound of the probability with which an update within its norm is left out of a round
(`protocols.functions.norm_bound`)."""
LEAST_DEVIATION = 256
"""In steps of the fixed point's grid: the least standard deviation of one party's noise."""
ROUND_DEVIATION = 4
"""r, in steps of the grid."""
ROUNDED_PART = Fraction(1, 1 << 9)
"""With bands, rounding adds at most this part to the sensitivity (`admission.noise`)."""
GRID_PART = Fraction(ROUND_DEVIATION**2, 2 * LEAST_DEVIATION**2)
"""This part of the variance is not counted, for the step from discrete to continuous noise: r² of
what at least two evaluators draw."""
STATISTICS_SQUARE = 1 / (1 - GRID_PART)
"""`counted_square` of one mechanism: the statistics of `[prepare]`."""


def privacy_of(job: Job) -> Privacy:
    """The job's `[privacy]`; ValueError without it."""
    if not job.privacy:
        raise ValueError("the job has no [privacy]")
    return job.privacy


def mechanisms(job: Job) -> int:
    """How many Gaussian mechanisms a training is: one an epoch, one a federated round, or the sums
    of Newton steps."""
    if is_newton(job):
        return newton.releases(job)
    return job.federated.rounds if job.federates else job.train.epochs


def sensitivity(job: Job) -> Fraction:
    """How much the contents of one unit change the sum of clipped gradients of an epoch, in norm:
    clip times the largest weight of a row, or twice that if it is replaced. In units of the loss,
    before rounding to the grid.

    Of a federated job, how much one owner changes the weighted sum of a round, in units of weights.
    With Newton steps, how much one unit changes the gradient of a step.
    """
    if is_newton(job):
        return newton.changes_of(job).gradient
    if job.federates:
        return changes(job) * Fraction(job.federated.clip)
    return _changes(privacy_of(job)) * _clip(job)


def _changes(privacy: Privacy) -> int:
    """2 if a unit is replaced: it leaves, and another comes."""
    return 2 if privacy.neighbours == "replaced" else 1


def changes(job: Job) -> int:
    """Of a federated job: how many times the largest norm of an update one owner changes the sum of
    a round at most: its weight, or twice that if it is replaced."""
    return _changes(privacy_of(job)) * largest_weight(job)


def largest_weight(job: Job) -> int:
    """How many times an update counts at most in a round of a federated job."""
    return 1 if job.federated.weighting == "equal" else max(training_sizes(job).values())


def row_clip(job: Job) -> Fraction:
    """The norm to which each row's gradient, times its weight, is clipped, so that a unit's rows
    add up to `clip` times the largest weight."""
    return _clip(job) / privacy_of(job).rows_of_unit


def _clip(job: Job) -> Fraction:
    clip = privacy_of(job).clip
    if clip is None:
        raise ValueError("privacy.clip is not declared")
    return Fraction(clip) * job.most_weight


def noise_multiplier(job: Job) -> Fraction:
    """σ divided by the sensitivity of one epoch, so that the training costs at most the budget: the
    standard deviation of the noise that is left against the strongest coalition.

    So the dealer's noise has the variance (this · sensitivity)², and each evaluator's an N-th of
    it. The same at every node. Raises ConfigError without the library; OverflowError if no noise
    suffices.
    """
    epsilon, delta = training_epsilon(job) * (1 - MARGIN), budget(privacy_of(job))[1]
    counted = counted_square(job) / (1 - statistics_share(job))
    return Fraction(least_multiplier(epsilon, delta, counted, STEPS_OF_ONE), STEPS_OF_ONE)


def counted_square(job: Job) -> Fraction:
    """The sum of squared sensitivities of all mechanisms of the training, in that of one epoch, as
    it is set against noise of which GRID_PART is not counted. With bands: times their square, and
    ROUNDED_PART more for rounding. With Newton steps: each sum is one, with what is rounded."""
    if is_newton(job):
        return mechanisms(job) * (1 + newton.ROUNDED_PART) ** 2 / (1 - GRID_PART)
    bands = privacy_of(job).bands
    longer = square(bands) * (1 + ROUNDED_PART) ** 2 if bands > 1 else Fraction(1)
    return mechanisms(job) * longer / (1 - GRID_PART)


def statistics_share(job: Job) -> Fraction:
    """The part of Σ Δ² / σ² that the statistics of `[prepare]` may have; 0 without them."""
    if not job.has_noisy_statistics:
        return Fraction(0)
    return Fraction(privacy_of(job).of_statistics.share)


def statistics_multiplier(job: Job) -> Fraction:
    """σ of the sums of `[prepare]`, divided by what a unit changes in all of them together."""
    epsilon, delta = training_epsilon(job) * (1 - MARGIN), budget(privacy_of(job))[1]
    counted = STATISTICS_SQUARE / statistics_share(job)
    return Fraction(least_multiplier(epsilon, delta, counted, STEPS_OF_ONE), STEPS_OF_ONE)


def epsilon_of_statistics(job: Job) -> float:
    """What the statistics of `[prepare]` would cost alone, at the job's δ."""
    _, delta = budget(privacy_of(job))
    return epsilon_of_gaussian(statistics_multiplier(job), STATISTICS_SQUARE, delta)


def counts_cost(job: Job) -> Fraction:
    """ε of the counts of the training rows for one unit; 0 if they do not leave. They have noise
    for one row that counts or does not; a row that is replaced leaves one bin for another."""
    if not job.counts_training or job.drift is None:
        return Fraction(0)
    privacy = privacy_of(job)
    return _changes(privacy) * privacy.rows_of_unit * Fraction(job.drift.epsilon)


def training_epsilon(job: Job) -> Fraction:
    """ε that is left of the budget for the steps of training; negative if the counts cost more."""
    return Fraction(privacy_of(job).epsilon) - counts_cost(job)


def budget(privacy: Privacy) -> tuple[Fraction, Fraction]:
    """ε and δ without their margins."""
    epsilon, delta = Fraction(privacy.epsilon), Fraction(privacy.small_delta)
    return epsilon * (1 - MARGIN), delta * (1 - DELTA_MARGIN)


def sampler_fits(job: Job) -> bool:
    """Whether the margin of δ is enough for all numbers that all nodes draw for a training, and for
    the bits of federated rounds."""
    privacy = privacy_of(job)
    apart = _numbers(job) * SAMPLER_DISTANCE
    if job.federates:
        apart += mechanisms(job) * REFUSED_CHANCE
    added = apart * Fraction(1 + exp(float(privacy.epsilon)))
    return added <= Fraction(privacy.small_delta) * DELTA_MARGIN / 2


def _numbers(job: Job) -> int:
    """How many numbers all nodes draw from discrete Gaussians."""
    if job.federates:
        drawn = mechanisms(job) * sum(prod(shape) for _, shape in job.plain.tensors)
    elif is_newton(job):
        drawn = newton.numbers(job)
    else:
        drawn = total_steps(job) * sum(prod(shape) for shape in job.shapes.values())
        if job.has_noisy_statistics:
            drawn += 3 * len(job.pipeline.secret)  # at most so many sums
    return drawn * (len(job.evaluators) + 1)


def multiplier_bound(job: Job) -> float:
    """At least the `noise_multiplier`, without the library: by ε = ρ + 2 sqrt(ρ ln(1/δ)) (Bun,
    Steinke, TCC 2016, proposition 1.3), to which the library's conversion is never worse."""
    epsilon, delta = map(float, budget(privacy_of(job)))
    logarithm = -log(delta)
    root = sqrt(logarithm + epsilon) - sqrt(logarithm)
    return sqrt(mechanisms(job) / (1 - GRID_PART) / 2) / root + 1 / STEPS_OF_ONE


def epsilon_of_training(job: Job) -> float:
    """ε of the training at the job's δ, with its statistics; 0 if nothing is trained."""
    if not job.trains:
        return 0.0
    _, delta = budget(privacy_of(job))
    spent = counted_square(job) / noise_multiplier(job) ** 2
    if job.has_noisy_statistics:
        spent += STATISTICS_SQUARE / statistics_multiplier(job) ** 2
    return epsilon_of_gaussian(Fraction(1), spent, delta)
