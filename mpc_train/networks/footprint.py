"""How much memory the rows of a network take over shares, from its graph alone.

An evaluator's bytes for each element of a row, measured in separate processes (two evaluators, 2^20
elements): masks, correlations and opened values of one operation, alive until it ends. A dealer,
which holds no opened values, needs less.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpc_train.networks.graph import Graph, Node

WORD = 8
HELD = 2 * WORD
"""A value between operations: Δ and a share of λ."""
ROUNDED = 75
"""A product, its truncation and the masked result."""
COMPARED = 100
"""A comparison after a truncation."""
CHOSEN = 120
"""A truncation, a comparison and a choice: ReLU, a candidate of a maximum."""
SPLINE = 640
"""A spline of a value: about thirty comparisons that share their tables."""
EXPONENTIALS = 1_300
"""For one class of a softmax: two splines and their factors."""
ALL_PAIRS = 16
"""Up to this many classes a maximum compares all pairs; beyond, one after the other."""
COLUMN = 3 * WORD
"""An element of a convolution's columns: Δ, λ and their difference."""
NAME_COMPARED = 90
"""One row number of an embedding's table, for each number looked up."""

CURVES = {"gru": 3, "lstm": 5, "rnn_tanh": 1}
"""Splines per element of a recurrent layer's states; with the values kept for the backward pass
they take as much as elsewhere (measured, within a tenth)."""

_PER_OUTPUT = {
    "relu": CHOSEN,
    "leaky_relu": CHOSEN,
    "clamp": CHOSEN + COMPARED // 2,
    "sigmoid": SPLINE,
    "tanh": SPLINE,
    "smooth": SPLINE,
    "batch_norm": COMPARED,
    "layer_norm": COMPARED,
    "group_norm": COMPARED,
    "dropout": CHOSEN,
}
_MULTIPLIES = ("linear", "mul", "matmul", "scale", "mul_weight", "resize")


def maximum_bytes(classes: int) -> int:
    """For one row: the largest of its classes, and which it is."""
    pairs = classes * (classes - 1) // 2 if classes <= ALL_PAIRS else classes
    return pairs * COMPARED


def node_bytes(graph: Graph, node: Node, shapes: dict[str, tuple[int, ...]]) -> int:
    """For one row at one node. shapes: of all values, by name."""
    inputs = [prod(shapes[name]) for name in node.inputs]
    output = prod(node.shape)
    held = HELD * (sum(inputs) + output)
    if node.op in _PER_OUTPUT:
        return held + _PER_OUTPUT[node.op] * output
    if node.op == "conv":
        channels = shapes[node.inputs[0]][0]
        columns = channels * prod(node.sizes("kernel")) * prod(node.shape[1:])
        return held + COLUMN * columns + ROUNDED * output
    if node.op == "max_pool":
        return held + CHOSEN * prod(node.sizes("kernel")) * output
    if node.op == "softmax":
        rows, classes = output // node.shape[-1], node.shape[-1]
        return held + rows * maximum_bytes(classes) + EXPONENTIALS * output
    if node.op == "attention":
        return held + _attention_bytes(node, shapes[node.inputs[0]])
    if node.op == "recurrent":
        curves = CURVES.get(str(node.settings["cell"]), 0)
        return held + (SPLINE * curves or CHOSEN) * output
    if node.op == "embedding":
        names = graph.tensors[node.tensors["weight"]].shape[0]
        return held + NAME_COMPARED * names * inputs[0] + ROUNDED * output
    return held + (ROUNDED * output if node.op in _MULTIPLIES else 0)


def _attention_bytes(node: Node, shape: tuple[int, ...]) -> int:
    length, width = shape
    scores = node.count("heads") * length * length
    per_score = EXPONENTIALS + maximum_bytes(length) // length
    return 4 * ROUNDED * length * width + per_score * scores


def row_bytes(graph: Graph) -> list[int]:
    """For one row at each node, in order."""
    shapes = {graph.input_name: graph.input_shape}
    shapes |= {node.name: node.shape for node in graph.nodes}
    return [node_bytes(graph, node, shapes) for node in graph.nodes]


def metric_bytes(metrics: Iterable[str], outputs: int, bins: int, levels: int) -> int:
    """For one row whose metrics, all of them together, are computed from its outputs.

    levels: thresholds of an AUC of many rows.
    """
    listed, total = set(metrics), HELD * 2 * outputs
    called = {"accuracy", "confusion", "precision", "recall", "f1"} & listed
    if called:
        total += (COMPARED if outputs == 1 else maximum_bytes(outputs)) + ROUNDED * outputs
    if called - {"accuracy"} and outputs > 1:
        total += 4 * WORD * outputs * outputs
    if "log_loss" in listed:
        total += SPLINE if outputs == 1 else maximum_bytes(outputs) + SPLINE * (outputs + 1)
    if "calibration" in listed:
        total += SPLINE + COMPARED * (bins - 1)
    if "auc" in listed:
        total += COMPARED // 2 * levels
    return total + ROUNDED * len(listed & {"mse", "mae", "r2"})
