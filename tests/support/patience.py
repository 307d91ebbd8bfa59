"""How long tests wait for what has to happen: a guard against hanging, not a measure of speed.

A busy machine may take a minute for what takes a second elsewhere. Where a test shows that
something is noticed rather than waited out, the wait that it must not fall back on is longer than
`PATIENCE_S`.
"""

import time
from collections.abc import Callable

PATIENCE_S = 240.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for `condition`; fails naming `what` did not happen."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:.0f} s for {what}"
        time.sleep(0.02)
