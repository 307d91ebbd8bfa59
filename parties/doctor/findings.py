"""What an examination found: each finding says what is wrong and what to do, or that nothing is."""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


class Level(enum.StrEnum):
    """How bad it is."""

    passed = "passed"
    skipped = "skipped"
    """It was not examined: the text says why."""
    warning = "warning"
    """A run works, but slower or less safely than it could."""
    problem = "problem"
    """A run will not work."""


class Place(enum.StrEnum):
    """Where the remedy lies."""

    machine = "machine"
    network = "network"
    """Between this machine and the other side."""
    other = "other"
    """The two sides do not fit: keys, releases, clocks."""


Figures = Mapping[str, float | int | str | bool]
NO_FIGURES: Figures = {}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was examined. figures: what was measured, with units in the names."""

    check: str
    place: Place
    level: Level
    text: str
    remedy: str = ""
    figures: Figures = field(default_factory=dict)


def machine(
    check: str, level: Level, text: str, remedy: str = "", figures: Figures = NO_FIGURES
) -> Finding:
    return Finding(check, Place.machine, level, text, remedy, figures)


def network(
    check: str, level: Level, text: str, remedy: str = "", figures: Figures = NO_FIGURES
) -> Finding:
    return Finding(check, Place.network, level, text, remedy, figures)


def other(
    check: str, level: Level, text: str, remedy: str = "", figures: Figures = NO_FIGURES
) -> Finding:
    return Finding(check, Place.other, level, text, remedy, figures)


def problems(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level is Level.problem]
