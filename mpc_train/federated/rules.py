"""What becomes of a mean update: FedAvg and FedProx add it, FedAdam and FedYogi take it as a
gradient.

Every owner does this for itself, in float64 and element by element, with operations that IEEE 754
rounds in one way only; so all owners hold the same model, bit by bit, without sending it. FedProx
differs in the owners' loss alone (`local`). Li et al., Federated Optimization in Heterogeneous
Networks (MLSys 2020); Reddi et al., Adaptive Federated Optimization (ICLR 2021), with v_0 =
epsilon².
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mpc_train.jobs.train import Federated
from protocols.arrays import Reals


@dataclass
class Global:
    """The global model after `round` rounds. weights: float64[size]. means, squares: of FedAdam and
    FedYogi, from the first round on."""

    weights: Reals
    round: int = 0
    means: Reals = field(default_factory=lambda: np.empty(0))
    squares: Reals = field(default_factory=lambda: np.empty(0))

    def move(self, settings: Federated, update: Reals) -> None:
        """Take the mean update of the next round, which is overwritten."""
        rate = float(settings.server_rate)
        if settings.rule in ("fedavg", "fedprox"):
            if rate != 1:
                update *= rate
            update += self.weights
            self.weights = update
        else:
            first, second = (float(beta) for beta in settings.betas)
            epsilon = float(settings.epsilon)
            if not self.round:
                self.means = np.zeros_like(update)
                self.squares = np.full_like(update, epsilon * epsilon)
            square = update * update
            self.means = first * self.means + (1 - first) * update
            if settings.rule == "fedadam":
                self.squares = second * self.squares + (1 - second) * square
            else:
                sign = np.sign(self.squares - square)
                self.squares = self.squares - (1 - second) * square * sign
            self.weights = self.weights + rate * self.means / (np.sqrt(self.squares) + epsilon)
        self.round += 1
