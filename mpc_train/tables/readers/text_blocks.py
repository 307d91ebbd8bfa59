"""Bytes of a text file as UTF-8 with plain line ends, block by block.

1. A file that is not text (a compressed file, a workbook, Parquet) is recognised by its first
   bytes.
2. The source's encoding becomes UTF-8; a byte-order mark at the beginning is ignored.
3. If lines end in a carriage return alone, as old programs wrote them, it becomes a line feed. The
   first line end outside quotation marks decides which of them ends lines.
4. `skip_lines` lines at the beginning are skipped.

Advice on an encoding considers the bytes and the settings: it never suggests the current setting.
"""

import codecs
from collections.abc import Iterable, Iterator
from itertools import chain

from mpc_train.errors import DataError
from mpc_train.tables.source import Source

MAX_RECORD_BYTES = 16 << 20
"""A longer record has a quotation mark that was never closed, or is not a record."""

_NO_TEXT: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "a gzip file: let its name end in .gz"),
    (b"PK\x03\x04", "a zip file or a workbook: let its name end in .zip or .xlsx"),
    (b"PAR1", "a Parquet file: let its name end in .parquet"),
    (b"ARROW1", "an Arrow file: let its name end in .arrow"),
    (b"SQLite format 3\0", "an SQLite database: use url = and a query"),
    (b"\xd0\xcf\x11\xe0", "an old workbook: let its name end in .xls"),
    (b"%PDF", "a PDF document, not a table"),
)
_MARKS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MAX_SIGN = 16
_SAMPLE = 1 << 16


class TextBlocks:
    """The text in `blocks`; iterate over it once.

    blocks: raw bytes in the source's encoding, in pieces of any size. sniffs: whether to detect
    other file types by the first bytes; not for text from a database. Raises DataError.
    """

    def __init__(
        self, blocks: Iterable[bytes], source: Source, label: str, *, sniffs: bool = True
    ) -> None:
        self._blocks, self._source, self._label, self._sniffs = blocks, source, label, sniffs
        self.read_bytes = 0
        """How many bytes have been read, for the progress."""
        self.skipped = 0
        """How many lines were skipped at the beginning."""
        self._start = b""
        self._lines = 1

    def __iter__(self) -> Iterator[bytes]:
        return self._rest(self._plain(self._decoded()))

    def _fail(self, what: str) -> DataError:
        return DataError(f"{self._label}: {what}")

    def _decoded(self) -> Iterator[str]:
        """1 and 2."""
        name = codecs.lookup(self._source.encoding).name
        decoder = codecs.getincrementaldecoder("utf-8-sig" if name == "utf-8" else name)("strict")
        started = known = False
        for block in _with_end(self._blocks):
            if len(self._start) < _SAMPLE:
                self._start += block[:_SAMPLE]
            if not known and (len(self._start) >= _MAX_SIGN or not block):
                known = True
                self._check_start()
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                valid = error.object[: error.start].decode(name, errors="replace")
                at = self.read_bytes + len(block) - len(error.object) + error.start
                raise self._foreign(
                    f"line {self._lines + _ends(valid)}: byte {at} of the file", error.object
                ) from None
            except (UnicodeError, ValueError):
                # Raised by codecs that need a mark at the beginning, and by some with further
                # requirements.
                raise self._foreign("the file", self._start) from None
            self.read_bytes += len(block)
            if "\0" in text:
                line = self._lines + _ends(text[: text.index("\0")])
                raise self._zero(line, block)
            self._lines += _ends(text)
            if text and not started:
                started, text = True, text.removeprefix("\ufeff")
            if text:
                yield text
        yield ""

    def _check_start(self) -> None:
        if not self._sniffs:
            return
        for sign, what in _NO_TEXT:
            if self._start.startswith(sign):
                raise self._fail(f"is {what}")
        for mark, encoding in _MARKS:
            if self._start.startswith(mark):
                name = codecs.lookup(self._source.encoding).name
                if not name.startswith(encoding):
                    raise self._fail(
                        f"begins with the mark of {encoding}, so it is not {self._source.encoding} "
                        f'text; write encoding = "{encoding}"'
                    )
                return

    def _zero(self, line: int, block: bytes) -> DataError:
        """The error for a zero byte: another encoding if there are many, otherwise a stray byte."""
        wide = _wide(self._start) or (_wide(block) if len(block) >= _MAX_SIGN else None)
        if wide is None:
            return self._fail(
                f"line {line}: a zero byte, which text cannot contain; remove it, or write the "
                "file again with the program from which it comes"
            )
        return self._foreign(f"line {line}: a zero byte", self._start)

    def _foreign(self, where: str, block: bytes) -> DataError:
        """The error for bytes that are not text in the configured encoding."""
        self._check_start()
        source = self._source
        guess = _guess(self._start, block, codecs.lookup(source.encoding).name)
        advice = (
            f'set how the file is encoded (perhaps encoding = "{guess}"), or save it as UTF-8'
            if guess
            else "set how the file is encoded (encoding = …, with the name that the program that "
            "wrote it uses), or save it as UTF-8"
        )
        if "16" in source.encoding and where == "the file":
            where = "the file does not begin with a byte-order mark, or"
        return self._fail(f"{where} is not {source.encoding} text; {advice}")

    def _plain(self, texts: Iterator[str]) -> Iterator[str]:
        """3: lines that end in line feeds."""
        held = ""
        for text in texts:
            held += text
            returns = _ends_in_returns(held, self._quote, final=not text)
            if returns is None and text and len(held) <= MAX_RECORD_BYTES:
                continue
            if not returns:
                yield held
                yield from texts
                return
            break
        after_return = False
        for text in chain((held,), texts):
            part = text[1:] if after_return and text.startswith("\n") else text
            after_return = text.endswith("\r")
            yield part.replace("\r\n", "\n").replace("\r", "\n")

    @property
    def _quote(self) -> str:
        # Lines that are not records may contain any number of quotation marks.
        source = self._source
        return "" if source.skip_lines or source.comment else source.quote

    def _rest(self, texts: Iterator[str]) -> Iterator[bytes]:
        """4."""
        left = self._source.skip_lines
        for text in texts:
            while left and text:
                _, end, text = text.partition("\n")
                left -= bool(end)
                self.skipped += bool(end)
            yield text.encode()


def _ends(text: str) -> int:
    """How many lines end in it, with any line ending."""
    feeds = text.count("\n")
    return feeds or text.count("\r")


def _ends_in_returns(text: str, quote: str, *, final: bool) -> bool | None:
    """Whether the first line ends in a carriage return alone; None: not known yet."""
    at = 0
    while True:
        feed, back = text.find("\n", at), text.find("\r", at)
        if back < 0 or 0 <= feed < back:
            return False if feed >= 0 or final else None
        if back + 1 == len(text) and not final:
            return None
        if text[back + 1 : back + 2] == "\n":
            return False
        if not quote or text.count(quote, 0, back) % 2 == 0:
            return True
        at = back + 1


def _wide(block: bytes) -> str | None:
    """The encoding of two or four bytes of a block of mostly Latin letters, by the places of its
    zeros."""
    most = len(block) // 4
    often = [3 * block[place::4].count(0) > most > 0 for place in range(4)]
    found = {
        (False, True, True, True): "utf-32-le",
        (True, True, True, False): "utf-32-be",
        (False, True, False, True): "utf-16-le",
        (True, False, True, False): "utf-16-be",
    }
    return found.get((often[0], often[1], often[2], often[3]))


def _guess(start: bytes, block: bytes, given: str) -> str | None:
    """An encoding in which the file can be read, other than the configured one."""
    marked = next((encoding for mark, encoding in _MARKS if start.startswith(mark)), None)
    candidates = [found for found in (marked, _wide(start)) if found]
    for encoding in candidates or ("utf-8", "cp1252"):
        if codecs.lookup(encoding).name != given and (candidates or _fits(block, encoding)):
            return encoding
    return None


def _fits(block: bytes, encoding: str) -> bool:
    """Whether a block is text in an encoding; its last character may continue in the next."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(block, final=False)
    except UnicodeError:
        return False
    return True


def _with_end(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The non-empty blocks, then an empty one."""
    yield from (block for block in blocks if block)
    yield b""
