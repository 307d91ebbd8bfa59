"""Classes weighted by frequencies that nobody learns: as scikit-learn weighs them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from mpc_train.admission.load import load_job
from mpc_train.errors import JobError
from mpc_train.jobs.schedule import split
from mpc_train.training.balance import balanced
from mpc_train.training.setup import make_loss
from mpc_train.twin.setup import twin_loss
from protocols.crypten_tensor.tensor import MaskedTensor, attach, detach
from protocols.ring.fixed_point import decode
from protocols.roles.role import Role
from tests.support.jobs import JOB, replaced, write_job
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, shares_of

F = 20


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_the_gradient_is_weighted(tmp_path: Path, kind: str) -> None:
    text = JOB.replace('"accuracy", "auc"', "").replace(
        'kind = "logistic"',
        'kind = "logistic"' if kind == "logistic" else 'kind = "softmax"\nclasses = 3',
    )
    job = load_job(
        write_job(tmp_path, text.replace("seed = 7", "seed = 7\nloss = { balanced = true }"))
    )
    generator = np.random.default_rng(2)
    rows, batch = job.rows, np.arange(40)
    labels = generator.choice(
        job.classes, rows, p=[0.8, 0.2] if kind == "logistic" else [0.7, 0.2, 0.1]
    )
    outputs = generator.normal(0, 2, (40, job.outputs))
    matrix = labels[:, None].astype(float) if job.outputs == 1 else np.eye(3)[labels]

    def program(role: Role) -> object:
        attach(role, F)
        np.seterr(over="ignore")  # words wrap around; NumPy keeps this for each thread
        try:
            mine = role.index == 0
            z, y = (
                MaskedTensor(value if mine else None, src=0, shape=value.shape)
                for value in (outputs, matrix)
            )
            loss = balanced(job, make_loss(job), y)
            gradient = loss.gradient(z, y[batch])
            return shares_of(loss.weights), shares_of(gradient._plain_factor().masked())

        finally:
            detach()

    results = run_lockstep(program, 2)
    weights, gradient = (
        decode(combine_masked([result[k] for result in results]), F) for k in range(2)
    )
    training, _ = split(job)
    expected = compute_class_weight("balanced", classes=np.arange(job.classes), y=labels[training])
    np.testing.assert_allclose(weights, expected, rtol=2**-14)
    twin = twin_loss(job, torch.from_numpy(labels[training].astype(float)))
    z = torch.from_numpy(outputs).requires_grad_()
    twin(z, torch.from_numpy(labels[batch].astype(float))).backward()
    assert z.grad is not None
    np.testing.assert_allclose(gradient, z.grad.numpy(), atol=2**-14)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("positive_weight = 2, ", "public or secret"),
        ('name = "mse", ', "does not suit"),
    ],
)
def test_contradictions(tmp_path: Path, more: str, message: str) -> None:
    text = replaced("seed = 7", f"seed = 7\nloss = {{ {more}balanced = true }}")
    with pytest.raises(JobError, match=message):
        load_job(write_job(tmp_path, text))
