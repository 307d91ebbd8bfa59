"""Which of a row's columns a value of a graph consists of, if they are only rearranged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpc_train.networks.graph import Graph, Node

Places = NDArray[np.int64]


def columns_of(graph: Graph) -> dict[str, tuple[int, ...]]:
    """The places of columns by the name of a value; none for a computed value.

    Shapes must have been checked (`plain.dry_run`).
    """
    first = np.arange(int(np.prod(graph.input_shape)), dtype=np.int64)
    found: dict[str, Places] = {graph.input_name: first.reshape(graph.input_shape)}
    for node in graph.nodes:
        if all(name in found for name in node.inputs):
            moved = _moved(node, [found[name] for name in node.inputs])
            if moved is not None:
                found[node.name] = moved
    return {name: tuple(np.unique(places).tolist()) for name, places in found.items()}


def looked_up(graph: Graph) -> frozenset[int]:
    """Places of the columns whose numbers choose rows of an Embedding's table."""
    tables = [node.inputs[0] for node in graph.nodes if node.op == "embedding"]
    if not tables:
        return frozenset()
    found = columns_of(graph)
    return frozenset(place for name in tables for place in found.get(name, ()))


def _moved(node: Node, inputs: list[Places]) -> Places | None:
    if node.op == "reshape":
        return inputs[0].reshape(node.shape)
    if node.op == "permute":
        return inputs[0].transpose(node.sizes("axes"))
    if node.op == "slice":
        where = np.arange(node.count("start"), node.count("stop"))
        return inputs[0].take(where, node.count("axis"))
    if node.op == "cat":
        return np.concatenate(inputs, node.count("axis"))
    return None
