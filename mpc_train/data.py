"""An owner's CSV file into numbers, checked against the job before anything is shared.

The file is read and never changed. An error says file, line (the header is line 1), column and
what kind of thing is wrong; it never repeats a value, since messages end in logs.
"""

import csv
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars
from numpy.typing import NDArray

from mpc_train.errors import DataError
from mpc_train.jobs.job import Feature, Job, Label

if TYPE_CHECKING:
    from polars import Series


@dataclass(frozen=True, repr=False)
class Table:
    """One owner's rows, in the order of its file.

    features: float64[B, d], centred and scaled as the job declares. labels: float64[B]; the class
    number for a classifier, the centred and scaled label for a linear model.
    """

    features: NDArray[np.float64]
    labels: NDArray[np.float64]

    @property
    def rows(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Table(rows={self.rows}, features={self.features.shape[1]})"


def load_table(path: Path | str, job: Job, owner: str, ignore: Collection[str] = ()) -> Table:
    """Read `owner`'s CSV file for `job`; columns in `ignore` are skipped.

    Raises DataError for anything that does not fit: see the module's opening.
    """
    path = Path(path)
    text = _read(path)
    _check_header(path, text, job, set(ignore))
    frame = _parse(path, text)
    expected = job.data.rows[owner]
    if frame.height == 0:
        raise DataError(f"{path}: there is a header but no row; the job expects {expected}")
    if frame.height != expected:
        raise DataError(
            f"{path}: the file's rows are {frame.height}, the job says {expected} for "
            f"{owner}; use the right file or correct data.rows in the job"
        )
    columns = [_numbers(path, text, frame[feature.name], feature, job) for feature in job.features]
    label = frame[job.label.name]
    labels = (
        _classes(path, text, label, job)
        if job.classes
        else _numbers(path, text, label, job.label, job)
    )
    return Table(np.ascontiguousarray(np.stack(columns, axis=1)), labels)


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: there is no such file; correct the path of the data file"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text; save the file as UTF-8 CSV") from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty; a header line and rows are needed")
    return text.rstrip("\r\n") + "\n"


def _check_header(path: Path, text: str, job: Job, ignore: set[str]) -> None:
    try:
        header = next(csv.reader(io.StringIO(text)), [])
    except csv.Error as error:
        raise DataError(f"{path}: line 1: not a well-formed CSV line") from error
    for name in header:
        if header.count(name) > 1:
            raise DataError(f"{path}: line 1: column {name!r} stands there twice")
    wanted = [*(feature.name for feature in job.features), job.label.name]
    missing = [name for name in wanted if name not in header]
    extra = [name for name in header if name not in wanted and name not in ignore]
    if missing:
        hint = f"; not in the job: {_list(extra)}" if extra else ""
        raise DataError(f"{path}: line 1: missing column {_list(missing)}{hint}")
    if extra:
        raise DataError(
            f"{path}: line 1: column {_list(extra)} is not in the job; remove it from "
            "the file, or list it under ignore in this node's configuration"
        )


def _list(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _parse(path: Path, text: str) -> polars.DataFrame:
    try:
        # A cell that is not there at all reads as an empty one, a blank line as a row of them.
        return polars.read_csv(
            io.BytesIO(text.encode()), infer_schema=False, empty_string_is_null=False
        )
    except polars.exceptions.PolarsError as error:
        # The library's message may quote the line; only the position is passed on.
        raise DataError(f"{path}: {_ragged_line(text)}") from error


def _ragged_line(text: str) -> str:
    reader = csv.reader(io.StringIO(text))
    try:
        width = len(next(reader))
        for record in reader:
            if record and len(record) != width:
                return f"line {reader.line_num}: {len(record)} fields where the header has {width}"
    except csv.Error:
        return f"line {reader.line_num}: not a well-formed CSV line"
    return "not a well-formed CSV file; is a quotation mark missing?"


def _line(text: str, row: int) -> int:
    """Return the line, counted from 1, on which data row `row` (from 0) ends."""
    reader = csv.reader(io.StringIO(text))
    next(reader)
    for index, _ in enumerate(reader):
        if index == row:
            return reader.line_num
    return row + 2


def _first(mask: NDArray[np.bool_]) -> int:
    return int(np.argmax(mask))


def _numbers(
    path: Path, text: str, cells: "Series", column: Feature | Label, job: Job
) -> NDArray[np.float64]:
    """Return the column as float64, centred and scaled, or raise DataError at its first fault."""

    def fail(row: int, what: str) -> DataError:
        return DataError(f"{path}: line {_line(text, row)}: column {column.name!r}: {what}")

    stripped = cells.str.strip_chars()
    values = stripped.cast(polars.Float64, strict=False)
    bad = values.is_null().to_numpy()
    if bad.any():
        row = _first(bad)
        empty = not stripped[row]
        raise fail(row, "the cell is empty" if empty else "not a number (write it as 1234.5)")
    numbers = np.asarray(values.to_numpy(), dtype=np.float64)
    for mask, what in ((np.isnan(numbers), "not a number (NaN)"), (np.isinf(numbers), "infinite")):
        if mask.any():
            raise fail(_first(mask), what)
    if column.range is not None:
        least, most = column.range
        outside = (numbers < float(least)) | (numbers > float(most))
        if outside.any():
            raise fail(_first(outside), f"outside the declared range [{least}, {most}]")
    scaled: NDArray[np.float64] = (numbers - float(column.center)) / float(column.scale)
    limit = float(job.data.limit)
    outside = np.abs(scaled) > limit
    if outside.any():
        raise fail(
            _first(outside),
            f"after centring and scaling beyond ±{job.data.limit} "
            "(data.limit); correct the cell, or the job's center and scale",
        )
    return scaled


def _classes(path: Path, text: str, cells: "Series", job: Job) -> NDArray[np.float64]:
    """Return the class numbers of the label column as float64."""
    names = job.label.classes or tuple(str(number) for number in range(job.classes))
    index = {name: number for number, name in enumerate(names)}
    numbers = [index.get(cell.strip()) for cell in cells]
    if None in numbers:
        row = numbers.index(None)
        what = (
            "the cell is empty"
            if not cells[row].strip()
            else (f"not one of the classes {_list(list(names))}")
        )
        raise DataError(f"{path}: line {_line(text, row)}: column {job.label.name!r}: {what}")
    return np.asarray(numbers, dtype=np.float64)
