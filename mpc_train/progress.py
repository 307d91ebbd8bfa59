"""How a run is going, for people at a terminal: steps, speed, time left, bytes.

Fed with the events of a coordinator or a node. Where standard error is not a terminal it prints
one line per stage and one every `LINE_INTERVAL_S` instead of a bar. Shows nothing that the nodes
do not send for this purpose.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from mpc_train.printing import lines_escaped, say
from mpc_train.report import duration, size

LEAST_INTERVAL_S = 0.1
LINE_INTERVAL_S = 15.0


class ProgressView:
    """Takes events from any thread; use `shown` around the run."""

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._lock = threading.Lock()
        self._bar: Any = None
        self._task: Any = None
        self._sent: dict[str, int] = {}
        self._steps: dict[str, int] = {}
        self._linked = False
        self._shared: dict[str, int] = {}
        self._started = self._drawn = 0.0

    @contextlib.contextmanager
    def shown(self) -> Iterator["ProgressView"]:
        """Draw on standard error while inside."""
        if not self._enabled or not sys.stderr.isatty():
            yield self
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        # Without markup: [red] in a text is a text.
        texts = [
            TextColumn(f"{{task.{what}}}", markup=False) for what in ("description", "fields[note]")
        ]
        columns = (texts[0], BarColumn(), texts[1])
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            self._bar = bar
            self._task = bar.add_task("waiting", total=None, note="")
            try:
                yield self
            finally:
                self._bar = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Draw nothing while inside: somebody is asked something."""
        bar = self._bar
        if bar is None:
            yield
            return
        with self._lock:
            bar.stop()
            try:
                yield
            finally:
                bar.start()

    def say(self, text: str) -> None:
        """Show one line above the bar."""
        if not self._enabled:
            return
        with self._lock:
            if self._bar is not None:
                self._bar.console.print(lines_escaped(text), markup=False, highlight=False)
            else:
                say(text, aside=True)

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Take one event: see `parties.coordinator.Coordinator` and `parties.node.run_node`."""
        if kind == "arrived":
            self.say(f"{fields.get('node')} has joined")
        elif kind == "left":
            self.say(f"{fields.get('node')} has left; it may join again")
        elif kind == "refused":
            self.say(f"{fields.get('node')} was refused: {fields.get('code')}")
        elif kind == "gathering":
            here = ", ".join(fields["here"]) or "nobody"
            self.say(f"here: {here}; missing: {', '.join(fields['missing'])}")
        elif kind == "waiting":
            self.say(
                f"no coordinator yet at {fields['address']}: {fields['trouble']}; "
                f"trying for {duration(fields['limit_s'])} in all"
            )
        elif kind == "unreachable":
            why = f" ({fields['trouble']})" if "trouble" in fields else ""
            self.say(
                f"{fields['node']} cannot dial {fields['peer']} at {fields['address']}{why}; their "
                "frames go through the coordinator, sealed"
            )
        elif kind == "agreed":
            self.say("all nodes have signed the same contract")
        elif kind == "signed":
            self.say("this node has signed; waiting for the others")
        elif kind == "started":
            self._started = self._drawn = time.monotonic()
            self.say("all nodes are connected to each other; training")
        elif kind == "reading":
            self._reading(fields)
        elif kind == "progress":
            self._progress(str(fields.get("node", "")), fields.get("fields") or {})

    def _reading(self, fields: Mapping[str, Any]) -> None:
        """How far this node's own table is read, in its `unit`."""
        done, total, left = fields["done"], fields["total"], fields["seconds_left"]
        amount = size if fields["unit"] == "bytes" else "{:,.0f} rows".format
        with self._lock:
            now = time.monotonic()
            # The first news of a table only starts its clock: small ones are read before a second.
            first, self._drawn = self._drawn == 0, self._drawn or now
            interval = LINE_INTERVAL_S if self._bar is None else LEAST_INTERVAL_S
            if not self._enabled or first or now - self._drawn < interval:
                return
            self._drawn = now
            note = amount(done) + ("" if total is None else f" of {amount(total)}")
            note += "" if left is None else f"  {duration(left)} left"
            if self._bar is None:
                say(f"reading the table: {note}", aside=True)
                return
            self._bar.update(
                self._task, description="reading", total=total, completed=done, note=note
            )

    def _progress(self, node: str, fields: Mapping[str, Any]) -> None:
        step, steps, sent = fields.get("step"), fields.get("steps"), fields.get("bytes_sent")
        with self._lock:
            if isinstance(sent, int):
                self._sent[node] = sent
            if fields.get("phase") == "linking":
                self._linking(fields)
                return
            if fields.get("phase") == "sharing":
                self._sharing(node, fields)
                return
            if not self._enabled or not isinstance(step, int) or not isinstance(steps, int):
                return
            if self._shared or self._linked:
                # What was linked and shared in is no training: its speed counts from here.
                self._shared.clear()
                self._linked = False
                self._started = time.monotonic()
            # The dealer runs ahead: the slowest node says how far the run is.
            self._steps[node] = step
            step = min(self._steps.values())
            now = time.monotonic()
            interval = LINE_INTERVAL_S if self._bar is None else LEAST_INTERVAL_S
            if now - self._drawn < interval and step < steps:
                return
            self._drawn = now
            speed = step / max(now - self._started, 1e-9)
            left = duration((steps - step) / speed) if speed else "?"
            total = size(sum(self._sent.values()))
            note = f"{step}/{steps}  {speed:.1f} steps/s  {left} left  {total} sent"
            if self._bar is None:
                say(f"training {note}", aside=True)
                return
            self._bar.update(
                self._task, description="training", total=steps, completed=step, note=note
            )

    def _linking(self, fields: Mapping[str, Any]) -> None:
        """Said once: how many records all owners together compare, which takes its time."""
        records = fields.get("records")
        if not self._enabled or self._linked or not isinstance(records, int):
            return
        self._linked = True
        if self._bar is None:
            say(f"comparing {records:,} records", aside=True)
        else:
            self._bar.update(self._task, description=f"comparing {records:,} records", total=None)

    def _sharing(self, node: str, fields: Mapping[str, Any]) -> None:
        """How many rows are shared in, at the slowest node."""
        rows, of_rows = fields.get("rows"), fields.get("of_rows")
        if not self._enabled or not isinstance(rows, int) or not isinstance(of_rows, int):
            return
        self._shared[node] = rows
        rows, now = min(self._shared.values()), time.monotonic()
        interval = LINE_INTERVAL_S if self._bar is None else LEAST_INTERVAL_S
        if now - self._drawn < interval or not rows:
            return
        self._drawn = now
        left = duration((now - self._started) * max(of_rows - rows, 0) / rows)
        note = f"{rows:,}/{of_rows:,} rows  {left} left"
        if self._bar is None:
            say(f"sharing {note}", aside=True)
            return
        self._bar.update(
            self._task, description="sharing", total=of_rows, completed=rows, note=note
        )
