"""A table as it lies in a node's vault: what some other reader read, chunk by chunk.

    "mpc-train table 1\\n" ‖ u32 length ‖ head (JSON) ‖ one or more (u64 length ‖ chunk)
    head    names, what places count, how numbers and dates are written
    chunk   Arrow IPC, LZ4: a row's place, then its cells, columns by number

Cells stay as their owner wrote them: a job's types, renames and codes are applied when the table is
used, as to any other. Nothing here encrypts: the vault does, below (`parties.vault.store`).
"""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, Literal, Protocol

import msgspec
import polars

from mpc_train.errors import DataError
from mpc_train.tables.reading import Chunk, Table, Unit
from mpc_train.tables.source import Source

MAGIC = b"mpc-train table 1\n"
MAX_HEAD_BYTES = 1 << 26
MAX_CHUNK_BYTES = 1 << 31
_PLACES = "places"
_UNREADABLE = (polars.exceptions.PolarsError, polars.exceptions.PanicException)


class Written(msgspec.Struct, frozen=True):
    """How the cells are written, under the names that a source has for it."""

    decimal: Literal[".", ","] = "."
    thousands: Literal["", ".", ",", " ", "'", "_"] = ""
    date_format: str = ""
    date_formats: dict[str, str] = {}
    date_pivot: int = 0
    date_pivots: dict[str, int] = {}


class Head(msgspec.Struct, frozen=True):
    """What is known of a table before its rows."""

    names: tuple[str, ...]
    place: Literal["line", "row"]
    header_place: str
    written: Written
    shapes: dict[str, tuple[int, ...]] | None = None


class Content(Protocol):
    """An opened object of a vault."""

    @property
    def reader(self) -> BinaryIO: ...

    @property
    def size(self) -> int:
        """Bytes of it."""


class Output(Protocol):
    """What a staged table is written to."""

    def write(self, data: bytes, /) -> object: ...


def stage(table: Table, source: Source, out: Output, told: Callable[[int], None]) -> int:
    """Write all columns of a table but those that its source ignores; return the number of rows.

    told: takes how much of the table is done, in its unit.
    """
    names = tuple(name for name in table.names if name not in source.ignore)
    fields = {name: getattr(source, name) for name in Written.__struct_fields__}
    head = Head(names, table.place, table.header_place, Written(**fields), table.shapes)
    encoded = msgspec.json.encode(head)
    out.write(MAGIC + len(encoded).to_bytes(4, "big") + encoded)
    rows = 0
    for chunk in table.chunks(names):
        frame = chunk.frame.select(names)
        frame.columns = [str(number) for number in range(len(names))]
        frame.insert_column(0, polars.Series(_PLACES, chunk.places))
        held = io.BytesIO()
        frame.write_ipc(held, compression="lz4")
        written = held.getvalue()
        out.write(len(written).to_bytes(8, "big"))
        out.write(written)
        rows += frame.height
        told(chunk.done)
    return rows


class StagedTable:
    """A `Table` over what `stage` wrote. content: from its beginning; size: bytes of it."""

    unit: Unit = "bytes"
    unknown: tuple[str, ...] = ()

    def __init__(self, content: BinaryIO, size: int, label: str) -> None:
        self._content, self._label = content, label
        self.total: int | None = size
        self.head, self._start = read_head(content, label)
        self.names = self.head.names
        self.header_place = self.head.header_place
        self.place: Literal["line", "row"] = self.head.place
        self.shapes = self.head.shapes

    def chunks(self, wanted: Sequence[str]) -> Iterator[Chunk]:
        columns = [_PLACES, *(str(self.names.index(name)) for name in wanted)]
        self._content.seek(self._start)
        done = self._start
        while prefix := self._content.read(8):
            length = int.from_bytes(prefix, "big")
            data = self._content.read(length) if length <= MAX_CHUNK_BYTES else b""
            if len(prefix) < 8 or len(data) < length or not length:
                raise DataError(f"{self._label}: a chunk of rows is cut off")
            try:
                frame = polars.read_ipc(io.BytesIO(data), columns=columns)
                places = frame.get_column(_PLACES)
            except (*_UNREADABLE, OSError, ValueError, MemoryError) as error:
                raise DataError(f"{self._label}: a chunk of rows cannot be read") from error
            if places.dtype != polars.Int64 or places.null_count():
                raise DataError(f"{self._label}: a chunk of rows does not say where they were")
            frame = frame.select(columns[1:])
            frame.columns = list(wanted)
            done += 8 + length
            yield Chunk(frame, places.to_numpy(), done)


def read_head(content: BinaryIO, label: str) -> tuple[Head, int]:
    """What stands before the rows, and where they begin; raises DataError."""
    if content.read(len(MAGIC)) != MAGIC:
        raise DataError(f"{label}: is not a table of this version")
    length = int.from_bytes(content.read(4), "big")
    data = content.read(length) if length <= MAX_HEAD_BYTES else b""
    try:
        return msgspec.json.decode(data, type=Head), len(MAGIC) + 4 + length
    except msgspec.MsgspecError as error:
        raise DataError(f"{label}: what stands before its rows cannot be read") from error


def as_written(source: Source, head: Head) -> Source:
    """The source with what its table's head says of how cells are written; what a node's file says
    of dates goes before it."""
    given = msgspec.structs.asdict(source)
    known = msgspec.structs.asdict(head.written)
    plain = msgspec.structs.asdict(Source())
    for key, value in known.items():
        if isinstance(value, dict):
            given[key] = {**value, **given[key]}
        elif given[key] == plain[key]:
            given[key] = value
    return Source(**given)
