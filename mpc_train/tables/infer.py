"""A first draft of a schema, from one owner's own table, for people to correct.

What it writes are statistics of private data: ranges (rounded outwards), levels and codes that
occur. They are to be replaced by what may occur before anybody else sees them. Of columns that
look like identifiers nothing is written but the name, and no entry of fewer than `LEAST_SEEN` rows
is written at all.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from math import floor, log10
from typing import cast

import numpy as np
import polars
from polars import Series

from mpc_train.jobs.strict_toml import canonical_decimal
from mpc_train.tables.cells import FALSE, TRUE
from mpc_train.tables.load import Report, open_table, reporting
from mpc_train.tables.source import Source

LEAST_SEEN = 5
MOST_LEVELS = 50
MOST_ENTRIES = 5_000
"""More than these are not kept in mind."""
MOST_CODES = 5
MOSTLY = 0.8
"""So much of a column of numbers are numbers; the rest may be words that stand for none."""
SAMPLE = 10_000
MANY = 20
"""Fewer different entries than these say nothing about a column."""
CODES = ("", "NA", "N/A", "n/a", "na", "NaN", "nan", "NULL", "null", "None", "none", "-", "?", ".")
SENTINELS = (-9.0, -99.0, -999.0, -9999.0, 99.0, 999.0, 9999.0, 99999.0)
DATE_FORMATS = ("%Y-%m-%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%Y%m%d")
HINTS = re.compile(
    r"(^|_|\b)(id|ids|uuid|guid|key|ssn|nhs|mrn|iban|email|e_mail|phone|name|surname|firstname|"
    r"lastname|address|street|passport|account|customer|patient|person)(_?(id|no|nr|number))?$",
    re.IGNORECASE,
)

HEAD = """\
# Drafted by mpc-train schema infer. Review it before anybody else gets it: ranges, levels and
# codes were taken from private data. Replace them by what may occur, in anybody's rows.

"""


@dataclass
class _Dates:
    """Cells that are dates in one form."""

    count: int = 0
    first: date = date.max
    last: date = date.min

    def take(self, days: Series) -> None:
        found = days.drop_nulls()
        if len(found):
            self.count += len(found)
            self.first = min(self.first, cast(date, found.min()))
            self.last = max(self.last, cast(date, found.max()))


@dataclass
class _Seen:
    """What was seen of one column. entries: what is no code, empty once there are too many."""

    rows: int = 0
    type: str = "text"
    codes: Counter[str] = field(default_factory=Counter)
    entries: Counter[str] = field(default_factory=Counter)
    crowded: bool = False
    numbers: int = 0
    least: float = np.inf
    most: float = -np.inf
    sentinels: set[float] = field(default_factory=set)
    dates: dict[str, _Dates] = field(default_factory=dict)
    sample: list[str] = field(default_factory=list)

    @property
    def cells(self) -> int:
        """Cells that hold something."""
        return self.rows - self.codes.total()

    def take(self, cells: Series, source: Source, written: str) -> None:
        """Look at some more cells."""
        self.rows += len(cells)
        if cells.dtype == polars.Boolean:
            self.type = "boolean"
        elif cells.dtype == polars.Date or cells.dtype == polars.Datetime:
            self.type = "date"
            self.dates.setdefault(written, _Dates()).take(cells.dt.date())
        elif cells.dtype.is_numeric():
            self.type = "number"
        text = cells.cast(polars.String, strict=False).fill_null("").str.strip_chars()
        is_code = text.is_in(list(CODES))
        self.codes.update(dict(text.filter(is_code).value_counts().iter_rows()))
        rest = text.filter(~is_code)
        self.sample += rest.head(SAMPLE - len(self.sample)).to_list()
        if not self.crowded:
            self.entries.update(dict(rest.value_counts().iter_rows()))
            self.crowded = len(self.entries) > MOST_ENTRIES
            if self.crowded:
                self.entries.clear()
        words = self._numbers(rest, source)
        if self.type == "text" and len(words):
            for form in dict.fromkeys((written, *DATE_FORMATS)):
                days = words.str.to_date(form, strict=False)
                self.dates.setdefault(form, _Dates()).take(days)

    def _numbers(self, text: Series, source: Source) -> Series:
        """Take what is a number; return the rest."""
        plain = text.str.replace(",", ".", literal=True) if source.decimal == "," else text
        parsed = plain.cast(polars.Float64, strict=False)
        is_number = parsed.is_finite().fill_null(False)
        known = parsed.filter(is_number).to_numpy()
        coded = np.isin(known, SENTINELS)
        self.numbers += len(known)
        self.sentinels |= set(known[coded].tolist())
        if not coded.all():
            self.least = min(self.least, float(known[~coded].min()))
            self.most = max(self.most, float(known[~coded].max()))
        return text.filter(~is_number)


@dataclass(frozen=True)
class Draft:
    """text: a schema file. warnings: what its author has to decide."""

    text: str
    warnings: tuple[str, ...]


def infer(source: Source, progress: Report | None = None) -> Draft:
    """Read the whole table once and draft its schema; raises DataError."""
    with open_table(source) as table:
        names = [name for name in table.names if name not in source.ignore]
        seen = {name: _Seen() for name in names}
        report = reporting(table, progress)
        for chunk in table.chunks(names):
            for name in names:
                seen[name].take(chunk.frame[name], source, source.form_of(name))
            report(chunk.done)
    parts, warnings = [HEAD], []
    for name in names:
        lines: list[str] = [f"name = {_quoted(name)}"]
        warned = _describe(name, seen[name], source.form_of(name), lines)
        notes = [f"# {what}" for what in warned]
        parts.append("\n".join(["[[columns]]", *notes, *lines, ""]))
        warnings += [f"column {name!r}: {what}" for what in warned]
    return Draft("\n".join(parts), tuple(warnings))


def _describe(name: str, seen: _Seen, written: str, lines: list[str]) -> list[str]:
    """Append the column's keys; return what its author has to decide."""
    codes = sorted(code for code, count in seen.codes.items() if count >= LEAST_SEEN or not code)
    date_form = next(
        (form for form, dates in seen.dates.items() if dates.count == seen.cells > 0), None
    )
    if not seen.cells:
        lines += ['kind = "number"', *_missing(codes)]
        return ["no cell holds anything; take the column out"]
    if _looks_like_identifier(name, seen):
        lines.append('kind = "identifier"')
        return ["looks like an identifier; if it is a feature, change kind"]
    if seen.type == "boolean" or (
        set(map(str.lower, seen.entries)) <= _TRUTHS and not seen.crowded
    ):
        lines += ['kind = "boolean"', *_missing(codes)]
        return []
    if date_form is not None and (seen.type == "date" or not seen.numbers):
        return _describe_dates(seen.dates[date_form], date_form, written, codes, lines)
    if seen.numbers >= MOSTLY * seen.cells:
        return _describe_numbers(seen, codes, lines)
    return _describe_levels(seen, codes, lines)


_TRUTHS = frozenset((*TRUE, *FALSE))


def _looks_like_identifier(name: str, seen: _Seen) -> bool:
    if HINTS.search(name):
        return True
    distinct = len(set(seen.sample))
    if len(seen.sample) < MANY or distinct < len(seen.sample) * 0.9:
        return False
    # Measured numbers differ as well; whole numbers that all differ are counted, not measured.
    return not seen.numbers or (
        distinct == len(seen.sample) and all(entry.lstrip("-").isdigit() for entry in seen.sample)
    )


def _describe_dates(
    dates: _Dates, form: str, written: str, codes: list[str], lines: list[str]
) -> list[str]:
    first, last = date(dates.first.year, 1, 1), date(dates.last.year, 12, 31)
    lines += ['kind = "date"', f"dates = [{first}, {last}]", *_missing(codes)]
    if form == written:
        return []
    return [f"dates are of the form {form}; say so under date_formats of your node's table"]


def _describe_numbers(seen: _Seen, codes: list[str], lines: list[str]) -> list[str]:
    warnings = []
    words = Counter(
        {entry: count for entry, count in seen.entries.items() if not _is_number(entry)}
    )
    others = seen.cells - seen.numbers
    common = [entry for entry, count in words.items() if count >= LEAST_SEEN]
    if others and (seen.crowded or len(words) > MOST_CODES or len(common) < len(words)):
        warnings.append(f"{others} cells are no numbers; each has to be corrected or be a code")
    if len(common) <= MOST_CODES:
        codes = sorted({*codes, *common})
    for sentinel in sorted(seen.sentinels):
        warnings.append(f"{sentinel:g} occurs: list it under missing if it stands for no value")
    if not seen.crowded and len(seen.entries) <= 10 and all(e.isdigit() for e in seen.entries):
        warnings.append("few whole numbers: a category perhaps")
    lines.append('kind = "number"')
    if seen.most > seen.least:
        least, most = _outwards(seen.least, seen.most)
        lines.append(f"range = [{least:f}, {most:f}]")
    else:
        warnings.append("all numbers are the same: take the column out")
    lines += _missing(codes)
    return warnings


def _describe_levels(seen: _Seen, codes: list[str], lines: list[str]) -> list[str]:
    common = sorted(entry for entry, count in seen.entries.items() if count >= LEAST_SEEN)
    if seen.crowded or len(common) > MOST_LEVELS or not common:
        lines.append('kind = "identifier"')
        return ["free text, or too many levels: no feature; list it under ignore, or group it"]
    rare = len(seen.entries) - len(common)
    lines += ['kind = "category"', f"levels = [{', '.join(map(_quoted, common))}]"]
    lines += ["other = true"] if rare else []
    lines += _missing(codes)
    if not rare:
        return []
    return [f"entries of fewer than {LEAST_SEEN} rows each are not listed: {rare}"]


def _missing(codes: list[str]) -> list[str]:
    return [f"missing = [{', '.join(map(_quoted, codes))}]"] if codes else []


def _is_number(entry: str) -> bool:
    return _NUMBER.fullmatch(entry) is not None


_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")


def _outwards(least: float, most: float) -> tuple[Decimal, Decimal]:
    """Round outwards to the leading digit of the span."""
    step = Decimal(10) ** floor(log10(most - least))
    low = (Decimal(repr(least)) / step).to_integral_value(ROUND_FLOOR) * step
    high = (Decimal(repr(most)) / step).to_integral_value(ROUND_CEILING) * step
    return canonical_decimal(low), canonical_decimal(high)


def _quoted(text: str) -> str:
    """JSON's strings are TOML's."""
    return json.dumps(text, ensure_ascii=False)
