"""The network of this example, an ordinary torch module.

    python -m mpc_train model export net:lenet --input-shape 1,8,8 > model.json

in this folder writes what the job carries; no node needs this file.
"""

from torch import nn


def lenet() -> nn.Module:
    """Two convolutions with pools on 8 by 8 pixels, and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
