"""A training that was broken off goes on in a new session, as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from mpc_train.checkpoints.keeper import Keeper, place_of
from mpc_train.errors import ArtifactError
from protocols.roles.role import Role
from protocols.shares.masked import Masked
from tests.support.checkpointed import BrokenOff, InsecureShelf, session
from tests.support.divergence import MLP, Setting
from tests.support.loopback import combine_masked, secret, shares_of

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


def test_noisy_sums_are_drawn_once() -> None:
    """A session that goes on has those of the first one, under other masks, however often."""
    setting = Setting(RULES["sgd"], epochs=2, extra=POINTS.format(2))
    job = setting.job()
    tables, kept, shape = setting.tables(job), shelves(setting), (3,)
    drawn: list[list[object]] = []

    def sums(words: int) -> Callable[[Role, Keeper], Masked]:
        found: dict[int | None, object] = {}

        def of(role: Role, keeper: Keeper) -> Masked:
            before = keeper.sums(role, shape)
            mine = secret(role, np.full(shape, words)) if before is None else before
            role.finish()
            found[role.index] = shares_of(mine)
            if len(found) == len(job.evaluators) + 1:
                drawn.append([found[place] for place in (*range(len(job.evaluators)), None)])
            return mine

        return of

    with pytest.raises(BrokenOff):
        session(job, tables, kept, 1, stop_after=3, sums=sums(7))
    for number in (2, 3):
        with pytest.raises(BrokenOff):
            newest_one = newest(kept)
            session(
                job, tables, kept, number, newest_one, place_of(newest_one)[0] + 1, sums=sums(9)
            )
    assert [combine_masked(parts).tolist() for parts in drawn] == [[7, 7, 7]] * 3
    without = shelves(setting)
    with pytest.raises(BrokenOff):
        session(job, tables, without, 4, stop_after=3)
    with pytest.raises(ArtifactError, match="other noise on them would tell more"):
        session(job, tables, without, 5, newest(without), sums=sums(9))
