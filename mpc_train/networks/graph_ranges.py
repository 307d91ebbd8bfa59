"""Whether the operations of a job's own network keep within the ring.

Products (linear, convolution, matmul, attention, element-wise) are covered by the bound that the
job states for all that a layer puts out, `fixed_point.activation_limit`, and by that of gradients;
a maximum, ReLU, a slice or a sum of windows makes nothing larger. What is left is checked here, a
node at a time, with the limits that the protocols state.
"""

from __future__ import annotations

from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING

from mpc_train.errors import JobError
from mpc_train.networks.graph import GraphError, Node

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

NORM_LIMIT = 1 << 6
"""`layers_norm` sums squares of values below this."""
CHUNK, LIMIT_BITS, LEAST_MANTISSA = 512, 8, 8
"""Of `layers_norm`: rows are divided by their length with what is left of 61 bits."""
MAX_SOFTMAX = 1024
MAX_VOCABULARY = 4096
"""Each private number is compared with all of a table's."""
LEAST_DROPPED = Fraction(1, 1 << 16)
"""`coins` have a probability of 16 bits."""
NORMS = ("batch_norm", "layer_norm", "group_norm")


def check_graph_ranges(job: Job) -> None:
    """Raise JobError that names the node, and what to change."""
    if job.model.network is None:
        return
    key = "model.module" if job.model.module else "model.graph"
    shapes = {job.graph.input_name: job.graph.input_shape}
    for node in job.graph.nodes:
        try:
            _check(job, node, shapes[node.inputs[0]])
        except GraphError as error:
            raise JobError(f"{key}: {error}") from error
        shapes[node.name] = node.shape


def _check(job: Job, node: Node, shape: tuple[int, ...]) -> None:
    f = job.fraction_bits
    if node.op in NORMS:
        if job.fixed_point.activation_limit > NORM_LIMIT:
            raise GraphError(
                f"{node.name}: {node.op} takes values up to {NORM_LIMIT}; lower "
                "fixed_point.activation_limit"
            )
        if round(node.real("eps") * (1 << f)) < 1:
            raise GraphError(
                f"{node.name}: eps = {float(node.real('eps')):g} is below 2^-{f}; use a larger one"
            )
        count = _normalised(job, node, shape)
        room = 61 - f - LIMIT_BITS - (count // CHUNK if count > CHUNK else count).bit_length()
        if room < LEAST_MANTISSA:
            raise GraphError(f"{node.name}: a norm over {count} values; use smaller batches")
    elif node.op in ("softmax", "attention"):
        length = shape[0] if node.op == "attention" else shape[-1]
        if length > MAX_SOFTMAX:
            raise GraphError(f"{node.name}: softmax over {length}; at most {MAX_SOFTMAX}")
    elif node.op == "embedding":
        rows = job.graph.tensors[node.tensors["weight"]].shape[0]
        if rows > MAX_VOCABULARY:
            raise GraphError(f"{node.name}: a table of {rows}; at most {MAX_VOCABULARY} categories")
    elif node.op == "dropout" and node.real("p"):
        dropped = node.real("p")
        if not LEAST_DROPPED <= dropped <= 1 - LEAST_DROPPED:
            raise GraphError(f"{node.name}: p = {float(dropped):g}; 0, or 2^-16 to 1 - 2^-16")


def _normalised(job: Job, node: Node, shape: tuple[int, ...]) -> int:
    """How many values one mean of a norm is over."""
    if node.op == "batch_norm":
        return job.train.batch_size * prod(shape[1:])
    if node.op == "layer_norm":
        return prod(shape[-node.count("axes") :])
    return prod(shape) // node.count("groups")
