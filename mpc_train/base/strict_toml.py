"""TOML files as typed structs, with errors that name file, line and key.

Real numbers are read as exact decimals and get one canonical form (0.50, 5e-1 and 0.5 are the
same), so that the signed number is the one in the file, without binary rounding.
"""

import json
import re
import tomllib
from collections.abc import Sequence
from decimal import Context, Decimal, Inexact, InvalidOperation
from pathlib import Path
from typing import TypeVar

import msgspec

from mpc_train.base.toml_shape import shape_faults
from mpc_train.errors import TrainError

T = TypeVar("T")

MAX_FILE_BYTES = 4 << 20
"""Job and configuration files are read completely; a few thousand features need far less."""

MAX_SHOWN = 80
"""How many characters of a number an error repeats."""
MAX_MESSAGE = 2_000
"""Libraries repeat their whole input in errors."""

MAX_FAULTS = 20
"""How many faults of one file are listed."""

MAX_EXPONENT = 30
"""Decimals beyond 10^±30 cannot be intended, and would print as very long strings."""

MAX_DIGITS = 2 * MAX_EXPONENT
_EXACT = Context(prec=MAX_DIGITS, traps=[Inexact])


def canonical_decimal(value: Decimal) -> Decimal:
    """Return `value` in its canonical form; raise ValueError for NaN, infinity or 1e999."""
    if not value.is_finite():
        raise ValueError("a finite number is needed")
    if value and not -MAX_EXPONENT <= value.adjusted() <= MAX_EXPONENT:
        raise ValueError(f"numbers must lie between 1e-{MAX_EXPONENT} and 1e{MAX_EXPONENT}")
    if len(value.as_tuple().digits) > MAX_DIGITS:
        raise ValueError(f"numbers have at most {MAX_DIGITS} digits")
    # The default context would round to 28 digits.
    return Decimal(format(value.normalize(_EXACT), "f")) if value else Decimal(0)


def clipped(text: str, most: int = MAX_SHOWN) -> str:
    """The beginning of a text from elsewhere, for an error."""
    return text if len(text) <= most else f"{text[:most]}…"


class _NumberError(ValueError):
    def __init__(self, spelling: str, message: str) -> None:
        super().__init__(message)
        self.spelling = spelling


def _parse_float(text: str) -> Decimal:
    try:
        return canonical_decimal(Decimal(text))
    except InvalidOperation as error:
        raise _NumberError(text, "not a number") from error
    except ValueError as error:
        raise _NumberError(text, str(error)) from error


def load_toml(path: Path, kind: type[T], error: type[TrainError]) -> tuple[T, str]:
    """Read `path` as a `kind`; return it with the file's text (for the lines of later errors).

    Raises `error` for a missing, unreadable, oversized or malformed file, an unknown or missing
    key, and a value of the wrong type.
    """
    try:
        with path.open("rb") as file:
            # Do not ask for its size: a device or a pipe has none, and may not end.
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise error(f"{path}: longer than {MAX_FILE_BYTES >> 20} MiB; is this the right file?")
        # Editors on Windows put a byte-order mark before the first line.
        text = content.decode("utf-8-sig")
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror}); check the path") from cause
    except UnicodeDecodeError as cause:
        raise error(f"{path}: not UTF-8 text; save the file as UTF-8") from cause
    try:
        tree = tomllib.loads(text, parse_float=_parse_float)
    except (tomllib.TOMLDecodeError, RecursionError) as cause:
        raise error(f"{path}: not valid TOML: {cause}") from cause
    except _NumberError as cause:
        line = next(
            number for number, row in enumerate(text.splitlines(), 1) if cause.spelling in row
        )
        raise error(f"{path}:{line}: {clipped(cause.spelling)}: {cause}") from cause
    except ValueError as cause:
        # Python's own limit: a whole number of thousands of digits.
        raise error(f"{path}: a number is too long; write fewer digits") from cause
    try:
        return msgspec.convert(tree, kind), text
    except msgspec.ValidationError as cause:
        raise all_at(error, path, text, shape_faults(tree, kind)) from cause


def all_at(
    error: type[TrainError], path: Path, text: str, faults: Sequence[tuple[str, str]]
) -> TrainError:
    """Build one `error` from several keys and messages, each with its line."""
    each = [str(at(error, path, text, key, message)) for key, message in faults]
    if len(each) == 1:
        return error(each[0])
    shown = [f"{path}: {len(each)} faults:", *each[:MAX_FAULTS]]
    if len(each) > MAX_FAULTS:
        shown.append(f"and {len(each) - MAX_FAULTS} more")
    return error("\n  ".join(shown))


def at(error: type[TrainError], path: Path, text: str, key: str, message: str) -> TrainError:
    """Build an `error` that names the file, the key and, if it can be found, the key's line."""
    key = key.removeprefix("$").removeprefix(".")
    line = find_line(text, key)
    where = f"{path}:{line}" if line else str(path)
    return error(f"{where}: {key}: {message}" if key else f"{where}: {message}")


def quoted(value: object) -> str:
    """A string, number, boolean or list of these in TOML's notation, which is that of JSON."""
    # Except for one character, which JSON does not escape.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def find_line(text: str, key: str) -> int | None:
    """Return the 1-based line on which `key` (like `data.features[3].scale`) is set.

    Falls back to the nearest enclosing key that can be found. Not a TOML parser: it follows table
    headers, arrays of tables and `key = ` at the start of a line or inside braces.
    """
    parts = re.findall(r"[^.\[\]]+|\[[^\]]*\]", key)
    while parts:
        line = _find_exact(text, parts)
        if line is not None:
            return line
        parts = parts[:-1]
    return None


def _find_exact(text: str, parts: list[str]) -> int | None:
    header: list[str] = []
    seen: dict[str, int] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        stripped = raw.split("#", 1)[0].strip() if '"' not in raw else raw.strip()
        match = re.match(r"^(\[\[?)\s*([^\[\]]+?)\s*\]\]?$", stripped)
        if match:
            names = [name.strip().strip("\"'") for name in match.group(2).split(".")]
            if match.group(1) == "[[":
                index = seen.get(match.group(2), -1) + 1
                seen[match.group(2)] = index
                names.append(f"[{index}]")
            header = names
            if header == parts:
                return number
            continue
        if len(parts) <= len(header) or parts[: len(header)] != header:
            continue
        rest = parts[len(header) :]
        key = re.match(r"^[\"']?([A-Za-z0-9_ -]+?)[\"']?(?:\.[A-Za-z0-9_.\"'-]+)?\s*=", stripped)
        if not key or key.group(1) != rest[0]:
            continue
        inside = rf"[{{,.\s\"']{re.escape(rest[-1])}[\"']?\s*="
        if len(rest) == 1 or re.search(inside, stripped):
            return number
    return None
