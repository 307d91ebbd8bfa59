"""What an owner learns of a round that was opened."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from protocols.errors import FrameError

if TYPE_CHECKING:
    from mpc_train.federated.limits import Limits
    from mpc_train.federated.local import Update
    from mpc_train.federated.rounds.messages import Record
    from protocols.arrays import Reals, Words


@dataclass(frozen=True)
class Told:
    """owners: how many updates are in the sum. counted: whether this owner's is; None: it did not
    take part. factor: by which its update was clipped; loss: of its last local step; None where
    this process did not train. measured: the new global model on its own held-out rows."""

    round: int
    owners: int
    counted: bool | None
    factor: float | None
    loss: float | None
    measured: dict[str, float]

    @classmethod
    def of(cls, me: str, record: Record, update: Update | None, measured: dict[str, float]) -> Told:
        counted = me in record.counted if me in (*record.counted, *record.left_out) else None
        factor, loss = (None, None) if update is None else (update.factor, update.loss)
        return cls(record.round, len(record.counted), counted, factor, loss, measured)

    def printed(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def mean_of(total: Words, record: Record, limits: Limits, secret: bool) -> Reals:
    """The mean update of an opened sum, float64[size], in its place. Raises FrameError for an
    impossible one."""
    rows = int(total[-1]) if secret else record.rows
    if rows < 1:
        raise FrameError(f"round {record.round}: a sum over {rows} rows")
    return limits.mean(total[: limits.size], rows)
