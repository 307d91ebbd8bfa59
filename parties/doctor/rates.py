"""How many bits a second pass in each direction, and whether a connection may carry much.

Payload over one connection, without its start: TCP needs some round trips to find its pace.
Messages under way begin with a few and double each round trip, so that a slow link is not filled
for minutes.
"""

import time
from dataclasses import dataclass

from parties.doctor.findings import Figures, Finding, Level, network
from parties.doctor.line import Line, LineLostError
from parties.errors import ControlError

RATE_S = 4.0
"""How long each direction is measured at most."""

ARRIVE_S = 10.0
"""How long nothing may arrive."""

RAMP = 1 / 3
"""The first part of the time, which does not count."""

CHUNK_BYTES = 32 << 10
MIN_WINDOW, MAX_WINDOW = 4, 512
MIN_ARRIVALS = 4
SLOW_MBIT_S = 10.0


@dataclass(frozen=True)
class _Way:
    """A direction: its name, and what a question carries and wants."""

    check: str
    payload: bytes
    want: int


SENDING = _Way("sending", bytes(CHUNK_BYTES), 0)
RECEIVING = _Way("receiving", b"", CHUNK_BYTES)


def rate(line: Line, way: _Way, most_bytes: int) -> Finding:
    """Measure one direction over `line`, with at most `most_bytes`. Raises ControlError."""
    trouble = line.connect()
    if trouble is not None:
        return network(
            way.check,
            Level.problem,
            trouble,
            "an earlier connection was accepted: ask who runs the firewall or the proxy whether it "
            "limits connections",
        )
    most = max(2 * MIN_ARRIVALS, most_bytes // CHUNK_BYTES)
    window, asked, arrivals = MIN_WINDOW, 0, [time.perf_counter()]
    deadline = time.monotonic() + RATE_S
    try:
        while len(arrivals) <= most and time.monotonic() < deadline:
            while asked < most and asked - len(arrivals) + 1 < window:
                line.ask(way.want, way.payload)
                asked += 1
            told, size = line.answer(ARRIVE_S)
            if told.spent:
                break
            if size != way.want:
                raise ControlError(f"{line.target.name} sent {size} bytes, not {way.want}")
            arrivals.append(time.perf_counter())
            window = min(window + 1, MAX_WINDOW)
    except LineLostError:
        return _cut(line, way, (len(arrivals) - 1) * CHUNK_BYTES)
    return _judged(line, way, arrivals)


def _cut(line: Line, way: _Way, passed: int) -> Finding:
    amount = f"{passed / 1e6:.1f} MB"
    return network(
        way.check,
        Level.problem,
        f"the connection to {line.target.name} broke after {amount}"
        if line.broken
        else f"nothing came for {ARRIVE_S:.0f} s after {amount}",
        "something on the way limits how much one connection may carry: a proxy with a limit on "
        "the size of a body, or a firewall; a training sends gigabytes",
        {"bytes": passed},
    )


def _judged(line: Line, way: _Way, arrivals: list[float]) -> Finding:
    begin = arrivals[0] + (arrivals[-1] - arrivals[0]) * RAMP
    counted = [at for at in arrivals if at >= begin]
    if len(counted) < MIN_ARRIVALS:
        return network(
            way.check,
            Level.skipped,
            f"{line.target.name} answered {len(arrivals) - 1} questions, too few to tell: the link "
            "is very slow, or this node has asked for much within a minute",
        )
    mbit_s = (len(counted) - 1) * CHUNK_BYTES * 8 / 1e6 / (counted[-1] - counted[0])
    text = f"{line.target.name}: {mbit_s:,.1f} Mbit/s"
    figures: Figures = {
        "mbit_s": round(mbit_s, 2),
        "bytes": (len(arrivals) - 1) * CHUNK_BYTES,
    }
    if mbit_s < SLOW_MBIT_S:
        return network(
            way.check,
            Level.warning,
            text,
            "a training sends megabytes to gigabytes in each direction",
            figures,
        )
    return network(way.check, Level.passed, text, figures=figures)
