"""Converts a column of arrays (images, signals) into the job's columns of numbers.

An array of a declared shape is read in C order into the columns `name_0`, `name_1`, …, so that
everything after the table handles only numbers. It comes from

- an npz file: an array `name` with a row's axis first,
- Parquet and Arrow: a column of lists or arrays, nested as the shape is, or flat,
- any table whose column `name` has paths of .npy or image files, below one folder.

Axes of length 1 may be omitted. A shape that differs from the declared one is an error that names
the row; the declared range is checked with the cells (`cells`). Files are opened only below the
folder, arrays of Python objects are not unpickled, and an image's size is read before its pixels.
Images are used unchanged: nothing is resized, converted or rotated.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import polars
from numpy.typing import NDArray

from mpc_train.errors import DataError
from mpc_train.tables.array_names import element_names
from mpc_train.tables.reading import Chunk, Place, Table, Unit
from protocols.arrays import Reals

CHUNK_CELLS = 2 << 20
"""How many numbers of arrays are converted at a time."""
MAX_SHOWN = 20
"""How many rows one error names."""
PATHS_BELOW = "a path below array_folder, without .."
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM")
"""The formats that Pillow may open here."""
ONE_CHANNEL = ("1", "L", "I", "I;16", "I;16B", "F")
"""Pillow's modes with one number per pixel; others have as many channels as letters."""

_UNREADABLE = f"the file that it names cannot be read as .npy, or as one of {', '.join(FORMATS)}"
_OF_FILES = (OSError, ValueError, TypeError, EOFError, MemoryError, SyntaxError, TokenError)
"""What NumPy raises on a file that it did not write."""
_OF_PILLOW = (struct.error, zlib.error, LookupError, ArithmeticError, AttributeError, RuntimeError)
"""What Pillow raises besides these on unexpected files."""


class ArrayError(ValueError):
    """A fault of one array, with a text that repeats neither a value nor a path."""


@dataclass(frozen=True)
class Arrays:
    """name: of the column. shape: of each row's array. folder: the directory to which paths are
    relative."""

    name: str
    shape: tuple[int, ...]
    folder: Path | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of numbers that represent it."""
        return element_names(self.name, self.shape)

    @property
    def said(self) -> str:
        return " × ".join(map(str, self.shape))

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether this is the declared shape, ignoring axes of length 1."""
        return _long(shape) == _long(self.shape) or tuple(shape) == (prod(self.shape),)


def _long(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


class ArrayTable:
    """A `Table` with the columns of numbers instead of the array's, or beside it if that is
    `kept`."""

    def __init__(self, inner: Table, arrays: Arrays, label: str, kept: bool) -> None:
        self._inner, self._arrays, self._label = inner, arrays, label
        rest = [name for name in inner.names if kept or name != arrays.name]
        self.names: tuple[str, ...] = (*rest, *arrays.names)
        self.unknown, self.shapes = inner.unknown, inner.shapes
        self.header_place = inner.header_place
        self.place: Place = inner.place
        self.unit: Unit = inner.unit

    @property
    def total(self) -> int | None:
        return self._inner.total

    def chunks(self, wanted: Sequence[str]) -> Iterator[Chunk]:
        elements = self._arrays.names
        mine = set(elements)
        others = [name for name in wanted if name not in mine]
        rows = max(CHUNK_CELLS // len(elements), 1)
        wrong: list[str] = []
        for chunk in self._inner.chunks(list(dict.fromkeys((*others, self._arrays.name)))):
            for start in range(0, chunk.frame.height, rows):
                part = chunk.frame.slice(start, rows)
                places = chunk.places[start : start + rows]
                values = self._values(part[self._arrays.name], places, wrong)
                if len(wrong) > MAX_SHOWN:
                    wrong[MAX_SHOWN:] = ["and possibly more"]
                    raise DataError("\n  ".join(wrong))
                if wrong:
                    continue  # only to report further faults
                numbers = polars.from_numpy(values, schema=list(elements))
                yield Chunk(numbers.with_columns(part.select(others)), places, chunk.done)
        if wrong:
            raise DataError("\n  ".join(wrong))

    def _values(self, column: polars.Series, places: NDArray[np.int64], wrong: list[str]) -> Reals:
        """The arrays of some rows, float64[rows, numbers]; faults are added to `wrong`."""
        found: dict[int, str] = {}
        name = self._arrays.name
        if isinstance(column.dtype, (polars.List, polars.Array)):
            values = _of_lists(column, self._arrays, found)
        elif column.dtype == polars.String:
            values = _of_files(column, self._arrays, found)
        else:
            raise DataError(
                f"{self._label}: column {name!r}: is of type {column.dtype}; an array must be a "
                "list of numbers, or the path of a file"
            )
        wrong += [
            f"{self._label}: {self.place} {places[row]}: column {name!r}: {what}"
            for row, what in sorted(found.items())
        ]
        return values


def with_arrays(table: Table, arrays: Arrays | None, label: str, kept: bool = False) -> Table:
    """The table with columns of numbers instead of its array; unchanged if it has none.

    An array of an npz file has already become columns: here its shape is checked. A table may also
    have the columns themselves.
    """
    if arrays is None:
        return table
    if arrays.name in table.names:
        return ArrayTable(table, arrays, label, kept)
    if table.shapes is not None:
        check_npz(table.shapes, arrays, label)
    elif not any(name in table.names for name in arrays.names):
        raise DataError(f"{label}: {table.header_place}missing column {arrays.name!r}")
    return table


def check_npz(shapes: dict[str, tuple[int, ...]], arrays: Arrays, label: str) -> None:
    """Raise DataError unless the array of an npz file has the declared shape for each row."""
    shape = shapes.get(arrays.name)
    if shape is None:
        found = ", ".join(repr(name) for name in list(shapes)[:5])
        raise DataError(f"{label}: there is no array {arrays.name!r}; the arrays are {found}")
    if not arrays.fits(shape[1:]):
        found = " × ".join(map(str, shape[1:])) or "one number"
        raise DataError(
            f"{label}: the array {arrays.name!r} has {found} for each row, but the job says "
            f"{arrays.said}; save it with one row for each record, in this shape"
        )


def _of_lists(column: polars.Series, arrays: Arrays, wrong: dict[int, str]) -> Reals:
    """Flattens lists of lists level by level, so that each row's lengths are checked."""
    size, rows = prod(arrays.shape), len(column)
    depth = 0
    inner: Any = column.dtype
    while isinstance(inner, (polars.List, polars.Array)):
        # polars nests an array of several axes.
        depth, inner = depth + 1, inner.inner
    if not (inner.is_numeric() or inner == polars.Boolean):
        wrong[0] = "its lists do not contain numbers"
        return np.zeros((rows, size))
    candidates = (arrays.shape, _long(arrays.shape), (size,))
    lengths = next((shape for shape in candidates if len(shape) == depth), None)
    if lengths is None:
        wrong[0] = f"its lists are nested {depth} deep, but the job says {arrays.said}"
        return np.zeros((rows, size))
    flat, each = column, 1
    for length in lengths:
        if isinstance(flat.dtype, polars.Array):
            flat = flat.arr.to_list()
        found = flat.list.len().fill_null(0).to_numpy()
        bad = np.flatnonzero(found != length)
        if len(bad):
            for row in np.unique(bad // each):
                wrong[int(row)] = f"is not an array of {arrays.said}, as the job says"
            return np.zeros((rows, size))
        flat, each = flat.explode(), each * length
    values: Reals = flat.cast(polars.Float64).to_numpy().reshape(rows, size)
    return values


def _of_files(column: polars.Series, arrays: Arrays, wrong: dict[int, str]) -> Reals:
    values, folder = np.zeros((len(column), prod(arrays.shape))), arrays.folder
    if folder is None:
        wrong[0] = "contains text; set array_folder, the directory of its paths"
        return values
    for row, named in enumerate(column.to_list()):
        try:
            values[row] = _of_file(_below(folder, named), arrays)
        except ArrayError as error:
            wrong[row] = str(error)
    return values


def _below(folder: Path, named: str | None) -> Path:
    """The file that a cell names, which must be below `folder`."""
    if not named or not named.strip():
        raise ArrayError("the cell is empty; the path of a file is needed")
    relative = Path(named.strip())
    if relative.is_absolute() or ".." in relative.parts or "\0" in named:
        raise ArrayError(f"the cell is not {PATHS_BELOW}")
    path, root = os.path.realpath(folder / relative), os.path.realpath(folder)
    if not path.startswith(root + os.sep):
        raise ArrayError("the file that it names is a link to outside array_folder")
    return Path(path)


def _of_file(path: Path, arrays: Arrays) -> Reals:
    """A file's array as numbers in C order."""
    try:
        if not path.is_file():
            raise ArrayError("there is no file of this name in array_folder")
        read: Callable[[Path, Arrays], NDArray[Any]]
        read = _npy if path.suffix.lower() == ".npy" else _image
        found: Reals = np.asarray(read(path, arrays), np.float64).reshape(-1)
    except (*_OF_FILES, *_OF_PILLOW) as error:
        if isinstance(error, ArrayError):
            raise
        raise ArrayError(_UNREADABLE) from error
    return found


def _npy(path: Path, arrays: Arrays) -> NDArray[Any]:
    # Mapped, so that a size that the header only claims takes no memory.
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype.kind not in "biuf":
        raise ArrayError("the file that it names does not contain numbers")
    _check_shape(array.shape, arrays)
    return np.asarray(array)


def _image(path: Path, arrays: Arrays) -> NDArray[Any]:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            "images need Pillow; install it: pip install 'mpc-train[images]'"
        ) from error
    try:
        with Image.open(path, formats=FORMATS) as image:
            channels = 1 if image.mode in ONE_CHANNEL else len(image.getbands())
            if image.mode in ("P", "PA"):
                raise ArrayError("the image that it names has a palette; save it in grey or RGB")
            _check_shape((channels, image.height, image.width), arrays)
            pixels = np.asarray(image)
    except (Image.DecompressionBombError, *_OF_PILLOW) as error:
        raise ArrayError(_UNREADABLE) from error
    return np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels


def _check_shape(shape: Sequence[int], arrays: Arrays) -> None:
    if not arrays.fits(shape):
        found = " × ".join(map(str, shape))
        raise ArrayError(f"the file that it names has {found}, but the job says {arrays.said}")
