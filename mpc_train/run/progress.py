"""How a run is going, for people at a terminal: steps, speed, time left, bytes.

Gets the events of a coordinator or a node. If standard error is not a terminal it prints lines
instead of a bar, as often as `pacing` says; if no event comes for a minute it says so. Shows only
what the nodes send for this purpose.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from mpc_train.base.printing import lines_escaped, say
from mpc_train.errors import REASONS
from mpc_train.results.report import duration, size
from mpc_train.run.pacing import LINE_INTERVAL_S, LinePace

MIN_INTERVAL_S = 0.1
"""A bar is redrawn at most this often."""
LOOK_S = 1.0
"""How often to check whether a log has been silent for long."""


TRAINING, OPENING = "training", "opening the service"


class ProgressView:
    """Takes events from any thread; use `shown` around the run."""

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._lock = threading.Lock()
        self._bar: Any = None
        self._task: Any = None
        self._sent: dict[str, int] = {}
        self._steps: dict[str, int] = {}
        self._after: dict[str, int] = {}
        self._linked = self._stored = False
        self._ahead: set[str] = set()
        """The dealer of a run with preprocess: its steps are not those of the training."""
        self._shared: dict[str, int] = {}
        self._started = self._drawn = 0.0
        self._begun: int | None = None
        """The step from whose end on the speed counts; None: not known yet."""
        self._pace = LinePace()
        self._stage = ""
        """A text for the current stage; empty while waiting for others."""
        self.serves = False
        """Whether this is a service, and not a run."""

    @contextlib.contextmanager
    def shown(self) -> Iterator["ProgressView"]:
        """Draw on standard error inside this context."""
        if not self._enabled:
            yield self
            return
        if not sys.stderr.isatty():
            with self._looked_after():
                yield self
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        # Without markup, so that [red] in a text is printed as it is.
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
    def _looked_after(self) -> Iterator[None]:
        """Inside this context, report now and then that a silent run still continues: a step, or
        the evaluation, may take long."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(LOOK_S):
                self.look()

        thread = threading.Thread(target=look, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def look(self) -> None:
        """Print a line if the last one was a minute ago and a stage is running."""
        with self._lock:
            if self._stage and (silent := self._pace.silent_s()) >= LINE_INTERVAL_S:
                self._pace.again()
                say(f"still {self._stage}: no news for {duration(silent)}", aside=True)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Draw nothing inside this context, because somebody is being asked a question."""
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
            self._line(text)

    def _line(self, text: str) -> None:
        """Like `say`, where the lock is held already."""
        if self._bar is not None:
            self._bar.console.print(lines_escaped(text), markup=False, highlight=False)
        else:
            say(text, aside=True)

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Show one event of `parties.nodes.coordinator` or `parties.nodes.node`."""
        if kind == "arrived":
            self.say(f"{fields.get('node')} has joined")
        elif kind == "left":
            meaning = REASONS.get(str(fields.get("code")))
            why = f" ({meaning})" if meaning else ""
            self.say(f"{fields.get('node')} has left{why}; it may join again")
        elif kind == "stopping":
            self.say("stopping after the next checkpoint; a second request stops at once")
        elif kind in ("reconnecting", "reconnected"):
            self._broken(kind, fields)
        elif kind == "parted":
            self.say(f"{fields.get('node')} has done its part and leaves; the others go on")
        elif kind == "rotated":
            self.say(f"{fields.get('node')} has new keys, which the ones before have signed")
        elif kind == "refused":
            self.say(f"{fields.get('node')} was refused: {fields.get('code')}")
        elif kind == "gathering":
            here = ", ".join(fields["here"]) or "nobody"
            missing, left = ", ".join(fields["missing"]), duration(fields["left_s"])
            self.say(f"here: {here}; missing: {missing}; waiting up to {left} for them")
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
        elif kind == "checking":
            self.say("checking the job against this node's rules")
        elif kind == "approvals":
            self.say(f"waiting for approvals: {fields['missing']}")
        elif kind == "preparing":
            table = "reading this node's table, " if fields.get("table") else ""
            self._stage = "getting ready"
            self._pace.begin(self._stage)
            self.say(f"getting ready to sign: {table}loading PyTorch, checking the network")
        elif kind == "signed":
            self._stage = ""
            self.say("this node has signed; waiting for the others")
        elif kind == "suspended":
            self._suspended(fields)
        elif kind == "started":
            self._started = self._drawn = time.monotonic()
            self._stage = OPENING if self.serves else TRAINING
            self._begun = None
            self._steps.clear()
            self._pace.begin(self._stage)
            what = "the service opens" if self.serves else f"training{_resumed(fields)}"
            self.say(f"all nodes are connected to each other; {what}")
        elif kind == "reading":
            self._reading(fields)
        elif kind == "progress":
            self._progress(str(fields.get("node", "")), fields.get("fields") or {})

    def _broken(self, kind: str, fields: Mapping[str, Any]) -> None:
        names = ", ".join(fields.get("nodes", (fields.get("node"),)))
        after = f" after {fields['seconds']:.0f} s" if "seconds" in fields else ""
        self.say(
            f"the connection to {names} broke; waiting for it to come back"
            if kind == "reconnecting"
            else f"the connection to {names} is back{after}; nothing was lost"
        )

    def _suspended(self, fields: Mapping[str, Any]) -> None:
        """A node, or the coordinator, was lost during the run, and all wait for it."""
        self._stage = ""
        who, meaning = fields.get("node") or fields.get("by"), REASONS.get(str(fields.get("code")))
        left = f", for up to {duration(fields['limit_s'])}" if "limit_s" in fields else ""
        then = "the run goes on from its newest checkpoint, if there is one"
        self.say(
            f"{who} was lost{f' ({meaning})' if meaning else ''}. All connect again and wait for it"
            f"{left}; then {'the service opens again' if self.serves else then}"
        )

    def _reading(self, fields: Mapping[str, Any]) -> None:
        """Show how much of this node's own table has been read, in its `unit`."""
        done, total, left = fields["done"], fields["total"], fields["seconds_left"]
        amount = size if fields["unit"] == "bytes" else "{:,.0f} rows".format
        with self._lock:
            now = time.monotonic()
            # The first event of a table only starts its clock: small tables are read within a
            # second.
            first, self._drawn = self._drawn == 0, self._drawn or now
            if first:
                self._stage = "reading the table"
                self._pace.begin(self._stage)
            if not self._enabled or first or not self._due(done / total if total else 0.0):
                return
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
            if fields.get("phase") == "serving" or "units" in fields:
                self._serving(fields)
                return
            if fields.get("phase") == "dealing":
                self._ahead.add(node)
            if fields.get("phase") in ("storing", "dealing"):
                self._storing(fields)
            if fields.get("phase") == "storing" or node in self._ahead:
                return
            self._training(node, step, steps)
            if fields.get("phase") == "evaluating":
                self._evaluating(node, fields)

    def _serving(self, fields: Mapping[str, Any]) -> None:
        """A service has no end and no speed: a line now and then says what it has answered."""
        if self._stage:
            self._stage = ""
            self._line("the service is open")
            self._pace.begin("serving")
        if self._pace.silent_s() < LINE_INTERVAL_S:
            return
        self._pace.again()
        if "units" in fields:
            self._line(f"{fields['units']:,} units of material made")
        else:
            refused = f", {fields['refused']:,} refused" if fields.get("refused") else ""
            self._line(
                f"{fields['questions']:,} questions of {fields['rows']:,} rows answered{refused}"
            )

    def _training(self, node: str, step: object, steps: object) -> None:
        """Show the steps of the slowest node."""
        if not self._enabled or not isinstance(step, int) or not isinstance(steps, int):
            return
        if self._steps.get(node) == step:
            return
        if self._shared or self._linked or self._stored:
            # Linking, sharing and storing are not training: its speed counts from here.
            self._shared.clear()
            self._linked = self._stored = False
            self._started = time.monotonic()
            self._pace.begin(TRAINING)
        self._stage = TRAINING
        # The dealer runs ahead: the slowest node says how far the run is.
        self._steps[node] = step
        step = min(self._steps.values())
        now = time.monotonic()
        if self._begun is None:
            # The first step waits for what comes before it: the speed counts from its end.
            self._begun, self._started = step, now
        # The first to report may be the dealer, who is ahead of the others.
        self._begun = min(self._begun, step)
        if not self._due(step / steps) and step < steps:
            return
        speed = (step - self._begun) / max(now - self._started, 1e-9)
        left = duration((steps - step) / speed) if speed else "?"
        total = size(sum(self._sent.values()))
        rate = f"{speed:.1f} steps/s  {left} left  " if speed else ""
        note = f"{step}/{steps}  {rate}{total} sent"
        if self._bar is None:
            say(f"training {note}", aside=True)
            return
        self._bar.update(self._task, description="training", total=steps, completed=step, note=note)

    def _linking(self, fields: Mapping[str, Any]) -> None:
        """Shown once: how many records all owners together compare, which may take long."""
        records = fields.get("records")
        if not self._enabled or self._linked or not isinstance(records, int):
            return
        self._linked = True
        self._stage = "comparing records"
        self._pace.begin(self._stage)
        if self._bar is None:
            say(f"comparing {records:,} records", aside=True)
        else:
            self._bar.update(self._task, description=f"comparing {records:,} records", total=None)

    def _sharing(self, node: str, fields: Mapping[str, Any]) -> None:
        """Show how many rows the slowest node has shared."""
        rows, of_rows = fields.get("rows"), fields.get("of_rows")
        if not self._enabled or not isinstance(rows, int) or not isinstance(of_rows, int):
            return
        self._shared[node] = rows
        rows, now = min(self._shared.values()), time.monotonic()
        self._stage = "sharing"
        if not rows or not self._due(rows / of_rows):
            return
        left = duration((now - self._started) * max(of_rows - rows, 0) / rows)
        note = f"{rows:,}/{of_rows:,} rows  {left} left"
        if self._bar is None:
            say(f"sharing {note}", aside=True)
            return
        self._bar.update(
            self._task, description="sharing", total=of_rows, completed=rows, note=note
        )

    def _storing(self, fields: Mapping[str, Any]) -> None:
        """Show how far the dealer is with the material that it makes before training: in steps, and
        in bytes at an evaluator, which does not know the steps."""
        step, steps, stored = (fields.get(key) for key in ("step", "steps", "bytes_stored"))
        share, note = 0.0, ""
        if isinstance(step, int) and isinstance(steps, int):
            share, note = step / steps, f"{step}/{steps} steps"
        elif isinstance(stored, int):
            note = size(stored)
        self._stored = True
        self._stage = "storing the dealer's material"
        if not self._enabled or not note or not self._due(share):
            return
        if self._bar is None:
            say(f"{self._stage}: {note}", aside=True)
            return
        self._bar.update(self._task, description=self._stage, total=1.0, completed=share, note=note)

    def _evaluating(self, node: str, fields: Mapping[str, Any]) -> None:
        """Shown once, and at each fold: the evaluation after the last step, which may take as
        long."""
        fold, folds = fields.get("fold"), fields.get("folds")
        self._after[node] = fold if isinstance(fold, int) else 0
        if not self._enabled or not self._steps.keys() <= self._after.keys():
            return
        # The dealer runs ahead here as well.
        fold = min(self._after.values())
        stage = f"evaluating, fold {fold} of {folds}" if fold else "evaluating"
        if self._stage == stage:
            return
        self._stage = stage
        self._pace.begin(stage)
        if self._bar is None:
            say(stage, aside=True)
        else:
            self._bar.update(self._task, description=stage, total=None, note="")

    def _due(self, share: float) -> bool:
        """Whether to draw when this part of the stage, from 0 to 1, is done."""
        if self._bar is None:
            return self._pace.due(self._stage, share)
        now = time.monotonic()
        if now - self._drawn < MIN_INTERVAL_S:
            return False
        self._drawn = now
        return True


def _resumed(fields: Mapping[str, Any]) -> str:
    """Where a session goes on, in words; empty for one that begins with the first step."""
    token = fields.get("resumed")
    if not token:
        return ""
    from mpc_train.checkpoints.keeper import place_of

    step, finished = place_of(bytes.fromhex(token))
    return " is over; going on after it" if finished else f" goes on after step {step}"
