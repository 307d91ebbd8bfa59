"""A table whose identifiers are replaced by tokens, so that what is kept of it names nobody.

A token is HMAC-SHA256 of the identifier under a secret key, shortened to 128 bits. The same
identifier gets the same token in every table that is imported under this key, and in every spelling
that the loader treats as the same (`cells.identifier_texts`). Without the key nobody can tell which
identifier a token stands for, not even by trying them all. An empty cell stays empty.
"""

import hmac
from collections.abc import Collection, Iterator, Sequence
from hashlib import sha256

import polars

from mpc_train.errors import DataError
from mpc_train.tables.cells import identifier_texts
from mpc_train.tables.faults import CellError
from mpc_train.tables.reading import Chunk, Place, Table, Unit

TOKEN_BYTES = 16
_LABEL = b"mpc-train/token/1\0"


MAX_LISTED = 20


def there_are(names: Sequence[str]) -> str:
    """A table's columns, for whoever has misspelt one."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"there are {', '.join(map(repr, names[:MAX_LISTED]))}{more}"


class Tokenised:
    """A `Table` with tokens in the columns `columns`. Raises DataError for a column that is not
    there, and for cells that cannot identify anything."""

    def __init__(self, table: Table, columns: Collection[str], key: bytes) -> None:
        missing = [repr(name) for name in columns if name not in table.names]
        if missing:
            raise DataError(
                f"{table.header_place}there is no column {', '.join(missing)}; "
                f"{there_are(table.names)}"
            )
        self._table, self._columns, self._key = table, frozenset(columns), key
        self.names, self.unknown = table.names, table.unknown
        self.header_place, self.shapes = table.header_place, table.shapes
        self.place: Place = table.place
        self.unit: Unit = table.unit

    @property
    def total(self) -> int | None:
        return self._table.total

    def chunks(self, wanted: Sequence[str]) -> Iterator[Chunk]:
        for chunk in self._table.chunks(wanted):
            columns = [self._tokens(cells, chunk) for cells in chunk.frame.iter_columns()]
            yield Chunk(polars.DataFrame(columns), chunk.places, chunk.done)

    def _tokens(self, cells: polars.Series, chunk: Chunk) -> polars.Series:
        if cells.name not in self._columns:
            return cells
        try:
            text = identifier_texts(cells)
        except CellError as error:
            row = error.row
            where = "" if row is None else f"{self.place} {chunk.places[row]}: "
            raise DataError(f"{where}column {cells.name!r}: {error}") from error
        distinct = text.unique().to_list()
        tokens = [self._token(identifier) for identifier in distinct]
        return text.replace_strict(distinct, tokens, return_dtype=polars.String).alias(cells.name)

    def _token(self, identifier: str) -> str:
        if not identifier:
            return ""
        digest = hmac.new(self._key, _LABEL + identifier.encode(), sha256).digest()
        return digest[:TOKEN_BYTES].hex()
