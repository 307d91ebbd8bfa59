"""Cells of one column into numbers, by the schema's kind; the first bad one is named by its row.

Text is taken as it is written in CSV files and databases; formats that know numbers, booleans and
dates bring them as such. What is null there is an empty cell here. Spaces around a cell are
nothing. No message repeats a cell.
"""

import datetime
import math
from collections.abc import Sequence

import numpy as np
import polars
from numpy.typing import NDArray
from polars import Series

from mpc_train.tables.schema import Column
from mpc_train.tables.source import Source

Reals = NDArray[np.float64]
Mask = NDArray[np.bool_]

TRUE = ("1", "true", "t", "yes", "y")
FALSE = ("0", "false", "f", "no", "n")

_WHERE = "in this node's configuration"


class CellError(Exception):
    """What is wrong in row `row` of a chunk; None: with the column as a whole."""

    def __init__(self, row: int | None, what: str) -> None:
        super().__init__(what)
        self.row = row


def decode(cells: Series, column: Column, source: Source) -> tuple[Reals, Mask]:
    """The cells as float64 and what is missing, where the value is 0; raises CellError."""
    if column.kind == "number":
        values, missing = _numbers(cells, column, source)
    elif column.kind == "date":
        values, missing = _dates(cells, column, source)
    else:
        values, missing = _states(cells, column)
    if missing.any():
        values[missing] = 0
    bounds = column.bounds
    if bounds is not None:
        outside = ((values < bounds[0]) | (values > bounds[1])) & ~missing
        least, most = column.range or column.dates or bounds
        _refuse(outside, f"outside the declared range [{least}, {most}]")
    return values, missing


def identifiers(cells: Series) -> list[str]:
    """The cells as text without white space at their ends; raises CellError at one that is empty.

    A whole number is its digits, whatever type a format holds it as: 1042 and 1042.0 are "1042".
    """
    if cells.dtype.is_float():
        cells = _whole(cells)
    text = _text(cells).str.strip_chars()
    _refuse((text == "").to_numpy(), "the cell is empty, it identifies nobody")
    found: list[str] = text.to_list()
    return found


def _whole(cells: Series) -> Series:
    """Floating-point identifiers as integers; raises CellError where a digit may be lost."""
    most = 1 << (24 if cells.dtype == polars.Float32 else 53)
    values = cells.fill_nan(None)
    _refuse(
        (values != values.floor()).fill_null(False).to_numpy(),
        "a number with a fraction is no identifier",
    )
    _refuse(
        (values.abs() >= most).fill_null(False).to_numpy(),
        f"a floating-point number of {most} or more has lost digits of an identifier; keep the "
        "column as text or as whole numbers",
    )
    return values.cast(polars.Int64)


def _refuse(bad: Mask, what: str) -> None:
    """Raise CellError at the first row of `bad`."""
    if bad.any():
        raise CellError(int(np.argmax(bad)), what)


def _refuse_text(bad: Mask, text: Series, what: str) -> None:
    """The same; an empty cell is called empty."""
    if bad.any():
        row = int(np.argmax(bad))
        empty = 'the cell is empty; if that means a missing value, list "" under missing'
        raise CellError(row, what if text[row] else f"{empty} in the schema")


def _numbers(cells: Series, column: Column, source: Source) -> tuple[Reals, Mask]:
    if cells.dtype == polars.String or cells.dtype == polars.Null:
        text = _text(cells).str.strip_chars()
        missing = _listed(text, column.missing)
        plain, what = text, "not a number (write it as 1234.5)"
        if source.decimal == ",":
            what = "not a number (write it as 1234,5)"
            # A point would be one that groups thousands, or a file of another convention.
            plain = text.str.replace(".", "?", literal=True).str.replace(",", ".", literal=True)
        parsed = plain.cast(polars.Float64, strict=False)
        bad = parsed.is_null().to_numpy() & ~missing
        _refuse_text(bad, text, what)
    elif cells.dtype.is_numeric():
        parsed = cells.cast(polars.Float64)
        missing = parsed.is_null().to_numpy()
        if missing.any() and "" not in column.missing:
            _refuse_text(missing, Series([""] * len(cells)), "")
    else:
        raise CellError(None, f"is of type {cells.dtype} there, the schema says number")
    values = np.array(parsed.fill_null(0.0).to_numpy(), dtype=np.float64)
    missing = missing | _coded(values, column.missing)
    _refuse(np.isnan(values) & ~missing, "not a number (NaN)")
    _refuse(np.isinf(values) & ~missing, "infinite")
    return values, missing


def _coded(values: Reals, codes: Sequence[str]) -> Mask:
    """Where a value is one of the codes that are numbers: -9 is -9.0, however it is written."""
    found = np.zeros(len(values), bool)
    for code in codes:
        try:
            number = float(code)
        except ValueError:
            continue
        found |= np.isnan(values) if math.isnan(number) else values == number
    return found


def _dates(cells: Series, column: Column, source: Source) -> tuple[Reals, Mask]:
    if cells.dtype == polars.String or cells.dtype == polars.Null:
        text = _text(cells).str.strip_chars()
        missing = _listed(text, column.missing)
        form = source.form_of(column.name)
        days = text.str.to_date(form, strict=False)
        bad = days.is_null().to_numpy() & ~missing
        _refuse_text(
            bad,
            text,
            f"not a date in the form {form} (date_format {_WHERE}); "
            "forms are not guessed and not mixed",
        )
    elif cells.dtype == polars.Date or cells.dtype == polars.Datetime:
        days = cells.dt.date()
        missing = days.is_null().to_numpy()
        if missing.any() and "" not in column.missing:
            _refuse_text(missing, Series([""] * len(cells)), "")
        if cells.dtype == polars.Datetime:
            times = (cells.dt.time() != datetime.time()).fill_null(False).to_numpy()
            _refuse(times, "a time of day beside the date; give dates only")
    else:
        raise CellError(None, f"is of type {cells.dtype} there, the schema says date")
    physical = days.to_physical().fill_null(0).to_numpy()
    return np.array(physical, dtype=np.float64), missing


def _states(cells: Series, column: Column) -> tuple[Reals, Mask]:
    """The position of a category's level, or a boolean's 0 or 1."""
    text = _text(cells).str.strip_chars()
    missing = _listed(text, column.missing)
    if column.kind == "boolean":
        text = text.str.to_lowercase()
        index = dict.fromkeys(TRUE, 1.0) | dict.fromkeys(FALSE, 0.0)
        what = f"neither true nor false (write one of {', '.join((*TRUE, *FALSE))})"
    else:
        index = {level: float(number) for number, level in enumerate(column.levels)}
        what = f"not one of the declared {_shown(column.levels)}"
    found = text.replace_strict(
        list(index), list(index.values()), default=None, return_dtype=polars.Float64
    )
    unknown = found.is_null().to_numpy() & ~missing
    if not column.other:
        _refuse_text(unknown, text, what)
    else:
        empty = unknown & (text == "").to_numpy()
        _refuse_text(empty, text, what)
    other = float(len(column.levels))
    return np.array(found.fill_null(other).to_numpy(), dtype=np.float64), missing


def _shown(levels: Sequence[str]) -> str:
    shown = ", ".join(repr(level) for level in levels[:5])
    return f"levels {shown}" + (f" and {len(levels) - 5} more" if len(levels) > 5 else "")


def _listed(text: Series, codes: Sequence[str]) -> Mask:
    if not codes:
        return np.zeros(len(text), bool)
    found: Mask = text.is_in(list(codes)).to_numpy()
    return found


def _text(cells: Series) -> Series:
    """The cells as text, null as "". A whole number that a format holds as 3.0 is "3"."""
    if cells.dtype == polars.Null:
        return Series([""] * len(cells))
    if cells.dtype.is_float():
        whole = cells.is_null() | cells.is_nan() | (cells == cells.floor()) & cells.is_finite()
        if not whole.fill_null(False).all():
            raise CellError(int(whole.arg_min() or 0), "a number with a fraction names no level")
        cells = cells.fill_nan(None).cast(polars.Int64)
    if not _is_texty(cells):
        raise CellError(None, f"is of type {cells.dtype} there, which has no plain text")
    return cells.cast(polars.String).fill_null("")


def _is_texty(cells: Series) -> bool:
    kind = cells.dtype
    text = kind in (polars.String, polars.Categorical, polars.Enum, polars.Boolean, polars.Date)
    return text or kind.is_integer()
