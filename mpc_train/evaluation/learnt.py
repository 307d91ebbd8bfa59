"""What a node learns in a run, apart from what it may tell the coordinator."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from mpc_train.base.reading import Reading
from mpc_train.evaluation.findings import Findings


@dataclass(frozen=True)
class Found:
    """metrics: as the job lists them, known to all nodes. unavailable: why some have no value.
    losses: of batches, by step. revealed: names of the outputs that passed the reveal gate;
    None at a node without one. joined_rows: set if records were joined. own: metrics of this node's
    own rows, which only it learns."""

    metrics: Mapping[str, Reading] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)
    revealed: tuple[str, ...] | None = None
    joined_rows: int | None = None
    own: Findings = field(default_factory=Findings)

    def printed(self) -> dict[str, object]:
        """What a node prints of this for machines; its own metrics go into a file."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "own"}
