"""What one evaluator keeps of drift: the counts with noise of each window of a model's rows, and
how far they are from the baseline.

The baseline are the training rows, whose counts with noise the evaluators keep with the model. Of
a model without them (it was brought, its job says so, or it is of an earlier release) it is the
first window in which enough rows counted; a restart of the service keeps it, and begins a new
window. To begin anew with the next one, remove the file while the service does not run.

Beside each index stands what chance and noise alone would give: an index that is hardly more says
nothing.

    index below 0.1        no shift
    up to twice chance     too noisy to say
    index below 0.25       look
    otherwise              shifted
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec.structs import replace

from mpc_train.errors import ConfigError
from mpc_train.evaluation.drift import by_chance, stability
from mpc_train.evaluation.histograms import histograms, named, noise_of
from parties.files import read_private, write_atomic

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

log = logging.getLogger(__name__)

MAX_BYTES = 64 << 20
KEPT_WINDOWS = 200
"""Of each model, the newest; the baseline stays."""
LOOK, SHIFTED = 0.1, 0.25
"""The customary limits of the index."""
NOISY = 2.0
TRAINING = "training rows"

Says = Literal["no shift", "too noisy to say", "look", "shifted"]
Counts = Mapping[str, Sequence[int]]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Shift(_Part, frozen=True):
    """Of one histogram. index: its population stability index. chance: what it is without a shift,
    about."""

    index: float
    chance: float
    says: Says


class Seen(_Part, frozen=True):
    """A window. window: its number since the record began. rows: asked, padding and units that
    somebody has missed included. counts: by histogram and bin, with noise; empty if too few rows
    were real. shifts: by histogram, empty for a window that is the baseline. against: the baseline
    of these shifts, in words; empty without any."""

    window: int
    ended: str
    rows: int
    counts: dict[str, dict[str, int]]
    shifts: dict[str, Shift] = {}
    against: str = ""


class Model(_Part, frozen=True):
    """One model's record. epsilon: of each window; a row is in one of them. releases: windows so
    far, each of which has spent it once. baseline: the first window, where that is it. training:
    counts of the training rows, by histogram and bin, where those are the baseline."""

    name: str
    epsilon: str
    releases: int
    baseline: Seen | None
    windows: tuple[Seen, ...]
    training: dict[str, dict[str, int]] = {}

    @property
    def against(self) -> str:
        """The baseline in words; empty if there is none yet."""
        if self.training:
            return TRAINING
        return "" if self.baseline is None else f"the first window of {self.baseline.rows} rows"

    @property
    def expected(self) -> dict[str, dict[str, int]]:
        """The counts of the baseline; empty if there is none yet."""
        return self.training or ({} if self.baseline is None else self.baseline.counts)


class _File(_Part, frozen=True):
    models: dict[str, Model]
    drift: Literal[1] = 1


def _now() -> datetime:
    return datetime.now(UTC)


class Record:
    """The record in `path`, of all models. For several threads.

    now: the present time, UTC. on_window: told of a model's digest and each window after it is
    written. Raises ConfigError for a file that cannot be read.
    """

    def __init__(
        self,
        path: Path,
        on_window: Callable[[str, Model], None] = lambda digest, model: None,
        now: Callable[[], datetime] = _now,
    ) -> None:
        self._path, self._on_window, self._now, self._lock = path, on_window, now, Lock()
        self._models: dict[str, Model] = {}
        if path.exists():
            try:
                found = msgspec.json.decode(read_private(path, MAX_BYTES), type=_File)
            except (OSError, ValueError, RecursionError) as error:
                raise ConfigError(
                    f"{path}: the record of drift cannot be read ({error}); remove the file to "
                    "begin a new one, whose first window is the new baseline"
                ) from error
            self._models = found.models

    def add(
        self,
        digest: str,
        job: Job,
        rows: int,
        counts: Counts | None,
        training: Counts | None = None,
    ) -> None:
        """A window of a model that watches drift. counts: None if too few of its rows were real.
        training: those of the training rows, where these are the baseline."""
        drift = job.drift
        assert drift is not None
        with self._lock:
            model = self._models.get(digest) or Model(job.name, str(drift.epsilon), 0, None, ())
            found = {} if counts is None else named(histograms(job), counts)
            if training is not None:
                model = replace(model, training=named(histograms(job), training), baseline=None)
            elif model.baseline and found and _bins(model.baseline.counts) != _bins(found):
                log.warning(
                    "%s: %s has other bins than its baseline; a new one", self._path, job.name
                )
                model = replace(model, baseline=None)
            seen = Seen(model.releases + 1, self._now().isoformat(timespec="seconds"), rows, found)
            if found and model.against:
                shifts = _shifts(job, model.expected, found)
                seen = replace(seen, shifts=shifts, against=model.against)
            elif found:
                model = replace(model, baseline=seen)
            windows = (*model.windows, seen)[-KEPT_WINDOWS:]
            model = replace(model, releases=seen.window, windows=windows)
            self._models[digest] = model
            self._write()
        self._on_window(digest, model)

    def _write(self) -> None:
        """A disk that is full stops no service: the next window writes this one, too."""
        try:
            write_atomic(self._path, msgspec.json.encode(_File(self._models)))
        except OSError as error:
            log.error("%s: drift cannot be recorded (%s)", self._path, error.strerror)


def _bins(counts: Mapping[str, Mapping[str, int]]) -> dict[str, list[str]]:
    return {name: list(bins) for name, bins in counts.items()}


def _shifts(
    job: Job, baseline: Mapping[str, Mapping[str, int]], counts: Mapping[str, Mapping[str, int]]
) -> dict[str, Shift]:
    deviation, found = noise_of(job), {}
    for name, bins in counts.items():
        training, asked = [*baseline[name].values()], [*bins.values()]
        index, chance = stability(training, asked), by_chance(training, asked, deviation)
        found[name] = Shift(round(index, 4), round(chance, 4), said(index, chance))
    return found


def said(index: float, chance: float) -> Says:
    if index < LOOK:
        return "no shift"
    if index <= NOISY * chance:
        return "too noisy to say"
    return "look" if index < SHIFTED else "shifted"


def drift_event(digest: str, model: Model) -> dict[str, object]:
    """The newest window as an event of this node, for its own page and terminal. against: with what
    it was compared; empty for the baseline, and where nothing was counted."""
    seen = model.windows[-1]
    return {
        "model": model.name,
        "digest": digest,
        "window": seen.window,
        "rows": seen.rows,
        "epsilon": model.epsilon,
        "counted": bool(seen.counts),
        "against": seen.against,
        "shifts": {name: msgspec.structs.asdict(shift) for name, shift in seen.shifts.items()},
    }
