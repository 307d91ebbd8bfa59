"""The backward pass through CrypTen's tape, by a loop that raises errors where CrypTen's is
silent."""

from __future__ import annotations

from typing import Any

Tensor = Any
"""A `MaskedTensor`, which is defined above this module."""


def backpropagate(root: Tensor, gradient: Tensor) -> None:
    """Depth first, as in CrypTen: a node's gradient is passed on when all its parts have arrived.

    Works without recursion, and counts the expected parts anew at each pass.
    """
    edges: dict[int, list[Tensor]] = {}
    unseen = [root]
    while unseen:
        node = unseen.pop()
        if id(node) in edges:
            continue
        if node.grad_fn is not None and not node.children:
            raise RuntimeError("backward: this graph was already used; compute it again")
        edges[id(node)] = [
            child
            for child in node.children
            if child.requires_grad and node.ctx.is_differentiable(child)
        ]
        node.grad_expected = node.grad_received = 0
        unseen.extend(edges[id(node)])
    root.grad_expected = 1
    for children in edges.values():
        for child in children:
            child.grad_expected += 1

    pending = [(root, gradient)]
    while pending:
        node, part = pending.pop()
        node.grad_received += 1
        node.grad = part if node.grad is None else node.grad.add(part)
        if not node.children or node.grad_received < node.grad_expected:
            continue
        parts = node.grad_fn.backward(node.ctx, node.grad)
        parts = parts if isinstance(parts, (list, tuple)) else (parts,)
        children = [child for child in node.children if node.ctx.is_differentiable(child)]
        if len(children) > len(parts):
            raise RuntimeError(f"{node.grad_fn.name}: a gradient is missing")
        node.ctx.reset()
        node.grad, node.children = None, []
        pending.extend(
            (child, part)
            for child, part in reversed(list(zip(children, parts, strict=False)))
            if child.requires_grad
        )
