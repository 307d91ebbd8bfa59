"""Text on its way to a terminal or a log: nothing that came from elsewhere can steer either.

Names of columns, jobs, tensors and errors of libraries hold what others wrote. An escape sequence
in one of them could clear the screen or retitle the window, a change of writing direction could
turn a digest around, a line end could forge a line of ours. All of these are written as \\uXXXX,
which is JSON's and TOML's own spelling, so that a draft or an export that is printed reads back the
same.

`say` is the one way to standard output and error: nothing else in `mpc_train` prints
(`tests/architecture.py`). Names that travel in jobs may hold no such character to begin with
(`hidden`).
"""

import logging
import re
import sys

_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 and C1: escape sequences begin with one of them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of writing
    "\u200b\u2028\u2029\u2060-\u2064\ufeff"  # breaks and blanks that nobody sees
    "\ud800-\udfff]"  # halves of characters, which no terminal takes
)
"""Joiners (U+200C, U+200D), which some languages write words with, are none of these."""


def hidden(text: str) -> str | None:
    """The first character of `text` that does not show or that steers a terminal, as U+XXXX."""
    found = _HIDDEN.search(text)
    return None if found is None else f"U+{ord(found.group()):04X}"


def escaped(text: str) -> str:
    """`text` as one line, every such character written as \\uXXXX."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def lines_escaped(text: str) -> str:
    """The same for text whose line ends and tabs are our own."""
    return re.sub(r"[^\n\t]+", lambda part: escaped(part.group()), text)


def error_escaped(text: str) -> str:
    """The same for an error: what it quotes may hold line ends too, so that only those before an
    indented line, as our own lists have it, stay."""
    return "\n  ".join(escaped(part) for part in text.split("\n  "))


def say(text: str = "", *, aside: bool = False, end: str = "\n") -> None:
    """Print to standard output, or aside, to standard error, at once."""
    print(lines_escaped(text), file=sys.stderr if aside else sys.stdout, end=end, flush=True)


class EscapingFormatter(logging.Formatter):
    """Log lines in which a quoted line end is none; levels are written as errors are, `warning`."""

    def format(self, record: logging.LogRecord) -> str:
        record.levelname = record.levelname.lower()
        return error_escaped(super().format(record))
