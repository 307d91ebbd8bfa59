"""Evaluation in chunks: what is held at a time does not grow with the rows, and nothing changes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.admission.load import load_job
from mpc_train.evaluation.metrics import evaluation_of
from mpc_train.jobs.job import Job
from mpc_train.jobs.reveal import METRICS
from mpc_train.networks.network import Network
from mpc_train.training import chunk_sizes, passes, watch
from mpc_train.training.first_weights import initial_weights
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.roles import dealer, evaluator
from protocols.roles.role import Role
from protocols.shares.computed import computed
from tests.support.jobs import JOB, write_job
from tests.support.lockstep import LockstepLoopback, compute, run_lockstep
from tests.support.loopback import secret
from tests.support.tensors import attached, shared_in
from tests.support.training_programs import DECISIONS

MODELS = {
    "logistic": 'kind = "logistic"',
    "softmax": 'kind = "softmax"\nclasses = 4',
    "mlp": 'kind = "mlp"\nhidden = [48]\nclasses = 4',
}


class Nothing(dict[Any, Any]):
    """A transcript that keeps nothing: it would grow with what is sent."""

    def __missing__(self, key: object) -> Nothing:
        return self

    def setdefault(self, key: object, default: object = None) -> Nothing:
        return self

    def append(self, frame: object) -> None:
        """Forget it."""


def job_of(folder: Path, kind: str) -> Job:
    text = JOB.replace('kind = "logistic"', MODELS[kind])
    listed = ", ".join(f'"{name}"' for name in METRICS[kind])
    text = text.replace('"accuracy", "auc"', listed).replace("ann = 40", "ann = 400")
    return load_job(write_job(folder, text))


def peak_bytes(job: Job, rows: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """The most that all roles together hold while they evaluate, beyond what they start with."""
    for module in (dealer, evaluator):  # the dealer may run ahead by what is held as well
        monkeypatch.setattr(module, "CREDIT_FRAMES", 1)
        monkeypatch.setattr(module, "CORRECTION_BYTES", 1 << 14)
    monkeypatch.setattr(dealer, "WINDOW_CREDITS", 1)
    generator = np.random.default_rng(1)
    inputs = generator.normal(0, 1, (rows, 2))
    if job.outputs == 1:
        labels = (generator.random((rows, 1)) < 0.5).astype(np.float64)
    else:
        labels = np.eye(job.outputs)[generator.integers(0, job.outputs, rows)]
    found = []

    def program(role: Role) -> None:
        with attached(role, job.fraction_bits):
            x, y = shared_in(role, inputs, labels)
            role.finish()
            model = Network(job.graph, initial_weights(job))
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            every = np.arange(rows)
            evaluation_of(job, METRICS[job.model.kind], model.evaluated, x, y, every)
            found.append(tracemalloc.get_traced_memory()[1] - before)

    net = LockstepLoopback()
    net.transcript = Nothing()
    tracemalloc.start()
    try:
        run_lockstep(program, 2, net=net)
    finally:
        tracemalloc.stop()
    return max(found)


@pytest.mark.parametrize(
    "kind",
    ["mlp", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("logistic", "softmax"))],
)
def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path, kind)
    monkeypatch.setattr(passes, "chunk_rows", lambda *_: 128)
    peak_bytes(job, 128, monkeypatch)  # what is made once and kept: plans, programs, tables
    # Of both numbers of rows the AUC is found in the same way.
    least, most = (2176, 4224) if kind == "logistic" else (256, 2304)
    few, many = (peak_bytes(job, rows, monkeypatch) for rows in (least, most))
    # A row on its way takes some 10 kB at each role; its number and labels are 400 bytes.
    assert many - few < 2048 * 400
    monkeypatch.setattr(passes, "chunk_rows", lambda *_: most)
    assert peak_bytes(job, most, monkeypatch) > 4 * many


def test_the_decisions_of_early_stopping_are_those_of_all_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = DECISIONS["early stopping, best model"]
    sizes: list[int] = []

    def few(*arguments: Any) -> Any:
        for outputs, labels in passes.chunks(*arguments):
            sizes.append(labels.shape[0])
            yield outputs, labels

    monkeypatch.setattr(passes, "chunk_rows", lambda *_: 3)
    monkeypatch.setattr(watch, "chunks", few)
    numbers = program.numbers(np.random.default_rng(2))
    expected = program.in_the_clear(numbers)
    words = np.rint(numbers * 2.0**20).astype(np.int64)

    def run(role: Role) -> Any:
        decisions = program.over_shares(secret(role, words, 0))["decisions"]
        assert isinstance(decisions, MaskedTensor)
        return decisions.masked()

    found = compute(run)
    np.testing.assert_allclose(found / 2.0**20, expected["decisions"])
    assert max(sizes) <= 3 and sum(sizes) % 8 == 0


def test_a_chunk_follows_from_the_network(tmp_path: Path) -> None:
    small, large = (job_of(tmp_path, kind) for kind in ("logistic", "mlp"))
    assert chunk_sizes.chunk_rows(small) > chunk_sizes.chunk_rows(large) > 10_000
    # With metrics that compare a row with many levels, fewer rows; never fewer than a batch.
    assert chunk_sizes.chunk_rows(small, ("auc",)) < chunk_sizes.chunk_rows(small)
    assert chunk_sizes.chunk_rows(small, ("auc",)) > 10_000
    text = (tmp_path / "job.toml").read_text().replace("hidden = [48]", "hidden = [60000]")
    wide = load_job(write_job(tmp_path, text))
    assert 16 < chunk_sizes.chunk_rows(wide) < 60
    wide = load_job(write_job(tmp_path, text.replace("batch_size = 16", "batch_size = 60")))
    assert chunk_sizes.chunk_rows(wide) == 60


def test_sums_of_chunks_are_computed_when_asked(tmp_path: Path) -> None:
    def program(role: Role) -> bool:
        with attached(role, 20):
            x = MaskedTensor(np.ones(4) if role.index == 0 else None, src=0, shape=(4,))
            total = x.mul(x).masked().sum()
            computed(total)
            return role.is_dealer or total.delta.ready

    assert all(run_lockstep(program, 2))
