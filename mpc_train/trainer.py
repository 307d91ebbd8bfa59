"""The training loop over shares: batches in, one update a step.

It knows a model, its data and a rate; not how many processes an organisation has, who the
parties are or where a channel leads.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpc_train.optim import SGD
from protocols.crypten_backend import MaskedTensor

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Trainer:
    """One model in training. loss: a CrypTen loss whose backward gives the gradient."""

    model: Any
    loss: Any
    optimizer: SGD

    def step(self, inputs: MaskedTensor, labels: MaskedTensor, rate: Fraction) -> None:
        """Forward, backward and update on one batch; openings may still be pending after it.

        inputs: [rows, features]; labels: the shape of the model's output.
        """
        self.loss(self.model(inputs), labels).backward()
        self.optimizer.step(rate)
