"""Parquet, Arrow and NumPy files: formats that know names and types of their columns."""

import contextlib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars

from mpc_train.errors import DataError
from mpc_train.tables.reading import Chunk, Unit

CHUNK_CELLS = 2 << 20
"""Rows are read so many cells at a time."""

_ARROW_FILE = b"ARROW1"


class FrameTable:
    """A `Table` of a lazy polars frame.

    Rows stream through in file order, so that memory holds some chunks and not the whole.
    """

    header_place = ""
    place: Literal["line", "row"] = "row"
    unit: Unit = "rows"

    def __init__(self, frame: polars.LazyFrame, label: str) -> None:
        self._frame, self._label = frame, label
        with _named(label):
            self.names = tuple(frame.collect_schema().names())
            self.total: int | None = int(frame.select(polars.len()).collect().item())

    def chunks(self, wanted: Sequence[str]) -> Iterator[Chunk]:
        frame = self._frame.select(wanted)
        size = max(CHUNK_CELLS // max(len(wanted), 1), 1)
        done = 0
        with _named(self._label):
            for batch in frame.collect_batches(chunk_size=size, maintain_order=True):
                for part in batch.iter_slices(size):
                    places = np.arange(done + 1, done + part.height + 1)
                    done += part.height
                    yield Chunk(part, places, done)


def parquet(path: Path, label: str) -> FrameTable:
    return FrameTable(polars.scan_parquet(path, glob=False), label)


def arrow(path: Path, label: str) -> FrameTable:
    """An IPC file, or a stream saved to one (which is read into memory whole)."""
    with path.open("rb") as file:
        is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
    with _named(label):
        lazy = polars.scan_ipc(path, glob=False) if is_file else polars.read_ipc_stream(path).lazy()
    return FrameTable(lazy, label)


def npz(path: Path, label: str) -> FrameTable:
    """Arrays of one axis are columns; one of two axes, `x`, is the columns `x_0`, `x_1`, …

    Arrays of Python objects would have to be unpickled, and are refused.
    """
    columns: dict[str, polars.Series] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                array = arrays[name]
                if array.ndim == 1:
                    columns[name] = polars.Series(name, array)
                elif array.ndim == 2:
                    for number in range(array.shape[1]):
                        key = f"{name}_{number}"
                        columns[key] = polars.Series(key, array[:, number])
                else:
                    raise DataError(
                        f"{label}: the array {name!r} has {array.ndim} axes, not 1 or 2"
                    )
    except (ValueError, OSError, zipfile.BadZipFile, AttributeError) as error:
        raise DataError(
            f"{label}: not an npz file of plain arrays; write it with numpy.savez, without objects"
        ) from error
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        raise DataError(f"{label}: its arrays have {sorted(lengths)} rows; one number is needed")
    return FrameTable(polars.DataFrame(list(columns.values())).lazy(), label)


@contextlib.contextmanager
def _named(label: str) -> Iterator[None]:
    """polars' errors as ours: its messages may quote a file's content."""
    try:
        yield
    except (polars.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"{label}: cannot be read in its format ({type(error).__name__}); is it whole, and is "
            "the format right?"
        ) from error
