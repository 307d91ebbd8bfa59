"""Noise that is nobody's: lifted out of runs over shares, and seen with the eyes of each coalition.

The noise of a run is the difference between a noisy sum and the exact one, which only a test can
compute: it adds up the summands of all nodes, the dealer's included, before and after.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from mpc_train.jobs.pipeline import Pipeline, Term
from mpc_train.networks.graph import layers_of
from mpc_train.networks.network import Network
from mpc_train.preparation.noisy import joined_sums, noisy_sums
from mpc_train.preparation.rows import Rows
from mpc_train.privacy.clip_plan import Layer, make_plan
from mpc_train.training.losses import BinaryCrossEntropy, CrossEntropy
from mpc_train.training.optimizers import row_clipping
from mpc_train.training.optimizers.gradients import Gradient
from mpc_train.training.optimizers.row_clipping import ClippedSums, Noise, NoisySums
from mpc_train.training.optimizers.sgd import SGD
from mpc_train.training.trainer import Trainer
from protocols.arrays import Words
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.noise import gaussian, summands
from protocols.noise.banded import Past
from protocols.noise.summands import noisy
from protocols.roles.role import Role
from protocols.shares.arithmetic import multiply, truncate
from protocols.shares.masked import Additive
from tests.support.lockstep import LockstepLoopback, run_lockstep
from tests.support.loopback import combine_masked, secret, shares_of
from tests.support.noisy_case import plan_of
from tests.support.shared_training import BATCH, BITS, problem
from tests.support.tensors import attached
from tests.support.transcript_first import run_scripted

VARIANCE = Fraction(1 << 50, 3)
COUNT = 20_000


def total_of(parts: list[Words | None]) -> Words:
    """The secret of an `Additive` from what each node holds of it."""
    total = np.zeros((), np.int64)
    for part in parts:
        if part is not None:
            total = total + part
    return total


def held(z: Additive) -> Words | None:
    """What this node holds of it."""
    return z.dealt if z.role.is_dealer else z.part.get()


def own_noise(monkeypatch: pytest.MonkeyPatch) -> dict[int | None, list[Words]]:
    """Has every node keep what it adds; by its index, None for the dealer."""
    kept: dict[int | None, list[Words]] = {}
    drawn = summands.own_part

    def own_part(role: Role, count: int, variance: Fraction) -> Words:
        words = drawn(role, count, variance)
        kept.setdefault(role.index, []).append(words.copy())
        return words

    monkeypatch.setattr(summands, "own_part", own_part)
    return kept


def lifted(evaluators: int, seed: int = 1) -> Words:
    """The noise of all nodes together, int64[COUNT], from a sum of products."""
    x = np.arange(COUNT, dtype=np.int64) - 99

    def program(role: Role) -> tuple[Words | None, Words | None]:
        z = multiply(secret(role, x), secret(role, x, 1))
        return held(z), held(noisy(z, VARIANCE))

    results = run_lockstep(program, evaluators, seed)
    exact = total_of([before for before, _ in results])
    np.testing.assert_array_equal(exact, x * x)
    return total_of([after for _, after in results]) - exact


def moments_hold(noise: Words, variance: float) -> None:
    """Mean, variance and kurtosis of a Gaussian, within five standard errors."""
    x = noise.astype(np.float64) / np.sqrt(variance)
    room = 5 / np.sqrt(len(x))
    assert abs(x.mean()) < room
    assert abs((x**2).mean() - 1) < room * np.sqrt(2)
    assert abs((x**4).mean() - 3) < room * np.sqrt(96)


@pytest.mark.parametrize("evaluators", [2, 3, 5])
def test_the_noise_of_a_run_has_the_law(evaluators: int) -> None:
    """2V in all, independent in every element, and as fine as the words."""
    noise = lifted(evaluators)
    moments_hold(noise, 2 * float(VARIANCE))
    x = noise / np.sqrt(2 * float(VARIANCE))
    assert abs((x[1:] * x[:-1]).mean()) < 5 / np.sqrt(COUNT)
    counts = np.bincount(noise & 15, minlength=16)
    assert ((counts - COUNT / 16) ** 2 / (COUNT / 16)).sum() < 15 + 5 * np.sqrt(30)


@pytest.mark.parametrize("evaluators", [2, 3])
def test_what_remains_for_each_coalition(evaluators: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody who may work together subtracts all noise that they drew: at least V remains."""
    kept = own_noise(monkeypatch)
    noise = lifted(evaluators)
    nodes = range(evaluators)
    coalitions: list[tuple[list[int | None], Fraction]] = [
        ([], 2 * VARIANCE),
        ([None], VARIANCE),
    ]
    most = VARIANCE * (1 + Fraction(1, evaluators))
    coalitions += [([i for i in nodes if i != left], most) for left in nodes]
    for members, variance in coalitions:
        rest = noise - sum((kept[member][0] for member in members), np.zeros(COUNT, np.int64))
        assert variance >= VARIANCE
        moments_hold(rest, float(variance))
    # With the dealer's and all evaluators' nothing is left: these are all parts.
    assert (noise == sum(parts[0] for parts in kept.values())).all()


def test_noise_with_bands_is_that_of_all_nodes_but_for_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C times the noise of three steps is what nodes drew in them: fresh, and with the law."""
    kept, drawn = own_noise(monkeypatch), 3000

    def program(role: Role) -> list[Words | None]:
        zero = secret(role, np.zeros(drawn, np.int64)).shares()
        past = Past(3)
        found: list[Words | None] = []
        for number in range(3):
            role.begin_step(number + 1)
            found.append(held(noisy(zero, VARIANCE, past)))
        return found

    results = run_lockstep(program, 2)
    noise = [total_of(list(parts)) for parts in zip(*results, strict=True)]
    fresh = [total_of([parts[t] for parts in kept.values()]) for t in range(3)]
    assert (noise[0] == fresh[0]).all()
    assert abs(noise[1] + noise[0] / 2 - fresh[1]).max() <= 1.5
    assert abs(noise[2] + noise[1] / 2 + noise[0] * 3 / 8 - fresh[2]).max() <= 1.5
    for part in fresh:
        moments_hold(part, 2 * float(VARIANCE))
    first, second = (part / np.sqrt(2 * float(VARIANCE)) for part in fresh[:2])
    assert abs((first * second).mean()) < 5 / np.sqrt(drawn)


def test_nodes_draw_different_noise_in_every_step_and_session() -> None:
    def program(role: Role) -> list[Words | None]:
        zero = secret(role, np.zeros(50, np.int64)).shares()
        found = [held(noisy(zero, VARIANCE)), held(noisy(zero, VARIANCE))]
        role.begin_step(1)
        return [*found, held(noisy(zero, VARIANCE))]

    drawn = []
    for seed in (1, 2):
        results = run_lockstep(program, 2, seed)
        drawn += [total_of(list(parts)) for parts in zip(*results, strict=True)]
    assert len({words.tobytes() for words in drawn}) == 6


@dataclass
class Lifting:
    """Stands in for `with_noise`: keeps what each node holds of the sums before and after it."""

    before: dict[str, Words | None] = field(default_factory=dict)
    after: dict[str, Words | None] = field(default_factory=dict)

    def __call__(self, gradient: Gradient, deviation: Fraction, past: Past | None) -> Gradient:
        changed = WITH_NOISE(gradient, deviation, past)
        name = f"{len(self.before)} {gradient.bits}"
        self.before[name], self.after[name] = held(gradient.summands), held(changed.summands)
        return changed


WITH_NOISE = row_clipping.with_noise
DEVIATION = Fraction(2)


def take_for(widths: tuple[int, ...]) -> Any:
    if len(widths) == 2:
        return NoisySums(Noise(DEVIATION))
    plan = make_plan(
        [Layer(i, o, True) for i, o in pairwise(widths)],
        fraction_bits=BITS,
        clip=Fraction(1),
        input_square=Fraction(200),
        sum_limit=Fraction(200),
        rate=Fraction(1, 64 * BATCH),
    )
    return ClippedSums(plan, Noise(DEVIATION), Fraction(1, BATCH))


@pytest.mark.parametrize("widths", [(6, 1), (6, 40, 3)])
def test_the_noise_of_a_training_step_has_the_law(
    widths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every weight and bias, on its own grid, without a round or a byte more than before."""
    task = problem(widths, "binary" if widths[-1] == 1 else "one-hot", steps=20)
    liftings: dict[int | None, Lifting] = {}

    def program(role: Role) -> Any:
        lifting = liftings[role.index] = Lifting()

        def with_noise(gradient: Gradient, deviation: Fraction, past: Past | None) -> Gradient:
            return liftings[gradient.summands.role.index](gradient, deviation, past)

        monkeypatch.setattr(row_clipping, "with_noise", with_noise)
        with attached(role, BITS):
            model = Network(layers_of(widths), task.weights)
            named = model.parameters
            loss = BinaryCrossEntropy() if widths[-1] == 1 else CrossEntropy()
            take = take_for(widths)
            for tensor in named.values():
                tensor.keeps_rows = isinstance(take, ClippedSums)
            trainer = Trainer(model, loss, named, SGD(named), take=take)
            for number in range(20):
                role.begin_step(number + 1)
                x, y = (
                    MaskedTensor(torch.from_numpy(values[number]), src=0)
                    for values in (task.inputs, task.labels)
                )
                trainer.step(x, y, Fraction(1, 64))
                role.finish()
        return lifting

    results = run_lockstep(program, 2)
    for scale in (BITS, 2 * BITS):
        noise = []
        for name in results[0].before:
            bits = int(name.split()[1])
            if bits // (BITS * 2) != scale // (2 * BITS):
                continue
            parts = [[r.before[name] for r in results], [r.after[name] for r in results]]
            exact, changed = (total_of(each) for each in parts)
            noise.append((changed - exact).reshape(-1) / 2.0**bits)
        moments_hold(np.concatenate(noise), 2 * float(DEVIATION) ** 2)


def test_noise_costs_no_round_and_no_byte() -> None:
    def program(role: Role, variance: Fraction | None) -> Any:
        z = multiply(secret(role, np.ones(100, np.int64)), secret(role, np.ones(100, np.int64), 1))
        before = role.rounds
        found = truncate(z if variance is None else noisy(z, variance), 20)
        role.finish()
        return shares_of(found), role.rounds - before

    sent = []
    for variance in (None, VARIANCE):
        net = LockstepLoopback()
        results = run_lockstep(lambda role, v=variance: program(role, v), 2, net=net)  # type: ignore[misc]
        combine_masked([found for found, _ in results])
        sizes = {
            pair: [len(payload) for _, payload in frames] for pair, frames in net.transcript.items()
        }
        sent.append(([rounds for _, rounds in results], sizes))
    assert sent[0] == sent[1]


def test_the_largest_noise_bounds_what_is_drawn() -> None:
    most = summands.largest(3, VARIANCE)
    assert most > 3 * 13 * float(VARIANCE / 3) ** 0.5
    assert abs(lifted(3)).max() < most
    assert gaussian.table(VARIANCE).most > 13.5 * float(VARIANCE) ** 0.5


@pytest.mark.parametrize(("evaluators", "corrupted"), [(2, (0,)), (2, (1,)), (3, (0, 2))])
def test_private_steps_look_the_same_for_all_data(
    evaluators: int, corrupted: tuple[int, ...]
) -> None:
    """Rows that are clipped, rows that are not, and rows that are left out: with the view of
    corrupted evaluators drawn first, their own noise included."""
    widths = (6, 5, 3)
    task = problem(widths)
    owner = next(i for i in range(evaluators) if i not in corrupted)
    views, found = [], []
    for coins, size in enumerate((0.01, 1.0, 15.0)):
        rows, labels = task.inputs[0] * size, np.roll(task.labels[0], coins, 0)

        def program(role: Role, rows: Any = rows, labels: Any = labels) -> Any:
            with attached(role, BITS):
                model = Network(layers_of(widths), task.weights)
                named = model.parameters
                for tensor in named.values():
                    tensor.keeps_rows = True
                trainer = Trainer(model, CrossEntropy(), named, SGD(named), take=take_for(widths))
                x = MaskedTensor(torch.from_numpy(rows), src=owner)
                y = MaskedTensor(torch.from_numpy(labels), src=owner)
                for number in range(2):
                    role.begin_step(number + 1)
                    trainer.step(x, y, Fraction(1, 64))
                    role.finish()
                return [shares_of(p.masked()) for p in named.values()]

        results, view = run_scripted(program, evaluators, corrupted, coins=coins)
        views.append(view)
        found.append(
            np.concatenate([combine_masked(p).ravel() for p in zip(*results, strict=True)])
        )
    for first, second in pairwise(views):
        assert [kind for kind, _ in first] == [kind for kind, _ in second]
        assert first == second
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize("evaluators", [2, 3])
def test_noise_of_statistics_has_the_law(evaluators: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In numbers, sums and sums of squares, each on its own grid; for every coalition enough is
    left of it."""
    columns, kept = 4000, own_noise(monkeypatch)
    terms = (Term(f"c{k}", "c", shared="standard", missing="mean") for k in range(columns))
    pipeline, plan = Pipeline(tuple(terms)), plan_of(1000)
    words = np.full((4, columns), 5, np.int64)

    def program(role: Role) -> Any:
        found = noisy_sums(pipeline, [secret(role, words), secret(role, words, 1)], plan)
        return [shares_of(part) for part in (found.number, found.first, found.second)]

    results = run_lockstep(program, evaluators)
    exact = (10 << plan.bits, 10, 10 * (1 << 28) + 10)
    for place, (total, bits) in enumerate(zip(exact, (16, 16, 32), strict=True)):
        noise = combine_masked([result[place] for result in results]) - total
        variance = float(plan.variance(bits))
        assert variance == 25 * 4.0**bits
        moments_hold(noise, 2 * variance)
        dealt = kept[None][place]
        moments_hold(noise - dealt, variance)
        others = sum((kept[i][place] for i in range(1, evaluators)), np.zeros(columns, np.int64))
        moments_hold(noise - others, variance * (1 + 1 / evaluators))
        assert (noise == sum(parts[place] for parts in kept.values())).all()


def test_noise_of_joined_statistics_has_the_law() -> None:
    """Of columns that are scaled, and of those that are only filled, whose cells are words of the
    rows' own scale, and of terms that reach further than 1."""
    columns, rows, f, plan = 100, 3, 20, plan_of(1000)
    both = [Term(f"s{k}", "s", shared="standard", missing="mean") for k in range(columns)]
    filled = [Term(f"f{k}", "f", missing="mean", bound=8.0) for k in range(columns)]
    pipeline = Pipeline((*both, *filled))
    assert pipeline.terms[-1].reach == 3
    values = np.repeat([[5] * columns + [8 << f] * columns], rows, 0)

    def program(role: Role) -> Any:
        present = secret(role, np.ones((rows, 2 * columns), np.int64))
        joined = Rows(secret(role, values), secret(role, values[:, :columns] * 0), present)
        found = joined_sums(pipeline, joined, plan, f)
        return [shares_of(part) for part in (found.number, found.first, found.second)]

    results = run_lockstep(program, 2)
    number, first, second = (combine_masked(list(parts)) for parts in zip(*results, strict=True))
    assert plan.bits == 16
    for noise, bits in (
        (number - (rows << 16), 16),
        (first[:columns] - rows * 5, 16),
        (first[columns:] - (rows << 16), 16),  # cells at the end of their reach
        (second - rows * 25, 32),
    ):
        moments_hold(noise, 2 * 25 * 4.0**bits)
