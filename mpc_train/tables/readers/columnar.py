"""Parquet, Arrow and NumPy files: formats with names and types of columns."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import polars
from numpy.typing import NDArray

from mpc_train.errors import DataError
from mpc_train.tables.faults import Faults
from mpc_train.tables.reading import MAX_FIELDS, Chunk, Place, Unit
from mpc_train.tables.spelling import name_of

CHUNK_CELLS = 2 << 20
"""How many cells are read at a time."""

SURELY_FINE_BYTES = 1 << 30
MAX_PACKED = 100
"""The largest compression ratio of an npz file or a workbook above a gigabyte: a bomb has a
thousand."""
MAX_HEADER_BYTES = 10_000

_ARROW_FILE = b"ARROW1"


class FrameTable:
    """A `Table` of a polars frame.

    Rows of a lazy one stream in file order, so that memory holds some chunks and not the whole
    table.
    """

    unit: Unit = "rows"
    unknown: tuple[str, ...] = ()
    shapes: dict[str, tuple[int, ...]] | None = None

    def __init__(
        self,
        frame: polars.LazyFrame | polars.DataFrame,
        label: str,
        names: Sequence[str] | None = None,
        *,
        first: int = 1,
        header_place: str = "",
        place: Place = "row",
        faults: Faults | None = None,
    ) -> None:
        """names: names of its columns, if they differ from the frame's. first: the number of the
        first row. label: what errors call the table. faults: to which those of its cells are
        added."""
        self.faults = faults
        self._frame, self.label, self._first = frame, label, first
        self.header_place, self.place = header_place, place
        with _named(label):
            self._columns = tuple(frame.collect_schema().names())
            self.names = tuple(map(name_of, self._columns if names is None else names))
            self.total: int | None = (
                frame.height
                if isinstance(frame, polars.DataFrame)
                else int(frame.select(polars.len()).collect().item())
            )

    def chunks(self, wanted: Sequence[str]) -> Iterator[Chunk]:
        place_of = {name: place for place, name in reversed(list(enumerate(self.names)))}
        size = max(CHUNK_CELLS // max(len(wanted), 1), 1)
        done = 0
        with _named(self.label):
            for batch in self._batches([place_of[name] for name in wanted], size):
                batch.columns = list(wanted)
                for part in batch.iter_slices(size):
                    places = np.arange(done, done + part.height) + self._first
                    done += part.height
                    yield Chunk(part, places, done)

    def _batches(self, places: list[int], size: int) -> Iterator[polars.DataFrame]:
        """The columns at these places, by about `size` rows."""
        if isinstance(self._frame, polars.DataFrame):
            yield self._frame[:, places]
            return
        # By place, because a name may look like one of the library's patterns.
        columns = polars.nth(places)
        yield from self._frame.select(columns).collect_batches(chunk_size=size, maintain_order=True)


def parquet(path: Path, label: str) -> FrameTable:
    return FrameTable(polars.scan_parquet(path, glob=False), label)


def arrow(path: Path, label: str) -> FrameTable:
    """An IPC file, or a stream saved to a file (which is read into memory completely)."""
    with path.open("rb") as file:
        is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
    with _named(label):
        lazy = polars.scan_ipc(path, glob=False) if is_file else polars.read_ipc_stream(path).lazy()
    return FrameTable(lazy, label)


def npz(path: Path, label: str) -> FrameTable:
    """Arrays with one axis are columns; an array `x` with more axes is the columns `x_0`, `x_1`, …,
    its rows' numbers in C order.

    Arrays of Python objects would have to be unpickled, and are refused. All headers are read and
    compared with the data before any array is unpacked.
    """
    columns: list[tuple[str, NDArray[Any]]] = []
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        _check_archive(path, label)
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                array = arrays[name]
                if array.ndim == 1:
                    columns.append((name, array))
                else:
                    flat = array.reshape(len(array), prod(array.shape[1:]))
                    columns += [(f"{name}_{number}", part) for number, part in enumerate(flat.T)]
                shapes[name] = array.shape
    except _NOT_PLAIN as error:
        raise DataError(
            f"{label}: not an npz file of plain arrays; write it with numpy.savez, without objects"
        ) from error
    # Two arrays may give columns with the same name, which the reading code refuses.
    try:
        series = [
            _series(str(place), name, array, label) for place, (name, array) in enumerate(columns)
        ]
    except _NOT_PLAIN as error:
        raise DataError(
            f"{label}: contains text or numbers that a column cannot hold ({type(error).__name__})"
        ) from error
    table = FrameTable(polars.DataFrame(series).lazy(), label, [name for name, _ in columns])
    table.shapes = {name_of(name): shape for name, shape in shapes.items()}
    return table


_FINE = ("ms", "us", "ns")
_EXACT = {"M": ("D", "h", "m", "s", *_FINE), "m": ("W", "D", "h", "m", "s", *_FINE)}
"""Units of times that microseconds represent exactly; a month or a year is not a day."""


def _series(place: str, name: str, array: NDArray[Any], label: str) -> polars.Series:
    """An array as a column named by its place; raises DataError for a type that a column cannot
    have."""
    kind = array.dtype
    if kind.kind in _EXACT:
        unit = np.datetime_data(kind)[0]
        if unit in _EXACT[kind.kind]:
            plain = unit in _FINE or (kind.kind, unit) == ("M", "D")
            return polars.Series(place, array if plain else array.astype(f"{kind.kind}8[us]"))
    elif kind.kind in "biuSU" or (kind.kind == "f" and kind.itemsize <= np.float64().itemsize):
        return polars.Series(place, array)
    raise DataError(
        f"{label}: the array {name!r} is of type {kind}, which a column cannot have; save it as "
        "numbers, text, or days"
    )


_NOT_PLAIN: tuple[type[Exception], ...] = (
    *(ValueError, TypeError, OSError, AttributeError, LookupError, EOFError, MemoryError),
    *(RuntimeError, zipfile.BadZipFile, zlib.error, polars.exceptions.PolarsError),
)
"""What NumPy, zipfile and polars raise on a file that is not an npz file of plain arrays."""


def _check_archive(path: Path, label: str) -> None:
    """Raise DataError or one of `_NOT_PLAIN` unless every array contains numbers or text, is as
    long as its header says, and is not a bomb."""
    lengths, columns, unpacked = set(), 0, 0
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as file:
                read = _HEADERS[np.lib.format.read_magic(file)]
                shape, _, dtype = read(file, max_header_size=MAX_HEADER_BYTES)
                start = file.tell()
            if not shape:
                raise DataError(f"{label}: the array {name!r} is one number, without rows")
            if dtype.hasobject or prod(shape) * dtype.itemsize != info.file_size - start:
                raise ValueError("an array of objects, or not as long as its header says")
            lengths.add(shape[0])
            columns += prod(shape[1:])
            unpacked += info.file_size
    if len(lengths) > 1:
        raise DataError(
            f"{label}: its arrays have {sorted(lengths)} rows; all must have the same number"
        )
    if columns > MAX_FIELDS:
        raise DataError(f"{label}: more than {MAX_FIELDS} columns")
    check_unpacked(label, unpacked, path.stat().st_size)


def check_unpacked(label: str, unpacked: int, size: int) -> None:
    """Raise DataError if so few bytes would become so many that it cannot be intended."""
    if unpacked > SURELY_FINE_BYTES and unpacked > MAX_PACKED * size:
        raise DataError(
            f"{label}: {size} bytes would become {unpacked} when unpacked; if that is "
            "intended, write the file without compression"
        )


_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@contextlib.contextmanager
def _named(label: str) -> Iterator[None]:
    """Converts polars' errors to ours, because its messages may quote a file's content."""
    try:
        yield
    except (
        polars.exceptions.PolarsError,
        polars.exceptions.PanicException,  # from the library, on unexpected files
        OSError,
        MemoryError,
    ) as error:
        raise DataError(
            f"{label}: cannot be read in its format ({type(error).__name__}); is it complete, and "
            "is the format right?"
        ) from error
