"""Whether the operations of a job's own network stay within the ring's range.

Products (linear, convolution, matmul, attention, element-wise) are covered by the bound that the
job states for all layer outputs, `fixed_point.activation_limit`, and by that of gradients; a
maximum, ReLU, a slice or a sum of windows does not make values larger. Everything else is checked
here, node by node, against the limits that the protocols state.
"""

from __future__ import annotations

from fractions import Fraction
from math import prod

from mpc_train.base.bounds import WORD_BITS, bit_length
from mpc_train.errors import JobError, ModelError
from mpc_train.jobs.job import Job
from mpc_train.networks.graph import NORMS, GraphError, Node
from mpc_train.networks.graph_columns import columns_of
from protocols.crypten_tensor.layers.normalisation_plan import VALUE_BITS, check_norm
from protocols.crypten_tensor.layers.resize_plan import WEIGHT_BITS
from protocols.errors import RangeError
from protocols.ring.rational import mantissa

NORM_LIMIT = 1 << VALUE_BITS
MAX_EPS = 1
"""The norms over shares are sized for variances; eps may hardly add to these."""
MIN_NORMALISED = 4
"""Fewer values are sometimes nearly equal. The remainder of their differences, divided by
sqrt(eps), then gives gradients hundreds of times the usual: over two or three values even PyTorch's
float32 and float64 end with different weights."""
MAX_SOFTMAX = 1024
SQUARE_BITS = 31
"""Splines square the distance from a knot; as words, knots are at most 2^31."""
MAX_STEPS = 1024
"""The most steps of a recurrent layer: each takes the rounds of two functions, one after the
other."""
MAX_VOCABULARY = 4096
"""Each private number is compared with all row numbers of a table."""
MIN_DROPPED = Fraction(1, 1 << 16)
"""`coins` have a probability of 16 bits."""
MAX_CONSTANT = 1 << 12
"""Words of this magnitude fit at every scale that a tensor may have."""
SLOPE_BITS = 20


def check_graph_ranges(job: Job) -> None:
    """Raise JobError that names the node and what to change."""
    columns = columns_of(job.graph)
    _check_indices(job, columns)
    if job.model.network is None:
        return
    key = "model.module" if job.model.module else "model.graph"
    shapes = {job.graph.input_name: job.graph.input_shape}
    for node in job.graph.nodes:
        try:
            _check(job, node, shapes[node.inputs[0]])
            _check_constants(job, node, shapes[node.inputs[0]])
            if node.op == "embedding":
                _check_ids(job, node, columns.get(node.inputs[0]))
        except GraphError as error:
            raise JobError(f"{key}: {error}") from error
        shapes[node.name] = node.shape


def _check(job: Job, node: Node, shape: tuple[int, ...]) -> None:
    f = job.fraction_bits
    if node.op in NORMS:
        if job.fixed_point.activation_limit > NORM_LIMIT:
            raise GraphError(
                f"{node.place}: {node.op} takes values up to {NORM_LIMIT}; lower "
                "fixed_point.activation_limit"
            )
        if round(node.real("eps") * (1 << f)) < 1:
            raise GraphError(
                f"{node.place}: eps = {float(node.real('eps')):g} is below 2^-{f}; use a larger one"
            )
        if node.real("eps") > MAX_EPS:
            raise GraphError(
                f"{node.place}: eps = {float(node.real('eps')):g} is above {MAX_EPS}, as large as "
                "a variance; use a smaller one"
            )
        if node.op == "batch_norm" and not 0 <= node.real("momentum") <= 1:
            raise GraphError(f"{node.place}: the momentum must be between 0 and 1")
        _check_count(job, node, shape)
    elif node.op in ("softmax", "attention"):
        length = shape[0] if node.op == "attention" else shape[-1]
        if length > MAX_SOFTMAX:
            raise GraphError(f"{node.place}: softmax over {length}; at most {MAX_SOFTMAX}")
        if length << f > 1 << SQUARE_BITS:
            raise GraphError(
                f"{node.place}: the table of 1 / x for softmax over {length} would overflow at "
                f"fraction_bits = {f}; use {SQUARE_BITS - length.bit_length()} at most"
            )
    elif node.op == "recurrent":
        _check_steps(f, node)
    elif node.op == "embedding":
        rows = _table_rows(job, node)
        if rows > MAX_VOCABULARY:
            raise GraphError(
                f"{node.place}: a table of {rows}; at most {MAX_VOCABULARY} categories"
            )
    elif node.op == "dropout" and node.real("p"):
        dropped = node.real("p")
        if not MIN_DROPPED <= dropped <= 1 - MIN_DROPPED:
            raise GraphError(f"{node.place}: p = {float(dropped):g}; 0, or 2^-16 to 1 - 2^-16")


def _check_steps(f: int, node: Node) -> None:
    """A GRU's and an RNN's states lie within ±1, an LSTM's cells within ± the number of steps."""
    steps = node.shape[0]
    if steps > MAX_STEPS:
        raise GraphError(f"{node.place}: a sequence of {steps} steps; at most {MAX_STEPS}")
    if node.settings["cell"] == "lstm" and steps << f > 1 << SQUARE_BITS:
        raise GraphError(
            f"{node.place}: the cells of an LSTM may reach {steps} after {steps} steps and would "
            f"overflow at fraction_bits = {f}; use {SQUARE_BITS - steps.bit_length()} at most, or "
            "a GRU"
        )


def _check_constants(job: Job, node: Node, shape: tuple[int, ...]) -> None:
    """Raise GraphError if public numbers of a node overflow or round to 0."""
    f, limit = job.fraction_bits, job.fixed_point.activation_limit
    if node.op == "scale":
        factor = abs(node.real("factor"))
        if factor > MAX_CONSTANT:
            raise GraphError(
                f"{node.place}: a factor of {float(factor):g} would overflow, at most "
                f"{MAX_CONSTANT}; scale the weights before it instead"
            )
        if factor and factor < Fraction(1, 1 << f):
            raise GraphError(
                f"{node.place}: a factor of {float(factor):g} rounds to 0 at fraction_bits = {f}"
            )
    elif node.op == "shift":
        summand = node.real("summand")
        if abs(summand) > limit:
            raise GraphError(
                f"{node.place}: a summand of {float(summand):g} is beyond "
                f"fixed_point.activation_limit = {limit}"
            )
        if summand and not round(summand * (1 << f)):
            raise GraphError(
                f"{node.place}: a summand of {float(summand):g} rounds to 0 at fraction_bits = {f}"
            )
    elif node.op == "clamp":
        low, high = node.real("low"), node.real("high")
        if not -MAX_CONSTANT <= low < high <= MAX_CONSTANT:
            raise GraphError(
                f"{node.place}: limits of {float(low):g} and {float(high):g}; the first must be "
                f"the lower one, and both must lie within ±{MAX_CONSTANT}"
            )
        if round(low * (1 << f)) == round(high * (1 << f)):
            raise GraphError(
                f"{node.place}: limits of {float(low):g} and {float(high):g} are the same at "
                f"fraction_bits = {f}"
            )
    elif node.op == "leaky_relu":
        slope = abs(node.real("slope"))
        shift = mantissa(slope, SLOPE_BITS)[1] if slope <= MAX_CONSTANT else 0
        grown = f + shift + bit_length(Fraction(limit) * max(slope, Fraction(1)))
        if slope > MAX_CONSTANT or grown > WORD_BITS:
            raise GraphError(
                f"{node.place}: a slope of {float(slope):g} needs more than {WORD_BITS} bits at "
                f"fraction_bits = {f}; use 0, or one nearer to 1"
            )
    elif node.op == "resize":
        # In the backward pass an element gets the gradients of all elements that it neighbours.
        most = prod(
            2 * -(-size // was) + 2 for size, was in zip(node.shape[1:], shape[1:], strict=True)
        )
        if f + WEIGHT_BITS + bit_length(Fraction(limit * most)) > WORD_BITS:
            raise GraphError(
                f"{node.place}: interpolation from {list(shape)} to {list(node.shape)} needs more "
                f"than {WORD_BITS} bits at fraction_bits = {f}; enlarge in smaller steps"
            )
    elif node.op == "average_pool" and not 0 <= node.count("divisor") <= MAX_CONSTANT * limit:
        raise GraphError(f"{node.place}: a divisor of {node.count('divisor')}")


def _check_indices(job: Job, columns: dict[str, tuple[int, ...]]) -> None:
    """The number of a level may go only into an Embedding: a layer that multiplies it would treat
    the order of the levels as a quantity."""
    terms = job.pipeline.terms
    indices = {place for place, term in enumerate(terms) if term.part == "index"}
    for node in job.graph.nodes if indices else ():
        if node.op == "embedding" or node.name in columns:
            continue
        for place in sorted(indices & {k for name in node.inputs for k in columns.get(name, ())}):
            raise JobError(
                f"prepare.columns.{terms[place].column}.encoding: the number of a level is only "
                f"for an Embedding, but {node.place} uses it as a quantity; remove encoding there, "
                "or use the column only in an Embedding"
            )


def _check_ids(job: Job, node: Node, columns: tuple[int, ...] | None) -> None:
    """The columns that choose rows of an embedding's table must contain row numbers.

    A number outside chooses no row, or the nearest one, and nobody would notice: only the owners'
    check of the declared range keeps such numbers out.
    """
    last = _table_rows(job, node) - 1
    if columns is None:
        raise GraphError(
            f"{node.place}: an embedding of computed values; give it unchanged columns, or "
            "slices of them"
        )
    terms, names = job.pipeline.terms, job.pipeline.names
    for place in columns:
        term = terms[place] if place < len(terms) else None
        if term is not None and term.part == "index":
            if term.bound > last:
                raise GraphError(
                    f"{node.place}: column {term.column!r} contains the numbers 0 to "
                    f"{int(term.bound)}, but the table has the rows 0 to {last}: make it "
                    f"{int(term.bound) + 1} rows long"
                )
            continue
        if term is None or term.part != "number" or term.secret or term.power != 1 or term.log:
            levels = term is not None and term.part == "level"
            advice = '; give its column encoding = "index" in [prepare]' if levels else ""
            raise GraphError(
                f"{node.place}: {names[place]!r} chooses rows of a table, but is not an unscaled "
                f"number from the file{advice}"
            )
        declared = job.schema[term.column].range
        if declared is None or not all(
            0 <= (Fraction(end) - Fraction(term.center)) / Fraction(term.scale) <= last
            for end in declared
        ):
            said = "" if declared is None else f", not [{declared[0]}, {declared[1]}]"
            raise GraphError(
                f"{node.place}: column {term.column!r} chooses rows 0 to {last} of a table: "
                f"declare its range = [0, {last}]{said}"
            )


def _table_rows(job: Job, node: Node) -> int:
    return job.graph.tensors[node.tensors["weight"]].shape[0]


def _check_count(job: Job, node: Node, shape: tuple[int, ...]) -> None:
    """The number of values in each mean of a norm: enough to be exact, few enough to fit."""
    if node.op == "batch_norm" and not job.trains:
        return  # running statistics
    if node.op == "batch_norm":
        positions = prod(shape[1:])
        count = job.train.batch_size * positions
        advice = f"train.batch_size = {-(-MIN_NORMALISED // positions)} at least"
    elif node.op == "layer_norm":
        count = prod(shape[-node.count("axes") :])
        advice = f"normalise over {MIN_NORMALISED} at least"
    else:
        count = prod(shape) // node.count("groups")
        advice = f"use groups of {MIN_NORMALISED} values at least"
    if count < MIN_NORMALISED:
        raise GraphError(
            f"{node.place}: {node.op} over {count} value{'s' * (count > 1)} cannot be repeated "
            f"exactly, not even in PyTorch; {advice}"
        )
    try:
        check_norm(count, job.fraction_bits)
    except RangeError as error:
        raise GraphError(f"{node.place}: {error}") from error


def check_network(job: Job) -> None:
    """Raise ModelError unless the shapes that the job's own network states are correct."""
    if job.model.network is not None:
        # torch, which most callers of this module do not need otherwise.
        from mpc_train.networks.plain import dry_run

        try:
            dry_run(job.model.network.graph)
        except GraphError as error:
            raise ModelError(f"model.graph: {error}") from error
