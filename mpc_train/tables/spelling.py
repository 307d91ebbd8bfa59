"""One spelling for entries that owners and formats write differently but that mean the same.

Names of columns, levels and codes are compared in Unicode's composed form (NFC, annex 15 of the
standard), without spaces at their ends. A cell that is a number is compared with levels and codes
as a number: 1, 1.0 and 1e0 are one level, because a format with numbers cannot distinguish them.
Digits with a zero before them, 007, are text.
"""

import re
import unicodedata
from collections.abc import Mapping
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from typing import Any

import msgspec

MAX_NUMERAL = 400
"""A number with more digits, or further from 1, is compared as text."""

NOT_A_NUMBER = "NaN"
"""NaN in formats with types; others write it in small letters."""

TRUE = ("1", "true", "t", "yes", "y")
FALSE = ("0", "false", "f", "no", "n")
"""The spellings of truth values, in letters of any case."""

_NUMERAL = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_STARTS = frozenset("+-.0123456789Nn")
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)


def name_of(text: str) -> str:
    """A column's name, independent of the encoding of its letters."""
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).strip()


def entry_of(text: str, decimal: str = ".") -> str:
    """A cell, level or code in the spelling used for comparison.

    decimal: the sign between a number's whole part and its fraction; with a comma, a point is not
    part of a number.
    """
    text = name_of(text)
    if text[:1] not in _STARTS and not (decimal == "," and text[:1] == ","):
        return text
    if text in ("nan", NOT_A_NUMBER):
        return NOT_A_NUMBER
    plain = text
    if decimal == ",":
        plain = text.replace(".", "?").replace(",", ".")
    if len(plain) > MAX_NUMERAL or not _NUMERAL.fullmatch(plain):
        return text
    number = Decimal(plain)
    if not number:
        return "0"
    if abs(number.adjusted()) > MAX_NUMERAL:
        return text
    return format(number.normalize(_EXACT), "f")


def compose(struct: msgspec.Struct, *fields: str) -> None:
    """Normalise names in these fields of a struct to NFC, from its `__post_init__`; raises
    ValueError if two keys of a table become the same."""
    for field in fields:
        given = getattr(struct, field)
        found = _composed(given)
        if found != given:
            msgspec.structs.force_setattr(struct, field, found)


def _composed(value: Any) -> Any:
    """Text in NFC, also within tuples and tables; everything else is unchanged."""
    if isinstance(value, str):
        return value if value.isascii() else unicodedata.normalize("NFC", value)
    if isinstance(value, tuple):
        return tuple(_composed(item) for item in value)
    if isinstance(value, Mapping):
        found = {_composed(key): _composed(item) for key, item in value.items()}
        if len(found) < len(value):
            raise ValueError("two names differ only in the encoding of their letters")
        return found
    return value
