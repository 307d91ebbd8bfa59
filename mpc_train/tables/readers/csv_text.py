"""CSV as a stream: from blocks of bytes to chunks of whole records, each with the line on which it
begins. `text_blocks` decodes the bytes.

A record may run over several lines inside quotation marks (RFC 4180). Fields are counted before
they are parsed, because a parser that fills up short lines may shift cells. A quotation mark must
enclose a whole cell or be doubled inside one; anywhere else it is an error. Blank lines before the
header and after the last row are ignored, between rows they are errors.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import polars
from numpy.typing import NDArray

from mpc_train.errors import DataError
from mpc_train.tables.faults import Faults
from mpc_train.tables.readers.text_blocks import MAX_RECORD_BYTES, TextBlocks
from mpc_train.tables.reading import MAX_FIELDS, Chunk, Place, Unit
from mpc_train.tables.source import Source
from mpc_train.tables.spelling import name_of

BLOCK_BYTES = 8 << 20

_NEWLINE = 10


class CsvText:
    """A `Table` of CSV text.

    blocks: raw bytes in the source's encoding, in pieces of any size. faults: collects records that
    cannot be parsed, which are then not in any chunk; None: the first of them is an error. Reads
    the header at once.
    """

    unknown: tuple[str, ...] = ()
    shapes: dict[str, tuple[int, ...]] | None = None

    def __init__(
        self,
        blocks: Iterable[bytes],
        source: Source,
        label: str,
        *,
        unit: Unit,
        total: int | None,
        place: Place = "line",
        faults: Faults | None = None,
    ) -> None:
        self._source, self._label, self._faults = source, label, faults
        self.unit: Unit = unit
        self.total = total
        self.place: Place = place
        # In a database's text a blank line is a row whose only cell is null.
        self._blank = b"\r\n" if place == "line" else b"\0"
        self._delimiter, self._quote = source.separator, source.quote
        self._comment = source.comment.encode()
        self._spaced = f"{source.separator} {source.quote}".encode()
        self._texts = TextBlocks(blocks, source, label, sniffs=place == "line")
        self._rows = 0
        self._lines = 0
        self._pieces = self._records(iter(self._texts))
        self._first = self._begun()
        if not self._first:
            raise DataError(f"{label}: the file is empty; a header line and rows are needed")
        self.header_place = ""
        if source.header is True:
            line = self._lines + 1
            self.names = self._header(line)
            self.header_place = f"{place} {line}: " if place == "line" else ""
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

    def _begun(self) -> bytes:
        """The first piece from its first record on, without blank lines and comments before it.
        Counts the lines."""
        first = next(self._pieces, b"")
        self._lines = self._texts.skipped
        while first and self.place == "line":
            rest = first.lstrip(b"\r\n")
            if self._comment and rest.startswith(self._comment):
                rest = rest[rest.index(b"\n") + 1 :]
            elif rest:
                self._lines += first[: len(first) - len(rest)].count(b"\n")
                return rest
            self._lines += first[: len(first) - len(rest)].count(b"\n")
            first = rest or next(self._pieces, b"")
        return first

    def _header(self, line: int) -> tuple[str, ...]:
        ends, _ = self._ends(self._first)
        end = int(ends[0]) + 1
        if self._first.count(self._delimiter.encode(), 0, end) >= MAX_FIELDS:
            raise self._fail(f"line {line}: more than {MAX_FIELDS} columns")
        try:
            (names,) = self._reader(self._first[:end].decode())
        except (csv.Error, ValueError) as error:
            raise self._fail(f"line {line}: not a well-formed CSV line") from error
        self._lines += self._first[:end].count(b"\n")
        self._first = self._first[end:]
        return tuple(map(name_of, names))

    def _reader(self, text: str) -> Any:
        return csv.reader(
            io.StringIO(text, newline=""),
            delimiter=self._delimiter,
            quotechar=self._quote or None,
            quoting=csv.QUOTE_MINIMAL if self._quote else csv.QUOTE_NONE,
            skipinitialspace=self._source.skip_space,
            strict=True,
        )

    def _records(self, texts: Iterable[bytes]) -> Iterator[bytes]:
        """Pieces that end with a record; no piece ends in blank lines."""
        rest = b""
        for text in texts:
            rest += text
            rest = self._silenced(rest)
            ends, _ = self._ends(rest)
            if not len(ends):
                if len(rest) > MAX_RECORD_BYTES:
                    if self._quote and self._quote.encode() in rest:
                        raise self._unclosed(rest)
                    raise self._fail(
                        f"line {self._next_line}: longer than {MAX_RECORD_BYTES >> 20} MiB; is "
                        "this a CSV file, and where do its lines end?"
                    )
                continue
            piece = rest[: int(ends[-1]) + 1]
            # Blank lines wait: at the end of the file they are ignored, before a row they are an
            # error.
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
        """The error for an unpaired quotation mark: names the first misplaced one."""
        line = self._next_line
        quote, delimiter = re.escape(self._quote), re.escape(self._delimiter)
        stray = re.compile(f"(?<![{delimiter}{quote}\r\n]){quote}(?![{delimiter}{quote}\r\n])")
        found = stray.search(text.decode(errors="replace"), 1)
        if found is not None:
            line += text[: found.start()].count(b"\n")
            before = text[: found.start()].decode(errors="replace")
            if re.search(f"(^|[{delimiter}\r\n]) +$", before):
                return self._space_before(line)
            return self._fail(f"line {line}: a quotation mark inside a cell; double it, or quote")
        return self._fail(f"line {line} or later: a quotation mark is never closed")

    @property
    def _next_line(self) -> int:
        """The line of the next record, also before the first."""
        return max(self._lines, self._texts.skipped) + 1

    def _silenced(self, text: bytes) -> bytes:
        """The text without quotation marks in its comments, which would otherwise enclose text."""
        if not self._comment or self._comment not in text:
            return text
        quote, inside, at, parts = self._quote.encode(), 0, 0, []
        for found in re.finditer(rb"(?m)^" + re.escape(self._comment) + rb"[^\n]*", text):
            before = text[at : found.start()]
            inside ^= before.count(quote) & 1 if quote else 0
            said = found.group()
            if inside:
                inside ^= said.count(quote) & 1
            elif quote:
                said = said.replace(quote, b" ")
            parts += [before, said]
            at = found.end()
        return b"".join((*parts, text[at:]))

    def _without_spaces(self, piece: bytes) -> bytes:
        """The piece without spaces at the beginning of cells."""
        octets = np.frombuffer(piece, np.uint8)
        outside = np.ones(len(octets), bool)
        if self._quote:
            outside = np.cumsum(octets == ord(self._quote)) & 1 == 0
        space = (octets == ord(" ")) & outside
        begins = np.empty(len(octets), bool)
        begins[:1] = True
        begins[1:] = ((octets == ord(self._delimiter)) | (octets == _NEWLINE))[:-1] & outside[:-1]
        leading = space & begins
        new = leading
        while new.any():
            new = np.concatenate(([False], new[:-1])) & space
            leading = leading | new
        return octets[~leading].tobytes()

    def _check_spaces(self, piece: bytes) -> None:
        """Raise DataError if a quotation mark would count as part of its cell because of a space
        before it."""
        quote, marks, at = self._quote.encode(), 0, 0
        if not quote or self._delimiter == " ":
            return
        for found in re.finditer(re.escape(self._spaced), piece):
            marks += piece.count(quote, at, found.start())
            at = found.start()
            if marks % 2 == 0:
                raise self._space_before(self._lines + piece.count(b"\n", 0, at) + 1)

    def _space_before(self, line: int) -> DataError:
        return self._fail(
            f"line {line}: a space before a quotation mark; if spaces after a delimiter are to be "
            "ignored, set skip_space = true in this node's configuration"
        )

    def _ends(self, text: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The ends of records, and the number of fields of each."""
        octets = np.frombuffer(text, np.uint8)
        newlines = np.flatnonzero(octets == _NEWLINE)
        delimiters = np.flatnonzero(octets == ord(self._delimiter))
        if self._quote:
            quotes = np.flatnonzero(octets == ord(self._quote))
            if len(quotes):
                # Inside a quoted cell an odd number of marks precedes.
                newlines = newlines[np.searchsorted(quotes, newlines) & 1 == 0]
                delimiters = delimiters[np.searchsorted(quotes, delimiters) & 1 == 0]
        fields = np.diff(np.searchsorted(delimiters, newlines), prepend=0) + 1
        return newlines, fields

    def _parse(self, piece: bytes, positions: list[int], names: list[str]) -> Chunk:
        if self._source.skip_space:
            piece = self._without_spaces(piece)
        elif self._quote and self._quote.encode() in piece and self._spaced in piece:
            self._check_spaces(piece)
        ends, fields = self._ends(piece)
        starts = np.concatenate(([0], ends[:-1] + 1))
        newlines = np.flatnonzero(np.frombuffer(piece, np.uint8) == _NEWLINE)
        lines = self._lines + np.searchsorted(newlines, starts) + 1
        whole = piece
        kept = self._readable(piece, starts, ends, fields, lines)
        if kept is not None:
            lines = lines[kept]
            octets = np.frombuffer(piece, np.uint8)
            piece = octets[np.repeat(kept, ends - starts + 1)].tobytes()
        if piece:
            frame = self._frame(piece, positions, names)
        else:
            frame = polars.DataFrame(schema=dict.fromkeys(names or ["0"], polars.String))
        if frame.height != len(lines):
            raise self._malformed(whole)
        self._lines += len(newlines)
        places = lines
        if self.place == "row":
            places = np.arange(self._rows, self._rows + len(lines)) + 1
        self._rows += len(lines)
        done = self._texts.read_bytes if self.unit == "bytes" else self._rows
        return Chunk(frame, places, done)

    def _frame(self, piece: bytes, positions: list[int], names: list[str]) -> polars.DataFrame:
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
        except (polars.exceptions.PolarsError, polars.exceptions.PanicException):
            # The library's message may quote the line, so only the position is passed on.
            raise self._malformed(piece) from None
        frame.columns = names or frame.columns
        return frame

    def _readable(
        self,
        piece: bytes,
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        fields: NDArray[np.int64],
        lines: NDArray[np.int64],
    ) -> NDArray[np.bool_] | None:
        """Which records have as many fields as there are names; None: all of them."""
        width = len(self.names)
        octets = np.frombuffer(piece, np.uint8)
        blank = (ends == starts) | ((ends == starts + 1) & (octets[starts] == ord("\r")))
        blank &= self.place == "line"
        wrong = (fields != width) | blank
        if self._comment:
            comments = octets[starts] == self._comment[0]
            wrong &= ~comments
            if comments.any() and not wrong.any():
                return ~comments
        else:
            comments = np.zeros(len(starts), bool)
        if not wrong.any():
            return None
        against = "the header has" if self.header_place else "there are columns:"
        counts = np.where(blank, 0, fields)
        first = int(np.argmax(wrong))
        found = [int(counts[first])] if self._faults is None else np.unique(counts[wrong]).tolist()
        for count in found:
            what = "the line is blank" if not count else f"{count} fields where {against} {width}"
            if self._faults is None:
                raise self._fail(f"line {lines[first]}: {what}")
            self._faults.records(lines[wrong & (counts == count)], what)
        return ~(wrong | comments)

    def _malformed(self, piece: bytes) -> DataError:
        reader = self._reader(piece.decode())
        try:
            for _ in reader:
                pass
        except csv.Error:
            line = self._lines + reader.line_num
            return self._fail(f"line {line}: not a well-formed CSV line; check its quotation marks")
        return self._unclosed(piece)
