"""The view of corrupted evaluators does not depend on the data: losses, steps, decisions,
answers of a service.

Everything that goes in is secret, and what is disclosed is the same each time. The honest coins
are the same as well: shares of a disclosed bit are among what is seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.roles.role import Role
from tests.support.layers import UNIT, opened, part
from tests.support.loopback import secret, shares_of
from tests.support.privacy import CORRUPTED, honest_owner, same_views
from tests.support.serving_programs import SERVING
from tests.support.training_programs import DECISIONS, TRAINING
from tests.support.transcript_first import run_scripted

PROGRAMS = TRAINING | SERVING
FAST = {(2, (1,)), (3, (0, 2))}
SETTINGS = [
    pytest.param(*setting, marks=[] if setting in FAST else pytest.mark.slow)
    for setting in CORRUPTED
]


@pytest.mark.parametrize(("evaluators", "corrupted"), SETTINGS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str, evaluators: int, corrupted: tuple[int, ...]) -> None:
    program, views = PROGRAMS[name], []
    for seed in range(3):
        numbers = program.numbers(np.random.default_rng(seed))
        names: list[str] = []

        def body(role: Role, numbers: np.ndarray = numbers, names: list[str] = names) -> Any:
            np.seterr(over="ignore")  # words wrap around; NumPy keeps this for each thread
            words = np.rint(numbers / UNIT).astype(np.int64)
            source = secret(role, words, honest_owner(evaluators, corrupted))
            found = program.over_shares(source)
            names[:] = found
            return [
                part(value) if isinstance(value, MaskedTensor) else shares_of(value)
                for value in found.values()
            ]

        coins = 1 if name in DECISIONS else seed
        results, view = run_scripted(body, evaluators, corrupted, coins=coins)
        found = dict(zip(names, map(opened, zip(*results, strict=True)), strict=True))
        for key, value in program.in_the_clear(numbers).items():
            difference = np.abs(found[key].reshape(value.shape) - value).max()
            assert difference <= program.bound, key
        views.append(view)
    same_views(views)
