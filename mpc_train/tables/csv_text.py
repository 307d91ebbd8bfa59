"""CSV as a stream: blocks of bytes in, chunks of whole records out, each with the line it
begins on.

A record may run over several lines inside quotation marks (RFC 4180). Fields are counted before
they are parsed, since a parser that fills up short lines shifts no cell only by luck. A quotation
mark stands around a whole cell or is doubled inside one; anywhere else it is an error.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import polars
from numpy.typing import NDArray

from mpc_train.errors import DataError
from mpc_train.tables.reading import MAX_FIELDS, Chunk, Unit
from mpc_train.tables.source import Source
from mpc_train.tables.spelling import name_of

BLOCK_BYTES = 8 << 20
MAX_RECORD_BYTES = 16 << 20
"""A record longer than this is one whose quotation mark was never closed, or no record."""

_NEWLINE = 10


class CsvText:
    """A `Table` of CSV text.

    blocks: raw bytes in the source's encoding, in pieces of any size. Reads the header at once.
    """

    def __init__(
        self,
        blocks: Iterable[bytes],
        source: Source,
        label: str,
        *,
        unit: Unit,
        total: int | None,
        place: Literal["line", "row"] = "line",
    ) -> None:
        self._source, self._label = source, label
        self.unit: Unit = unit
        self.total = total
        self.place: Literal["line", "row"] = place
        # From a database a blank line is a row whose only cell is null.
        self._blank = b"\r\n" if place == "line" else b"\0"
        self._delimiter, self._quote = source.separator, source.quote
        self._read_bytes = 0
        self._rows = 0
        self._lines = 0
        self._pieces = self._records(self._decoded(blocks))
        self._first = next(self._pieces, b"")
        if not self._first:
            raise DataError(f"{label}: the file is empty; a header line and rows are needed")
        self.header_place = ""
        if source.header is True:
            self.names = self._header()
            self.header_place = f"{place} 1: " if place == "line" else ""
        elif source.header:
            self.names = tuple(map(name_of, source.header))
        else:
            raise DataError(f'{label}: has no header; name its columns: header = ["…", …]')

    def chunks(self, wanted: Sequence[str]) -> Iterator[Chunk]:
        place = {name: position for position, name in enumerate(self.names)}
        positions = sorted(place[name] for name in wanted)
        names = [self.names[position] for position in positions]
        pieces, self._pieces = self._pieces, iter(())
        piece: bytes | None = self._first
        while piece is not None:
            if piece:
                yield self._parse(piece, positions, names)
            piece = next(pieces, None)

    def _fail(self, what: str) -> DataError:
        return DataError(f"{self._label}: {what}")

    def _header(self) -> tuple[str, ...]:
        ends, _ = self._ends(self._first)
        end = int(ends[0]) + 1
        if self._first.count(self._delimiter.encode(), 0, end) >= MAX_FIELDS:
            raise self._fail(f"line 1: more than {MAX_FIELDS} columns")
        try:
            (names,) = self._reader(self._first[:end].decode())
        except (csv.Error, ValueError) as error:
            raise self._fail("line 1: not a well-formed CSV line") from error
        self._lines = self._first[:end].count(b"\n")
        self._first = self._first[end:]
        return tuple(map(name_of, names))

    def _reader(self, text: str) -> Any:
        return csv.reader(
            io.StringIO(text, newline=""),
            delimiter=self._delimiter,
            quotechar=self._quote or None,
            quoting=csv.QUOTE_MINIMAL if self._quote else csv.QUOTE_NONE,
            strict=True,
        )

    def _decoded(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """UTF-8, whatever the file's encoding; a byte that does not belong there is named."""
        encoding = self._source.encoding
        name = codecs.lookup(encoding).name
        decoder = codecs.getincrementaldecoder("utf-8-sig" if name == "utf-8" else name)("strict")
        lines = 1
        for last in _with_end(blocks):
            try:
                text = decoder.decode(last, final=not last)
            except UnicodeDecodeError as error:
                valid = error.object[: error.start].decode(encoding, errors="replace")
                raise self._wrong_encoding(
                    lines + valid.count("\n"),
                    self._read_bytes + len(last) - len(error.object) + error.start,
                    error.object,
                ) from None
            self._read_bytes += len(last)
            if "\0" in text:
                line = lines + text[: text.index("\0")].count("\n")
                raise self._wrong_encoding(line, None, last)
            lines += text.count("\n")
            yield text.encode()

    def _wrong_encoding(self, line: int, position: int | None, block: bytes) -> DataError:
        wide = block[:2] in (b"\xff\xfe", b"\xfe\xff") or position is None
        guess = "utf-16" if wide else "cp1252"
        what = "a zero byte" if position is None else f"byte {position} of the file"
        return self._fail(
            f"line {line}: {what} is not {self._source.encoding} text; say how the file is "
            f'encoded (encoding = "{guess}", say) in this node\'s configuration, or save it as '
            "UTF-8"
        )

    def _records(self, texts: Iterable[bytes]) -> Iterator[bytes]:
        """Pieces that end where a record ends; no piece ends in blank lines."""
        rest = b""
        for text in texts:
            rest += text
            ends, _ = self._ends(rest)
            if not len(ends):
                if len(rest) > MAX_RECORD_BYTES:
                    if self._quote and self._quote.encode() in rest:
                        raise self._unclosed(rest)
                    raise self._fail(
                        f"line {self._lines + 1}: longer than {MAX_RECORD_BYTES >> 20} MiB; is "
                        "this a CSV file, and where do its lines end?"
                    )
                continue
            piece = rest[: int(ends[-1]) + 1]
            # Blank lines wait: at the end of the file they are nothing, before a row an error.
            kept = piece.rstrip(self._blank)
            newline = piece[len(kept) : piece.find(b"\n", len(kept)) + 1]
            if not kept:
                continue
            rest = rest[len(kept) + len(newline) :]
            yield kept + newline
        rest = rest.rstrip(self._blank)
        if rest:
            rest += b"" if rest.endswith(b"\n") else b"\n"
            ends, _ = self._ends(rest)
            if not len(ends) or int(ends[-1]) != len(rest) - 1:
                raise self._unclosed(rest)
            yield rest

    def _unclosed(self, text: bytes) -> DataError:
        """A quotation mark without its other half: name the first that stands where none may."""
        line = self._lines + 1
        quote, delimiter = re.escape(self._quote), re.escape(self._delimiter)
        stray = re.compile(f"(?<![{delimiter}{quote}\r\n]){quote}(?![{delimiter}{quote}\r\n])")
        found = stray.search(text.decode(errors="replace"), 1)
        if found is not None:
            line += text[: found.start()].count(b"\n")
            return self._fail(f"line {line}: a quotation mark inside a cell; double it, or quote")
        return self._fail(f"line {line} or later: a quotation mark is never closed")

    def _ends(self, text: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where records end, and for each of them the number of fields."""
        octets = np.frombuffer(text, np.uint8)
        newlines = np.flatnonzero(octets == _NEWLINE)
        delimiters = np.flatnonzero(octets == ord(self._delimiter))
        if self._quote:
            quotes = np.flatnonzero(octets == ord(self._quote))
            if len(quotes):
                # Inside a quoted cell an odd number of marks has gone before.
                newlines = newlines[np.searchsorted(quotes, newlines) & 1 == 0]
                delimiters = delimiters[np.searchsorted(quotes, delimiters) & 1 == 0]
        fields = np.diff(np.searchsorted(delimiters, newlines), prepend=0) + 1
        return newlines, fields

    def _parse(self, piece: bytes, positions: list[int], names: list[str]) -> Chunk:
        ends, fields = self._ends(piece)
        starts = np.concatenate(([0], ends[:-1] + 1))
        newlines = np.flatnonzero(np.frombuffer(piece, np.uint8) == _NEWLINE)
        lines = self._lines + np.searchsorted(newlines, starts) + 1
        self._check_fields(piece, starts, ends, fields, lines)
        try:
            frame = polars.read_csv(
                piece,
                has_header=False,
                columns=positions or [0],
                separator=self._delimiter,
                quote_char=self._quote or None,
                infer_schema=False,
                empty_string_is_null=False,
                schema={str(number): polars.String for number in range(len(self.names))},
            )
        except polars.exceptions.PolarsError:
            # The library's message may quote the line; only the position is passed on.
            raise self._malformed(piece) from None
        if frame.height != len(ends):
            raise self._malformed(piece)
        frame.columns = names or frame.columns
        self._lines += len(newlines)
        places = (
            lines if self.place == "line" else np.arange(self._rows, self._rows + len(ends)) + 1
        )
        self._rows += len(ends)
        done = self._read_bytes if self.unit == "bytes" else self._rows
        return Chunk(frame, places, done)

    def _check_fields(
        self,
        piece: bytes,
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        fields: NDArray[np.int64],
        lines: NDArray[np.int64],
    ) -> None:
        width = len(self.names)
        octets = np.frombuffer(piece, np.uint8)
        blank = (ends == starts) | ((ends == starts + 1) & (octets[starts] == ord("\r")))
        blank &= self.place == "line"
        wrong = np.flatnonzero((fields != width) | blank)
        if len(wrong):
            row = int(wrong[0])
            count = 0 if blank[row] else int(fields[row])
            against = "the header has" if self.header_place else "there are columns:"
            what = "the line is blank" if not count else f"{count} fields where {against} {width}"
            raise self._fail(f"line {lines[row]}: {what}")

    def _malformed(self, piece: bytes) -> DataError:
        reader = self._reader(piece.decode())
        try:
            for _ in reader:
                pass
        except csv.Error:
            line = self._lines + reader.line_num
            return self._fail(
                f"line {line}: not a well-formed CSV line; is a quotation mark right?"
            )
        return self._unclosed(piece)


def _with_end(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The blocks that hold something, then an empty one."""
    yield from (block for block in blocks if block)
    yield b""
