"""Where a node's table lies and how it is spelt: what stands under `[data]` of its own file.

Paths are relative to the node's file, and absolute once that is read.
"""

import codecs
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from mpc_train.tables.dates import ISO, LEAST_PIVOT, MOST_PIVOT, DateForm, FormError
from mpc_train.tables.postgres_url import UrlError, parse_url
from mpc_train.tables.spelling import compose, name_of

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
    """The table's file; or give a `url`."""
    ignore: tuple[str, ...] = ()
    """Columns of the table that no job uses; they are not read."""
    format: FileFormat = "auto"
    """auto: by the end of the file's name."""
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
    date_format: str = ISO
    """How dates are written where the format does not know dates, in features and in identifiers
    that a job joins as dates (`mpc_train.tables.dates`). Years have four digits (%Y), or two
    (%y) and a pivot; a time in the form has to be midnight in every cell."""
    date_formats: dict[str, str] = {}
    """The same by column, for those that are written otherwise."""
    date_pivot: int = 0
    """The first of the hundred years that %y may mean: 1930 for 1930 to 2029. 0: none, and a form
    with %y is refused."""
    date_pivots: dict[str, int] = {}
    """The same by column: years of birth and of admission may need two."""
    url: str = ""
    """`sqlite:///path` or `postgresql://user@host/database`, without a password
    (`mpc_train.tables.postgres_url`)."""
    query: str = ""
    """One SELECT; its columns are the table's."""
    password_file: str = ""
    """postgresql: a file in the form of PGPASSFILE that only its owner can read."""
    array_folder: str = ""
    """Where a job takes arrays (`data.array`) and the column has paths of images or .npy files: the
    directory that they are below; left out, that of the file."""

    def __post_init__(self) -> None:
        compose(self, "ignore", "header", "date_formats", "date_pivots")

    @property
    def separator(self) -> str:
        return self.delimiter or ("\t" if Path(self.file).suffix.lower() == ".tsv" else ",")

    def form_of(self, column: str) -> DateForm:
        """How the dates of a column are written."""
        return DateForm(
            self.date_formats.get(column, self.date_format),
            self.date_pivots.get(column, self.date_pivot),
        )

    @property
    def folder_of_arrays(self) -> Path | None:
        """What paths of arrays begin from; None where nothing says it."""
        if self.array_folder:
            return Path(self.array_folder)
        return Path(self.file).parent if self.file else None

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
    _check_dates(source)


def _check_dates(source: Source) -> None:
    pivots = (source.date_pivot, *source.date_pivots.values())
    if any(pivot and not LEAST_PIVOT <= pivot <= MOST_PIVOT for pivot in pivots):
        raise SourceProblem("date_pivot", "the first year of a hundred, like 1930")
    named = (*source.date_formats, *source.date_pivots)
    forms = {column: source.form_of(column) for column in ("", *named)}
    for column, form in forms.items():
        key = f"date_formats.{column}" if column in source.date_formats else "date_format"
        try:
            form.check()
        except FormError as error:
            raise SourceProblem(key, str(error)) from error
    if any(pivots) and not any(form.two_digits for form in forms.values()):
        raise SourceProblem("date_pivot", "no form of dates here has %y; remove it")


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
    if isinstance(source.header, tuple):
        names = [name_of(name) for name in source.header]
        if len(set(names)) < len(names):
            raise SourceProblem("header", "a name stands there twice")


def _check_url(source: Source) -> None:
    if not source.url.startswith((SQLITE, *POSTGRES)):
        raise SourceProblem("url", "sqlite:///path or postgresql://user@host/database")
    if not source.query.strip():
        raise SourceProblem("query", "a url needs a query: one SELECT")
    if source.url.startswith(POSTGRES):
        try:
            parse_url(source.url)
        except UrlError as error:
            raise SourceProblem("url", str(error)) from error
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
        array_folder=str(resolve(source.array_folder)) if source.array_folder else "",
    )


def label_of(source: Source) -> str:
    """What errors call the table: its path, or the database without user and options."""
    if source.file:
        return source.file
    if source.url.startswith(SQLITE):
        return source.url.removeprefix(SQLITE)
    try:
        where = parse_url(source.url)
    except UrlError:
        return "the database"
    return f"postgresql://{where.host}/{where.database}"
