"""What one unit changes in the sums of a Newton step, and how often these sums are taken.

A step of a regression solves H · step = g with the sums over rows

    g = Xᵀ r,    H = Xᵀ diag(w) X,

r the residuals and w the weights of `regression.family` at the coefficients of the step. Both get
discrete Gaussian noise, and everything else follows from them: a step, its end, whether the matrix
has an inverse. Letters: b is the norm of a row x with the 1 of its intercept, m the most rows of a
unit, T the bound of a label.

**Rows.** Owners clip inputs, so that ‖x‖ <= b = clip / m, rounded to words or not
(`clip_plan.input_norm`), and labels, so that |y| <= T. Over shares then, *for all coefficients*:

    linear      r = y, at coefficients 0             |r| <= T             w = 1
    logistic    r = y − σ(z)                         |r| <= 1             0 <= w <= 1/4
    poisson     r = y − e^z, z cut off at least, most  |r| <= max(T, e^most)  0 <= w <= e^most

The sigmoid of any word of the ring's range is one of [0, 1] up to the errors that the bounds below
add, and so is the exponential between the ends of `log_range`, whose comparisons move z there. That
z does not leave the range is certain because coefficients are moved to ± `activation_limit` after
each step (`regression.iteration`), whatever noise did to them.

**g.** A row adds r·x, of norm <= b·R. A unit of m rows that contributes nothing instead changes g
by at most S_g = m·b·R, one that is replaced by 2·m·b·R.

**H.** A row adds w·x·xᵀ, whose Frobenius norm is w·‖x‖² <= W·b². So m rows that contribute nothing
change H by at most S_H = m·W·b². Where they are replaced, H changes by A − B, both positive
semidefinite and of norm at most m·W·b²: ‖A − B‖² = ‖A‖² + ‖B‖² − 2⟨A, B⟩, and ⟨A, B⟩ >= 0, so that
it is √2·m·W·b² at most, and not twice. (Computed weights may be below 0 by rounding, by less than
BELOW_ZERO; that part is counted twice.) H is symmetric and so is its noise: numbers of deviation σ
on the diagonal and σ/√2 above it, mirrored. In the coordinates H_ii and √2·H_ij the norm of a
change is its Frobenius norm, and each number has deviation σ: a Gaussian mechanism with
sensitivity S_H over n(n + 1)/2 numbers.

**Both.** With σ_g = z·S_g and σ_H = z·S_H, for the noise multiplier z, each is one Gaussian
mechanism of sensitivity 1 in units of its noise divided by z. A logistic or Poisson regression of k
steps is 2·k of them, each also though it depends on noisy ones before
(`accounting`, composition). A linear one takes both sums once: with g = Xᵀ y and H the gradient at
any coefficients β is g − H·β, which costs nothing more, in any number of steps. A Poisson
regression begins at the logarithm of the mean label, for which the sum of labels gets noise with
σ = z·m·T: a label is in [0, T], so that also a unit that is replaced changes it by m·T.

**The ring.** Inputs and weights are rounded to words of at least LEAST_BITS fractional bits before
they are multiplied: owners leave room for it, and W has it. Products and the sums of up to 1,024
rows (a block) are exact integers, and noise is added to the first block before it is rounded. Other
blocks are rounded by themselves, and so a unit's rows in them count up to ROUNDING units of the
rounded sum more in each element: within ROUNDED_PART of S_g and S_H, or the job is refused
(`admission.noise`). For noise N and integers k the rounding of N + 2^s·k is k more than that of N:
so blocks that are added afterwards are as if they had been there before. Of H only the elements on
and above the diagonal go on, each also in the place of its mirror image, which was rounded by
itself: noise is the same on both, so that their difference would have none.

**A matrix with an inverse.** Noise may make H indefinite. Its largest eigenvalue in magnitude is
that of a symmetric matrix with deviation σ on and σ/√2 off the diagonal: √(2n)·σ on average or
less. It changes by at most σ·t when the numbers of it change by t together, so that it is beyond
σ·(√(2n) + t) with a chance of at most e^(−t²/2) (Gaussian concentration). The L2 penalty, which is
added to all of the diagonal, also at the intercept, has to be at least that with 1 in 2^20
(`least_ridge`). The recipients learn if it was not enough: the part of each matrix that could not
be inverted is sealed with the model, and costs nothing, because it follows from the noisy H.

Noise on the sums of a regression: Vu, Slavkovic (2009); Sheffet (ICML 2017); with a ridge of the
size of the noise: Wang, "Revisiting differentially private linear regression" (UAI 2018). Of second
order methods: Ganesh, Haghifam, Steinke, Thakurta (NeurIPS 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, isqrt, log, sqrt
from typing import TYPE_CHECKING

from mpc_train.jobs.schedule import split_sizes, total_steps
from protocols.noise.limits import TAIL
from protocols.ring.rational import exponential

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.jobs.privacy import Privacy

NOISY = ("linear", "logistic", "poisson")
"""The kinds of regressions whose sums get noise."""
LEAST_BITS = 12
"""Fractional bits that inputs and weights have at least, as words."""
BELOW_ZERO = Fraction(1, 1 << 11)
"""No weight is further below 0 than this: its spline by 2^-17, rounding by a word."""
MORE_WEIGHT = Fraction(1, 1 << LEAST_BITS) * Fraction(3, 2)
"""Of rounding to a word, less than N · 2^-20 included, and of what a logistic weight has more."""
MORE_RESIDUAL = Fraction(1, 1 << 10)
"""Of rounding, and of the sigmoid, which is within 2^-14 and 13 units."""
ROUNDED_PART = Fraction(1, 1 << 7)
"""Rounding of blocks adds at most this part to a sensitivity."""
ROUNDING = Fraction(2) + Fraction(1, 1 << 9)
"""In units of a rounded sum: both neighbours' roundings are off by less than 1, and N · 2^-20."""
FAILURE_BITS = 20
"""A ridge is enough but for a chance of 2^-20 for a training."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What one unit changes at most, in the units of inputs, labels and weights.

    gradient: S_g. information: S_H, in Frobenius norm. labels: of the sum of labels; 0 if that is
    not used.
    """

    gradient: Fraction
    information: Fraction
    labels: Fraction


def releases(job: Job) -> int:
    """How many sums of a training have noise of their own."""
    if job.model.kind == "linear":
        return 2
    return 2 * total_steps(job) + (job.model.kind == "poisson")


def numbers(job: Job) -> int:
    """How many numbers a node draws for all of them."""
    columns = job.widths[0] + 1
    of_step = columns + columns * (columns + 1) // 2
    return releases(job) // 2 * of_step + (job.model.kind == "poisson")


def row_norm(job: Job) -> Fraction:
    """b."""
    privacy = _privacy(job)
    assert privacy.clip is not None
    return Fraction(privacy.clip) / privacy.rows_of_unit


def label_bound(job: Job) -> Fraction:
    """T: labels are moved to ± this by their owner. 1 for classes."""
    bound = _privacy(job).clip_label
    if bound is None:
        return Fraction(1)
    scale = 1 << job.fraction_bits
    return Fraction(int(Fraction(bound) * scale), scale)  # a word, so that encoding is exact


def most_residual(job: Job) -> Fraction:
    """R."""
    bound = label_bound(job)
    if job.model.kind == "poisson":
        bound = max(bound, _most_mean(job))
    return bound + MORE_RESIDUAL


def most_weight(job: Job) -> Fraction:
    """W."""
    if job.model.kind == "linear":
        return Fraction(1)
    exact = Fraction(1, 4) if job.model.kind == "logistic" else _most_mean(job)
    return exact + MORE_WEIGHT


def changes_of(job: Job) -> Changes:
    """S_g, S_H and that of the labels' sum."""
    privacy = _privacy(job)
    rows, norm = privacy.rows_of_unit, row_norm(job)
    gradient = rows * norm * most_residual(job)
    information = rows * norm**2 * most_weight(job)
    if privacy.neighbours == "replaced":
        gradient *= 2
        information = information * ROOT_OF_TWO + 2 * rows * norm**2 * BELOW_ZERO
    labels = rows * (label_bound(job) + MORE_RESIDUAL) if job.model.kind == "poisson" else 0
    return Changes(gradient, information, Fraction(labels))


ROOT_OF_TWO = Fraction(isqrt(2 << 60) + 1, 1 << 30)
"""√2, rounded up."""


def largest(job: Job, deviation: Fraction) -> Fraction:
    """No noise of all nodes together is larger on a number; deviation: σ, the dealer's."""
    return (TAIL + 1) * deviation * (1 + isqrt(len(job.evaluators) - 1) + 1)


def least_ridge(job: Job, deviation: Fraction) -> Fraction:
    """The least L2 penalty on the mean loss with which the matrices of all steps, with their noise,
    are positive definite but for a chance of 2^-FAILURE_BITS. deviation: σ_H, the dealer's: that of
    all nodes together is √2 times it. Rounded up to three significant digits."""
    columns, solved = job.widths[0] + 1, max(1, releases(job) // 2)
    away = sqrt(2 * (FAILURE_BITS * log(2) + log(solved)))
    needed = sqrt(2) * float(deviation) * (sqrt(2 * columns) + away) / split_sizes(job)[0]
    step = Fraction(10) ** (len(str(int(needed))) - 3 if needed >= 1 else -_zeros(needed) - 3)
    return ceil(Fraction(needed) / step) * step


def _zeros(value: float) -> int:
    """Zeros after the decimal point of a value below 1."""
    found = 0
    while value * 10 < 1:
        value, found = value * 10, found + 1
    return found


def _most_mean(job: Job) -> Fraction:
    """e^most, and what its relative error of 2^-19 may add."""
    most = exponential(Fraction(job.train.optimizer.log_range[1]))
    return most * (1 + Fraction(1, 1 << 18))


def _privacy(job: Job) -> Privacy:
    if not job.privacy:
        raise ValueError("the job has no [privacy]")
    return job.privacy
