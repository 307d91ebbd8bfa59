"""The location and the format of a node's table: the content of `[data]` in its own file.

Paths are relative to the node's file, and absolute after that is read.
"""

import codecs
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from mpc_train.errors import DataError
from mpc_train.tables.dates import ISO, MAX_PIVOT, MIN_PIVOT, DateForm, FormError
from mpc_train.tables.postgres_url import UrlError, parse_url
from mpc_train.tables.spelling import compose, entry_of, name_of
from protocols.names import OBJECT_NAME

FileFormat = Literal["auto", "csv", "parquet", "arrow", "npz", "excel"]
DropRule = Literal["empty-identifier", "missing-label"]

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
    ".xlsx": "excel",
    ".xlsm": "excel",
    ".xlsb": "excel",
    ".xls": "excel",
    ".ods": "excel",
}
IN_VAULT = "vault:"
"""What a table's path begins with when it lies in the node's vault."""
PACKED = (".gz", ".zip")
"""The compression suffixes of a CSV file's name."""


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file, or a query to a database. Options of one are refused with the other."""

    file: str = ""
    """The table's file, or vault:NAME for a table of this node's vault (`mpc-train vault import`);
    alternatively give a `url`."""
    ignore: tuple[str, ...] = ()
    """Columns of the table that no job uses; they are not read. "" means columns without a name."""
    rename: dict[str, str] = {}
    """{ ours = "theirs" }: the job's names for the table's columns. All other keys here use the
    table's own names."""
    recode: dict[str, dict[str, str]] = {}
    """{ column = { ours = "theirs" } }: by column, the job's entries for cells that the table
    writes differently; "" for a missing value. Other cells do not change."""
    drop_rows: tuple[DropRule, ...] = ()
    """Rows to drop: rows with an empty identifier, rows whose label is empty or missing by the
    schema. The job's number of rows then counts the remaining rows."""
    format: FileFormat = "auto"
    """auto: by the suffix of the file's name."""
    delimiter: str = ""
    """csv: one character; if omitted, a comma, or a tab in a file that ends in .tsv."""
    quote: str = '"'
    """csv: encloses cells that contain a delimiter or a line end; doubled inside them. "": none."""
    encoding: str = "utf-8"
    """csv: the name of any text encoding that Python knows."""
    header: bool | tuple[str, ...] = True
    """csv: whether the first line names the columns; if it does not, the names, in order."""
    decimal: Literal[".", ","] = "."
    """csv: the sign between a number's whole part and its fraction."""
    thousands: Literal["", ".", ",", " ", "'", "_"] = ""
    """csv: the sign that may group the digits of a number's whole part by three: 1.234.567. " "
    means any such space, including no-break spaces."""
    skip_lines: int = 0
    """csv, excel: how many lines at the beginning do not belong to the table."""
    comment: str = ""
    """csv: lines that begin with this character do not belong to the table."""
    skip_space: bool = False
    """csv: ignore spaces after a delimiter, also before a quotation mark."""
    sheet: str = ""
    """excel: the name of the sheet; if omitted, the first."""
    date_format: str = ISO
    """How dates are written if the file format has no dates, in features and in identifiers that a
    job joins as dates (`mpc_train.tables.dates`). Years have four digits (%Y), or two (%y) and a
    pivot; a time in the form must be midnight in every cell."""
    date_formats: dict[str, str] = {}
    """The same by column, for columns that are written differently."""
    date_pivot: int = 0
    """The first of the hundred years that %y may mean: 1930 for 1930 to 2029. 0: none, so a form
    with %y is refused."""
    date_pivots: dict[str, int] = {}
    """The same by column: years of birth and of admission may need different ones."""
    url: str = ""
    """`sqlite:///path` or `postgresql://user@host/database`, without a password
    (`mpc_train.tables.postgres_url`)."""
    query: str = ""
    """One SELECT; its columns are the table's."""
    password_file: str = ""
    """postgresql: a file in the form of PGPASSFILE that only its owner can read."""
    array_folder: str = ""
    """If a job uses arrays (`data.array`) and the column contains paths of images or .npy files:
    the directory of these; if omitted, that of the table's file."""

    def __post_init__(self) -> None:
        compose(self, "ignore", "header", "date_formats", "date_pivots", "rename", "recode")

    @property
    def stored(self) -> str:
        """The name under which the table lies in the node's vault; empty where it does not."""
        return self.file.removeprefix(IN_VAULT) if self.file.startswith(IN_VAULT) else ""

    @property
    def separator(self) -> str:
        return self.delimiter or ("\t" if self._ending == ".tsv" else ",")

    @property
    def packing(self) -> str:
        """ ".gz" or ".zip" if the file is compressed, otherwise nothing."""
        ending = Path(self.file).suffix.lower()
        return ending if ending in PACKED and self.file_format != "npz" else ""

    @property
    def _ending(self) -> str:
        """The suffix of the file's name, without that of its compression."""
        path = Path(self.file)
        return Path(path.stem if path.suffix.lower() in PACKED else path.name).suffix.lower()

    @property
    def titles(self) -> dict[str, str]:
        """The titles of renamed columns in errors."""
        return {theirs: f"{theirs!r} ({ours!r} there)" for ours, theirs in self.rename.items()}

    def own(self, column: str) -> str:
        """The table's name for a column of the job."""
        return next((ours for ours, theirs in self.rename.items() if theirs == column), column)

    def form_of(self, column: str) -> DateForm:
        """How the dates of a column are written."""
        own = self.own(column) if self.rename else column
        return DateForm(
            self.date_formats.get(own, self.date_format),
            self.date_pivots.get(own, self.date_pivot),
        )

    @property
    def folder_of_arrays(self) -> Path | None:
        """The directory to which paths of arrays are relative; None if nothing says it."""
        if self.array_folder:
            return Path(self.array_folder)
        return Path(self.file).parent if self.file and not self.stored else None

    @property
    def file_format(self) -> FileFormat | Literal["vault"]:
        """The format of `file`; "auto" if its name does not show it."""
        if self.stored:
            return "vault"
        if self.format != "auto":
            return self.format
        packed = Path(self.file).suffix.lower() in PACKED
        return ENDINGS.get(self._ending, "csv" if packed and not self._ending else "auto")


Fault = tuple[str, str]
"""A key and its fault."""


class SourceProblem(ValueError):
    """The contradictions in a source. The message is that of the first fault."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        self.key, message = faults[0]
        super().__init__(message)

    def under(self, section: str) -> list[Fault]:
        """All faults, each key with the section of the file that contains the source."""
        return [(f"{section}.{key}", message) for key, message in self.faults]


_PLAIN = Source()
MAX_SKIPPED = 10_000
_CSV_KEYS: tuple[str, ...] = ("delimiter", "quote", "encoding", "header", "decimal")
_CSV_KEYS += ("thousands", "skip_lines", "comment", "skip_space")
_URL_KEYS = ("query", "password_file")


def check_source(source: Source) -> None:
    """Raise SourceProblem with all contradictions, before anything is opened."""
    if bool(source.file) == bool(source.url):
        raise SourceProblem([("file", "write the path of a data file, or a url with a query")])
    checks = (_texts, _foreign, _database if source.url else _dialect, _dates)
    if faults := [fault for check in checks for fault in check(source)]:
        raise SourceProblem(faults)


def check_texts(source: Source) -> None:
    """Raise SourceProblem with the contradictions between names and cells alone."""
    if faults := list(_texts(source)):
        raise SourceProblem(faults)


def _texts(source: Source) -> Iterator[Fault]:
    """The checks for every table."""
    for key in ("file", "url", "query", "password_file"):
        if "\0" in getattr(source, key):
            yield key, "contains a zero byte; remove it"
    for ours, theirs in source.rename.items():
        key = f"rename.{ours}"
        if not ours.strip() or not theirs.strip() or theirs != theirs.strip():
            yield key, "a name is not empty and has no space at its ends"
        elif ours in source.ignore:
            yield key, "is also listed under ignore; remove one of them"
        elif list(source.rename.values()).count(theirs) > 1:
            yield key, f"two columns would have the name {theirs!r}"
    for column, codes in source.recode.items():
        spelt = Counter(entry_of(cell, source.decimal) for cell in codes)
        if column in source.ignore:
            yield f"recode.{column}", "is also listed under ignore; remove one of them"
        elif not codes:
            yield f"recode.{column}", "does not list any cell; remove it"
        elif again := [cell for cell in codes if spelt[entry_of(cell, source.decimal)] > 1]:
            yield f"recode.{column}", f"{' and '.join(map(repr, again))} are the same cell"
    if source.file.startswith(IN_VAULT) and not OBJECT_NAME.fullmatch(source.stored):
        yield "file", "vault:NAME, a name of letters, digits, - and _"
    if len(set(source.drop_rows)) < len(source.drop_rows):
        yield "drop_rows", "a rule appears twice"
    if not 0 <= source.skip_lines <= MAX_SKIPPED:
        yield "skip_lines", f"between 0 and {MAX_SKIPPED}"


def _foreign(source: Source) -> Iterator[Fault]:
    """The keys that a table of this kind does not have."""
    foreign: tuple[str, ...] = _URL_KEYS if source.file else ("format", "sheet", *_CSV_KEYS)
    if source.file:
        if source.file_format == "auto":
            yield (
                "format",
                f"cannot be determined from the name; write one of {', '.join(_FORMATS)}",
            )
            return
        if source.file_format != "csv":
            foreign = (*_URL_KEYS, *_CSV_KEYS)
        if source.file_format == "excel":
            foreign = tuple(key for key in foreign if key != "skip_lines")
        else:
            foreign = (*foreign, "sheet")
        if source.packing and source.file_format != "csv":
            yield "file", f"only CSV is read from a {source.packing} file; unpack it"
    what = "a database" if source.url else f"a file of the format {source.file_format}"
    if source.stored:
        what = "a table of the vault, which was read when it was imported,"
    for key in foreign:
        if getattr(source, key) != getattr(_PLAIN, key):
            yield key, f"{what} does not have this option; remove it"


def _dates(source: Source) -> Iterator[Fault]:
    pivots = (source.date_pivot, *source.date_pivots.values())
    if any(pivot and not MIN_PIVOT <= pivot <= MAX_PIVOT for pivot in pivots):
        yield "date_pivot", "write the first of the hundred years, like 1930"
    named = (*source.date_formats, *source.date_pivots)
    forms = {column: source.form_of(column) for column in ("", *named)}
    wrong: dict[str, str] = {}
    for column, form in forms.items():
        key = f"date_formats.{column}" if column in source.date_formats else "date_format"
        try:
            form.check()
        except FormError as error:
            wrong[key] = str(error)
    yield from wrong.items()
    if any(pivots) and not wrong and not any(form.two_digits for form in forms.values()):
        yield "date_pivot", "no date format here has %y; remove it"


_FORMATS = tuple(dict.fromkeys(ENDINGS.values()))


def _dialect(source: Source) -> Iterator[Fault]:
    if source.file_format != "csv":
        return
    for key in ("delimiter", "quote", "comment"):
        sign: str = getattr(source, key)
        if sign and (len(sign) != 1 or not sign.isascii() or sign in "\r\n\0"):
            yield key, "one ASCII character is needed"
    for sign, what in ((source.quote, "quotation mark"), (source.decimal, "decimal sign")):
        if source.separator == sign:
            default = "" if source.delimiter else " (the default)"
            yield "delimiter", f"{sign!r}{default} is also the {what}; set the sign between cells"
    if source.thousands == source.decimal:
        yield "thousands", "is also the decimal sign"
    if source.comment and source.comment in (source.separator, source.quote):
        yield "comment", "is also the delimiter or the quotation mark"
    if source.skip_space and source.separator == " ":
        yield "skip_space", "the delimiter is a space; remove this"
    try:
        # Some of Python's codecs are not text encodings (hex, zip), or can only encode.
        known = codecs.lookup(source.encoding)
        codecs.getincrementaldecoder(known.name)().decode("a".encode(known.name), final=True)
    except (LookupError, UnicodeError, ValueError):
        yield "encoding", f"{source.encoding!r} is not a known encoding"
    if source.header is False or source.header == ():
        yield "header", 'without a header, name the columns: header = ["…", "…"]'
    if isinstance(source.header, tuple):
        names = [name_of(name) for name in source.header]
        if len(set(names)) < len(names):
            yield "header", "a name appears twice"


def _database(source: Source) -> Iterator[Fault]:
    if not source.url.startswith((SQLITE, *POSTGRES)):
        yield "url", "write sqlite:///path or postgresql://user@host/database"
    if not source.query.strip():
        yield "query", "a url needs a query: one SELECT"
    if source.url.startswith(POSTGRES):
        try:
            parse_url(source.url)
        except UrlError as error:
            yield "url", str(error)
    if source.password_file and source.url.startswith(SQLITE):
        yield "password_file", "SQLite has no passwords; remove it"


def resolved(source: Source, resolve: Callable[[str], Path]) -> Source:
    """The source with every path made absolute by `resolve`."""
    url = source.url
    if url.startswith(SQLITE):
        url = SQLITE + str(resolve(url.removeprefix(SQLITE)))
    return msgspec.structs.replace(
        source,
        file=str(resolve(source.file)) if source.file and not source.stored else source.file,
        url=url,
        password_file=str(resolve(source.password_file)) if source.password_file else "",
        array_folder=str(resolve(source.array_folder)) if source.array_folder else "",
    )


def unreadable(path: Path, error: OSError) -> DataError:
    """What is said of a data file that cannot be opened or read."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: there is no such file; correct the path of the data file")
    return DataError(f"{path}: cannot be read ({error.strerror})")


def label_of(source: Source) -> str:
    """The table's title in errors: its path, or the database without user and options."""
    if source.file:
        return source.file
    if source.url.startswith(SQLITE):
        return source.url.removeprefix(SQLITE)
    try:
        where = parse_url(source.url)
    except UrlError:
        return "the database"
    return f"postgresql://{where.host}/{where.database}"
