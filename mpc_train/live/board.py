"""What a run is doing now, put together from its events: for a page, a terminal, and metrics.

Only what the process that shows it knows anyway: at a coordinator who is connected, steps and bytes
that nodes report, and what each event says; at a party also the training losses that the job
reveals to it. No value that depends on data comes from anywhere else.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mpc_train.base.printing import lines_escaped

MAX_EVENTS, MAX_POINTS, MAX_TEXT = 60, 400, 300
MAX_FIGURE = 1e15

LOST = ("lost", "peer-lost", "peer-timeout")
"""Codes of a node that went away; with any other one it has ended the run itself."""

COUNTED = ("questions", "rows", "batches", "refused")
SERVED = (*COUNTED, "waiting", "median_ms", "slow_ms")
"""What evaluators tell of a service, as `serving.figures` counts it; COUNTED from 0 in each
session."""
RATE_S = 60.0
"""Rows a second of a service are those of so many seconds."""

LATE = "reconnecting"
"""The state of a node whose connection broke in the middle of the run, and is waited for."""

Clock = Callable[[], float]


@dataclass
class _Node:
    state: str = "missing"
    phase: str = ""
    step: int = 0
    bytes_sent: int = 0
    rounds: int = 0
    earlier: tuple[int, int] = (0, 0)
    """Bytes and rounds of sessions before this one: each counts from 0."""
    served: dict[str, float] = field(default_factory=dict)
    served_earlier: dict[str, float] = field(default_factory=dict)


@dataclass
class _Chart:
    """Points (seconds, value), of which at most MAX_POINTS are kept, evenly thinned."""

    points: list[tuple[float, float]] = field(default_factory=list)
    every: int = 1
    _seen: int = 0

    def add(self, when: float, value: float) -> None:
        self._seen += 1
        if self._seen % self.every == 0:
            self.points.append((round(when, 1), value))
        if len(self.points) > MAX_POINTS:
            self.points = self.points[::2]
            self.every *= 2


class Board:
    """Takes events from any thread; `snapshot` says what they come to.

    names: the nodes to be shown: all at a coordinator, at another node itself. clock: seconds, of
    any origin.
    """

    def __init__(self, names: tuple[str, ...], clock: Clock = time.monotonic) -> None:
        self._job, self._digest, self._clock = "", "", clock
        self._lock = threading.Lock()
        self._nodes = {name: _Node() for name in names or ("",)}
        self._begun = clock()
        self._started: float | None = None
        self._first_step = 0
        self._phase, self._message = "gathering", ""
        self._exit: int | None = None
        self._over: float | None = None
        """When the run ended: its time does not go on while the page stays."""
        self._steps = 0
        self._events: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)
        self._progress, self._losses = _Chart(), _Chart()
        self._drift: dict[str, dict[str, Any]] = {}
        """By a model's digest, what its newest window came to."""
        self._answered: deque[tuple[float, float]] = deque()
        """When, and how many rows a service had answered."""
        self._suspended = 0
        self._number = 0

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """One event of the coordinator or of a node."""
        with self._lock:
            self._take(kind, fields)

    def _take(self, kind: str, fields: Mapping[str, Any]) -> None:
        name = str(fields.get("node", ""))
        node = self._nodes.get(name)
        if kind == "progress":
            if node is not None or not name:  # a node that shows its own run does not name itself
                self._advance(node, fields.get("fields") or {})
            return
        if kind == "loss":
            # A session that goes on from a checkpoint goes through some steps once more.
            step = float(fields["step"])
            self._losses.points = [point for point in self._losses.points if point[0] < step]
            self._losses.add(step, float(fields["loss"]))
            return
        if kind == "reading":
            return
        if kind == "drift":
            self._drift[str(fields["digest"])] = dict(fields)
        if kind == "proposed":
            self._job = str(fields.get("job", ""))[:MAX_TEXT]
            self._digest = str(fields.get("digest", ""))[:MAX_TEXT]
        if node is not None:
            states = {"arrived": "connected", "left": "missing", "parted": "done"}
            node.state = states.get(kind, node.state)
        if kind in ("reconnecting", "reconnected"):
            self._broken(kind, fields.get("nodes") or (name,))
        phases = {"proposed": "agreeing", "agreed": "agreeing", "gathering": "gathering"}
        phases |= {"waiting": "gathering", "suspended": "suspended", "done": "done"}
        self._phase = phases.get(kind, self._phase)
        if kind == "gathering":
            for each, there in self._nodes.items():
                if each in fields.get("missing", ()):
                    there.state = "missing"
        if kind == "suspended":
            self._suspended += 1
            self._started = None
            for there in self._nodes.values():
                there.state = "missing" if there is node else "returning"
                there.earlier = there.bytes_sent, there.rounds
                there.served_earlier = {word: there.served.get(word, 0) for word in COUNTED}
        if kind == "aborted" and node is not None:
            node.state = "lost" if fields.get("code") in LOST else "failed"
        if kind == "started":
            self._phase, self._started, self._first_step = "running", self._clock(), 0
            for there in self._nodes.values():
                there.state = "computing" if there.state != "done" else there.state
        if kind == "done":
            for there in self._nodes.values():
                there.state = "done"
        self._say(_sentence(kind, fields))

    def _broken(self, kind: str, names: Iterable[str]) -> None:
        """Connections broke, or are there again: the run stands still meanwhile."""
        before, after = ("computing", LATE) if kind == "reconnecting" else (LATE, "computing")
        for name in names:
            if (node := self._nodes.get(name)) is not None and node.state == before:
                node.state = after

    def _advance(self, node: _Node | None, said: Mapping[str, Any]) -> None:
        node = node if node is not None else next(iter(self._nodes.values()))
        node.phase = str(said.get("phase", node.phase))[:MAX_TEXT]
        if isinstance(said.get("bytes_sent"), int):
            node.bytes_sent = node.earlier[0] + said["bytes_sent"]
        if isinstance(said.get("rounds"), int):
            node.rounds = node.earlier[1] + said["rounds"]
        if isinstance(said.get("steps"), int) and node.phase in ("training", "evaluating"):
            self._steps = said["steps"]
        if isinstance(said.get("step"), int) and node.phase == "training":
            node.step = said["step"]
            # The first to report may be the dealer, who is ahead of the others.
            self._first_step = min(self._first_step or node.step, max(node.step - 1, 1))
            self._progress.add(self._clock() - self._begun, self._step())
        if node.phase == "serving":
            self._serve(node, said)

    def _serve(self, node: _Node, said: Mapping[str, Any]) -> None:
        for word in SERVED:
            value = said.get(word)
            if isinstance(value, (int, float)) and value is not True and 0 <= value < MAX_FIGURE:
                node.served[word] = node.served_earlier.get(word, 0) + value
        now, rows = self._clock(), self._most("rows")
        if not self._answered or self._answered[-1][1] != rows:
            self._answered.append((now, rows))
            self._progress.add(now - self._begun, rows)
        self._rate(now)

    def _most(self, word: str) -> float:
        """Of the evaluators of a service: each counts the same questions."""
        return max((node.served.get(word, 0) for node in self._nodes.values()), default=0)

    def _rate(self, now: float) -> float:
        """Rows that a service has answered a second, of late."""
        while len(self._answered) > 1 and self._answered[1][0] <= now - RATE_S:
            self._answered.popleft()
        if not self._answered:
            return 0.0
        since, rows = self._answered[0]
        return (self._most("rows") - rows) / max(now - max(since, now - RATE_S), 1.0)

    def _step(self) -> int:
        """Of the slowest node that trains."""
        return min((n.step for n in self._nodes.values() if n.step), default=0)

    def _say(self, text: str) -> None:
        if text:
            self._number += 1
            when = round(self._clock() - self._begun, 1)
            said = lines_escaped(text)[:MAX_TEXT]
            self._events.append({"number": self._number, "seconds": when, "text": said})

    def ended(self, message: str = "", status: int = 8) -> None:
        """The run is over: well, or with this message and this exit status."""
        with self._lock:
            self._exit = status if message else 0
            self._over = self._clock() if self._over is None else self._over
            for node in self._nodes.values():
                node.phase = ""
                if message and node.state in ("computing", "connected", "returning", LATE):
                    node.state = "stopped"
            self._phase = "failed" if message else "done"
            self._message = lines_escaped(message)[:MAX_TEXT]
            self._say(message)

    def snapshot(self) -> dict[str, Any]:
        """Everything that is shown, as JSON takes it. rate: steps a second; left_s: None before it
        can be told."""
        with self._lock:
            now, step = self._clock() if self._over is None else self._over, self._step()
            trained = 0.0 if self._started is None else now - self._started
            done = step - self._first_step
            rate = done / trained if trained > 0 and done > 0 and self._phase == "running" else 0.0
            return {
                "job": self._job,
                "digest": self._digest,
                "phase": self._phase,
                "message": self._message,
                "exit": self._exit,
                "seconds": round(now - self._begun, 1),
                "step": step,
                "steps": self._steps,
                "rate": round(rate, 3),
                "left_s": round((self._steps - step) / rate, 1) if rate and self._steps else None,
                "bytes_sent": sum(node.bytes_sent for node in self._nodes.values()),
                "rounds": max(node.rounds for node in self._nodes.values()),
                "suspended": self._suspended,
                "service": self._service(now),
                "drift": list(self._drift.values()),
                "nodes": {
                    name: {
                        "state": node.state,
                        "phase": node.phase,
                        "step": node.step,
                        "bytes_sent": node.bytes_sent,
                        "served": dict(node.served),
                    }
                    for name, node in self._nodes.items()
                },
                "events": list(self._events),
                "progress": list(self._progress.points),
                "losses": list(self._losses.points),
            }

    def _service(self, now: float) -> dict[str, float] | None:
        """What a service has done in all, and how long it takes at its slowest evaluator; None:
        nothing is served."""
        if not any(node.served for node in self._nodes.values()):
            return None
        rate = self._rate(now) if self._over is None else 0.0
        return {word: self._most(word) for word in SERVED} | {"rate": round(rate, 3)}


def _sentence(kind: str, fields: Mapping[str, Any]) -> str:
    """One event in words; empty for those that say nothing new."""
    name = fields.get("node", "")
    if kind == "arrived":
        return f"{name} has joined"
    if kind == "left":
        return f"{name} has left ({fields.get('code', 'lost')})"
    if kind == "parted":
        return f"{name} has done its part and leaves"
    if kind == "rotated":
        return f"{name} has new keys"
    if kind == "refused":
        return f"{name} was refused: {fields.get('code')}"
    if kind == "gathering" and fields.get("missing"):
        return f"waiting for {', '.join(fields['missing'])}"
    if kind == "unreachable":
        return f"{name} cannot dial {fields.get('peer')}: relayed"
    if kind in ("reconnecting", "reconnected"):
        names = ", ".join(fields.get("nodes") or (name,))
        back = "is back" if kind == "reconnected" else "broke; waiting for it to come back"
        return f"the connection to {names} {back}"
    if kind == "suspended":
        by = name or fields.get("by", "")
        return f"{by} was lost ({fields.get('code')}); the run goes on when all are back"
    if kind == "aborted":
        lost = fields.get("code") in LOST
        return f"{name} was lost" if lost else f"{name} ended the run ({fields.get('code')})"
    if kind == "drift":
        return _drifted(fields)
    said = {
        "proposed": "the job is proposed",
        "agreed": "all nodes have signed",
        "signed": "this node has signed",
        "started": "all nodes compute",
        "connected": "connected to the coordinator",
        "done": "all results are signed",
    }
    return said.get(kind, "")


def _drifted(fields: Mapping[str, Any]) -> str:
    """A window of a model's rows, in words."""
    window = f"{fields['model']}, window {fields['window']} of {fields['rows']} rows"
    if not fields["counted"]:
        return f"{window}: too few of them were real"
    if not fields["shifts"]:
        return f"{window} is the baseline of its drift, because its training rows were not counted"
    by_word: dict[str, list[str]] = {}
    for name, shift in fields["shifts"].items():
        by_word.setdefault(shift["says"], []).append(name)
    order = ("shifted", "look", "too noisy to say", "no shift")
    said = [f"{word}: {', '.join(by_word[word])}" for word in order if word in by_word]
    return f"{window}, against {fields['against']}: {'; '.join(said)}"
