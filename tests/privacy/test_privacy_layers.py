"""The view of corrupted evaluators does not depend on the secrets of the others: layers.

Forward and backward of every layer, with rows, weights, statistics and the gradient from above all
secret, under one view that is fixed before them (`transcript_first`). The results are those of
PyTorch for every choice of secrets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from protocols.comparison.coins import nearest
from protocols.roles.role import Role
from tests.support.layer_programs import LAYERS, SECRET_DROPOUT, LayerProgram, expected, run_layer
from tests.support.layers import UNIT, opened, part
from tests.support.loopback import secret
from tests.support.privacy import CORRUPTED, honest_owner, same_views
from tests.support.transcript_first import View, run_scripted

SCALES = (1.0, 0.5, 0.75)
FAST = {(2, (1,)), (3, (0, 2))}
SETTINGS = [
    pytest.param(*setting, marks=[] if setting in FAST else pytest.mark.slow)
    for setting in CORRUPTED
]


def run(
    program: LayerProgram,
    numbers: np.ndarray,
    evaluators: int,
    corrupted: tuple[int, ...],
    coins: int,
) -> tuple[dict[str, np.ndarray], View]:
    """What comes out of a layer of these secrets, and what the corrupted evaluators saw."""
    names: list[str] = []

    def body(role: Role) -> Any:
        words = np.rint(numbers / UNIT).astype(np.int64)
        found = run_layer(program, secret(role, words, honest_owner(evaluators, corrupted)))
        names[:] = found
        return [part(tensor) for tensor in found.values()]

    results, view = run_scripted(body, evaluators, corrupted, coins=coins)
    return dict(zip(names, map(opened, zip(*results, strict=True)), strict=True)), view


@pytest.mark.parametrize(("evaluators", "corrupted"), SETTINGS)
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str, evaluators: int, corrupted: tuple[int, ...]) -> None:
    program, views = LAYERS[name], []
    for coins, scale in enumerate(SCALES):
        numbers = program.draw(np.random.default_rng(coins), scale)
        found, view = run(program, numbers, evaluators, corrupted, coins)
        twin = expected(program, numbers)
        assert set(found) == set(twin)
        for key, value in twin.items():
            assert np.abs(found[key] - value).max() <= program.bound, key
        views.append(view)
    same_views(views)


@pytest.mark.parametrize(("evaluators", "corrupted"), SETTINGS)
@pytest.mark.parametrize("name", SECRET_DROPOUT)
def test_dropout(name: str, evaluators: int, corrupted: tuple[int, ...]) -> None:
    """One view, and yet masks that differ: it does not tell what is dropped."""
    program, views, masks = SECRET_DROPOUT[name], [], []
    share = float(nearest(1 - program.graph.nodes[0].real("p")))
    for coins, scale in enumerate(SCALES):
        numbers = program.draw(np.random.default_rng(coins), scale)
        found, view = run(program, numbers, evaluators, corrupted, coins)
        x, upstream = np.split(numbers, 2)
        mask = found["output"].ravel() != 0
        for key, value in (("output", x), ("gradient of x", upstream)):
            assert np.abs(found[key].ravel() - value * mask / share).max() <= program.bound
        views.append(view)
        masks.append(mask.tobytes())
    same_views(views)
    assert len(set(masks)) > 1
