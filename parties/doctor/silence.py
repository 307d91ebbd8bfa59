"""How long a connection may be silent before something on the way cuts it.

Nodes send heartbeats, so a run is never silent for long; but firewalls and proxies that cut after a
second or two exist, and one that cuts after minutes explains what happens when a machine sleeps.
Neither end may send anything meanwhile: ZeroMQ's heartbeats and TCP's keepalives are off at both.
"""

import time

from parties.doctor.findings import Finding, Level, network
from parties.doctor.line import Line, LineLostError

LOOK_S = 0.02
SAFE = 3
"""A connection has to survive so many heartbeats."""


def silence(line: Line, seconds: float, heartbeat_s: float) -> Finding:
    """Leave `line`, whose ends are both quiet, alone for `seconds`. heartbeat_s: of this node in a
    run. Raises ControlError."""
    try:
        if line.connect() is not None:
            raise LineLostError
        line.ask()
        line.answer()
    except LineLostError:
        return network("idle", Level.skipped, "there was no second connection to leave alone")
    started = time.monotonic()
    while (passed := time.monotonic() - started) < seconds and not line.broken:
        time.sleep(LOOK_S)
    if line.broken:
        return _cut(f"after {passed:.1f} s", passed, heartbeat_s)
    try:
        line.ask()
        line.answer()
    except LineLostError:
        return _cut(f"within {seconds:.0f} s, without notice", seconds, heartbeat_s)
    text = f"a connection that is silent for {seconds:.0f} s still works"
    return network("idle", Level.passed, text, figures={"idle_s": seconds})


def _cut(when: str, seconds: float, heartbeat_s: float) -> Finding:
    short = seconds < SAFE * heartbeat_s
    return network(
        "idle",
        Level.problem if short else Level.warning,
        f"a silent connection is cut {when}",
        f"nodes send a heartbeat every {heartbeat_s:.0f} s, which is "
        + (
            "too seldom here: lower heartbeat_s under [timeouts], or have the proxy wait longer"
            if short
            else "enough"
        ),
        {"idle_s": round(seconds, 1)},
    )
