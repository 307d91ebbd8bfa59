"""Programs that leak on purpose: the transcript-first test sees every one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from protocols.arrays import Words
from protocols.roles.evaluator import Evaluator
from protocols.roles.role import Mask, Role
from protocols.shares.arithmetic import remask
from protocols.shares.masked import Masked, public
from tests.support.loopback import combine_masked, secret, shares_of
from tests.support.privacy import F
from tests.support.transcript_first import run_scripted


def insecure_mask_twice(x: Masked) -> Sequence[Masked]:
    """Two products opened under one mask: their difference is public."""
    mask = x.role.mask(x.shape)
    again = Mask(mask.array)
    return [
        Masked(x.role, x.shape, x.role.open(z.part, m), m.words)
        for z, m in ((x.shares(), mask), (x.scale(3).shares(), again))
    ]


def insecure_mask_of_zero(x: Masked) -> Sequence[Masked]:
    mask = Mask(np.zeros(x.shape, np.int64))
    return [Masked(x.role, x.shape, x.role.open(x.shares().part, mask), mask.words)]


def insecure_old_mask(x: Masked) -> Sequence[Masked]:
    """A second value opened under the mask that x has already."""
    fresh = remask(x.shares())
    assert fresh.lam is not None
    delta = x.role.open(x.scale(2).shares().part, Mask(fresh.lam))
    return [Masked(x.role, x.shape, delta, fresh.lam)]


def insecure_wrap_bit(x: Masked) -> Sequence[Masked]:
    """Truncation that publishes whether z + r has wrapped around."""
    role = x.role
    mask = role.mask(x.shape)
    opened = role.open(x.shares().shift(1 << 62).part, mask)
    r = mask.words
    u = role.deal((r.view(np.uint64) >> np.uint64(F)).view(np.int64), x.shape)
    m = role.deal((r.view(np.uint64) >> np.uint64(63)).view(np.int64), x.shape)
    nothing = Mask(np.zeros(x.shape, np.int64))
    wrapped = role.open(opened.map(lambda c: np.where(c < 0, 0, m)), nothing)
    high = np.int64(1 << (64 - F))

    def delta(c: Words) -> Words:
        words: Words = (c.view(np.uint64) >> np.uint64(F)).view(np.int64)
        return words + high * wrapped.get() - np.int64(1 << (62 - F))

    lam = (r.view(np.uint64) >> np.uint64(F)).view(np.int64) if role.is_dealer else u
    return [Masked(role, x.shape, opened.map(delta), lam)]


def insecure_reveal(x: Masked) -> Sequence[Masked]:
    """The output's mask as it was opened, not dealt anew: tells the summands apart."""
    fresh = remask(x.shares())
    if isinstance(x.role, Evaluator):
        assert fresh.lam is not None
        x.role.broadcast(b"rvl ", fresh.lam)
    return [public(x.role, np.zeros(x.shape, np.int64))]


@pytest.mark.parametrize(
    "leak",
    [insecure_mask_twice, insecure_mask_of_zero, insecure_old_mask, insecure_wrap_bit],
)
def test_leaks_are_seen(leak: Callable[[Masked], Sequence[Masked]]) -> None:
    """The results stay right, so only the view can tell."""
    views = []
    for seed in range(4):
        value = np.random.default_rng(seed).integers(-(2**62), 2**62, 64)

        def program(role: Role, value: Words = value) -> Any:
            return [shares_of(output) for output in leak(secret(role, value, 0))]

        results, view = run_scripted(program, 2, (1,))
        outputs = [combine_masked(parts) for parts in zip(*results, strict=True)]
        factors = {"insecure_mask_twice": (1, 3), "insecure_old_mask": (2,)}.get(leak.__name__)
        if factors is not None:
            for factor, output in zip(factors, outputs, strict=True):
                np.testing.assert_array_equal(output, factor * value)
        views.append(view)
    assert any(view != views[0] for view in views[1:])


def test_leak_of_a_reveal_is_seen() -> None:
    views = []
    for seed in range(4):
        tensors = np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, (2, 4))

        def program(role: Role, tensors: Words = tensors) -> Any:
            x = secret(role, tensors[0], 0) + secret(role, 7 - tensors[0], 1)
            return [shares_of(output) for output in insecure_reveal(x)]

        views.append(run_scripted(program, 3, (2,))[1])
    assert any(view != views[0] for view in views[1:])
