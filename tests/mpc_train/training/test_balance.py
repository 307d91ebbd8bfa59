"""Classes weighted by frequencies that nobody learns: as scikit-learn weighs them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from mpc_train.admission.load import load_job
from mpc_train.base.bounds import WORD_BITS
from mpc_train.errors import JobError
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import split
from mpc_train.training.balance import balanced
from mpc_train.training.rates import rate_bits, weight_bits
from mpc_train.training.setup import make_loss
from mpc_train.twin.setup import twin_loss
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.ring.fixed_point import decode
from protocols.roles.role import Role
from tests.support.jobs import JOB, replaced, write_job
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, shares_of
from tests.support.tensors import attached, shared_in

F = 20


@pytest.mark.parametrize("rare", [False, True])
@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_the_gradient_is_weighted(tmp_path: Path, kind: str, rare: bool) -> None:
    """As scikit-learn weighs rows; rare: also where a class has two rows of 750."""
    text = JOB.replace('"accuracy", "auc"', "").replace(
        'kind = "logistic"',
        'kind = "logistic"' if kind == "logistic" else 'kind = "softmax"\nclasses = 3',
    )
    text = text.replace("seed = 7", "seed = 7\nloss = { balanced = true }")
    if rare:
        text = text.replace("ann = 40, bob = 30, cleo = 30", "ann = 400, bob = 300, cleo = 300")
    job = load_job(write_job(tmp_path, text))
    generator = np.random.default_rng(2)
    rows, batch = job.rows, np.arange(40)
    labels = generator.choice(
        job.classes, rows, p=[0.8, 0.2] if kind == "logistic" else [0.7, 0.2, 0.1]
    )
    if rare:
        labels = generator.integers(0, job.classes - 1, rows)
        labels[split(job)[0][[3, 700]]] = job.classes - 1
        batch = split(job)[0][:40]
    outputs = generator.normal(0, 2, (40, job.outputs))
    matrix = labels[:, None].astype(float) if job.outputs == 1 else np.eye(3)[labels]

    def program(role: Role) -> object:
        with attached(role, F):
            z, y = shared_in(role, outputs, matrix)
            loss = balanced(job, make_loss(job), y)
            gradient = loss.gradient(z, y[batch])
            return shares_of(loss.weights), shares_of(gradient.plain_factor().masked())

    results = run_lockstep(program, 2)
    weights, gradient = (
        decode(combine_masked([result[k] for result in results]), bits)
        for k, bits in enumerate((weight_bits(job), F))
    )
    training, _ = split(job)
    expected = compute_class_weight("balanced", classes=np.arange(job.classes), y=labels[training])
    np.testing.assert_allclose(weights, expected, rtol=2**-14)
    twin = twin_loss(job, torch.from_numpy(labels[training].astype(float)))
    z = torch.from_numpy(outputs).requires_grad_()
    twin(z, torch.from_numpy(labels[batch].astype(float))).backward()
    assert z.grad is not None
    np.testing.assert_allclose(gradient, z.grad.numpy(), atol=2**-14 * max(1.0, weights.max() / 16))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("positive_weight = 2, ", "either balanced"),
        ('name = "mse", ', "does not suit"),
    ],
)
def test_contradictions(tmp_path: Path, more: str, message: str) -> None:
    text = replaced("seed = 7", f"seed = 7\nloss = {{ {more}balanced = true }}")
    with pytest.raises(JobError, match=message):
        load_job(write_job(tmp_path, text))


def test_no_row_of_a_class(tmp_path: Path) -> None:
    """A class without rows spoils no other row's weight."""
    for only in (0, 1):
        job = load_job(
            write_job(tmp_path, replaced("seed = 7", "seed = 7\nloss = { balanced = true }"))
        )

        def program(role: Role, job: Job = job, only: int = only) -> object:
            with attached(role, F):
                y = np.full((job.rows, 1), float(only)) if role.index == 0 else None
                labels = MaskedTensor(y, src=0, shape=(job.rows, 1))
                loss = balanced(job, make_loss(job), labels)
                return shares_of(loss._of_rows(labels[np.arange(9)]).masked())

        weights = decode(combine_masked(run_lockstep(program, 2)), F)
        np.testing.assert_allclose(weights, 0.5, rtol=2**-14)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    text = replaced("seed = 7", "seed = 7\nloss = { balanced = true }").replace(
        "ann = 40, bob", "ann = 40000000, bob"
    )
    load_job(write_job(tmp_path, text))
    with pytest.raises(JobError, match=r"train\.loss\.balanced: .*fixed_point\.fraction_bits"):
        load_job(
            write_job(
                tmp_path, text.replace("[reveal]", "[fixed_point]\nfraction_bits = 26\n[reveal]")
            )
        )


@pytest.mark.parametrize("loss", ["positive_weight = 64", "balanced = true"])
def test_weighted_gradients_have_the_room_that_the_job_states(tmp_path: Path, loss: str) -> None:
    """A weighted row's gradient is larger than inputs and residuals allow without weights."""
    text = replaced('label = "ill"', 'label = "ill"\nlimit = 12').replace(
        "[reveal]", "[fixed_point]\ngradient_limit = 512\nfraction_bits = 20\n[reveal]"
    )
    plain = load_job(write_job(tmp_path, text))
    weighted = load_job(
        write_job(tmp_path, text.replace("seed = 7", f"seed = 7\nloss = {{ {loss} }}"))
    )
    assert WORD_BITS - 2 * 20 - rate_bits(weighted) >= (512 * 16).bit_length() - 1
    assert rate_bits(weighted) < rate_bits(plain)
