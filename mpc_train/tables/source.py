"""Where a node's table lies and how it is spelt: what stands under `[data]` of its own file.

Paths are relative to the node's file, and absolute once that is read.
"""

import codecs
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

import msgspec

FileFormat = Literal["auto", "csv", "parquet", "arrow", "npz"]

SQLITE, POSTGRES = "sqlite:///", ("postgresql://", "postgres://")

ENDINGS: dict[str, FileFormat] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".npz": "npz",
}


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file, or a query to a database. The options of one are refused with the other."""

    file: str = ""
    ignore: tuple[str, ...] = ()
    """Columns of the table that no job uses; they are not read."""
    format: FileFormat = "auto"
    """auto: by the end of the file's name (`ENDINGS`)."""
    delimiter: str = ""
    """csv: one character; left out, a comma, or a tab in a file that ends in .tsv."""
    quote: str = '"'
    """csv: around cells that hold a delimiter or a line's end; doubled inside them. "": none."""
    encoding: str = "utf-8"
    """csv: any encoding of text that Python knows by name."""
    header: bool | tuple[str, ...] = True
    """csv: whether the first line names the columns; where it does not, the names, in order."""
    decimal: Literal[".", ","] = "."
    """csv: what stands between a number's whole part and its fraction."""
    date_format: str = "%Y-%m-%d"
    """How dates are written where the format does not know dates: %Y, %m, %d and the like."""
    date_formats: dict[str, str] = {}
    """The same by column, for those that are written otherwise."""
    url: str = ""
    """`sqlite:///path` or `postgresql://user@host/database`, without a password."""
    query: str = ""
    """One SELECT; its columns are the table's."""
    password_file: str = ""
    """postgresql: a file in the form of PGPASSFILE that only its owner can read."""

    @property
    def separator(self) -> str:
        return self.delimiter or ("\t" if Path(self.file).suffix.lower() == ".tsv" else ",")

    def form_of(self, column: str) -> str:
        """How the dates of a column are written."""
        return self.date_formats.get(column, self.date_format)

    @property
    def file_format(self) -> FileFormat:
        """The format of `file`; "auto" where its name does not say."""
        if self.format != "auto":
            return self.format
        return ENDINGS.get(Path(self.file).suffix.lower(), "auto")


class SourceProblem(ValueError):
    """A contradiction in a source, at one of its keys."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


_PLAIN = Source()
_CSV_KEYS = ("delimiter", "quote", "encoding", "header", "decimal")
_URL_KEYS = ("query", "password_file")


def check_source(source: Source) -> None:
    """Raise SourceProblem at what contradicts itself, before anything is opened."""
    if bool(source.file) == bool(source.url):
        raise SourceProblem("file", "the path of a data file is needed, or a url with a query")
    foreign: tuple[str, ...] = _URL_KEYS if source.file else ("format", *_CSV_KEYS)
    if source.file:
        if source.file_format == "auto":
            raise SourceProblem(
                "format", f"cannot be told from the name; write one of {', '.join(_FORMATS)}"
            )
        if source.file_format != "csv":
            foreign = (*_URL_KEYS, *_CSV_KEYS)
    for key in foreign:
        if getattr(source, key) != getattr(_PLAIN, key):
            what = "a database" if source.url else f"a file of the format {source.file_format}"
            raise SourceProblem(key, f"{what} has no such option; remove it")
    (_check_url if source.url else _check_csv)(source)
    for form in (source.date_format, *source.date_formats.values()):
        if not any(sign in form for sign in ("%d", "%e", "%j", "%F", "%D")):
            raise SourceProblem("date_format", 'write the form of a date like "%d.%m.%Y"')


_FORMATS = tuple(dict.fromkeys(ENDINGS.values()))


def _check_csv(source: Source) -> None:
    for key in ("delimiter", "quote"):
        sign: str = getattr(source, key)
        if sign and (len(sign) != 1 or not sign.isascii() or sign in "\r\n\0"):
            raise SourceProblem(key, "one ASCII character is needed")
    if source.separator in (source.quote, source.decimal):
        raise SourceProblem("delimiter", "is also the quotation mark or the decimal sign")
    try:
        # Some codecs of Python are no encodings of text (hex, zip).
        known = codecs.lookup(source.encoding)
        "a".encode(known.name)
    except LookupError as error:
        raise SourceProblem("encoding", f"{source.encoding!r} is no known encoding") from error
    if source.header is False or source.header == ():
        raise SourceProblem("header", 'without a header, name the columns: header = ["…", "…"]')
    if isinstance(source.header, tuple) and len(set(source.header)) < len(source.header):
        raise SourceProblem("header", "a name stands there twice")


def _check_url(source: Source) -> None:
    if not source.url.startswith((SQLITE, *POSTGRES)):
        raise SourceProblem("url", "sqlite:///path or postgresql://user@host/database")
    if not source.query.strip():
        raise SourceProblem("query", "a url needs a query: one SELECT")
    parts = urlsplit(source.url)
    if parts.password is not None or "password" in parse_qs(parts.query):
        raise SourceProblem("url", "holds a password; put it into a file: password_file = …")
    if source.password_file and source.url.startswith(SQLITE):
        raise SourceProblem("password_file", "SQLite has no passwords; remove it")


def resolved(source: Source, resolve: Callable[[str], Path]) -> Source:
    """The source with every path made absolute by `resolve`."""
    url = source.url
    if url.startswith(SQLITE):
        url = SQLITE + str(resolve(url.removeprefix(SQLITE)))
    return msgspec.structs.replace(
        source,
        file=str(resolve(source.file)) if source.file else "",
        url=url,
        password_file=str(resolve(source.password_file)) if source.password_file else "",
    )


def label_of(source: Source) -> str:
    """What errors call the table: its path, or the database without user and options."""
    if source.file:
        return source.file
    if source.url.startswith(SQLITE):
        return source.url.removeprefix(SQLITE)
    parts = urlsplit(source.url)
    return f"postgresql://{parts.hostname or ''}{parts.path}"
