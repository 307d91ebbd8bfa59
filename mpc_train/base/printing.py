"""Text for a terminal or a log: nothing that came from elsewhere can control either.

Names of columns, jobs and tensors, and errors of libraries, contain text by others. An escape
sequence in one of them could clear the screen or retitle the window, a change of writing direction
could turn a digest around, a line end could forge a line of ours. All of these are written as
\\uXXXX, which is also JSON's and TOML's notation, so that a printed draft or export reads back the
same.

`say` is the only way to standard output and error: nothing else in `mpc_train` prints
(`tests/architecture.py`). Names in jobs may not contain such a character at all (`hidden`).
"""

import logging
import re
import sys

_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 and C1: escape sequences begin with one of them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # writing direction
    "\u200b\u2028\u2029\u2060-\u2064\ufeff"  # invisible breaks and blanks
    "\ud800-\udfff]"  # surrogates, which no terminal accepts
)
"""Joiners (U+200C, U+200D), which some languages use within words, are not among these."""


def hidden(text: str) -> str | None:
    """The first character of `text` that is invisible or controls a terminal, as U+XXXX."""
    found = _HIDDEN.search(text)
    return None if found is None else f"U+{ord(found.group()):04X}"


def escaped(text: str) -> str:
    """`text` as one line, with every such character written as \\uXXXX."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def lines_escaped(text: str) -> str:
    """The same for text whose line ends and tabs are ours."""
    return re.sub(r"[^\n\t]+", lambda part: escaped(part.group()), text)


def error_escaped(text: str) -> str:
    """The same for an error. Its quotations may contain line ends too, so only those before an
    indented line, as in our own lists, are kept."""
    return "\n  ".join(escaped(part) for part in text.split("\n  "))


def say(text: str = "", *, aside: bool = False, end: str = "\n") -> None:
    """Print to standard output, or aside, to standard error, at once."""
    print(lines_escaped(text), file=sys.stderr if aside else sys.stdout, end=end, flush=True)


class EscapingFormatter(logging.Formatter):
    """Log lines with quoted line ends escaped; levels are written in lower case like errors,
    `warning`."""

    def format(self, record: logging.LogRecord) -> str:
        record.levelname = record.levelname.lower()
        return error_escaped(super().format(record))
