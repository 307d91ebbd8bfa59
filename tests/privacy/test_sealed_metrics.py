"""Metrics with readers: what an evaluator sees is the same for all metrics, also for wrong ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.admission.load import load_job
from mpc_train.evaluation.metrics import evaluation_of, revealed
from mpc_train.evaluation.own import own_halves
from mpc_train.jobs.schedule import split, total_steps
from mpc_train.run.phases.prepare import agreed_outputs
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.roles.role import Role
from protocols.shares.reveal import RevealGate, SealedHalf
from tests.support.jobs import changed, write_job
from tests.support.privacy import same_views
from tests.support.tensors import attached
from tests.support.transcript_first import run_scripted


@pytest.mark.parametrize("corrupted", [0, 1])
def test_an_evaluator_sees_nothing_of_sealed_metrics(tmp_path: Path, corrupted: int) -> None:
    """Accuracy 0, 1 and in between: one view, including the half that it seals itself."""
    text = 'metrics = ["accuracy"]\nper_party = ["accuracy"]\nmetrics_to = ["office"]'
    more = f"{text}\nleast_test_rows = 3"
    job = load_job(write_job(tmp_path, changed(('metrics = ["accuracy", "auc"]', more))))
    rng = np.random.default_rng(1)
    y = (rng.random((job.rows, 1)) < 0.5) * 1.0
    views, accuracies = [], []
    for outputs in (2 * y - 1, 1 - 2 * y, rng.normal(0, 2, (job.rows, 1))):

        def program(role: Role, outputs: Any = outputs) -> Any:
            gate, halves = RevealGate(agreed_outputs(job)), dict[str, SealedHalf]()
            with attached(role, job.fraction_bits):
                a, b = (
                    MaskedTensor(v, src=(corrupted + 1) % 2, shape=v.shape) for v in (outputs, y)
                )
                _, rows = split(job)
                metrics = job.reveal.metrics
                evaluation = evaluation_of(job, metrics, lambda some: some, a, b, rows)
                revealed(job, gate, total_steps(job), metrics, evaluation, halves)
                return halves | own_halves(job, gate, lambda some: some, a, b)

        results, view = run_scripted(program, 2, (corrupted,))
        mine = results[corrupted].values()
        views.append([*view, *(("half", h.delta.tobytes() + h.lam.tobytes()) for h in mine)])
        both = [halves["accuracy"] for halves in results[:-1]]
        words = both[0].delta - sum(half.lam for half in both)
        accuracies.append(words[1])
    same_views(views)
    assert len(set(accuracies)) == 3
