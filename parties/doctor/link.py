"""The way to another node, over a connection like that of a run: whose key answers, its release,
its clock, the round trip, the rates of both directions, and how long a connection may be silent.

The other end is a `Desk`. A round trip is that of a small message through ZeroMQ and CURVE.
"""

import statistics
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from parties.doctor.desk import Told
from parties.doctor.findings import Figures, Finding, Level, network, other
from parties.doctor.line import ANSWER_S, Line, LineLostError, Target
from parties.doctor.rates import RECEIVING, SENDING, rate
from parties.doctor.silence import silence
from parties.errors import ControlError, TransportError
from parties.wire.proxy import Proxy
from parties.wire.zmq_transport import HEARTBEAT_MS, CurveKeys, Transport

PINGS = 100
PING_S = 5.0
"""How long the round trips are measured at most."""

LARGEST_SKEW_S = 120.0
GOOD_SKEW_S = 5.0
SLOW_MS = 100.0
HELD_BACK_MS = 2000.0
"""Nothing on Earth is so far away: something collects small messages before it passes them on."""

MAX_MEGABYTES = 24
"""In each direction: a desk answers 64 MB a minute."""


@dataclass(frozen=True)
class Wanted:
    """How to measure. version: of this node's contracts. idle_s: how long to leave a connection
    silent; None: not at all. heartbeat_s: of this node in a run. clock: this machine's, seconds
    since 1970."""

    version: int
    megabytes: float = 12.0
    idle_s: float | None = None
    heartbeat_s: float = HEARTBEAT_MS / 1000
    clock: Callable[[], float] = time.time


def examine(
    keys: CurveKeys, target: Target, wanted: Wanted, proxy: Proxy | None = None
) -> Iterator[Finding]:
    """Measure the way to `target`, one finding after the other; what rests on something that failed
    is left out."""
    transport = Transport(keys, {}, proxy=proxy)
    try:
        told = yield from _small(transport, target, wanted, proxy is not None)
        if told is not None:
            yield from _rates(transport, target, told, wanted)
    except TransportError as error:
        yield network("key", Level.problem, str(error), "correct the address")
        return
    except ControlError as error:
        yield other("release", Level.problem, str(error), "run the same release everywhere")
        return
    finally:
        transport.close()
    if wanted.idle_s is not None and told is not None:
        yield _idle(keys, target, told, wanted, wanted.idle_s, proxy)


def _small(
    transport: Transport, target: Target, wanted: Wanted, by_proxy: bool
) -> Generator[Finding, None, Told | None]:
    """Key, release, clock and round trip; returns the first answer, if there is one."""
    with Line(transport, target) as line:
        trouble = line.connect()
        if trouble is not None:
            yield _no_key(target, trouble)
            return None
        yield other("key", Level.passed, f"{target.words} holds the key of its card")
        told: Told | None = None
        trips, skew_s = list[float](), 0.0
        deadline = time.monotonic() + PING_S
        try:
            while len(trips) < PINGS and (time.monotonic() < deadline or not trips):
                wall, started = wanted.clock(), time.perf_counter()
                line.ask()
                answer, _ = line.answer()
                seconds = time.perf_counter() - started
                told = told or answer
                if not trips or seconds < min(trips):
                    skew_s = answer.at - (wall + seconds / 2)
                trips.append(seconds)
        except LineLostError:
            yield _no_answer(target, line.broken, by_proxy, len(trips))
            return None
    assert told is not None  # at least one was answered
    yield _release(target, told, wanted.version)
    yield _skew(target, skew_s, min(trips) / 2)
    yield _trip(target, trips)
    return told


def _no_key(target: Target, trouble: str) -> Finding:
    if "refuses this node" in trouble:
        return other(
            "key",
            Level.problem,
            f"{target.words} refuses this node",
            "its roster lacks this node's card or has an old one, or the job there does not name "
            "this node: send the card again and compare fingerprints",
        )
    if "expected key" in trouble:
        return other(
            "key",
            Level.problem,
            f"what answers at {target.address} does not hold the key of {target.name}'s card",
            "check the address; compare the fingerprint of the card in your roster with its owner "
            "over another channel; at a party, mpc-train doctor --listen has to run meanwhile",
        )
    return network(
        "key",
        Level.problem,
        f"{target.words}: {trouble}",
        "if the port answers, something on the way passes the start of a connection and holds back "
        "the rest: a firewall or a proxy that inspects",
    )


def _no_answer(target: Target, broken: bool, by_proxy: bool, answered: int) -> Finding:
    """A question was not answered; so many before it were."""
    if broken:
        return network(
            "round trip",
            Level.problem,
            f"the connection to {target.words} broke after {answered} small messages",
            "something on the way closes it: ask who runs the firewall or the proxy",
        )
    text = f"{target.words} did not answer a small message within {ANSWER_S:.0f} s"
    if by_proxy:
        return network(
            "round trip",
            Level.problem,
            f"{text}: the proxy holds back what is small (buffering), or nobody there answers",
            "its administrator has to switch buffering and inspection off for this address; "
            "mpc-train doctor --listen or a coordinator has to run there",
        )
    return network(
        "round trip",
        Level.problem,
        text,
        "mpc-train doctor --listen or a coordinator has to run there, of the same release",
    )


def _release(target: Target, told: Told, version: int) -> Finding:
    if told.version == version:
        return other("release", Level.passed, f"contracts of version {version} at both ends")
    return other(
        "release",
        Level.problem,
        f"{target.name} has contracts of version {told.version}, this node of {version}",
        "run the same release everywhere",
    )


def _skew(target: Target, skew_s: float, margin_s: float) -> Finding:
    """skew_s: how far the clock there is ahead of this one; margin_s: how far that may be wrong."""
    way = "ahead of" if skew_s > 0 else "behind"
    text = f"the clock of {target.name} is {abs(skew_s):.3f} s {way} this one (± {margin_s:.3f} s)"
    figures: Figures = {"skew_s": round(skew_s, 4), "margin_s": round(margin_s, 4)}
    size = max(0.0, abs(skew_s) - margin_s)
    if size <= GOOD_SKEW_S:
        return other("clock", Level.passed, text, figures=figures)
    return other(
        "clock",
        Level.problem if size > LARGEST_SKEW_S else Level.warning,
        text,
        "set both clocks by a time server (NTP): cards, policies and approvals have dates, and "
        "logs are compared by time",
        figures,
    )


def _trip(target: Target, trips: list[float]) -> Finding:
    ordered = sorted(trips)
    median = statistics.median(ordered) * 1000
    late = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] * 1000
    text = f"{target.name}: median {median:.1f} ms, 99 % within {late:.1f} ms, of {len(trips)}"
    figures: Figures = {
        "median_ms": round(median, 3),
        "p99_ms": round(late, 3),
        "count": len(trips),
    }
    if median > HELD_BACK_MS:
        return network(
            "round trip",
            Level.problem,
            text,
            "something on the way collects messages before it passes them on, like a proxy that "
            "buffers: have that switched off for this address",
            figures,
        )
    if median > SLOW_MS:
        return network(
            "round trip",
            Level.warning,
            text,
            "a training has thousands of round trips, and waits so long for each",
            figures,
        )
    return network("round trip", Level.passed, text, figures=figures)


def _rates(transport: Transport, target: Target, told: Told, wanted: Wanted) -> Iterator[Finding]:
    if told.busy:
        text = f"{target.name} has a run under way: not measured"
        yield network("rate", Level.skipped, text)
        return
    for way in (SENDING, RECEIVING):
        with Line(transport, target) as line:
            yield rate(line, way, int(min(wanted.megabytes, MAX_MEGABYTES) * 1e6))


def _idle(
    keys: CurveKeys, target: Target, told: Told, wanted: Wanted, seconds: float, proxy: Proxy | None
) -> Finding:
    if not told.quiet:
        return network(
            "idle",
            Level.skipped,
            f"{target.name} sends heartbeats, so no connection to it is silent",
            "to measure this, mpc-train doctor --listen has to run there",
        )
    transport = Transport(keys, {}, proxy=proxy, quiet=True)
    try:
        with Line(transport, target) as line:
            return silence(line, seconds, wanted.heartbeat_s)
    except ControlError as error:
        return other("idle", Level.problem, str(error), "run the same release everywhere")
    finally:
        transport.close()
