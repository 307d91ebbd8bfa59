"""A first draft of a schema, from one owner's own table, for people to correct.

A draft contains statistics of private data: ranges (rounded outwards), levels and codes that occur.
Their owner must replace them by what may occur before anybody else sees them. For columns that look
like identifiers only the name is written, and no entry of fewer than `MIN_SEEN` rows is written at
all, except the usual signs of a missing value (`CODES`, `SENTINELS`).

The table loads with its draft: cells are read by the loader's own rules, and the table is read a
second time with the draft. A column that does not load with any draft becomes a comment that says
why; the node's configuration then lists it under `ignore` (`Draft.source`).
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

import msgspec
import numpy as np
import polars
from numpy.typing import NDArray
from polars import Series

from mpc_train.base.problem import JobProblem
from mpc_train.base.strict_toml import canonical_decimal, quoted
from mpc_train.errors import DataError
from mpc_train.tables import cells as decoding
from mpc_train.tables.dates import DateForm
from mpc_train.tables.faults import CellError
from mpc_train.tables.loading.load import Report, header_faults, open_table, reporting
from mpc_train.tables.schema import MAX_TEXT, Column, Schema, check_schema
from mpc_train.tables.source import Source, label_of
from mpc_train.tables.spelling import FALSE, TRUE, entry_of

MIN_SEEN = 5
MAX_LEVELS = 50
MAX_ENTRIES = 5_000
"""At most this many are remembered."""
MAX_CODES = 5
MOSTLY = 0.8
"""At least this part of a column of numbers must be numbers; the rest may be words for missing
ones."""
SAMPLE = 10_000
MANY = 20
"""Fewer distinct entries than this say nothing about a column."""
CODES = ("", "NA", "N/A", "n/a", "na", "NaN", "nan", "NULL", "null", "None", "none", "-", "?", ".")
SENTINELS = (-9.0, -99.0, -999.0, -9999.0, 99.0, 999.0, 9999.0, 99999.0)
DATE_FORMATS = (
    "%Y-%m-%d",
    "%d.%m.%Y",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%Y/%m/%d",
    "%Y%m%d",
    "%Y-%m-%d %H:%M:%S",
)
HINTS = re.compile(
    r"(^|_|\b)(id|ids|uuid|guid|key|ssn|nhs|mrn|iban|email|e_mail|phone|name|surname|firstname|"
    r"lastname|address|street|passport|account|customer|patient|person)(_?(id|no|nr|number))?$",
    re.IGNORECASE,
)

HEAD = """\
# Drafted by mpc-train schema infer. Review it before anybody else gets it: ranges, levels and
# codes were taken from private data. Replace them by what may occur in any owner's rows.

"""
_WIDE = Context(prec=1_000)
"""Two floating-point numbers are at most about 640 decimal places apart."""


@dataclass
class _Dates:
    """Cells that are all dates in one format."""

    first: date = date.max
    last: date = date.min

    def take(self, days: Iterable[date]) -> None:
        for day in days:
            self.first, self.last = min(self.first, day), max(self.last, day)


@dataclass
class _Seen:
    """Observations of one column. entries: cells that are not codes, in the spelling used for
    comparison; words: those that are not numbers; each becomes empty when there are too many.
    forms: the date formats that all cells fit."""

    forms: dict[DateForm, _Dates]
    rows: int = 0
    type: str = "text"
    codes: Counter[str] = field(default_factory=Counter)
    entries: Counter[str] = field(default_factory=Counter)
    crowded: bool = False
    words: Counter[str] = field(default_factory=Counter)
    numbers: int = 0
    least: float = np.inf
    most: float = -np.inf
    sentinels: set[float] = field(default_factory=set)
    sample: list[str] = field(default_factory=list)

    @property
    def cells(self) -> int:
        """The number of cells that are not empty."""
        return self.rows - self.codes.total()

    def take(self, cells: Series, source: Source) -> None:
        """Examine more cells; raises CellError if they are not cells."""
        text = decoding.texts(cells).str.strip_chars()
        self.rows += len(cells)
        is_code = text.is_in(list(CODES))
        self.codes.update(dict(text.filter(is_code).value_counts().iter_rows()))
        rest = text.filter(~is_code)
        self.sample += rest.head(SAMPLE - len(self.sample)).to_list()
        if not self.crowded:
            self.crowded = _count(self.entries, rest, source.decimal)
        if cells.dtype == polars.Boolean:
            self.type = "boolean"
        elif decoding.is_date(cells.dtype):
            self.type = "date"
            days = Series(cells.dt.date()).drop_nulls().unique().to_list()
            self.forms = {DateForm(): next(iter(self.forms.values()))}
            self.forms[DateForm()].take(days)
        elif self.forms:
            self._dates(rest)
        if cells.dtype.is_integer() or cells.dtype.is_float():
            self.type = "number"
            self._numbers(cells.filter(~is_code).cast(polars.Float64), rest, source)
        else:
            self._numbers(decoding.parsed(rest, source.decimal, source.thousands), rest, source)

    def _numbers(self, parsed: Series, rest: Series, source: Source) -> None:
        is_number = parsed.is_finite().fill_null(False)
        known = parsed.filter(is_number).to_numpy()
        coded = np.isin(known, SENTINELS)
        self.numbers += len(known)
        self.sentinels |= set(known[coded].tolist())
        if not coded.all():
            self.least = min(self.least, float(known[~coded].min()))
            self.most = max(self.most, float(known[~coded].max()))
        _count(self.words, rest.filter(~is_number), source.decimal)

    def _dates(self, text: Series) -> None:
        distinct = text.unique().to_list()
        for form, dates in list(self.forms.items()):
            try:
                dates.take([form.day(entry) for entry in distinct])
            except ValueError:
                del self.forms[form]


def _count(counts: Counter[str], text: Series, decimal: str) -> bool:
    """Count entries in the spelling used for comparison; return whether there were too many to
    continue."""
    for entry, count in text.value_counts().iter_rows():
        counts[entry_of(entry, decimal)] += count
    if len(counts) <= MAX_ENTRIES:
        return False
    counts.clear()
    return True


@dataclass(frozen=True)
class Draft:
    """text: a schema file. warnings: what its author has to decide. source: the declaration of the
    table that fits the draft: omitted columns under `ignore`, and date formats."""

    text: str
    warnings: tuple[str, ...]
    source: Source


def infer(source: Source, progress: Report | None = None) -> Draft:
    """Read the whole table, twice, and draft its schema; raises DataError."""
    label = label_of(source)
    names, seen, refused = _look(source, label, progress)
    columns: dict[str, Column] = {}
    notes: dict[str, list[str]] = {}
    for name, what in seen.items():
        column, form, notes[name] = _described(name, what, source.form_of(name))
        if form is not None:
            formats = {**source.date_formats, source.own(name): form}
            source = msgspec.structs.replace(source, date_formats=formats)
        try:
            check_schema(Schema((column,)))
            columns[name] = column
        except JobProblem as problem:
            refused[name] = f"{problem.key.partition('.')[2]}: {problem}"
    bad, constant = _tried(source, columns, progress)
    refused |= bad
    left = [name for name in dict.fromkeys(names) if name in refused]
    if len(left) == len(set(names)):
        whole = "; ".join(f"column {name!r}: {refused[name]}" for name in left[:MAX_CODES])
        raise DataError(f"{label}: no column has a draft: {whole}")
    ours = tuple(map(source.own, left))
    source = msgspec.structs.replace(
        source,
        ignore=(*source.ignore, *ours),
        rename={own: name for own, name in source.rename.items() if own not in ours},
        recode={own: codes for own, codes in source.recode.items() if own not in ours},
    )
    parts, warnings = [_head(source)], []
    for name in dict.fromkeys(names):
        said = notes.get(name, [])
        if name in constant:
            columns[name] = msgspec.structs.replace(columns[name], constant=True)
            said.append("every row has the same value; remove it if the others' rows have it too")
        if name in refused:
            said = [f"omitted: {refused[name]}; correct it, or {_IGNORE}", *said]
        lines = _lines(columns[name]) if name in columns else []
        if name in refused:
            lines = [f"# column {name!r}", *(f"# {line}" for line in lines)]
        # Comments precede the column that they are about.
        parts.append("\n".join([*(f"# {what}" for what in said), *lines, ""]))
        warnings += [f"column {name!r}: {what}" for what in said]
    return Draft("\n".join(parts), tuple(warnings), source)


_IGNORE = "list it under ignore in this node's configuration"


def _look(
    source: Source, label: str, progress: Report | None
) -> tuple[list[str], dict[str, _Seen], dict[str, str]]:
    """The table's names except ignored ones, the observations of each, and why some have none."""
    with open_table(source) as table:
        if faults := header_faults(table, (*source.ignore, "")):
            raise DataError("\n  ".join(f"{label}: {fault}" for fault in faults))
        names = [name for name in table.names if name not in source.ignore]
        refused = {"": "has no name"} if "" in names else {}
        seen = {
            name: _Seen({DateForm(form): _Dates() for form in DATE_FORMATS})
            for name in names
            if name
        }
        for name, what in seen.items():
            what.forms = {source.form_of(name): _Dates(), **what.forms}
        report, rows = reporting(table, progress), 0
        for chunk in table.chunks(list(seen)) if seen else ():
            rows += len(chunk.places)
            for name in list(seen):
                try:
                    seen[name].take(chunk.frame[name], source)
                except CellError as error:
                    refused[name] = _placed(error, table.place, chunk.places)
                    del seen[name]
            report(chunk.done)
    if seen and not rows:
        raise DataError(f"{label}: there are columns but no row")
    return names, seen, refused


def _placed(error: CellError, place: str, places: NDArray[np.int64]) -> str:
    return str(error) if error.row is None else f"{place} {places[error.row]}: {error}"


def _tried(
    source: Source, columns: dict[str, Column], progress: Report | None
) -> tuple[dict[str, str], set[str]]:
    """Why the loader refuses some of the drafted columns, and which of the others have only one
    value."""
    bad: dict[str, str] = {}
    first: dict[str, float] = {}
    varied: set[str] = set()
    with open_table(source) as table:
        report = reporting(table, progress)
        for chunk in table.chunks(list(columns)):
            for name in [name for name in columns if name not in bad]:
                try:
                    if columns[name].kind == "identifier":
                        decoding.identifiers(chunk.frame[name])
                        continue
                    values, missing = decoding.decode(chunk.frame[name], columns[name], source)
                except CellError as error:
                    bad[name] = _placed(error, table.place, chunk.places)
                    continue
                present = values[~missing]
                if len(present):
                    start = first.setdefault(name, float(present[0]))
                    varied |= {name} if np.any(present != start) else set()
            report(chunk.done)
    features = {name for name, column in columns.items() if column.kind != "identifier"} - set(bad)
    bad |= dict.fromkeys(features - set(first), "all cells are empty")
    return bad, (features & set(first)) - varied


def _head(source: Source) -> str:
    """The head of the file: what the author has to do, and what the node's configuration must
    contain."""
    wanted = []
    if source.ignore:
        wanted.append(f"# ignore = {quoted(source.ignore)}\n")
    if source.date_formats:
        forms = ", ".join(f"{quoted(k)} = {quoted(v)}" for k, v in source.date_formats.items())
        wanted.append(f"# date_formats = {{ {forms} }}\n")
    if not wanted:
        return HEAD
    return HEAD + "# The node's configuration of this table must contain:\n" + "".join(wanted)


def _lines(column: Column) -> list[str]:
    """A column in the form of a schema file."""
    lines = ["[[columns]]", f"name = {quoted(column.name)}", f"kind = {quoted(column.kind)}"]
    if column.range is not None:
        lines.append(f"range = [{column.range[0]:f}, {column.range[1]:f}]")
    if column.dates is not None:
        lines.append(f"dates = [{column.dates[0]}, {column.dates[1]}]")
    for key in ("levels", "missing"):
        if entries := getattr(column, key):
            lines.append(f"{key} = {quoted(entries)}")
    return lines + [f"{key} = true" for key in ("other", "constant") if getattr(column, key)]


Description = tuple[Column, str | None, list[str]]
"""A column, the format of its dates if it is not the declared one, and what its author has to
decide."""


def _described(name: str, seen: _Seen, written: DateForm) -> Description:
    codes = tuple(sorted(seen.codes))
    if not seen.cells:
        return Column(name, "number", missing=codes), None, []
    if _looks_like_identifier(name, seen):
        return (
            Column(name, "identifier"),
            None,
            ["looks like an identifier; if it is a feature, change kind"],
        )
    if seen.type == "boolean" or (
        set(map(str.lower, seen.entries)) <= _TRUTHS and not seen.crowded
    ):
        return Column(name, "boolean", missing=codes), None, []
    declared = written != DateForm() and written in seen.forms
    if seen.forms and (seen.type == "date" or declared or not seen.numbers):
        return _dates(name, seen, written, codes)
    if seen.numbers >= MOSTLY * seen.cells:
        column, notes = _number(name, seen, codes)
    else:
        column, notes = _levels(name, seen, codes)
    return column, None, notes


_TRUTHS = frozenset((*TRUE, *FALSE))


def _looks_like_identifier(name: str, seen: _Seen) -> bool:
    if HINTS.search(name):
        return True
    distinct = len(set(seen.sample))
    if len(seen.sample) < MANY or distinct < len(seen.sample) * 0.9:
        return False
    if seen.type == "date" or (seen.forms and not seen.numbers):
        return False
    # Measured numbers are also all different; different whole numbers were counted, not measured.
    return not seen.numbers or (
        distinct == len(seen.sample) and all(entry.lstrip("-").isdigit() for entry in seen.sample)
    )


def _dates(name: str, seen: _Seen, written: DateForm, codes: tuple[str, ...]) -> Description:
    form, dates = next(iter(seen.forms.items()))
    years = date(dates.first.year, 1, 1), date(dates.last.year, 12, 31)
    column = Column(name, "date", dates=years, missing=codes)
    if seen.type == "date" or form == written:
        return column, None, []
    notes = [f"dates have the form {form.form}; list it under date_formats of your node's table"]
    others = [other.form for other in seen.forms if other != form]
    if others:
        notes.append(f"they also fit the form {others[0]}: check which of them is meant")
    return column, form.form, notes


def _number(name: str, seen: _Seen, codes: tuple[str, ...]) -> tuple[Column, list[str]]:
    notes = []
    others = seen.cells - seen.numbers
    common = [entry for entry, count in seen.words.items() if count >= MIN_SEEN]
    if others and (len(seen.words) > MAX_CODES or len(common) < len(seen.words)):
        notes.append(f"{others} cells are not numbers; correct each of them or make it a code")
    if len(common) <= MAX_CODES:
        codes = tuple(sorted({*codes, *common}))
    least, most = seen.least, seen.most
    if not least < most:
        least, most = min([least, *seen.sentinels]), max([most, *seen.sentinels])
    bounds = _outwards(least, most) if least < most else None
    for sentinel in sorted(seen.sentinels):
        if bounds is None or bounds[0] <= Decimal(sentinel) <= bounds[1]:
            notes.append(f"{sentinel:g} occurs: list it under missing if it means a missing value")
            continue
        codes = tuple(sorted({*codes, f"{sentinel:g}"}))
        notes.append(
            f"{sentinel:g} occurs, far from all others, and is treated as a missing value; if it "
            "is not, remove it under missing and widen the range"
        )
    if not seen.crowded and len(seen.entries) <= 10 and all(e.isdigit() for e in seen.entries):
        notes.append("few whole numbers: possibly a category")
    if bounds is None and least < most:
        notes.append("a range cannot be declared for numbers so large or small; correct the cells")
    return Column(name, "number", range=bounds, missing=codes), notes


def _levels(name: str, seen: _Seen, codes: tuple[str, ...]) -> tuple[Column, list[str]]:
    common = sorted(entry for entry, count in seen.entries.items() if count >= MIN_SEEN)
    if seen.crowded or not 1 <= len(common) <= MAX_LEVELS or max(map(len, common)) > MAX_TEXT:
        return Column(name, "identifier"), [
            "free text, or too many levels: not a feature; list it under ignore, or group it"
        ]
    rare = len(seen.entries) - len(common)
    column = Column(name, "category", levels=tuple(common), other=rare > 0, missing=codes)
    if not rare:
        return column, []
    return column, [f"entries of fewer than {MIN_SEEN} rows each are not listed: {rare}"]


def _outwards(least: float, most: float) -> tuple[Decimal, Decimal] | None:
    """Rounded outwards to the leading digit of the span; None beyond the numbers allowed in a
    file."""
    ends = Decimal(repr(least)), Decimal(repr(most))
    step = Decimal(1).scaleb(_WIDE.subtract(ends[1], ends[0]).adjusted(), _WIDE)
    counts = [_WIDE.divide(end, step) for end in ends]
    low = counts[0].to_integral_value(ROUND_FLOOR)
    high = counts[1].to_integral_value(ROUND_CEILING)
    try:
        return (
            canonical_decimal(_WIDE.multiply(low, step)),
            canonical_decimal(_WIDE.multiply(high, step)),
        )
    except ValueError:
        return None
