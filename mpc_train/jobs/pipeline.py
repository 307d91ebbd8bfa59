"""The model's inputs, and how each is made from a raw column: public, from the job alone.

A term is one input that comes from one column. Its owner computes, from its own cells and public
declarations,

    u = ((g(clip(x)) - center) / scale)^power,    g: identity, log or log1p,

or a bit for a level or a missing cell, or the number of a level. For scaled terms, center and scale
follow from the declared range, so that |u| is at most about 1; the statistics of the data are
computed over shares and stay secret (`combined`):

    input = (u + [missing] · fill - center) · inverse.

Interactions are products of two inputs and come last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from math import log, log1p
from typing import Literal

from mpc_train.base.bounds import bit_length
from mpc_train.base.problem import JobProblem, interval, number
from mpc_train.jobs.data import Feature
from mpc_train.jobs.prepare import ColumnSteps, Log, Missing, Prepare, Scale
from mpc_train.tables.schema import Column, Schema

MAX_POWERS = 4
MAX_INPUTS = 100_000
MAX_COARSE = 16
"""Bound of |u| for terms with secret scales: a declared center and scale must be of the order of
the declared range."""

Part = Literal["number", "level", "index", "missing"]


@dataclass(frozen=True, slots=True)
class Term:
    """One input from one column. center, scale: public; a level's number for part = "level". With
    part = "index" that number is the input: `fill` for a missing cell, at most `bound`."""

    name: str
    column: str
    part: Part = "number"
    level: int = 0
    power: int = 1
    clip: tuple[float, float] | None = None
    log: Log | None = None
    center: float = 0.0
    scale: float = 1.0
    shared: Scale = "declared"
    """standard, minmax: scaled by secret statistics."""
    missing: Missing = "error"
    fill: float | None = None
    """The value for a missing cell, as the owner's u; None: see `missing`."""
    bound: float = 1.0
    """Largest |u| that can occur, or that the job states."""

    @property
    def reach(self) -> int:
        """The smallest r with |u| <= 2^r; at least 0 for terms that are not scaled."""
        found = bit_length(Fraction(self.bound))
        return found if self.scaled else max(found, 0)

    @property
    def scaled(self) -> bool:
        return self.shared != "declared"

    @property
    def filled(self) -> bool:
        """Whether missing cells get the secret mean."""
        return self.missing == "mean" and self.fill is None and self.part == "number"

    @property
    def takes_missing(self) -> bool:
        """Whether its column may have missing cells."""
        return self.part == "missing" or self.missing == "mean" or self.fill is not None

    @property
    def secret(self) -> bool:
        """Whether part of it is computed over shares."""
        return self.scaled or self.filled


@dataclass(frozen=True)
class Pipeline:
    """All inputs of a model in order: terms, then interactions of two inputs each."""

    terms: tuple[Term, ...]
    interactions: tuple[tuple[int, int], ...] = ()

    @cached_property
    def width(self) -> int:
        return len(self.terms) + len(self.interactions)

    @cached_property
    def names(self) -> tuple[str, ...]:
        products = (f"{self.terms[i].name}*{self.terms[j].name}" for i, j in self.interactions)
        return (*(term.name for term in self.terms), *products)

    @cached_property
    def by_column(self) -> dict[str, tuple[Term, ...]]:
        """The terms of each column."""
        found: dict[str, list[Term]] = {}
        for term in self.terms:
            found.setdefault(term.column, []).append(term)
        return {column: tuple(terms) for column, terms in found.items()}

    @cached_property
    def reaches(self) -> tuple[int, ...]:
        """`Term.reach` of all terms: each takes microseconds, and a service asks for every row."""
        return tuple(term.reach for term in self.terms)

    @cached_property
    def scaled(self) -> tuple[int, ...]:
        """Places of the terms with a secret center and scale."""
        return tuple(i for i, term in enumerate(self.terms) if term.scaled)

    @cached_property
    def filled(self) -> tuple[int, ...]:
        """Places of the terms whose missing cells get the secret mean."""
        return tuple(i for i, term in enumerate(self.terms) if term.filled)

    @cached_property
    def secret(self) -> tuple[int, ...]:
        """Places of the terms for which owners provide statistics."""
        return tuple(i for i, term in enumerate(self.terms) if term.secret)

    @cached_property
    def trivial(self) -> bool:
        """Whether the owners' numbers are the inputs, unchanged."""
        return not self.secret and not self.interactions

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the secret parameters that accompany an opened model; `sealed` says
        how they are sealed."""
        found: dict[str, tuple[int, ...]] = {}
        if self.scaled:
            found["prepare.center"] = found["prepare.inverse"] = (len(self.scaled),)
        if self.filled:
            found["prepare.fill"] = (len(self.filled),)
        return found


@dataclass(frozen=True)
class _Given:
    """The parts of a job that determine its terms, besides the columns themselves."""

    prepare: Prepare
    limit: Decimal
    pooled: bool


def pipeline_of(
    prepare: Prepare, features: Sequence[Feature], schema: Schema, limit: Decimal, pooled: bool
) -> Pipeline:
    """The pipeline of a job's columns; raises JobProblem if `[prepare]` contradicts them.

    limit: `data.limit`. pooled: several owners have rows of the same columns, so one of them may
    never have measured a column.
    """
    given = _Given(prepare, limit, pooled)
    names = {feature.name for feature in features}
    for name in prepare.columns:
        if name not in names:
            raise JobProblem(f"prepare.columns.{name}", "is not a feature of the job")
    terms: list[Term] = []
    for feature in features:
        steps = _steps(prepare, feature.name)
        terms += _terms_of(given, feature, schema[feature.name], steps)
    places: dict[str, int] = {}
    for place, term in enumerate(terms):
        places.setdefault(term.name, place)
    pairs = []
    for index, (left, right) in enumerate(prepare.interactions):
        for name in (left, right):
            if name in places and terms[places[name]].part == "index":
                raise JobProblem(
                    f"prepare.interactions[{index}]", f"{name!r} is the number of a level"
                )
            if name not in places:
                raise JobProblem(
                    f"prepare.interactions[{index}]",
                    f"{name!r} is not an input; the inputs are {', '.join(list(places)[:20])}",
                )
        pairs.append((places[left], places[right]))
    made = Pipeline(tuple(terms), tuple(pairs))
    if made.width > MAX_INPUTS:
        raise JobProblem("prepare", f"{made.width} inputs, at most {MAX_INPUTS}")
    return made


def _steps(prepare: Prepare, name: str) -> ColumnSteps:
    """A column's steps; where it has none of its own, those of `[prepare]`."""
    own = prepare.columns.get(name, ColumnSteps())
    return ColumnSteps(
        own.scale,
        own.missing or prepare.missing,
        own.fill,
        prepare.indicator if own.indicator is None else own.indicator,
        own.powers,
        own.clip,
        own.log,
        own.encoding,
    )


def _terms_of(given: _Given, feature: Feature, column: Column, steps: ColumnSteps) -> list[Term]:
    name, key = feature.name, f"prepare.columns.{feature.name}"
    if column.kind == "identifier":
        raise JobProblem("data.features", f"{name!r} is an identifier and is never shared")
    if column.kind == "category":
        for field in ("scale", "fill", "powers", "clip", "log"):
            if getattr(steps, field) is not None:
                raise JobProblem(f"{key}.{field}", "is only for numbers; this column is a category")
        if steps.encoding == "index":
            return _index(given, name, column, steps)
        levels = [*column.levels, *(["other"] if column.other else [])]
        missing: Missing = "mean" if steps.indicator else steps.missing or "error"
        terms = [
            Term(f"{name}={level}", name, "level", index, missing=missing)
            for index, level in enumerate(levels)
            if index or not given.prepare.drop_first
        ]
    else:
        if steps.encoding is not None:
            raise JobProblem(
                f"{key}.encoding",
                "is only for categories; a number chooses rows of an Embedding without it",
            )
        terms = _numbers(given, feature, column, steps)
    if steps.indicator and column.missing:
        terms.append(Term(f"{name}:missing", name, "missing", missing="mean"))
    return terms


def _index(given: _Given, name: str, column: Column, steps: ColumnSteps) -> list[Term]:
    """The number of a level; a missing cell has the number after all of them, if it may be
    missing."""
    gone = (column.missing or given.pooled) and (steps.missing == "mean" or steps.indicator)
    fill = float(column.states) if gone else None
    last = column.states if gone else column.states - 1
    return [Term(name, name, "index", bound=float(last), fill=fill)]


def _numbers(given: _Given, feature: Feature, column: Column, steps: ColumnSteps) -> list[Term]:
    name, key, prepare = feature.name, f"prepare.columns.{feature.name}", given.prepare
    binary = column.kind == "boolean"
    scale: Scale = steps.scale or ("declared" if binary else prepare.scale)
    powers = (1 if binary else prepare.powers) if steps.powers is None else steps.powers
    if not 1 <= powers <= MAX_POWERS:
        raise JobProblem(f"{key}.powers", f"between 1 and {MAX_POWERS}")
    if binary and (powers > 1 or steps.clip or steps.log):
        raise JobProblem(key, "a boolean has no powers, clip or log")
    bounds = (0.0, 1.0) if binary else column.bounds
    clip = None
    if steps.clip is not None:
        least, most = interval(f"{key}.clip", steps.clip)
        clip = bounds = (float(least), float(most))
    if steps.log is not None:
        bounds = _logged(key, steps.log, bounds)
    center, width = Fraction(feature.center), Fraction(feature.scale)
    declared = center != 0 or width != 1
    if scale != "declared" and not declared:
        if bounds is None:
            raise JobProblem(
                key,
                f"secret statistics of {name!r} need its order of magnitude: a range in the "
                "schema, a clip, or center and scale of the feature",
            )
        center = (Fraction(bounds[0]) + Fraction(bounds[1])) / 2
        width = (Fraction(bounds[1]) - Fraction(bounds[0])) / 2
    bound = float(given.limit)
    if bounds is not None:
        bound = max(abs(float((Fraction(end) - center) / width)) for end in bounds)
    fill = None
    if steps.fill is not None:
        value = float(number(f"{key}.fill", steps.fill))
        if bounds is not None and not _within(_log(value, steps.log), bounds):
            raise JobProblem(f"{key}.fill", "lies outside the column's range")
        fill = float((Fraction(_log(value, steps.log)) - center) / width)
    shape = Term(
        name,
        name,
        clip=clip,
        log=steps.log,
        center=float(center),
        scale=float(width),
        shared=scale,
        missing=(steps.missing or "error") if column.missing or given.pooled else "error",
    )
    return [_power(given, key, shape, power, bound, fill) for power in range(1, powers + 1)]


def _power(
    given: _Given, key: str, term: Term, power: int, bound: float, fill: float | None
) -> Term:
    reach = bound**power
    most = MAX_COARSE if term.scaled else float(given.limit)
    if power > 1 and reach > most:
        raise JobProblem(
            f"{key}.powers" if key else "prepare.powers",
            f"power {power} of values up to {bound:g} reaches beyond {most:g}; declare a center "
            "and a scale, or a range",
        )
    if term.scaled and reach > MAX_COARSE:
        raise JobProblem(
            key,
            f"values up to {reach:g} after center and scale; at most {MAX_COARSE} for "
            "secret statistics",
        )
    return replace(
        term,
        name=term.name if power == 1 else f"{term.name}^{power}",
        power=power,
        bound=reach if term.scaled else min(reach, float(given.limit)),
        fill=None if fill is None else fill**power,
    )


def _within(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= value <= bounds[1]


def _log(value: float, kind: Log | None) -> float:
    return value if kind is None else log(value) if kind == "log" else log1p(value)


def _logged(key: str, kind: Log, bounds: tuple[float, float] | None) -> tuple[float, float]:
    least = 0.0 if kind == "log" else -1.0
    if bounds is None or bounds[0] <= least:
        raise JobProblem(
            f"{key}.log", f"needs a declared range or clip that begins above {least:g}"
        )
    return _log(bounds[0], kind), _log(bounds[1], kind)
