"""The plaintext twin's optimizer, clip, loss and early stopping, from the same job."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from mpc_train.jobs.job import Job
from mpc_train.jobs.training import loss_name
from mpc_train.networks.head import head_of
from mpc_train.twin.optim import RootAdaptive

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def twin_optimizer(job: Job, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The job's rule; the twin sets the rate of every step."""
    settings, trained = job.train.optimizer, list(parameters)
    rate = float(settings.learning_rate)
    if settings.name == "sgd":
        return torch.optim.SGD(
            trained,
            lr=rate,
            momentum=float(settings.momentum),
            weight_decay=float(settings.weight_decay),
            nesterov=settings.nesterov,
        )
    adam = settings.name in ("adam", "adamw")
    return RootAdaptive(
        trained,
        rate,
        first=float(settings.betas[0]) if adam else 0.0,
        second=float(settings.betas[1] if adam else settings.alpha),
        epsilon=float(settings.epsilon),
        corrected=adam,
        momentum=float(settings.momentum),
        weight_decay=float(settings.weight_decay),
        decoupled=settings.name == "adamw",
    )


def twin_clip(job: Job, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Clip gradients as the job says."""
    clip = job.train.clip
    if clip is None:
        return
    if clip.value is not None:
        torch.nn.utils.clip_grad_value_(parameters, float(clip.value))
    elif clip.norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, float(clip.norm))


LEAST = 1e-43
"""The logarithm of a smaller probability is replaced by that of this one: about -100, as in
BCELoss."""


def twin_loss(job: Job, training: torch.Tensor | None = None) -> Loss:
    """The job's loss of the network's outputs, [rows, outputs], and labels as in files, [rows]:
    BCELoss or NLLLoss if the network ends in its own sigmoid or softmax.

    training: the labels of all training rows, which determine class weights.
    """
    network = job.model.network
    head = "" if network is None else head_of(network.graph, job.model.kind)
    loss = _of_logits(job, training)
    if head == "sigmoid":
        return lambda p, y: loss(_log(p) - _log(1 - p), y)
    # The softmax of log-probabilities gives the probabilities.
    return (lambda p, y: loss(_log(p), y)) if head == "softmax" else loss


def _log(p: torch.Tensor) -> torch.Tensor:
    return torch.log(p.clamp_min(LEAST))


def _of_logits(job: Job, training: torch.Tensor | None) -> Loss:
    """The loss of a network that ends in logits, log-probabilities or numbers."""
    settings, name = job.train.loss, loss_name(job)
    functional = torch.nn.functional
    if settings.balanced and training is not None:
        return _balanced(job, training)
    if name == "bce":
        weight = torch.tensor(float(settings.positive_weight), dtype=torch.float64)
        return lambda z, y: functional.binary_cross_entropy_with_logits(
            z[:, 0], y, pos_weight=weight
        )
    if name == "cross_entropy":
        weights = None
        if settings.class_weights:
            weights = torch.tensor([float(w) for w in settings.class_weights], dtype=torch.float64)
        smoothing = float(settings.label_smoothing)
        # One-hot labels, so that the mean is over rows.
        return lambda z, y: functional.cross_entropy(
            z,
            functional.one_hot(y.long(), z.shape[1]).double(),
            weight=weights,
            label_smoothing=smoothing,
        )
    if name == "huber":
        delta = float(settings.delta)
        return lambda z, y: functional.huber_loss(z[:, 0], y, delta=delta)
    if name == "poisson":
        most = float(settings.most_log_rate)
        # Above `most` the rate is constant, and so is the gradient.
        return lambda z, y: torch.mean(_capped_rate(z[:, 0], most) - y * z[:, 0])
    if name == "l1":
        return lambda z, y: functional.l1_loss(z[:, 0], y)
    factor = 0.5 if name == "half_mse" else 1.0
    return lambda z, y: factor * functional.mse_loss(z[:, 0], y)


def _balanced(job: Job, training: torch.Tensor) -> Loss:
    """scikit-learn's class_weight="balanced"; no row uses the weight of a class without rows."""
    counts = torch.bincount(training.long(), minlength=job.classes).double()
    weights = len(training) / (job.classes * counts)
    functional = torch.nn.functional
    if job.outputs == 1:
        return lambda z, y: functional.binary_cross_entropy_with_logits(
            z[:, 0], y, weight=weights[y.long()]
        )
    smoothing = float(job.train.loss.label_smoothing)

    def cross_entropy(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        target = functional.one_hot(y.long(), z.shape[1]).double()
        each = functional.cross_entropy(z, target, reduction="none", label_smoothing=smoothing)
        return torch.mean(each * weights[y.long()])

    return cross_entropy


def _capped_rate(z: torch.Tensor, most: float) -> torch.Tensor:
    top = torch.tensor(most, dtype=z.dtype)
    return torch.exp(torch.minimum(z, top)) + torch.exp(top) * torch.relu(z - top)


@dataclass
class TwinStopping:
    """The decisions of early stopping, on losses in the clear."""

    patience: int
    least_improvement: float
    best: float = float("inf")
    waited: int = 0
    state: dict[str, torch.Tensor] = field(default_factory=dict)

    def stop(self, loss: float, module: torch.nn.Module) -> bool:
        """Whether training ends after a check with this loss; keeps the best model so far."""
        if loss < self.best - self.least_improvement:
            self.best, self.waited = loss, 0
            self.state = {name: value.clone() for name, value in module.state_dict().items()}
        else:
            self.waited += 1
        return self.waited >= self.patience
