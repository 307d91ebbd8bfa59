"""Where a regression is, between two Newton steps or after the last one: `checkpoints.live.Course`.

Between two steps these are the coefficients, and with an L1 penalty what its inner rounds go on
from. H and what follows from it are not kept: a session computes them again at its first step.
Noisy sums that all steps share are kept: a second version would cost the budget once more. At the
end these are the model and the other tensors that are sealed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from mpc_train.checkpoints.live import TENSOR, complete, stranger
from mpc_train.jobs.sealed import regression_shapes
from mpc_train.training.trainer import keep_nothing
from protocols.arrays import Shape
from protocols.shares.masked import Additive, Masked

if TYPE_CHECKING:
    from mpc_train.checkpoints.state import Entry, Position
    from mpc_train.jobs.job import Job

REGRESSION = "regression/"
COEFFICIENTS = "coefficients"
INFORMATION, GRADIENT = "information", "gradient"
"""Of a linear regression with noise: its sums, which are taken once (`iteration.Released`)."""
UNRESOLVED = "unresolved"
"""With noise: how far the matrices of the steps so far could not be inverted."""
LASSO_SCALE, LASSO_SPLIT, LASSO_DUAL = "lasso_scale", "lasso_split", "lasso_dual"
"""S, z and u of `lasso`."""


@dataclass(slots=True, repr=False)
class RegressionCourse:
    """values: secret, by name. begun: the steps that lie before this session. keep: called between
    two steps, with the number of the one that is over."""

    values: dict[str, Masked] = field(default_factory=dict)
    begun: int = 0
    keep: Callable[[int], None] = keep_nothing
    job: Job | None = None
    """None where nothing is kept."""

    @property
    def passes(self) -> int:
        return 0

    @property
    def losses(self) -> dict[int, float]:
        return {}

    def tensors(self) -> dict[str, Masked | Additive]:
        return {self._kept_as(name): x for name, x in self.values.items()}

    def numbers(self) -> dict[str, str]:
        return {}

    def check(self, entries: Collection[Entry], *, finished: bool) -> None:
        shapes = self._shapes(finished=finished)
        for entry in entries:
            if shapes.get(entry.name) != entry.shape or entry.constant:
                raise stranger(entry)
        complete(entries, shapes.keys())

    def restore(self, position: Position, found: Mapping[str, Masked | Additive]) -> None:
        self.begun = position.step
        self.values = {name.partition("/")[2]: cast("Masked", x) for name, x in found.items()}

    def _kept_as(self, name: str) -> str:
        assert self.job is not None
        return (TENSOR if name in self.job.shapes else REGRESSION) + name

    def _shapes(self, *, finished: bool) -> dict[str, Shape]:
        assert self.job is not None
        columns = self.job.widths[0] + 1
        shapes: dict[str, Shape]
        if finished:
            shapes = {**self.job.shapes, **regression_shapes(self.job)}
        else:
            shapes = {COEFFICIENTS: (columns, 1)}
            if self.job.privacy:
                shapes[UNRESOLVED] = (columns,)
                if self.job.model.kind == "linear":
                    shapes |= {INFORMATION: (columns, columns), GRADIENT: (columns, 1)}
            if self.job.train.optimizer.l1:
                shapes |= {LASSO_SCALE: (columns,), LASSO_SPLIT: (columns, 1)}
                shapes |= {LASSO_DUAL: (columns, 1)}
        return {self._kept_as(name): shape for name, shape in shapes.items()}
