"""The door for layers: autograd functions over masked tensors, offered as methods of a tensor.

A function that `register` has named is called as `x.name(...)`; CrypTen records it if a gradient
will be needed. The modules `convolution`, `pooling`, `normalisation`, `activation` and `shape`
register theirs when they are imported. Feature maps are [channels, rows, *sizes].
"""

from __future__ import annotations

from typing import Any

from protocols.crypten_tensor.tensor import crypten
from protocols.crypten_tensor.tensor import record as register

__all__ = ["Function", "register"]

Function: Any = crypten.gradients.AutogradFunction
