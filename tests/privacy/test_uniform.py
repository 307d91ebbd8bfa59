"""What real evaluators and the dealer send is uniform, bit by bit, and no mask serves twice.

Nothing of the arithmetic is replaced: constant secrets, many runs with fresh streams, and all that
went over the wire (`tests.support.uniformity`). Programs of `mpc_train` are in
tests/privacy/test_uniform_programs.py; that views do not depend on secrets jointly, is shown with
the view drawn first (`test_privacy*`). At the end, roles and programs that leak on purpose.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from protocols.comparison.coins import coins
from protocols.comparison.compare import below, negative
from protocols.linkage.shuffle import shuffle
from protocols.roles.dealer import Dealer
from protocols.roles.evaluator import Evaluator
from protocols.roles.role import Mask, Role
from protocols.roles.streams import Stream
from protocols.shares.arithmetic import multiply, remask, truncate
from protocols.shares.inputs import OutsideSource, from_outside, send_outside
from protocols.shares.masked import Masked
from protocols.shares.reveal import Output, RevealGate
from tests.privacy.test_privacy_leaks import (
    insecure_mask_of_zero,
    insecure_mask_twice,
    insecure_old_mask,
    insecure_wrap_bit,
)
from tests.protocols.shares.test_inputs import visitor_program
from tests.support.lockstep import LockstepLoopback
from tests.support.loopback import insecure_root, secret, shares_of
from tests.support.transcripts import SHAPE, TRAFFIC, fixed
from tests.support.uniformity import (
    FEW,
    RUNS,
    check_uniform,
    free_bits,
    observed,
    of_roles,
    related,
    suspicious,
)

X = np.random.default_rng(1).integers(-(2**22), 2**22, SHAPE)
LONG = ("training", "softmax", "divide", "inverse deviation")
"""Their parts are tested one by one among the others."""
THREE = ("matmul", "truncate", "negative after truncation", "select", "shuffle", "reveal")


def decided(x: Masked) -> None:
    """A bit that everybody is told."""
    gate = RevealGate(frozenset({Output("a", 0)}))
    gate.decide("a", 0, (x - x).select((0, 0)).shift(1))


def tossed(x: Masked) -> None:
    for share in (Fraction(1, 2), Fraction(9, 10)):
        shares_of(remask(coins(x.role, (40,), share).shares()))


def compared(x: Masked) -> None:
    """Signs and thresholds of every kind of width: one digit, several, several levels."""
    for bits in (2, 4, 9, 17, 24, 32, 45, 61):
        narrow = x.narrowed(bits)
        shares_of(remask(negative(narrow).shares()))
        shares_of(remask(below(narrow, (-1, 0)).shares()))


PROGRAMS: dict[str, Callable[[Masked], Any]] = {
    **TRAFFIC,
    "comparisons of all widths": compared,
    "truncate by many": lambda x: shares_of(truncate(x.shares(), 45)),
    "decide": decided,
    "coins": tossed,
}


@pytest.mark.parametrize(
    ("name", "evaluators"),
    [
        pytest.param(
            name,
            evaluators,
            marks=[]
            if name not in LONG and (evaluators == 2 or name in THREE)
            else pytest.mark.slow,
        )
        for evaluators in (2, 3, 5)
        for name in PROGRAMS
    ],
)
def test_program(name: str, evaluators: int) -> None:
    run = of_roles(lambda role: PROGRAMS[name](secret(role, X, 1)), evaluators)
    check_uniform(run, FEW if name in LONG else RUNS)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "count"), [(24, 21_000), (44, 61_000), (64, 21_000)])
def test_comparisons_of_many(bits: int, count: int) -> None:
    """So many that they are compared in more rounds, by smaller tables."""
    many = np.random.default_rng(3).integers(-(2**22), 2**22, count)

    def program(role: Role) -> None:
        shares_of(remask(negative(secret(role, many).narrowed(bits)).shares()))

    transcripts = observed(of_roles(program, 2), 12)
    assert not suspicious(transcripts)


@pytest.mark.parametrize("evaluators", [2, 3])
def test_a_visitors_tensor_and_the_summands_of_an_output(evaluators: int) -> None:
    """The seeds of a visitor's mask are those of a run, as its streams are."""

    def run(seed: int, net: LockstepLoopback) -> object:
        visitor = visitor_program(X, evaluators, seed)

        def program(role: Role) -> None:
            gate = RevealGate(frozenset({Output("sum", 1)}))
            x = visitor(role)
            gate.summand_for_recipients("sum", 1, x.shares() + secret(role, X, 1).shares())

        return of_roles(program, evaluators)(seed, net)

    check_uniform(run)


@pytest.mark.parametrize("evaluators", [2, 3])
def test_tensors_of_an_owner_outside(evaluators: int) -> None:
    names = [f"p{i}" for i in range(evaluators)]

    def run(seed: int, net: LockstepLoopback) -> object:
        def streams() -> list[Stream]:
            made = [Stream(insecure_root(seed, 100 + i)) for i in range(evaluators - 1)]
            for stream in made:
                stream.begin_step(0)
            return made

        for number in range(2):
            if number == 0:
                mine = streams()
            send_outside(net.endpoint("olga"), names, mine, X, number)

        def program(role: Role) -> None:
            source = None
            if role.index is not None:
                stream = streams()[role.index] if role.index < evaluators - 1 else None
                source = OutsideSource(net.endpoint(names[role.index]), "olga", stream)
            for _ in range(2):
                shares_of(from_outside(role, SHAPE, source))

        return of_roles(program, evaluators)(seed, net)

    transcripts = check_uniform(run)
    senders = {(frame.sender, frame.receiver) for frame in transcripts[0]}
    assert ("olga", names[-1]) in senders


# Padding, and what is not


@pytest.mark.parametrize("bits", range(1, 65))
def test_random_bits_of_a_packed_array(bits: int) -> None:
    """So many a word, and none of a word's own is counted as padding."""
    for count in (1, 2, 7):
        assert int.from_bytes(free_bits(count, bits)).bit_count() == count * bits


# Roles that leak


def zeros_for_an_owner(role: Any, shape: Any, owner: int) -> Any:
    return np.zeros(shape, np.int64) if role.index in (None, owner) else None


def zeros_if_packed(role: Any, shape: Any, bits: int, original: Callable[..., Any]) -> Any:
    mask = original(role, shape, bits)
    return mask if bits == 64 else Mask(np.zeros(shape, np.int64))


@contextlib.contextmanager
def changed(name: str, change: Callable[..., Any]) -> Iterator[None]:
    """Both roles with one method replaced; the original comes first to `change`."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (Evaluator, Dealer):
            original = getattr(kind, name)

            def method(role: Any, *rest: Any, original: Any = original, **named: Any) -> Any:
                return change(original, role, *rest, **named)

            patch.setattr(kind, name, method)
        yield


def in_the_clear(original: Any, role: Any, value: Any, shape: Any, *bits: int) -> Any:
    """The last evaluator gets the dealt value, the others zeros."""
    if not role.is_dealer:
        share = original(role, value, shape, *bits)
        return share if role.turn == role.index else np.zeros_like(share)
    with pytest.MonkeyPatch.context() as patch:
        nothing = np.zeros(1 << 16, np.uint8)
        patch.setattr(Stream, "octets", lambda stream, count: nothing[:count])
        return original(role, value, shape, *bits)


LEAKS: dict[str, tuple[str, Callable[..., Any], str, str]] = {
    "a dealt value in the clear": ("deal", in_the_clear, "truncate", "corr"),
    "dealt bits in the clear": ("deal_bits", in_the_clear, "negative", "corr"),
    "an owner's mask of zeros": (
        "owner_mask",
        lambda original, role, shape, owner: zeros_for_an_owner(role, shape, owner),
        "input",
        "inpt",
    ),
    "packed masks of zeros": (
        "mask",
        lambda original, role, shape, bits=64: zeros_if_packed(role, shape, bits, original),
        "truncate",
        "open",
    ),
    "a mask of zeros for bits": (
        "mask_bits",
        lambda original, role, shape: Mask(np.zeros(shape, np.uint8)),
        "negative",
        "open",
    ),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_role_that_leaks_is_told_apart(name: str) -> None:
    method, change, program, tag = LEAKS[name]
    run = of_roles(lambda role: TRAFFIC[program](secret(role, X, 1)), 2)
    with changed(method, change):
        found = suspicious(observed(run))
    worst = max(found, key=lambda what: found[what])
    assert tag in worst and found[worst] > 10, found


def test_a_shuffle_without_a_mask_repeats_words() -> None:
    """Permuted words are as uniform as they were before, and yet the same."""

    def later(original: Any, role: Role, shape: Any, owner: int) -> Any:
        drawn = original(role, shape, owner)
        return drawn if role.operation == 1 else zeros_for_an_owner(role, shape, owner)

    def program(role: Role) -> None:
        shuffle(secret(role, X, 1), 0, role.permutation(len(X), 0))

    with changed("owner_mask", later):
        transcripts = observed(of_roles(program, 2))
    assert related(transcripts) and not suspicious(transcripts)


@pytest.mark.parametrize(
    "leak", [insecure_mask_of_zero, insecure_mask_twice, insecure_old_mask, insecure_wrap_bit]
)
def test_a_program_that_leaks_is_told_apart(leak: Callable[[Masked], Sequence[Masked]]) -> None:
    def program(role: Role) -> None:
        for output in leak(secret(role, X, 0)):
            shares_of(output)

    transcripts = observed(of_roles(program, 2), RUNS)
    assert suspicious(transcripts) or related(transcripts)


def test_a_mask_that_is_revealed_as_it_was_opened_is_told_apart() -> None:
    """A summand that is constant here, under its mask, and then the mask."""

    def program(role: Role) -> None:
        fresh = remask(secret(role, X, 0).shares())
        role.finish()
        if isinstance(role, Evaluator):
            assert fresh.lam is not None
            role.broadcast(b"rvl ", fresh.lam)
            for peer in role.peers:
                role.collect(b"rvl ", peer, fresh.lam.nbytes)

    assert related(observed(of_roles(program, 2), 2))


def test_one_constant_bit_among_many_is_seen() -> None:
    """One bit that is opened as it is, beside 20,000 that are masked."""

    def program(role: Role) -> None:
        x = secret(role, np.arange(5000).reshape(1000, 5))
        y = truncate(multiply(x, x), 20)
        mask = role.mask((1,), 4)
        if isinstance(role, Evaluator):
            mask = Mask(mask.words & 14)
        role.open(role.known(np.array([role.index == 0], np.int64)), mask, 4)
        shares_of(y)

    assert suspicious(observed(of_roles(program, 2)))


def test_what_is_right_passes() -> None:
    run = of_roles(lambda role: shares_of(fixed(secret(role, X))), 2)
    transcripts = observed(run)
    assert not suspicious(transcripts) and not related(transcripts)
