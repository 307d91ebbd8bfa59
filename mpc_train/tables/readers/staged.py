"""A table as it lies in a node's vault: what some other reader read, chunk by chunk.

    "mpc-train table 2\\n" ‖ u32 length ‖ head (JSON) ‖ one or more (u64 length ‖ chunk)
    head    names, what places count, how numbers and dates are written, which columns lie in
            parts and which hold tokens
    chunk   Arrow IPC, LZ4: a row's place, then its cells, columns by number

Protected columns lie in parts, one for each key, which have the same form: `names` of a part's head
are its columns, and `tie` is that of the table. The chunks of a part have the rows of the table's.

Cells stay as their owner wrote them: a job's types, renames and codes are applied when the table is
used, as to any other. Nothing here encrypts: the vault does, below (`parties.vault.store`).
"""

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import BinaryIO, Literal, Protocol

import msgspec
import numpy as np
import polars

from mpc_train.errors import DataError
from mpc_train.tables.reading import Chunk, Place, Table, Unit
from mpc_train.tables.source import Source

MAGIC = b"mpc-train table 2\n"
MAX_HEAD_BYTES = 1 << 26
MAX_CHUNK_BYTES = 1 << 31
TIE_BYTES = 16
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
    """What is known of a table before its rows.

    protected: by the name of a key, the columns that lie in the part under it. tokenised: columns
    whose identifiers are tokens. tie: random, the same in a table and in its parts.
    """

    names: tuple[str, ...]
    place: Place
    header_place: str
    written: Written
    shapes: dict[str, tuple[int, ...]] | None = None
    protected: dict[str, tuple[str, ...]] = {}
    tokenised: tuple[str, ...] = ()
    tie: str = ""


class Part(Protocol):
    """Opened bytes: a staged table, or its columns under one key."""

    @property
    def reader(self) -> BinaryIO: ...

    @property
    def size(self) -> int:
        """Bytes of it."""


class Content(Part, Protocol):
    """An opened table of a vault."""

    def part(self, key: str, columns: Sequence[str]) -> AbstractContextManager[Part]:
        """Its columns under the key of this name, of which `columns` are needed. Raises DataError,
        which names these, where the key cannot be used."""


class Output(Protocol):
    """What a staged table, or a part of it, is written to."""

    def write(self, data: bytes, /) -> object: ...


def stage(
    table: Table,
    source: Source,
    out: Output,
    told: Callable[[int], None],
    *,
    parts: Mapping[str, tuple[Sequence[str], Output]] | None = None,
    tokenised: Sequence[str] = (),
) -> int:
    """Write all columns of a table but those that its source ignores; return the number of rows.

    told: takes how much of the table is done, in its unit. parts: by the name of a key, the columns
    that are not written to `out`, and where they are written to. tokenised: for the head.
    """
    names = tuple(name for name in table.names if name not in source.ignore)
    fields = {name: getattr(source, name) for name in Written.__struct_fields__}
    protected = {key: tuple(columns) for key, (columns, _) in (parts or {}).items()}
    head = Head(
        names,
        table.place,
        table.header_place,
        Written(**fields),
        table.shapes,
        protected,
        tuple(tokenised),
        os.urandom(TIE_BYTES).hex(),
    )
    apart = {name for columns in protected.values() for name in columns}
    open_names = [(number, name) for number, name in enumerate(names) if name not in apart]
    outputs: list[tuple[Output, Sequence[tuple[int, str]]]] = [(out, open_names)]
    _begin(out, head)
    for under_key, output in (parts or {}).values():
        outputs.append((output, list(enumerate(under_key))))
        _begin(output, msgspec.structs.replace(head, names=tuple(under_key), protected={}))
    rows = 0
    for chunk in table.chunks(names):
        for output, columns in outputs:
            frame = chunk.frame.select([name for _, name in columns])
            frame.columns = [str(number) for number, _ in columns]
            frame.insert_column(0, polars.Series(_PLACES, chunk.places))
            held = io.BytesIO()
            frame.write_ipc(held, compression="lz4")
            written = held.getvalue()
            output.write(len(written).to_bytes(8, "big"))
            output.write(written)
        rows += len(chunk.places)
        told(chunk.done)
    return rows


def _begin(out: Output, head: Head) -> None:
    encoded = msgspec.json.encode(head)
    out.write(MAGIC + len(encoded).to_bytes(4, "big") + encoded)


class StagedTable:
    """A `Table` over what `stage` wrote."""

    unit: Unit = "bytes"
    unknown: tuple[str, ...] = ()

    def __init__(self, content: Content, label: str) -> None:
        self._content, self._label = content, label
        self.total: int | None = content.size
        self.head, self._start = read_head(content.reader, label)
        self.names = self.head.names
        self.header_place = self.head.header_place
        self.place: Place = self.head.place
        self.shapes = self.head.shapes
        self._key_of = {
            name: key for key, columns in self.head.protected.items() for name in columns
        }

    def chunks(self, wanted: Sequence[str]) -> Iterator[Chunk]:
        mine = [name for name in wanted if name not in self._key_of]
        needed: dict[str, list[str]] = {}
        for name in wanted:
            if key := self._key_of.get(name):
                needed.setdefault(key, []).append(name)
        with ExitStack() as held:
            parts = [
                self._part(held.enter_context(self._content.part(key, columns)), key, columns)
                for key, columns in needed.items()
            ]
            numbers = [self.names.index(name) for name in mine]
            for whole in self._rows(self._content.reader, self._start, mine, numbers):
                cells = {column.name: column for column in whole.frame}
                for part in parts:
                    more = next(part, None)
                    if more is None or not np.array_equal(more.places, whole.places):
                        raise DataError(f"{self._label}: its protected columns have other rows")
                    cells.update((column.name, column) for column in more.frame)
                frame = polars.DataFrame([cells[name] for name in wanted])
                yield Chunk(frame, whole.places, whole.done)
            if any(next(part, None) is not None for part in parts):
                raise DataError(f"{self._label}: its protected columns have other rows")

    def _part(self, part: Part, key: str, columns: Sequence[str]) -> Iterator[Chunk]:
        label = f"{self._label}, columns under the key {key}"
        head, start = read_head(part.reader, label)
        if head.tie != self.head.tie or head.names != self.head.protected[key]:
            raise DataError(f"{label}: belong to another table")
        return self._rows(part.reader, start, columns, [head.names.index(name) for name in columns])

    def _rows(
        self, reader: BinaryIO, start: int, names: Sequence[str], numbers: Sequence[int]
    ) -> Iterator[Chunk]:
        """The columns with these numbers, chunk by chunk; `start`: where the chunks begin."""
        columns = [_PLACES, *map(str, numbers)]
        reader.seek(start)
        done = start
        while prefix := reader.read(8):
            length = int.from_bytes(prefix, "big")
            data = reader.read(length) if length <= MAX_CHUNK_BYTES else b""
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
            frame.columns = list(names)
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
    except (msgspec.MsgspecError, ValueError) as error:
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
