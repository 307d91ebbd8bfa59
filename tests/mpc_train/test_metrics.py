"""Every metric over shares is what the twin computes from the same outputs and labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mpc_train.jobs.job import Job, load_job
from mpc_train.training.metrics import secret_metrics
from mpc_train.twin.reference import _metric
from protocols.crypten_backend import MaskedTensor, attach, detach
from protocols.fixed_point import decode
from protocols.reveal import Output, RevealGate
from protocols.role import Role
from tests.mpc_train.helpers import JOB, write_job
from tests.support.lockstep import run_lockstep

Reals = NDArray[np.float64]

KINDS = {
    "linear": ("mse", "mae", "r2"),
    "logistic": ("accuracy", "auc"),
    "softmax": ("accuracy",),
}


def job_of(folder: Path, kind: str, metrics: Sequence[str]) -> Job:
    text = JOB.replace('kind = "logistic"', f'kind = "{kind}"')
    if kind == "softmax":
        text = text.replace(f'kind = "{kind}"', f'kind = "{kind}"\nclasses = 4')
    listed = ", ".join(f'"{metric}"' for metric in metrics)
    return load_job(write_job(folder, text.replace('"accuracy", "auc"', listed)))


def over_shares(job: Job, outputs: Reals, labels: Reals) -> dict[str, float]:
    """The metrics as two evaluators and a dealer compute and reveal them."""

    def program(role: Role) -> dict[str, float]:
        attach(role, job.fraction_bits)
        np.seterr(over="ignore")  # words wrap around; NumPy keeps this for each thread
        try:
            mine = role.index == 0
            z, y = (
                MaskedTensor(values if mine else None, src=0, shape=values.shape)
                for values in (outputs, labels)
            )
            gate = RevealGate(frozenset(Output(name, 1) for name in job.reveal.metrics))
            found = {}
            for metric in secret_metrics(job, z, y):
                words = gate.to_everybody(metric.name, 1, metric.value)
                if words is not None:
                    found[metric.name] = metric.finish(
                        float(decode(words, job.fraction_bits).item())
                    )
            return found
        finally:
            detach()

    first, second, dealer = run_lockstep(program, 2)
    assert first == second
    assert dealer == {}
    return dict(first)


@pytest.mark.parametrize("rows", [5, 142, 600, 2048])
@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_those_of_the_twin(tmp_path: Path, kind: str, rows: int) -> None:
    job = job_of(tmp_path, kind, KINDS[kind])
    generator = np.random.default_rng(rows)
    outputs = generator.normal(0, 2, (rows, job.outputs))
    if kind == "linear":
        labels = (outputs + generator.normal(0, 1, outputs.shape))[:, 0]
        matrix = labels[:, None]
    elif kind == "logistic":
        labels = (outputs[:, 0] + generator.normal(0, 2, rows) > 0.5).astype(np.float64)
        labels[:2] = 0, 1
        matrix = labels[:, None]
    else:
        labels = generator.integers(0, 4, rows).astype(np.float64)
        matrix = np.eye(4)[labels.astype(np.int64)]
    found = over_shares(job, outputs, matrix)
    assert set(found) == set(KINDS[kind])
    for name, value in found.items():
        # A quotient is good to 2^-16 of itself, a mean to a few units of 2^-20 a row.
        assert value == pytest.approx(_metric(name, job, outputs, labels), abs=2**-14), name
