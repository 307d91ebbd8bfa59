"""What processes hold while a long run goes on, and whether that grows.

Memory is sampled as RSS, as PSS (shared pages divided among those who map them), and as what the
process has alone, which no other process's start or end can change. The first fifth of the time is
the warm-up. The *early* window is the second fifth, the *late* one the last fifth, and medians of
the two are compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

TOLERANCE = 0.05
"""How much more memory the late window may have than the early one."""

ROOM_BYTES = 64 << 10
"""A vault of a few kilobytes is judged by this, and not by a share of its size."""


@dataclass(frozen=True)
class Sample:
    """Of one process at one moment: memory and the size of its directory in bytes."""

    rss: int
    pss: int
    own: int
    files: int
    threads: int
    stored: int


@dataclass
class Held:
    """The samples of one process. folder: of its vault, if it has one."""

    process: psutil.Process
    folder: Path | None = None
    when: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def look(self, when: float) -> None:
        """Take a sample. Raises psutil.NoSuchProcess once the process has ended."""
        memory = self.process.memory_full_info()
        self.samples.append(
            Sample(
                rss=memory.rss,
                pss=memory.pss,
                own=memory.uss,
                files=self.process.num_fds(),
                threads=self.process.num_threads(),
                stored=0 if self.folder is None else size_of(self.folder),
            )
        )
        self.when.append(when)

    def series(self, name: str) -> list[int]:
        return [getattr(sample, name) for sample in self.samples]

    def faults(self) -> list[str]:
        """What has grown, in words; empty for a process that holds what it held before."""
        found = []
        for name in ("rss", "own"):
            early, late = medians(self.series(name))
            if late > early * (1 + TOLERANCE):
                found.append(f"{name} grew from {early / 2**20:.1f} to {late / 2**20:.1f} MiB")
        for name in ("files", "threads"):
            early, late = medians(self.series(name))
            if early != late:
                found.append(f"{name}: {early:.0f} became {late:.0f}")
        # A checkpoint is written before an older one is destroyed: the most counts.
        early_window, late_window = windows(self.series("stored"))
        if max(late_window) > max(early_window) * (1 + TOLERANCE) + ROOM_BYTES:
            found.append(f"stores {max(late_window)} bytes instead of {max(early_window)}")
        return found

    def drift(self) -> float:
        """Bytes an hour by which its own memory grows, after the warm-up: the median of the slopes
        between samples that lie half of the time apart (Theil and Sen)."""
        begin = len(self.samples) // 5
        when, own = self.when[begin:], self.series("own")[begin:]
        apart = len(own) // 2
        slopes = [
            (own[at + apart] - own[at]) / (when[at + apart] - when[at])
            for at in range(len(own) - apart)
        ]
        return 3600 * statistics.median(slopes)


def windows(values: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """The values of the early window, and of the late one."""
    fifth = len(values) // 5
    assert fifth > 0, "too few samples"
    return values[fifth : 2 * fifth], values[-fifth:]


def medians(values: Sequence[int]) -> tuple[float, float]:
    early, late = windows(values)
    return statistics.median(early), statistics.median(late)


def size_of(folder: Path) -> int:
    """The bytes of all files below a folder, some of which may go meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def watch(held: Iterable[Held], duration_s: float, each: Callable[[float], None]) -> None:
    """Sample all of them once every few seconds. each: called before each sample with the seconds
    that have passed."""
    pause_s = min(5.0, duration_s / 60)
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < duration_s:
        each(passed)
        for process in held:
            process.look(passed)
        time.sleep(pause_s)


def table(held: Mapping[str, Held]) -> str:
    """Medians of the early and of the late window, as Markdown; MiB and KiB."""
    lines = [
        "| process | RSS | PSS | its own | its own, an hour | open files | threads | stored |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, process in held.items():
        cells = []
        for kind in ("rss", "pss", "own"):
            early, late = medians(process.series(kind))
            change = late / early - 1
            cells.append(f"{early / 2**20:.1f}, {late / 2**20:.1f} MiB ({change:+.1%})")
        cells.append(f"{process.drift() / 2**20:+.2f} MiB")
        for kind in ("files", "threads"):
            early, late = medians(process.series(kind))
            cells.append(f"{early:.0f}, {late:.0f}")
        most = [max(window) for window in windows(process.series("stored"))]
        stored = ", ".join(f"{size / 2**10:.0f}" for size in most)
        cells.append(f"{stored} KiB" if any(most) else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
