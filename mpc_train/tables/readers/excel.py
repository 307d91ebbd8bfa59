"""Workbooks of Excel and LibreOffice: one sheet as a table, read completely into memory.

A cell is the stored value, not its display: a date is a date, a number displayed as 1.234,50 is
that number. A column of several types is text. A formula's saved result is read; nothing is
computed. Rows are counted as in the sheet.
"""

import zipfile
from pathlib import Path
from typing import Any

import polars

from mpc_train.errors import DataError
from mpc_train.tables.readers.columnar import FrameTable, check_unpacked
from mpc_train.tables.reading import MAX_FIELDS
from mpc_train.tables.source import Source


def excel(path: Path, label: str, source: Source) -> FrameTable:
    """The sheet that the source names, or the first; raises DataError."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(info.file_size for info in archive.infolist())
            check_unpacked(label, unpacked, path.stat().st_size)
        top = _read(path, source, {"header_row": None, "n_rows": 1, "dtypes": "string"})
        names = ["" if cell is None else str(cell) for cell in (top.rows() or [()])[0]]
        if not names:
            raise DataError(f"{label}: the sheet is empty; a row of names and rows are needed")
        if len(names) > MAX_FIELDS:
            raise DataError(f"{label}: more than {MAX_FIELDS} columns")
        frame = _read(path, source, {"header_row": None}, skipped=1)
    except ImportError as error:
        raise DataError(
            f"{label}: needs a reader of workbooks; install it: pip install 'mpc-train[excel]'"
        ) from error
    except (DataError, MemoryError):
        raise
    except Exception as error:
        # The reader's own error classes cannot be imported if it is not installed.
        what = "has no such sheet" if _is_unknown_sheet(error, source) else "cannot be read"
        raise DataError(
            f"{label}: {what} ({type(error).__name__}); is it a complete workbook without a "
            "password, and is the sheet's name right?"
        ) from error
    frame = _without_empty_end(frame)
    frame.columns = [str(place) for place in range(frame.width)]
    names = [*names, *[""] * (frame.width - len(names))][: frame.width]
    first = source.skip_lines + 2
    return FrameTable(
        frame.lazy(), label, names, first=first, header_place=f"row {source.skip_lines + 1}: "
    )


def _read(
    path: Path, source: Source, options: dict[str, Any], skipped: int = 0
) -> polars.DataFrame:
    """Rows of the sheet after the skipped ones, and after `skipped` more."""
    return polars.read_excel(
        path,
        sheet_name=source.sheet or None,
        engine="calamine",
        has_header=False,
        drop_empty_rows=False,
        drop_empty_cols=False,
        raise_if_empty=False,
        infer_schema_length=None,
        read_options={"skip_rows": source.skip_lines + skipped, **options},
    )


def _is_unknown_sheet(error: Exception, source: Source) -> bool:
    return bool(source.sheet) and isinstance(error, ValueError)


def _without_empty_end(frame: polars.DataFrame) -> polars.DataFrame:
    """Without empty rows at the end: sheets keep rows that were once filled."""
    if not frame.width:
        return frame
    filled = frame.select(polars.any_horizontal(polars.all().is_not_null())).to_series()
    last = filled.arg_true().max()
    return frame.head(0 if last is None else int(str(last)) + 1)
