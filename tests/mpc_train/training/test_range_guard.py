"""The guard at the end: a training whose arithmetic left the ring is told, any other is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mpc_train.admission.load import load_job
from mpc_train.admission.rules import check_rules
from mpc_train.errors import JobError, classify, explain
from mpc_train.evaluation.folds import cross_validated
from mpc_train.jobs.audience import RANGE, learnt, listed
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import total_steps
from mpc_train.networks.network import Network
from mpc_train.results.report import describe
from mpc_train.run.phases.prepare import agreed_outputs
from mpc_train.run.phases.train import train_model
from mpc_train.training import range_guard
from mpc_train.training.first_weights import initial_weights
from mpc_train.training.range_guard import RangeGuard, look_at_network
from mpc_train.training.trainer import make_trainer
from parties.errors import AbortedError
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.errors import DivergedError
from protocols.roles.role import Role
from protocols.shares.masked import public
from protocols.shares.reveal import Output, RevealGate
from tests.support.divergence import LINEAR, LOGISTIC, MLP, Setting, traced
from tests.support.jobs import allowing, job_toml, loaded, replaced, write_job
from tests.support.lockstep import LockstepLoopback, run_lockstep
from tests.support.loopback import secret
from tests.support.pooled import shared_rows, trained_over_shares
from tests.support.tensors import attached

RATE = "{{ learning_rate = {} }}"


def told(body: Callable[[Role, RangeGuard], None]) -> bool:
    """What a guard tells of what `body` shows it, at all roles alike."""

    def program(role: Role) -> bool:
        with attached(role, 20):
            guard = RangeGuard(role)
            body(role, guard)
            try:
                guard.decide(RevealGate(frozenset({Output(RANGE, 1)})), 1)
            except DivergedError:
                return True
            return False

    (found,) = set(run_lockstep(program, 3))
    return found


@pytest.mark.parametrize("place", [0, 4, 8])
@pytest.mark.parametrize(
    ("word", "outside"),
    [
        *((word, False) for word in (0, 1000, -1000)),
        *((word, True) for word in (1001, -1001, 1 << 40, -(1 << 62), 2**63 - 1, -(2**63))),
    ],
)
def test_one_word_beyond_its_limit_is_told(word: int, outside: bool, place: int) -> None:
    words = np.zeros(9, np.int64)
    words[place] = word
    assert told(lambda role, guard: guard.look(secret(role, words), 1000)) is outside


def test_limits_and_chunks_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_guard, "MAX_AT_ONCE", 4)

    def body(role: Role, guard: RangeGuard, last: int = 0) -> None:
        guard.look(secret(role, np.full((3, 3), 50)), 50)
        guard.look(secret(role, np.array([7, -7])), 7)
        guard.settle()
        guard.look(public(role, np.array([3, last])), 7)

    assert not told(body)
    assert told(lambda role, guard: body(role, guard, 8))


def test_samples_lie_at_other_places_each_time_and_are_compared_before_they_pile_up() -> None:
    words = np.zeros(1000, np.int64)
    words[::2] = 11

    def body(role: Role, guard: RangeGuard) -> None:
        for _ in range(4):
            guard.sample(secret(role, words), 10)
            guard.end_step()

    # 16 of 1000 words, half of them outside.
    assert told(body)
    places = [set(range_guard._places(number, 1000).tolist()) for number in range(50)]
    assert len(set.union(*places)) > 150


@pytest.mark.parametrize("last", [5, 6])
def test_thousands_of_samples(last: int) -> None:
    """They are compared some at a time, and come from words and from summands."""

    def body(role: Role, guard: RangeGuard) -> None:
        few = secret(role, np.full(3, 5))
        for number in range(1500):
            guard.sample(few, 5)
            guard.sample(few.shares(), 5)
            if number % 100 == 0:
                guard.end_step()
        guard.sample(secret(role, np.full(1, last)).shares(), 5)

    assert told(body) is (last > 5)


def test_a_guard_that_has_seen_nothing_says_so() -> None:
    with pytest.raises(RuntimeError, match="seen nothing"):
        told(lambda role, guard: None)


MODEL = Setting(RATE.format(0.1), MLP)


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "2.weight", "2.bias", "rows", ""])
def test_every_weight_and_every_layer_is_looked_at(name: str) -> None:
    """rows: a hidden layer beyond the ring, with weights and outputs within it."""
    job = MODEL.job()

    def body(role: Role, guard: RangeGuard) -> None:
        model = Network(job.graph, initial_weights(job))
        inputs = MaskedTensor(np.ones((80, 3)), src=0)
        if name == "rows":
            model.tensors["0.weight"] = MaskedTensor(np.full((6, 3), 2.0**20), src=0)
            model.tensors["2.weight"] = MaskedTensor(np.zeros((3, 6)), src=0)
        elif name:
            value = np.zeros(job.shapes[name])
            value.reshape(-1)[-1] = 2.0**22
            model.tensors[name] = MaskedTensor(value, src=0)
        look_at_network(guard, job, model, inputs)

    assert told(body) is bool(name)


DIVERGING = {
    "linear": Setting(RATE.format(3), features=3, scale=2, epochs=4),
    "a single feature": Setting(RATE.format(20), features=1, epochs=3),
    "a single epoch": Setting(RATE.format(40), features=4, scale=3, epochs=1, batch=8),
    "momentum": Setting("{ learning_rate = 1, momentum = 0.9 }", scale=3, epochs=4),
    "large labels": Setting(RATE.format(0.3), scale=3, label=60, epochs=2),
    "a network": Setting(RATE.format(40), MLP, scale=4, epochs=4),
    "clipped by norm": Setting(RATE.format(10), label=60, scale=4, extra="clip = { norm = 1 }"),
    "adam": Setting('{ name = "adam", learning_rate = 0.05 }', label=60, scale=4),
}
CONVERGING = {
    "linear": Setting(RATE.format(0.1)),
    "momentum": Setting("{ learning_rate = 0.05, momentum = 0.9 }"),
    "logistic, steep": Setting(RATE.format(100), LOGISTIC, features=8, epochs=3),
    "a network": Setting(RATE.format(0.5), MLP),
    "adam": Setting('{ name = "adam", learning_rate = 0.02 }', LOGISTIC, features=5),
    "clipped": Setting(RATE.format(1), extra="clip = { value = 0.1 }"),
}


@pytest.mark.parametrize("name", DIVERGING)
def test_what_diverges_is_told(name: str) -> None:
    found = traced(DIVERGING[name])
    assert found.outcome.out_of_range


@pytest.mark.parametrize("name", CONVERGING)
def test_what_converges_is_not(name: str) -> None:
    found = traced(CONVERGING[name])
    assert found.right and not found.outcome.out_of_range


OPTIMIZERS = (
    "{{ learning_rate = {rate} }}",
    "{{ learning_rate = {rate}, momentum = 0.9 }}",
    "{{ learning_rate = {rate}, momentum = 0.9, nesterov = true }}",
    "{{ learning_rate = {rate}, weight_decay = 0.1 }}",
    '{{ name = "adam", learning_rate = {rate} }}',
)


@pytest.mark.slow
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rate=st.floats(-2.5, 2).map(lambda power: round(10**power, 4)),
    optimizer=st.sampled_from(OPTIMIZERS),
    model=st.sampled_from([LINEAR, LOGISTIC, MLP]),
    features=st.integers(1, 10),
    scale=st.sampled_from([0.3, 1.0, 3.0, 6.0]),
    label=st.sampled_from([1.0, 5.0, 40.0]),
    epochs=st.integers(1, 4),
    batch=st.sampled_from([8, 16, 32, 60]),
    seed=st.integers(0, 1000),
    extra=st.sampled_from(["", "", "clip = { value = 0.5 }", "clip = { norm = 1 }"]),
)
def test_whatever_the_rate(rate: float, optimizer: str, **drawn: Any) -> None:
    """A step that is not that of the same weights in the clear is always told; what stays within
    the bounds that a job states never is."""
    try:
        found = traced(Setting(optimizer.format(rate=rate), **drawn))
    except JobError:
        assume(False)
        return
    assert found.right or found.outcome.out_of_range
    assert not (found.within_bounds and found.outcome.out_of_range)


def test_a_step_costs_nothing_more() -> None:
    """Rounds and frames of the steps are those without a guard."""
    job = Setting(RATE.format(0.1), MLP, epochs=1).job()
    tables = Setting(RATE.format(0.1), MLP).tables(job)

    def traffic(guarded: bool) -> tuple[list[Any], list[Any]]:
        net = LockstepLoopback()

        def program(role: Role) -> tuple[int, list[Any]]:
            with attached(role, job.fraction_bits):
                guard = RangeGuard(role)
                shared = shared_rows(job, role, tables)
                trainer = make_trainer(job, None, *([guard.sample] if guarded else []))
                for number in range(1, 4):
                    role.begin_step(number)
                    trainer.step(shared.inputs[:16], shared.labels[:16], Fraction(1, 10))
                    role.finish()
                    if guarded:
                        guard.end_step()
                return role.rounds, role.checksums[-1:]

        rounds = run_lockstep(program, 2, net=net)
        frames = {
            way: [(label, len(payload)) for label, payload in sent]
            for way, sent in net.transcript.items()
        }
        return rounds, [frames]

    assert traffic(True) == traffic(False)


# Regressions


@pytest.mark.parametrize("kind", ["linear", "poisson"])
@pytest.mark.parametrize("l1", ["", ", l1 = 0.001"])
@pytest.mark.parametrize("far", [False, True])
def test_a_regression(kind: str, l1: str, far: bool, tmp_path: Path) -> None:
    """far: columns so narrow that coefficients are beyond what the job says."""
    text = job_toml(
        ["x0", "x1"],
        kind,
        label='{ name = "y", range = [0, 20] }',
        train=f'optimizer = {{ name = "newton", steps = 4{l1} }}',
        more=f"[fixed_point]\nactivation_limit = {1 if far else 16}\n"
        '[reveal]\nleast_test_rows = 10\nmetrics = ["mse"]',
    )
    job = loaded(tmp_path, text)
    tables = Setting(RATE.format(1), features=2).tables(job)
    tables = [
        replace(
            table,
            features=table.features * (0.05 if far else 1),
            labels=np.clip(np.rint(4 + 3 * table.labels), 0, 20),
        )
        for table in tables
    ]
    assert trained_over_shares(job, tables, guarded=True).out_of_range is far


# Folds, rules, words


def test_a_fold_that_diverges_is_told_before_anything_of_it_is_revealed(tmp_path: Path) -> None:
    """One bit over all trainings: here only those of the folds leave the ring."""
    setting = Setting(RATE.format(30), features=3, scale=3, epochs=3)
    job = setting.job()
    folds = msgspec.structs.replace(job.reveal, folds=2)
    tables, job = setting.tables(job), msgspec.structs.replace(job, reveal=folds)

    def program(role: Role) -> tuple[bool, tuple[Output, ...]]:
        with attached(role, job.fraction_bits):
            gate, guard = RevealGate(agreed_outputs(job)), RangeGuard(role)
            shared = shared_rows(job, role, tables)
            try:
                cross_validated(
                    job,
                    role,
                    gate,
                    shared.inputs,
                    shared.labels,
                    lambda fold, later: (
                        train_model(
                            fold, later, None, shared, {}, lambda _: None, guard
                        ).model.evaluated
                    ),
                    lambda: guard.decide(gate, total_steps(job)),
                )
            except DivergedError:
                return True, gate.passed
            return False, gate.passed

    bit = Output(RANGE, total_steps(job))
    assert run_lockstep(program, 2) == [(True, (bit,))] * 3


def job_of(folder: Path, guard: str) -> Job:
    return load_job(write_job(folder, replaced("seed = 7", f"seed = 7\n{guard}")))


def test_every_node_is_told_and_needs_no_rule_for_it(tmp_path: Path) -> None:
    job = job_of(tmp_path, "")
    assert listed(job)[0] == RANGE
    assert {output for output in agreed_outputs(job) if output.name == RANGE} == {
        Output(RANGE, total_steps(job))
    }
    assert all(RANGE in found for found in learnt(job, listed(job)).values())
    assert "at the end, to everybody, including the coordinator: whether a value left" in describe(
        job
    )
    check_rules(allowing(job, disclosures=(), least_group=1), job, "ann")


def test_a_job_may_do_without(tmp_path: Path) -> None:
    job = job_of(tmp_path, "guard = false")
    assert RANGE not in listed(job)
    assert "guard = false" in describe(job)
    check_rules(allowing(job, disclosures=(), least_group=1), job, "ann")


def test_a_job_of_before_has_the_bit(tmp_path: Path) -> None:
    """Manifests outlive the version that wrote them: `guard` was null in those."""
    job = job_of(tmp_path, "")
    assert b'"guard":null' in job.to_bytes() and job.train.guards_end


def test_other_nodes_hear_why() -> None:
    error = DivergedError("…")
    assert classify(error) == ("DivergedError", "diverged", 10)
    assert "lower the learning rate" in explain(AbortedError("diverged", "ann"))
