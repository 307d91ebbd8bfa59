"""A training that was broken off goes on in a new session, as if nothing had happened."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from mpc_train.checkpoints.keeper import place_of
from tests.support.checkpointed import BrokenOff, InsecureShelf, session
from tests.support.divergence import MLP, Setting

POINTS = "checkpoint_every = {}"
RULES = {
    "sgd": "{ learning_rate = 0.1 }",
    "momentum": "{ learning_rate = 0.1, momentum = 0.9, weight_decay = 0.01 }",
    "nesterov": "{ learning_rate = 0.1, momentum = 0.9, nesterov = true }",
    "adam": '{ name = "adam", learning_rate = 0.01 }',
    "adamw": '{ name = "adamw", learning_rate = 0.01, weight_decay = 0.1 }',
    "rmsprop": '{ name = "rmsprop", learning_rate = 0.01, momentum = 0.5 }',
}
TOLERANCE = 2**-12
"""Truncations round otherwise under other masks, by 2^-20 a step."""


def shelves(setting: Setting) -> dict[str, InsecureShelf]:
    return {name: InsecureShelf() for name in setting.job().evaluators}


def newest(kept: Mapping[str, InsecureShelf]) -> bytes:
    return max(set.intersection(*(set(shelf.tokens()) for shelf in kept.values())))


def worst(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


@pytest.mark.parametrize("rule", RULES)
def test_a_training_goes_on_where_it_was(rule: str) -> None:
    """Broken off in the middle of an epoch, three steps after its last checkpoint."""
    setting = Setting(RULES[rule], MLP, epochs=3, extra=POINTS.format(4))
    job = setting.job()
    tables, kept = setting.tables(job), shelves(setting)
    whole, _, steps = session(job, tables, shelves(setting), 1)
    with pytest.raises(BrokenOff):
        session(job, tables, kept, 2, stop_after=7)
    assert place_of(newest(kept)) == (4, False)
    resumed, _, again = session(job, tables, kept, 3, resume=newest(kept))
    assert again == steps[4:]
    assert 0 < worst(whole, resumed) < TOLERANCE
    # Training is over: the same weights, bit for bit, without a step.
    last = newest(kept)
    assert place_of(last) == (len(steps), True)
    twice, _, none = session(job, tables, kept, 4, resume=last)
    assert none == []
    assert worst(resumed, twice) == 0
