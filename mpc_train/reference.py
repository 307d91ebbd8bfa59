"""The plaintext twin: the same training in float64 PyTorch, for comparison only.

It starts from the same weights, sees the same rows in the same batches, and updates by the same
rule at the same learning rates (`ranges.rate`), so that what is left between it and a run over
shares is fixed-point rounding. It needs everybody's rows in one place, which is what the platform
exists to avoid: tests and local demonstrations use it, nodes never do.

The losses are the means over a batch whose gradient at the model's output is (prediction −
label) / batch: half the squared error, binary cross-entropy after a sigmoid, cross-entropy after
a softmax.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mpc_train.data import Table
from mpc_train.job import Job
from mpc_train.ranges import rate
from mpc_train.schedule import batches, split


@dataclass(frozen=True, repr=False)
class Twin:
    """What the twin ends with: float64 weights by name, and the job's metrics on held-out rows."""

    state: dict[str, NDArray[np.float64]]
    metrics: dict[str, float]


def plain_module(job: Job) -> torch.nn.Module:
    """Return the ordinary PyTorch module whose state_dict has the names and shapes of the job."""
    pairs = list(zip(job.widths[:-1], job.widths[1:], strict=True))
    if job.model.kind != "mlp":
        return torch.nn.Linear(*pairs[0])
    layers: list[torch.nn.Module] = []
    for inputs, outputs in pairs:
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def train_twin(job: Job, tables: Sequence[Table], initial: Mapping[str, NDArray[np.int64]]) -> Twin:
    """Train on the owners' rows (tables in the order of `job.owners`).

    initial: the model's first weights, int64 at scale 2**fraction_bits, as the run over shares
    begins with them.
    """
    inputs = torch.from_numpy(np.concatenate([table.features for table in tables]))
    labels = torch.from_numpy(np.concatenate([table.labels for table in tables]))
    module = plain_module(job).double()
    scale = 2.0**job.fraction_bits
    module.load_state_dict(
        {name: torch.from_numpy(value / scale) for name, value in initial.items()}
    )
    settings = job.train.optimizer
    optimizer = torch.optim.SGD(
        module.parameters(),
        lr=float(settings.learning_rate),
        momentum=float(settings.momentum),
        weight_decay=float(settings.weight_decay),
    )
    for epoch in range(job.train.epochs):
        for group in optimizer.param_groups:
            group["lr"] = float(rate(job, epoch))
        for rows in batches(job, epoch):
            index = torch.from_numpy(rows)
            optimizer.zero_grad()
            _loss(job, module(inputs[index]), labels[index]).backward()
            optimizer.step()
    state = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    return Twin(state, evaluate(job, state, tables))


def _loss(job: Job, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    functional = torch.nn.functional
    if job.model.kind == "linear":
        return 0.5 * functional.mse_loss(outputs[:, 0], labels)
    if job.model.kind == "logistic":
        return functional.binary_cross_entropy_with_logits(outputs[:, 0], labels)
    return functional.cross_entropy(outputs, labels.long())


def evaluate(
    job: Job, state: Mapping[str, NDArray[np.float64]], tables: Sequence[Table]
) -> dict[str, float]:
    """Return the job's metrics of a plaintext model on the held-out rows of pooled tables."""
    _, held_out = split(job)
    inputs = np.concatenate([table.features for table in tables])[held_out]
    labels = np.concatenate([table.labels for table in tables])[held_out]
    module = plain_module(job).double()
    module.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    with torch.no_grad():
        outputs = module(torch.from_numpy(inputs)).numpy()
    return {metric: _metric(metric, job, outputs, labels) for metric in job.reveal.metrics}


def _metric(
    name: str, job: Job, outputs: NDArray[np.float64], labels: NDArray[np.float64]
) -> float:
    if name == "accuracy":
        guesses = outputs[:, 0] >= 0 if job.outputs == 1 else outputs.argmax(axis=1)
        return float(np.mean(guesses == labels))
    if name == "auc":
        return _auc(outputs[:, 0], labels)
    errors = outputs[:, 0] - labels
    if name == "mae":
        return float(np.mean(np.abs(errors)))
    if name == "mse":
        return float(np.mean(errors**2))
    return float(1 - np.sum(errors**2) / np.sum((labels - labels.mean()) ** 2))


def _auc(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
    """Return the share of (positive, negative) pairs in the right order; a tie counts half."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    if not len(positive) or not len(negative):
        return float("nan")
    difference = positive[:, None] - negative[None, :]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def max_weight_difference(
    one: Mapping[str, NDArray[np.float64]], other: Mapping[str, NDArray[np.float64]]
) -> float:
    """Return the largest absolute difference of a weight between two models of one shape."""
    return max(float(np.max(np.abs(one[name] - other[name]))) for name in one)
