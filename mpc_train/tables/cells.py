"""Converts cells of one column into numbers, by the schema's kind; an error names the rows of bad
cells.

CSV files and databases give text; formats with types give numbers, booleans and dates. The same
table gives the same numbers, or the same error, in every format: null is an empty cell, spaces
around a cell are ignored, and levels, codes and truth values are compared in one spelling
(`mpc_train.tables.spelling`), in which 1, 1.0 and 1e0 are one number. No message repeats a cell.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import time
from functools import lru_cache

import numpy as np
import polars
from numpy.typing import NDArray
from polars import DataType, Series

from mpc_train.tables.dates import ISO, TIME_OF_DAY, DateForm
from mpc_train.tables.faults import CellError
from mpc_train.tables.schema import Column, days
from mpc_train.tables.source import Source
from mpc_train.tables.spelling import FALSE, TRUE, entry_of, name_of
from protocols.arrays import Reals

Mask = NDArray[np.bool_]

_TRUTH = dict.fromkeys(TRUE, 1.0) | dict.fromkeys(FALSE, 0.0)

_MISSING, _UNKNOWN = math.inf, math.nan
"""Represents the number of an entry that has none."""

_WHOLE = r"^(-?(?:0|[1-9][0-9]*))\.0+$"
"""A whole number that the file's writer stored as a floating-point number."""

_GROUPING = {" ": "[ \u00a0\u202f]", "'": "['\u2019]"}
"""Signs with the same meaning that people and programs write interchangeably."""

EMPTY = 'the cell is empty; if that means a missing value, list "" under missing in the schema'


def decode(cells: Series, column: Column, source: Source) -> tuple[Reals, Mask]:
    """The cells as float64, and flags of the missing ones, whose value is 0; raises CellError."""
    if column.kind == "number":
        values, missing = _numbers(cells, column, source)
    elif column.kind == "date":
        values, missing = _dates(cells, column, source)
    else:
        values, missing = _states(cells, column, source)
    if missing.any():
        values[missing] = 0
    bounds = column.bounds
    if bounds is not None:
        outside = ((values < bounds[0]) | (values > bounds[1])) & ~missing
        least, most = column.range or column.dates or bounds
        _refuse(outside, f"outside the declared range [{least}, {most}]")
    return values, missing


def identifiers(cells: Series) -> list[str]:
    """The cells as identifiers, in the spelling in which they are compared; raises CellError for an
    empty one."""
    text = identifier_texts(cells)
    _refuse((text == "").to_numpy(), "the cell is empty, so it identifies nobody")
    found: list[str] = text.to_list()
    return found


def identifier_texts(cells: Series) -> Series:
    """The cells as text, in NFC and without white space at their ends, null as "". Dates and truth
    values of formats that know them are written as 2001-12-31 and true.

    A whole number becomes its digits, whatever its type: 1042 and 1042.0 are "1042", as numbers and
    as text. Raises CellError.
    """
    if cells.dtype.is_float():
        cells = _whole(cells)
    return texts(cells).str.normalize("NFC").str.strip_chars().str.replace(_WHOLE, "${1}")


def _whole(cells: Series) -> Series:
    """Floating-point identifiers as integers; raises CellError if a digit may be lost."""
    most = 1 << (24 if cells.dtype == polars.Float32 else 53)
    values = cells.fill_nan(None)
    _refuse(
        (values != values.floor()).fill_null(False).to_numpy(),
        "a number with a fraction is not an identifier",
    )
    _refuse(
        (values.abs() >= most).fill_null(False).to_numpy(),
        f"a floating-point number of {most} or more has lost digits of an identifier; keep the "
        "column as text or as whole numbers",
    )
    return values.cast(polars.Int64)


def is_cell(kind: DataType) -> bool:
    """Whether columns of this type contain cells, not lists, durations, times of day or binary
    data."""
    plain = (polars.String, polars.Categorical, polars.Enum, polars.Boolean, polars.Null)
    return kind in plain or kind.is_numeric() or is_date(kind)


def is_date(kind: DataType) -> bool:
    """Whether a format knows the column as dates, in any form."""
    return kind == polars.Date or kind == polars.Datetime


def texts(cells: Series) -> Series:
    """The cells as text, null as ""; raises CellError if they have no plain text."""
    if not is_cell(cells.dtype):
        raise CellError(None, f"is of type {cells.dtype}, which has no plain text")
    if is_date(cells.dtype):
        cells = _days(cells)
    if cells.dtype == polars.Null:
        return Series([""] * len(cells), dtype=polars.String)
    return cells.cast(polars.String).fill_null("")


def recoded(cells: Series, codes: Mapping[str, str], decimal: str) -> Series:
    """The cells as text, with those in `codes` replaced; raises CellError for dates in typed
    formats, which have no written form, and where `texts` does."""
    if is_date(cells.dtype):
        raise CellError(None, f"is of type {cells.dtype}; recode replaces only text and numbers")
    text = texts(cells)
    meant = {entry_of(cell, decimal): theirs for cell, theirs in codes.items()}
    distinct = text.unique().to_list()
    found = [meant.get(entry_of(cell, decimal), cell) for cell in distinct]
    return text.replace_strict(distinct, found, return_dtype=polars.String)


def empty(cells: Series) -> Mask:
    """Which cells are empty: null, NaN, or white space."""
    if cells.dtype.is_float():
        cells = cells.fill_nan(None)
    elif cells.dtype == polars.String:
        cells = cells.str.strip_chars().replace("", None)
    found: Mask = cells.is_null().to_numpy()
    return found


def all_empty(cells: Series) -> bool:
    """Whether all cells are empty."""
    first = cells[0] if len(cells) else None
    if isinstance(first, str) and first.strip():
        return False  # returns at once for columns that have values
    return bool(empty(cells).all())


def parsed(text: Series, decimal: str, thousands: str = "") -> Series:
    """Text as float64, to the last bit; null if it is not a number.

    thousands: the sign that may group the digits before the fraction by three.
    """
    if thousands:
        sign = _GROUPING.get(thousands, re.escape(thousands))
        whole = rf"^[+-]?[0-9]{{1,3}}(?:{sign}[0-9]{{3}})+(?:{re.escape(decimal)}[0-9]*)?$"
        text = text.str.replace_all(sign, "").zip_with(text.str.contains(whole), text)
    if decimal == ",":
        # A point would group thousands, or belong to a file with another convention.
        text = text.str.replace(".", "?", literal=True).str.replace(",", ".", literal=True)
    return text.cast(polars.Float64, strict=False)


def _refuse(bad: Mask, what: str) -> None:
    """Raise CellError for the rows of `bad`, if any."""
    if bad.any():
        raise CellError(bad, what)


def _refuse_text(bad: Mask, text: Series, what: str) -> None:
    """The same, but reports an empty cell as empty; the first of both faults is reported."""
    if bad.any():
        empty = bad & (text.str.strip_chars() == "").to_numpy()
        is_empty = bool(empty[int(np.argmax(bad))])
        raise CellError(empty if is_empty else bad & ~empty, EMPTY if is_empty else what)


def _mapped(text: Series, meaning: Callable[[str], float]) -> Reals:
    """The meaning of each cell, computed once for each distinct text."""
    distinct = text.unique()
    meanings = Series([meaning(entry) for entry in distinct.to_list()], dtype=polars.Float64)
    found = text.replace_strict(distinct, meanings, return_dtype=polars.Float64)
    return np.array(found.to_numpy(), dtype=np.float64)


def _numbers(cells: Series, column: Column, source: Source) -> tuple[Reals, Mask]:
    kind = cells.dtype
    if kind == polars.Float64 and not cells.null_count() and not _numerals(column.missing):
        plain = np.array(cells.to_numpy())
        if np.isfinite(plain).all():  # the same as below, in a tenth of the time
            return plain, np.zeros(len(plain), bool)
    typed = kind.is_integer() or kind.is_float()
    text = Series([], dtype=polars.String) if typed else texts(cells).str.strip_chars()
    found = cells.cast(polars.Float64) if typed else parsed(text, source.decimal, source.thousands)
    bad = found.is_null().to_numpy()
    values = np.array(found.fill_null(0.0).to_numpy(), dtype=np.float64)
    missing = np.zeros(len(values), bool)
    if bad.any():
        # Numeric codes were read as numbers, so only the rest is compared as text.
        if not typed:
            missing[bad] = _listed(text.filter(bad), column.missing)
            wrong = bad & ~missing
            if wrong.any():
                other = "," if source.decimal == "." else "."
                what = f"not a number (write it as 1234{source.decimal}5)"
                if _has_decimals(text.filter(wrong), other):
                    what += f'; if {other} is the decimal sign, set decimal = "{other}"'
                elif not source.thousands and _grouped(text.filter(wrong), source.decimal):
                    what += "; if digits are grouped by three, set thousands"
                _refuse_text(wrong, text, what)
        elif "" in column.missing:
            missing = bad
        else:
            _refuse(bad, EMPTY)
    for code in _numerals(column.missing):
        if kind.is_float():
            # A narrow type contains its nearest number to the code.
            code = float(Series([code]).cast(kind)[0])
        missing = missing | (np.isnan(values) if math.isnan(code) else (values == code) & ~bad)
    _refuse(np.isnan(values) & ~missing, "not a number (NaN)")
    _refuse(np.isinf(values) & ~missing, "infinite")
    return values, missing


def _has_decimals(text: Series, sign: str) -> bool:
    """Whether some cell looks like a number with `sign` before its fraction, not before a group of
    three digits."""
    return bool(text.str.contains(rf"^[+-]?[0-9]*[{sign}](?:[0-9]{{1,2}}|[0-9]{{4,}})$").any())


def _grouped(text: Series, decimal: str) -> bool:
    """Whether some cell looks like a number with grouped digits."""
    other = "," if decimal == "." else "."
    whole = rf"^[+-]?[0-9]{{1,3}}(?:[{other} '_\u00a0\u202f\u2019][0-9]{{3}})+(?:\D[0-9]*)?$"
    return bool(text.str.contains(whole).any())


def _listed(text: Series, codes: Sequence[str]) -> Mask:
    found: Mask = text.is_in(list(codes)).to_numpy()
    if found.all():
        return found
    spelt = {entry_of(code) for code in codes}
    return _mapped(text, lambda cell: entry_of(cell) in spelt) == 1


@lru_cache(1024)
def _numerals(codes: tuple[str, ...]) -> tuple[float, ...]:
    """The codes that are numbers: -9 is -9.0, however a cell spells it."""
    return tuple(parsed(Series(codes, dtype=polars.String), ".").drop_nulls().to_list())


def _dates(cells: Series, column: Column, source: Source) -> tuple[Reals, Mask]:
    if is_date(cells.dtype):
        found = _days(cells)
        missing = found.is_null().to_numpy()
        if "" not in column.missing:
            _refuse(missing, EMPTY)
        values = np.array(found.to_physical().fill_null(0).to_numpy(), dtype=np.float64)
    else:
        text, form = texts(cells), source.form_of(column.name)
        codes = {entry_of(code) for code in column.missing}

        def meaning(cell: str) -> float:
            if entry_of(cell) in codes:
                return _MISSING
            try:
                return days(form.day(cell))
            except ValueError:
                return _UNKNOWN

        values = _mapped(text, meaning)
        _refuse_dates(np.isnan(values), text, form)
        missing = values == _MISSING
    for code in _coded_days(column.missing):
        missing = missing | (values == code)
    return values, missing


def _refuse_dates(bad: Mask, text: Series, form: DateForm) -> None:
    """Raise CellError for the rows that have the same fault as the first."""
    if not bad.any():
        return
    reasons = {cell: _why(cell, form) for cell in text.filter(bad).unique().to_list()}
    first = reasons[text[int(np.argmax(bad))]]
    alike = [cell for cell, reason in reasons.items() if reason == first]
    _refuse_text(bad & text.is_in(alike).to_numpy(), text, first)


def _why(cell: str, form: DateForm) -> str:
    """Why a cell is not a date in this form."""
    try:
        form.day(cell)
    except ValueError as error:
        return str(error)
    return ""


@lru_cache(1024)
def _coded_days(codes: tuple[str, ...]) -> tuple[int, ...]:
    """The codes that are dates, 9999-12-31: that day, in any form in which a node writes it."""
    found = []
    for code in codes:
        try:
            found.append(days(DateForm(ISO).day(code)))
        except ValueError:
            continue
    return tuple(found)


def _days(cells: Series) -> Series:
    """The dates of dates with a time, which must be midnight; raises CellError."""
    if cells.dtype == polars.Date:
        return cells
    found = cells.dt.date()
    _refuse((cells.dt.time() != time()).fill_null(False).to_numpy(), TIME_OF_DAY)
    return found


def _states(cells: Series, column: Column, source: Source) -> tuple[Reals, Mask]:
    """The position of a category's level, or a boolean's 0 or 1."""
    truths: Mapping[str, float] = {}
    if column.kind == "boolean":
        truths = _TRUTH
        what = f"neither true nor false (write one of {', '.join((*TRUE, *FALSE))})"
    else:
        what = f"not one of the declared {_shown(column.levels)}"
    index = _index(column)
    other = float(len(column.levels)) if column.other else _UNKNOWN

    def meaning(cell: str) -> float:
        entry = entry_of(cell, source.decimal)
        found = index.get(name_of(cell), index.get(entry))
        if found is None:
            found = truths.get(entry.lower(), other)
        # An empty cell is not an entry, so it is not "other" either.
        return found if entry or found == _MISSING else _UNKNOWN

    text = texts(cells)
    values = _mapped(text, meaning)
    _refuse_text(np.isnan(values), text, what)
    return values, values == _MISSING


def _index(column: Column) -> Mapping[str, float]:
    """The meaning of each level and code, as declared and in the spelling used for comparison."""
    entries = {level: float(place) for place, level in enumerate(column.levels)}
    entries |= dict.fromkeys(column.missing, _MISSING)
    return {entry_of(entry): number for entry, number in entries.items()} | entries


def _shown(levels: Sequence[str]) -> str:
    shown = ", ".join(repr(level) for level in levels[:5])
    return f"levels {shown}" + (f" and {len(levels) - 5} more" if len(levels) > 5 else "")
