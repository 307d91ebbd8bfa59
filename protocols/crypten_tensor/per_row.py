"""Gradients of a weight that are not summed over rows yet, for clipping row by row.

The gradient of a linear layer's weight is a sum over rows of outer products: of a row of inputs and
a row of the gradient at the outputs. If a parameter `keeps_rows`, the backward pass puts these two
factors in the place of the sum (`RowGradient`), so that rows can be weighed first. Nothing is
computed for it, and no row's gradient is ever formed: its norm is that of its factors (Goodfellow,
"Efficient Per-Example Gradient Computations", 2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protocols.crypten_tensor.tensor import MaskedTensor


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RowGradient:
    """The gradient of a layer's weight, or of its bias, by rows.

    at_outputs: [rows, outputs]. inputs: [rows, inputs] for a weight. Row r's gradient is the
    product of at_outputs[r] and inputs[r]. Without inputs it is at_outputs[r]: for the bias of a
    linear layer, and for a convolution, whose gradients by rows are formed.
    """

    at_outputs: MaskedTensor
    inputs: MaskedTensor | None

    def __repr__(self) -> str:
        return f"RowGradient(rows={self.at_outputs.shape[0]})"

    def add(self, other: object) -> RowGradient:
        """Raises NotImplementedError: the norm of a sum does not follow from its parts' norms."""
        raise NotImplementedError("a weight that is used twice has no gradient by rows")
