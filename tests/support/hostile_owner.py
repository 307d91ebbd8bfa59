"""`mpc-train` of somebody who sends updates of a thousand times the norm that the job allows."""

from typing import Any

from mpc_train.cli import main
from mpc_train.federated.limits import Limits

_honest = Limits.round_in_place


def _hostile(self: Limits, *arguments: Any, **options: Any) -> Any:
    words, factor = _honest(self, *arguments, **options)
    return words * 1000, factor


if __name__ == "__main__":
    Limits.round_in_place = _hostile  # type: ignore[method-assign]
    main()
