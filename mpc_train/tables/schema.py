"""The meaning of a table's columns: a strict TOML file on which all owners of a job agree.

    [[columns]]
    name = "age"
    kind = "number"
    unit = "years"
    range = [0, 120]
    missing = ["", "NA"]

    [[columns]]
    name = "region"
    kind = "category"
    levels = ["north", "south"]
    other = true

The spelling of a file's cells (delimiter, encoding, format of dates) is in the node's own
configuration; see `mpc_train.tables.source`. Names, levels and codes are compared in one spelling
(`mpc_train.tables.spelling`): the same letters in another encoding are the same name, and 1, 1.0
and 1e0 are one level and one code. In a column of dates a code like 9999-12-31 is that day, in any
form in which a node writes it. A schema is public to all nodes of a job. Ranges and levels state
what may occur: if they are taken from private data, they tell the others something about these
data.
"""

import datetime
import hashlib
from collections.abc import Iterable
from decimal import Decimal
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec

from mpc_train.base.problem import JobProblem, Problems, interval, number
from mpc_train.base.sizes import MAX_TEXT, check_sizes
from mpc_train.base.strict_toml import all_at, load_toml
from mpc_train.errors import JobError
from mpc_train.tables.spelling import FALSE, TRUE, compose, entry_of

Kind = Literal["number", "category", "boolean", "date", "identifier"]

SCHEMA_VERSION = 1
MAX_COLUMNS = 100_000
MAX_LEVELS = 10_000
MAX_EDGES = 64

_SCHEMA_LABEL = b"mpc-train schema v1\0"
_COLUMN_LABEL = b"mpc-train schema column v1\0"
_FIELD_LABEL = b"mpc-train schema field v1\0"


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One column. As a number: a number is unchanged; a date is the days since 1970-01-01; a
    boolean is 0 or 1; a category is the position of its level, `len(levels)` for "other". An
    identifier is text by which records are joined: never a feature, never shared."""

    name: str
    kind: Kind
    unit: str = ""
    """For people, and so that two owners do not mean metres and feet."""
    range: tuple[Decimal, Decimal] | None = None
    """number: the smallest and largest value that may occur."""
    dates: tuple[datetime.date, datetime.date] | None = None
    """date: the first and last day that may occur."""
    missing: tuple[str, ...] = ()
    """Entries that mean a missing value. An empty cell does only if "" is listed."""
    levels: tuple[str, ...] = ()
    """category: the possible entries, in the order of the levels 0, 1, …"""
    other: bool = False
    """category: an entry that is not a level is "other", not an error."""
    constant: bool = False
    """All rows of one owner may have the same value. Otherwise the owner is warned, and if nobody
    else has the column it is an error."""
    bins: tuple[Decimal, ...] | msgspec.UnsetType = msgspec.UNSET
    """number: the edges between bins, in order, by which values are counted where a model is
    watched at work; a value at an edge is in the bin above it. Unset instead of empty in the
    canonical bytes, so that columns without bins keep the digests that owners have agreed to."""

    def __post_init__(self) -> None:
        compose(self, "name", "unit", "missing", "levels")

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The smallest and largest value as numbers of the table; None: not declared."""
        if self.range is not None:
            return float(self.range[0]), float(self.range[1])
        if self.dates is not None:
            return float(days(self.dates[0])), float(days(self.dates[1]))
        return None

    @property
    def edges(self) -> tuple[float, ...]:
        """`bins` as numbers of the table; none if they are not declared."""
        return () if self.bins is msgspec.UNSET else tuple(map(float, self.bins))

    @property
    def states(self) -> int:
        """category: the levels and, if allowed, "other"; boolean: 2; otherwise 0."""
        if self.kind == "boolean":
            return 2
        return len(self.levels) + self.other if self.kind == "category" else 0

    def digest(self) -> bytes:
        """SHA-256 of the column's canonical bytes."""
        return hashlib.sha256(_COLUMN_LABEL + _canonical(self)).digest()

    def field_digests(self) -> dict[str, bytes]:
        """SHA-256 by field: two owners find which field differs without sending it."""
        return {
            field: hashlib.sha256(
                b"\0".join((_FIELD_LABEL, self.name.encode(), field.encode(), _canonical(value)))
            ).digest()
            for field, value in msgspec.structs.asdict(self).items()
            if field != "name" and value is not msgspec.UNSET
        }


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """A checked schema. Make one with `load_schema`, or from parts and `check_schema`."""

    columns: tuple[Column, ...]
    version: int = SCHEMA_VERSION

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def identifiers(self) -> tuple[str, ...]:
        """The columns by which records may be joined."""
        return tuple(column.name for column in self.columns if column.kind == "identifier")

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Column:
        """The column of this name; raises KeyError."""
        return self._by_name[name]

    def only(self, names: Iterable[str]) -> "Schema":
        """The columns of these names, in this order."""
        return Schema(tuple(self[name] for name in names))

    def to_bytes(self) -> bytes:
        """The canonical bytes: JSON with sorted keys, decimals and dates as strings."""
        return _canonical(self)

    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes. The order of columns counts: it is that of the model."""
        return hashlib.sha256(_SCHEMA_LABEL + self.to_bytes()).digest()


def days(day: datetime.date) -> int:
    """Days since 1970-01-01."""
    return day.toordinal() - _EPOCH


_EPOCH = datetime.date(1970, 1, 1).toordinal()


def _canonical(value: object) -> bytes:
    return msgspec.json.encode(value, order="deterministic")


def load_schema(path: Path | str) -> Schema:
    """Read and check a schema file; raise JobError with file, line, key and what to write."""
    path = Path(path)
    schema, text = load_toml(path, Schema, JobError)
    try:
        check_schema(schema)
    except JobProblem as problem:
        raise all_at(JobError, path, text, problem.said) from problem
    return schema


def check_schema(schema: Schema, key: str = "columns") -> None:
    """Raise JobProblem with the contradictions of each column, at `key`[number].field."""
    check_sizes(schema, key.rpartition("columns")[0].removesuffix("."))
    if schema.version != SCHEMA_VERSION:
        raise JobProblem("version", f"this program reads version {SCHEMA_VERSION} of schemas")
    if not schema.columns:
        raise JobProblem(key, "at least one column is needed")
    if len(schema.columns) > MAX_COLUMNS:
        raise JobProblem(key, f"at most {MAX_COLUMNS} columns")
    seen: set[str] = set()
    found = Problems()
    for index, column in enumerate(schema.columns):
        with found.noting():
            _check_column(f"{key}[{index}]", column)
            if column.name in seen:
                raise JobProblem(f"{key}[{index}].name", f"{column.name!r} appears twice")
        seen.add(column.name)
    found.check()


_FIELDS: dict[str, tuple[Kind, ...]] = {
    "unit": ("number",),
    "range": ("number",),
    "dates": ("date",),
    "missing": ("number", "category", "boolean", "date"),
    "levels": ("category",),
    "other": ("category",),
    "constant": ("number", "category", "boolean", "date"),
    "bins": ("number",),
}
"""The kinds for which each field may be declared."""


def _check_bins(key: str, edges: tuple[Decimal, ...], ends: tuple[Decimal, Decimal] | None) -> None:
    for edge in edges:
        number(key, edge)
    if not 1 <= len(edges) <= MAX_EDGES:
        raise JobProblem(key, f"1 to {MAX_EDGES} edges between bins")
    if any(left >= right for left, right in pairwise(edges)):
        raise JobProblem(key, "write the edges between bins in order, from the smallest")
    if ends is not None and not (ends[0] < edges[0] and edges[-1] < ends[1]):
        raise JobProblem(key, f"write edges between the ends of the range, {ends[0]} and {ends[1]}")


def _check_column(key: str, column: Column) -> None:
    if not column.name or column.name != column.name.strip() or len(column.name) > MAX_TEXT:
        raise JobProblem(
            f"{key}.name", "a column name is not empty, not long, and has no space at its ends"
        )
    for field, kinds in _FIELDS.items():
        if getattr(column, field) and column.kind not in kinds:
            hint = (
                "; write dates = [first, last]" if (field, column.kind) == ("range", "date") else ""
            )
            raise JobProblem(
                f"{key}.{field}", f"a column of kind {column.kind} does not have this{hint}"
            )
    if column.range is not None:
        interval(f"{key}.range", column.range)
    if column.bins is not msgspec.UNSET:
        _check_bins(f"{key}.bins", column.bins, column.range)
    if column.dates is not None and column.dates[0] >= column.dates[1]:
        raise JobProblem(f"{key}.dates", "write [first, last]")
    if column.kind == "category":
        if not column.levels:
            raise JobProblem(f"{key}.levels", "a category needs its levels, in order")
        if len(column.levels) > MAX_LEVELS:
            raise JobProblem(f"{key}.levels", f"at most {MAX_LEVELS} levels")
    for field in ("levels", "missing"):
        entries: tuple[str, ...] = getattr(column, field)
        if len(set(entries)) < len(entries):
            raise JobProblem(f"{key}.{field}", "an entry appears twice")
        for entry in entries:
            if entry != entry.strip() or len(entry) > MAX_TEXT:
                raise JobProblem(f"{key}.{field}", "an entry is too long, or has a space at an end")
    levels: dict[str, str] = {}
    for level in column.levels:
        same = levels.setdefault(entry_of(level), level)
        if same != level:
            raise JobProblem(f"{key}.levels", f"{same!r} and {level!r} are the same number")
    both = [code for code in column.missing if entry_of(code) in levels]
    if both:
        raise JobProblem(f"{key}.missing", f"{min(both)!r} is also a level")
    truths = [code for code in column.missing if entry_of(code).lower() in (*TRUE, *FALSE)]
    if column.kind == "boolean" and truths:
        raise JobProblem(f"{key}.missing", f"{min(truths)!r} also means true or false")
    if len(column.unit) > MAX_TEXT:
        raise JobProblem(f"{key}.unit", f"at most {MAX_TEXT} characters")
