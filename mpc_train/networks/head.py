"""The end of a network: whether its outputs are logits, as the losses of classifiers require.

A classifier's loss applies a sigmoid or a softmax to the network's output. If the network itself
ends in one, it is not applied twice: the network is trained, evaluated and applied by its logits
(`without_head`), and its last layer, which has no weights, only shows what the researcher's own
module outputs. Any other end stays as written, unless its outputs can only be numbers between 0 and
1: treating probabilities as logits would silently train another model than intended, so
`check_head` refuses it.

    logistic    Sigmoid
    softmax     Softmax, LogSoftmax

Reshapes of the number, or of the classes, may follow.
"""

from __future__ import annotations

from math import isnan, prod

import msgspec

from mpc_train.networks.graph import Graph, GraphError, Node

HEADS: dict[str, tuple[str, ...]] = {
    "logistic": ("sigmoid",),
    "softmax": ("softmax", "log_softmax"),
}
"""By kind of model: the operations that its loss includes."""
_MOVED = ("reshape", "permute")
_WITHIN = (*_MOVED, "slice", "max_pool", "mean", "adaptive_average_pool", "resize")
"""Operations whose outputs stay within the range of their inputs."""
Ends = tuple[float, float]


def head_of(graph: Graph, kind: str) -> str:
    """The operation at the graph's end that the loss includes; empty if there is none."""
    found = _ending(graph, kind)
    return found[0].op if found else ""


def without_head(graph: Graph, kind: str) -> Graph:
    """The graph that outputs logits: without `head_of`."""
    found = _ending(graph, kind)
    if not found:
        return graph
    head, *after = found
    (logits,) = head.inputs
    dropped = {node.name for node in found}
    nodes = [node for node in graph.nodes if node.name not in dropped]
    for node in after:
        nodes.append(msgspec.structs.replace(node, inputs=(logits,)))
        logits = node.name
    return msgspec.structs.replace(graph, nodes=tuple(nodes), output=logits)


def check_head(graph: Graph, kind: str) -> None:
    """Raise GraphError if a classifier's network outputs probabilities other than by its last
    layer, or if a LogSoftmax is anywhere else."""
    logits = without_head(graph, kind)
    for node in logits.nodes:
        if node.op == "log_softmax":
            raise GraphError(
                f"{node.place}: is supported only as the last layer of a softmax model; elsewhere "
                "use Softmax, and let a softmax model's network end in it once"
            )
    ends = _ends(logits)
    if kind in HEADS and ends is not None and ends[0] >= 0 and ends[1] <= 1:
        raise GraphError(
            f"{graph.output}: the network outputs numbers between 0 and 1, like probabilities, "
            f"but the loss of a {kind} model takes logits; let it end in the layer that makes "
            f"these, or in a {HEADS[kind][0]} directly after it, which is recognised"
        )


def _ending(graph: Graph, kind: str) -> list[Node]:
    """The head and the reshapes after it, in order; empty if there is no head."""
    nodes, uses = {node.name: node for node in graph.nodes}, graph.uses()
    found: list[Node] = []
    name = graph.output
    while name in nodes and uses[name] == 1:
        node = nodes[name]
        found.insert(0, node)
        if node.op in HEADS.get(kind, ()):
            # Over all values, which must be computed ones.
            whole = node.op == "sigmoid" or node.shape[-1] == prod(node.shape)
            return found if whole and node.inputs[0] in nodes else []
        if node.op not in _MOVED:
            return []
        (name,) = node.inputs
    return []


def _ends(graph: Graph) -> Ends | None:
    """Bounds of the output that hold for all weights; None if there are none."""
    found: dict[str, Ends | None] = {graph.input_name: None}
    for node in graph.nodes:
        found[node.name] = _bounds(node, [found[name] for name in node.inputs])
    return found[graph.output]


def _bounds(node: Node, inputs: list[Ends | None]) -> Ends | None:
    if node.op in ("sigmoid", "softmax"):
        return 0.0, 1.0
    if node.op == "tanh" or node.settings.get("cell") in ("gru", "lstm", "rnn_tanh"):
        return -1.0, 1.0
    if node.op == "clamp":
        return float(node.real("low")), float(node.real("high"))
    known = [ends for ends in inputs if ends is not None]
    if len(known) < len(inputs):
        return None
    (low, high), *others = known
    if node.op in _WITHIN:
        return low, high
    if node.op == "dropout":  # in evaluation: nothing is dropped
        return low, high
    if node.op == "relu":
        return max(low, 0.0), max(high, 0.0)
    if node.op == "cat":
        return min(ends[0] for ends in known), max(ends[1] for ends in known)
    if node.op == "scale":
        factor = float(node.real("factor"))
        return _sorted(low * factor, high * factor)
    if node.op == "shift":
        summand = float(node.real("summand"))
        return low + summand, high + summand
    if node.op == "add":
        return low + others[0][0], high + others[0][1]
    if node.op == "sub":
        return low - others[0][1], high - others[0][0]
    if node.op == "mul":
        return _sorted(*(one * other for one in (low, high) for other in others[0]))
    return None


def _sorted(*values: float) -> Ends | None:
    return None if any(map(isnan, values)) else (min(values), max(values))
