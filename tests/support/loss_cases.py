"""Losses over shares and PyTorch's beside them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import torch

from mpc_train.training.losses import (
    AbsoluteError,
    BinaryCrossEntropy,
    CrossEntropy,
    Huber,
    Loss,
    Poisson,
    SquaredError,
)

nn = torch.nn
WEIGHTS = (Fraction(1), Fraction(3), Fraction(1, 2))
FLOATS = torch.tensor([float(weight) for weight in WEIGHTS], dtype=torch.float64)

# By name: the loss, PyTorch's, labels, error of its function
CASES: dict[str, tuple[Loss, Any, str, float]] = {
    "mse": (SquaredError(), nn.MSELoss(), "real", 0.0),
    "half mse": (
        SquaredError(Fraction(1, 2)),
        lambda z, y: nn.functional.mse_loss(z, y) / 2,
        "real",
        0.0,
    ),
    "l1": (AbsoluteError(), nn.L1Loss(), "real", 0.0),
    "huber": (Huber(Fraction(1, 4)), nn.HuberLoss(delta=0.25), "real", 0.0),
    "bce": (BinaryCrossEntropy(), nn.BCEWithLogitsLoss(), "binary", 2.0**-14),
    "bce, weighted": (
        BinaryCrossEntropy(Fraction(5, 2)),
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.5, dtype=torch.float64)),
        "binary",
        2.0**-12,
    ),
    "cross-entropy": (CrossEntropy(), nn.CrossEntropyLoss(), "one-hot", 2.0**-12),
    "cross-entropy, smooth": (
        CrossEntropy(smoothing=Fraction(1, 10)),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        "one-hot",
        2.0**-12,
    ),
    "cross-entropy, weighted": (
        CrossEntropy(WEIGHTS, Fraction(1, 5)),
        nn.CrossEntropyLoss(weight=FLOATS, label_smoothing=0.2),
        "one-hot",
        3 * 2.0**-12,
    ),
    "poisson": (
        Poisson(Fraction(2)),
        nn.PoissonNLLLoss(),
        "count",
        2.0**-14 * np.exp(2.0),
    ),
}
