"""Where a node's table lies and how it is spelt: what stands under `[data]` of its own file.

Paths are relative to the node's file, and absolute once that is read.
"""

from typing import Literal

import msgspec

FileFormat = Literal["auto", "csv", "parquet", "arrow", "npz"]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file, or a query to a database. The options of one are refused with the other."""

    file: str = ""
    ignore: tuple[str, ...] = ()
    """Columns of the table that no job uses; they are not read."""
    format: FileFormat = "auto"
    """auto: by the end of the file's name, `.csv`, `.tsv`, `.txt`, `.parquet`, `.arrow`,
    `.feather`, `.ipc` or `.npz`."""
    delimiter: str = ","
    """csv: one character."""
    quote: str = '"'
    """csv: around cells that hold a delimiter or a line's end; doubled inside them. "": none."""
    encoding: str = "utf-8"
    """csv: any encoding that Python knows by name."""
    header: bool | tuple[str, ...] = True
    """csv: whether line 1 names the columns; without it, the names in order."""
    decimal: Literal[".", ","] = "."
    """csv: what stands between a number's whole part and its fraction."""
    date_format: str = "%Y-%m-%d"
    """How dates are written where the format does not know dates: with %Y, %m, %d and the like."""
    url: str = ""
    """`sqlite:///path` or `postgresql://user@host/database`, without a password."""
    query: str = ""
    """One SELECT; its columns are the table's."""
    password_file: str = ""
    """postgresql: a file in the form of PGPASSFILE, readable by its owner alone."""
