"""The numbers by which rows' gradients are clipped over shares, and why a row is never larger.

A row's gradient is, layer by layer, the product of its inputs x (with a 1 for the bias) and of the
gradient g at the layer's outputs. Its squared norm over all layers together is

    Q = Σ ‖x‖² · ‖g‖²

(Goodfellow 2015), without any of these products. The gradients of a convolution are formed for
each row and count as g, with x = 1. All of x and g are words at scale 2^f, so that a
row's part in the sums over the batch is an exact integer. The row's g are multiplied by a secret
factor φ / 2^K, K = 16, which is computed so that the norm of its part is at most `clip` for every
content of the row and every weight, and also if something wrapped around:

1. *Nothing wraps unnoticed.* Every word that a truncation gives is below 2^(66 − f) in magnitude,
   whatever went in. Hidden inputs and all g are rounded to multiples of 2^coarse, so that the sum
   of their squares over a row cannot wrap; rows in which it reaches `coarse_most` are left out
   (φ = 0). For all others ‖x‖² and ‖g‖² are below 2^62 and are computed exactly. The inputs of the
   first layer are hidden ones too, unless they are the rows as their owners share them (`given`):
   those are bounded by `data.limit`, beyond which their owner refuses its table.
2. *Norms are rounded upwards.* a >= ‖x‖² and b >= ‖g‖² have fewer bits; two units make up for
   rounding. Rows with a layer beyond 2^input_bits or 2^output_bits, or with a sum Σ a · b beyond
   `most_norm`, are left out. So Q' >= Q, and its words fit.
3. *φ is rounded downwards.* φ' = 2^K · C' / √max(Q', C'²) has a relative error below 2^-9 and an
   absolute one below 3 (`protocols.functions.inverse_root`); C' has a margin of 2^-8, and
   φ = φ' − 4 is at least 0 for all rows that are not left out.
4. *Rounding is counted.* φ·g is rounded to `kept` of the K bits of φ, or to fewer bits than g has
   if `kept` is negative. That moves each element of g by less than a unit, and the row's part by
   less than √(Σ 2^input_bits · outputs) units; C' is less than `clip` by that.

So with the margins ‖part‖ <= φ √Q / 2^K + rounding <= clip. The sums themselves are exact in the
ring, and noise is added to them as they are (`protocols.noise.summands`), on the grid of
2^-(2f + kept) for weights and 2^-(f + kept) for biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt, prod
from typing import TYPE_CHECKING

from mpc_train.base.bounds import WORD_BITS, bit_length
from mpc_train.jobs.schedule import learning_rate
from mpc_train.jobs.training import is_frozen, loss_name
from mpc_train.privacy.accounting import noise_multiplier, privacy_of, row_clip, sensitivity
from protocols.errors import RangeError
from protocols.noise.banded import spread
from protocols.noise.limits import TAIL
from protocols.ring.rational import HEADROOM_BITS

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.networks.graph import Node

FACTOR_BITS = 16
"""K: fractional bits of φ."""
LOST = 4
"""φ is this much below the computed factor."""
ROOT_MARGIN = Fraction(1, 1 << 8)
INPUT_PRECISION = 10
"""Fractional bits of a."""
OUTPUT_BITS = 8
"""A row is left out where ‖g‖² of a layer is 2^8 or more."""
LEAST_INPUT_BITS = 10
UPWARDS = 2
"""Units that make up for rounding: below 1, and less than N · 2^-20 (`arithmetic.round_off`)."""
LEAST_KEPT = -4
"""A product with φ is rounded by at most 20 bits: by more, 0 would not stay 0
(`protocols.shares.arithmetic.round_off`)."""
RATE_BITS = 9
"""Bits that learning rate over batch size has at least."""
WILD_BITS = 66
"""Words after a truncation are below 2^(66 − f) in magnitude: twice its bound, for sums of two."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer: sizes of a row's inputs and outputs. A convolution, whose gradients by rows
    are formed: no inputs, and as many outputs as the gradient has elements."""

    inputs: int
    outputs: int
    has_bias: bool = False


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """Public numbers of clipping, the same at every node.

    fraction_bits: f. clip: C, of a row, in units of g. input_bits, output_bits: bounds of ‖x‖² and
    ‖g‖² of a layer. output_precision: fractional bits of b. norm_bits: those of Q', even. coarse,
    coarse_most: see 1 above. kept: see 4. given: the weight whose inputs are bounded by their
    owners; empty: there is none.
    """

    fraction_bits: int
    clip: Fraction
    input_bits: int
    output_bits: int
    output_precision: int
    norm_bits: int
    coarse: int
    coarse_most: int
    kept: int
    reached: Fraction
    """C'."""
    given: str = ""

    @property
    def weight_bits(self) -> int:
        """Fractional bits of the sums for weights."""
        return 2 * self.fraction_bits + self.kept

    @property
    def least_norm(self) -> int:
        """C'² as a word of Q'."""
        return int(self.reached**2 * (1 << self.norm_bits))

    @property
    def most_norm(self) -> int:
        """Q' of a row that is not left out is below this word."""
        return self.least_norm << (2 * (FACTOR_BITS - LOST))


def make_plan(
    layers: Sequence[Layer],
    *,
    fraction_bits: int,
    clip: Fraction,
    input_square: Fraction,
    sum_limit: Fraction,
    rate: Fraction,
    given: str = "",
) -> ClipPlan:
    """The numbers for these layers, the first of which has the rows' inputs.

    clip: the norm of a row in units of g. input_square: the bound of ‖x‖² in the first layer, with
    the 1 for its bias. sum_limit: of a sum over a batch with its noise, in units of g. rate: the
    largest learning rate over batch size. given: the weight of the first layer if owners keep to
    `input_square`; otherwise longer rows are left out. RangeError that says what to change if
    something does not fit.
    """
    f = fraction_bits
    outputs = sum(layer.outputs for layer in layers)
    if not layers[0].inputs:
        input_square = Fraction(1)
    elements = outputs + sum(layer.inputs for layer in layers[1 if given else 0 :])
    input_bits = max(bit_length(input_square), LEAST_INPUT_BITS)
    # 1
    coarse = WILD_BITS - f - (HEADROOM_BITS - 1 - elements.bit_length()) // 2
    coarse_most = 1 << max(WORD_BITS - 1 - 2 * coarse, 0)
    if coarse_most < 8 * elements:
        raise RangeError(f"{elements} values of a row are too many for its gradient's norm")
    if given and not squares_fit(input_square, f):
        raise RangeError("the squares of a row's inputs do not fit a word")
    # 2
    several = (len(layers) - 1).bit_length()
    room = WORD_BITS - input_bits - INPUT_PRECISION - OUTPUT_BITS - several
    output_precision = min(2 * f - 2, room)
    norm_bits = min(INPUT_PRECISION + output_precision, 30 - 2 * bit_length(clip)) & ~1
    # 4
    # Two products have to fit: of sum and rate, and of a weight's change, up to 1, and all bits
    # that are rounded off with it.
    room = WORD_BITS - RATE_BITS - 2 * f
    kept = min(FACTOR_BITS - 2, room - bit_length(sum_limit), room - 1 + bit_length(rate))
    rounding = Fraction(isqrt((outputs << input_bits) - 1) + 1) / Fraction(2) ** (f + kept)
    # 3
    reached = (clip - rounding) * (1 - ROOT_MARGIN)
    slack = Fraction(len(layers) << input_bits + 1) / Fraction(2) ** output_precision
    slack += Fraction(UPWARDS) / Fraction(2) ** norm_bits
    if kept < LEAST_KEPT or rounding > clip / 32 or slack > clip**2 / 8:
        raise RangeError(
            "gradients cannot be clipped to this norm at this precision: lower "
            "fixed_point.fraction_bits, data.limit or train.batch_size, or raise privacy.clip"
        )
    return ClipPlan(
        f, clip, input_bits, OUTPUT_BITS, output_precision, norm_bits, coarse, coarse_most, kept,
        reached, given,
    )  # fmt: skip


def squares_fit(input_square: Fraction, fraction_bits: int) -> bool:
    """Whether ‖x‖² of rows within this bound does not wrap around."""
    return bit_length(input_square) + 2 * fraction_bits <= WORD_BITS


def clipped_by_owners(job: Job) -> bool:
    """Whether a row's gradient is bounded by its inputs alone, which its owner clips: that of a
    logistic regression is at most ‖x‖, because no residual is larger than 1. Of inputs that are
    computed over shares, such as interactions, no owner knows the norm."""
    plain = job.model.kind == "logistic" and job.model.network is None
    loss = loss_name(job) == "bce" and job.train.loss.positive_weight == 1
    return plain and loss and job.pipeline.trivial


def most_residual(fraction_bits: int) -> Fraction:
    """No residual of a logistic regression is larger, however its sigmoid is rounded: the spline is
    within 2^-14, and rounding costs up to 13 units (`protocols.functions.splines`)."""
    return 1 + Fraction(1, 1 << 12) + Fraction(16, 1 << fraction_bits)


def input_norm(job: Job) -> Fraction:
    """The norm to which owners clip the inputs of a logistic regression's rows, a little downwards:
    with the 1 of the intercept, and times the residual, it is the norm of a row's gradient.

    RangeError if the intercept alone is beyond it.
    """
    most = row_clip(job) / most_residual(job.fraction_bits)
    if most**2 <= 1 + Fraction(1, 64):
        raise RangeError(
            "the gradient of a logistic regression's intercept has a norm of 1 alone: privacy.clip "
            "has to be above 1 for each row of a unit"
        )
    scale = 1 << 30
    return Fraction(isqrt(int((most**2 - 1) * scale**2)), scale)


def grid_bits(job: Job) -> int:
    """Fractional bits of the noisy sums for weights."""
    return 2 * job.fraction_bits if clipped_by_owners(job) else clip_plan(job).weight_bits


def unit_of(job: Job) -> Fraction:
    """What a row's gradient is for g = 1: the words of g leave out the mean over the batch."""
    return Fraction(2 if loss_name(job) == "mse" else 1)


def deviation(job: Job) -> Fraction:
    """σ in the units of g: the standard deviation of what the strongest coalition does not know."""
    return noise_multiplier(job) * sensitivity(job) / unit_of(job)


def sum_limit(job: Job) -> Fraction:
    """The bound of an element of the noisy sum of a batch, in the units of g, for any noise that
    can be drawn."""
    evaluators = len(job.evaluators)
    noise = (TAIL + 1) * deviation(job) * (1 + isqrt(evaluators - 1) + 1)
    noise *= spread(privacy_of(job).bands)
    return row_clip(job) / unit_of(job) * job.train.batch_size + noise


CLIPPED = {"linear", "conv", "relu", "sigmoid", "tanh", "smooth", "reshape", "max_pool"}
"""Operations after which words are as a truncation gives them, and keep the usual scale."""


def layers_of(job: Job) -> list[Layer]:
    """The layers of the job's model in order. RangeError that names an operation whose
    gradients, or whose results, do not fit the plan."""
    found: list[Layer] = []
    weights: set[str] = set()
    for node in job.graph.nodes:
        if node.op not in CLIPPED:
            raise RangeError(f"{node.name}: rows are not clipped in a network with {node.op}")
        if node.op == "max_pool" and _overlaps(node) and any(layer.inputs for layer in found):
            raise RangeError(
                f"{node.name}: rows are not clipped where windows of a max pool overlap behind a "
                "linear layer: gradients of several windows add up; use a stride as long as the "
                "windows"
            )
        if not node.tensors:
            continue
        over_positions = node.op == "linear" and len(node.shape) != 1
        grouped = node.op == "conv" and node.count("groups") != 1
        frozen = any(is_frozen(job, name) for name in node.tensors.values())
        if over_positions or grouped or frozen:
            raise RangeError(
                f"{node.name}: rows are not clipped in a layer over several positions of a row, in "
                "groups, or with frozen tensors"
            )
        if not weights.isdisjoint(node.tensors.values()):
            raise RangeError(f"{node.name}: rows are not clipped where a tensor is used twice")
        weights.update(node.tensors.values())
        shape = job.shapes[node.tensors["weight"]]
        if node.op == "conv":
            found.append(Layer(0, prod(shape)))
            if "bias" in node.tensors:
                found.append(Layer(0, shape[0]))
            continue
        outputs, inputs = shape
        found.append(Layer(inputs, outputs, "bias" in node.tensors))
    return found


def _overlaps(node: Node) -> bool:
    """Whether an element may be in several windows."""
    sizes = zip(node.sizes("kernel"), node.sizes("dilation"), node.sizes("stride"), strict=True)
    return any((kernel - 1) * dilation + 1 > stride for kernel, dilation, stride in sizes)


def input_square(job: Job) -> Fraction:
    """The bound of ‖x‖² of a row's inputs with the 1 for the bias, as far as the job states one."""
    pipeline, limit = job.pipeline, Fraction(job.data.limit)
    most = [limit if term.part == "number" else Fraction(term.bound) for term in pipeline.terms]
    most += [most[left] * most[right] for left, right in pipeline.interactions]
    return sum((each**2 for each in most), Fraction(1))


def given_weight(job: Job) -> str:
    """The weight of the first layer, if its inputs are the rows as their owners share them and
    the squares of those fit a word."""
    if not job.pipeline.trivial or not squares_fit(input_square(job), job.fraction_bits):
        return ""
    for node in job.graph.nodes:
        if node.op != "reshape":
            return node.tensors["weight"] if node.op == "linear" else ""
    return ""


def clip_plan(job: Job) -> ClipPlan:
    """The plan of a job whose gradients are clipped over shares. RangeError if it does not fit."""
    return make_plan(
        layers_of(job),
        fraction_bits=job.fraction_bits,
        clip=row_clip(job) / unit_of(job),
        input_square=input_square(job),
        sum_limit=sum_limit(job),
        rate=learning_rate(job, 0) / job.train.batch_size,
        given=given_weight(job),
    )
