"""An owner's part of a round: some steps of plain PyTorch on its own rows, and what changed.

Neither the rows nor the model leave the owner; the change is clipped and rounded (`limits`) before
it is split into summands. The order of rows follows from the job's seed, the round and the owner's
name, so that a round can be repeated.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from mpc_train.admission.plain_module import own_module, shared_tensors
from mpc_train.errors import DataError
from mpc_train.federated.limits import pieces
from mpc_train.federated.sizes import limits_of
from mpc_train.federated.steps import steps_of
from mpc_train.jobs.schedule import held_out_of, secret_training_size, training_of

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.owners.table import Table
    from protocols.arrays import Reals, Words

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """words: int64[size], clipped and rounded. rows: how many the owner trained on. factor: by
    which it was clipped, 1 if it was not. loss: the mean loss of the last step, for this owner
    only."""

    words: Words
    rows: int
    factor: float
    loss: float

    def __repr__(self) -> str:
        return f"Update(size={self.words.size})"


class Owner:
    """One owner's rows and module.

    device: where it trains, "cuda" or "cpu"; empty: on a GPU, if there is one. Raises ModelError
    for a module that is not the job's.
    """

    def __init__(self, job: Job, name: str, table: Table, device: str = "") -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._job, self._name, self._device = job, name, torch.device(device)
        self.limits = limits_of(job)
        self._module = own_module(job).to(self._device)
        self._shared = shared_tensors(self._module)
        self._is_first = True
        """Whether the module has its first values still."""
        training, held_out = self._places(table)
        kind = torch.float32 if job.model.kind != "softmax" else torch.int64
        features = torch.from_numpy(np.asarray(table.features, np.float32))
        array = job.data.array
        if array and array.shape:
            features = features.reshape(-1, *array.shape)
        labels = torch.from_numpy(np.asarray(table.labels)).to(kind)
        self._rows = [
            (features[places].to(self._device), labels[places].to(self._device))
            for places in (torch.from_numpy(training), torch.from_numpy(held_out))
        ]
        self.rows = len(training)
        if not self.rows:
            raise DataError(f"{name} has no rows to train on")

    def _places(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        job, name = self._job, self._name
        if job.federated.sizes == "public":
            first = job.first_row(name)
            return training_of(job, name) - first, held_out_of(job, name) - first
        kept = secret_training_size(job, table.rows)  # of a table that is in no order
        return np.arange(kept), np.arange(kept, table.rows)

    def initial(self) -> Reals:
        """The weights before the first round, float64[size], also after rounds: evaluators may
        begin anew."""
        if not self._is_first:
            return self._weights(shared_tensors(own_module(self._job)))
        return self._weights(self._shared)

    def _weights(self, shared: Mapping[str, torch.Tensor]) -> Reals:
        found = np.empty(self.limits.size)
        start = 0
        for one in shared.values():
            found[start : start + one.numel()] = one.detach().cpu().reshape(-1).numpy()
            start += one.numel()
        return found

    def _load(self, weights: Reals) -> None:
        self._is_first = False
        start = 0
        with torch.no_grad():
            for tensor in self._shared.values():
                part = torch.from_numpy(weights[start : start + tensor.numel()])
                tensor.copy_(part.reshape(tensor.shape))
                start += tensor.numel()

    def train(self, weights: Reals, number: int) -> Update:
        """Train from the global model, in round `number`, from 1. Raises DataError if the update is
        not finite. With `[privacy]` zeros take its place: whether an owner takes part must not
        depend on its rows."""
        update, loss = self.update(weights, number)
        what = f"the update of {self._name} in round {number}"
        try:
            words, factor = self.limits.round_in_place(update, what)
        except DataError as error:
            if not self._job.privacy:
                raise
            log.warning("%s; zeros are shared in its place", error)
            words, factor = np.zeros(self.limits.size, np.int64), 0.0
        return Update(words, self.rows, factor, loss)

    def _changed(self, weights: Reals) -> Reals:
        """What has changed since these weights were loaded, float64[size]: they were rounded to the
        tensors' types then."""
        found, start = self._weights(self._shared), 0
        for one in self._shared.values():
            mine, theirs = (x[start : start + one.numel()] for x in (found, weights))
            for piece in pieces(mine.size):
                mine[piece] -= torch.from_numpy(theirs[piece]).to(one.dtype).double().numpy()
            start += one.numel()
        return found

    def update(self, weights: Reals, number: int) -> tuple[Reals, float]:
        """The same before it is clipped and rounded: what changed, float64[size], and the loss of
        the last step."""
        settings = self._job.federated
        self._load(weights)
        anchors = []
        if settings.proximal:
            anchors = [one.detach().clone() for one in self._module.parameters()]
        seed = hashlib.sha256(
            f"mpc-train federated {self._job.train.seed} {number} {self._name}".encode()
        ).digest()
        order = np.random.Generator(np.random.Philox(int.from_bytes(seed[:16], "big")))
        parameters = [one for one in self._module.parameters() if one.requires_grad]
        rate, momentum = float(settings.learning_rate), float(settings.momentum)
        steps = steps_of(settings.optimizer, parameters, rate, momentum)
        features, labels = self._rows[0]
        size = min(settings.batch_size, self.rows)
        places, at = order.permutation(self.rows), 0
        loss = torch.zeros(())
        self._module.train()
        with torch.random.fork_rng(devices=[] if self._device.type == "cpu" else [self._device]):
            torch.manual_seed(int.from_bytes(seed[16:24], "big") >> 1)
            for _ in range(settings.local_steps):
                if at + size > self.rows:
                    places, at = order.permutation(self.rows), 0
                batch = torch.from_numpy(places[at : at + size]).to(self._device)
                at += size
                loss = self._loss(self._module(features[batch]), labels[batch])
                total = loss
                if settings.proximal:
                    pairs = zip(self._module.parameters(), anchors, strict=True)
                    apart = torch.stack([((one - other) ** 2).sum() for one, other in pairs]).sum()
                    total = loss + float(settings.proximal) / 2 * apart
                total.backward()
                steps.step()
        return self._changed(weights), float(loss.detach())

    def _loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self._job.model.kind == "softmax":
            return functional.cross_entropy(outputs, labels)
        outputs = outputs.reshape(labels.shape)
        if self._job.model.kind == "logistic":
            return functional.binary_cross_entropy_with_logits(outputs, labels)
        return functional.mse_loss(outputs, labels)

    def measured(self, weights: Reals) -> dict[str, float]:
        """Of a global model, on this owner's held-out rows: the loss, and a classifier's accuracy.
        Nothing of it leaves the owner."""
        features, labels = self._rows[1]
        if not len(labels):
            return {}
        self._load(weights)
        self._module.eval()
        with torch.no_grad():
            outputs = self._module(features)
            found = {"loss": float(self._loss(outputs, labels))}
            if self._job.model.kind == "softmax":
                found["accuracy"] = float((outputs.argmax(-1) == labels).float().mean())
            elif self._job.model.kind == "logistic":
                right = (outputs.reshape(labels.shape) > 0) == (labels > 0.5)
                found["accuracy"] = float(right.float().mean())
        return found

    def tensors(self, weights: Reals) -> dict[str, torch.Tensor]:
        """A global model as a state_dict: the shared tensors, and this owner's own counters."""
        self._load(weights)
        return {name: one.detach().cpu().clone() for name, one in self._module.state_dict().items()}
