"""Identifiers in one spelling, so that two files that spell one person differently still match.

The job declares the rules (`[data] join.normalise`, `check_duplicates.normalise` and
`split_normalise`), column by column; the results are compared exactly. First, whatever is declared,
white space and invisible signs are removed from both ends, and text is normalised to Unicode's
composed form (NFC): the same letters in another encoding are the same text. Then the declared rules
are applied, in this order, regardless of the job's order:

* date: read in this node's own form (`date_format` and `date_pivot` of its table) by the parser
  that reads its columns (`mpc_train.tables.dates`), written as 2001-12-31. Excludes other rules.
* case: Unicode's caseless form (`str.casefold`): ß is ss, a final sigma is a sigma.
* spaces: all white space and invisible formatting characters are dropped.
* punctuation: all punctuation marks and symbols are dropped (Unicode's categories P and S), and so
  are letters used as an apostrophe (U+02B9 to U+02BD): O'Brien, O’Brien and O´Brien are OBrien.
* transcription: letters that are also written as two (`letters.WRITTEN_OUT`): ä ö ü å æ ø œ ß þ ĳ
  are ae oe ue aa ae oe oe ss th ij.
* accents: marks are dropped; letters that Unicode does not decompose (ø, ł, æ, …) follow a fixed
  list (`letters.BASE`). Characters that differ only in form (ﬁ, ², Ａ: NFKD) are decomposed, before
  all other rules except the first dropping of spaces and punctuation. With transcription, ü is ue
  and é is e.
* digits: everything except decimal digits is dropped; those of other scripts become 0 to 9.
* leading_zeros: zeros at the beginning are dropped, except a last one: 007 is 7, 000 is 0.

Unicode Standard 16, chapter 3.13 (caseless matching) and annex 15 (normalisation forms).
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

from mpc_train.tables.dates import DateForm
from mpc_train.tables.letters import BASE, written_out

Rule = Literal[
    "case",
    "accents",
    "spaces",
    "date",
    "punctuation",
    "transcription",
    "digits",
    "leading_zeros",
]

MAX_CHARACTERS = 1_000
"""A longer identifier is a mistake in the table, not a name."""

_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and symbols by category, but invisible: Hangul fillers, Braille blank."""
# White space, control characters, and invisible formatting characters.
_BLANK = (
    r"\s\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff" + _FILLERS
)
_ENDS = re.compile(rf"\A[{_BLANK}]+|[{_BLANK}]+\Z")
_ZEROS = re.compile(rf"\A[0{_BLANK}]+(?=[^{_BLANK}])")
_APOSTROPHES = "\u02b9\u02ba\u02bb\u02bc\u02bd"


def normaliser(rules: Sequence[Rule], date_form: DateForm) -> Callable[[str], str]:
    """A function of one cell; it raises ValueError, with a text that does not repeat the cell, if
    nothing is left that identifies anybody."""
    if "date" in rules:
        return lambda text: date_form.day(text).isoformat()

    def function(text: str) -> str:
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"longer than {MAX_CHARACTERS} characters")
        found = normalised(text, rules)
        if found:
            return found
        if normalised(text, ()):
            raise ValueError(f"nothing is left of it after the rules {', '.join(rules)}")
        raise ValueError("the cell is empty, so it identifies nobody")

    return function


def normalised(text: str, rules: Sequence[Rule]) -> str:
    """`text` in the spelling that the declared rules (without "date") give it."""
    text = _ENDS.sub("", text)
    if text.isascii():  # the usual identifier, and the same result
        text = text.lower() if "case" in rules else text
        text = text.translate(_ascii_dropped(tuple(rules)))
    else:
        text = _letters(text, rules)
    if "leading_zeros" in rules:
        text = _ZEROS.sub("", text)
    return _ENDS.sub("", text)


def said(rules: Sequence[Rule]) -> str:
    """A text on what the rules do: "case, spaces ignored, ü as ue"."""
    if "date" in rules:
        return "a date"
    ignored = ", ".join(_IGNORED[rule] for rule in rules if rule in _IGNORED)
    found = [f"{ignored} ignored"] if ignored else []
    found += ["ü as ue"] if "transcription" in rules else []
    found += ["digits only"] if "digits" in rules else []
    return ", ".join(found)


_IGNORED: dict[Rule, str] = {
    "case": "case",
    "accents": "accents",
    "spaces": "spaces",
    "punctuation": "punctuation",
    "leading_zeros": "leading zeros",
}


def _letters(text: str, rules: Sequence[Rule]) -> str:
    """The rules for whole letters, for text of any script."""
    # Signs are dropped as written, and again after decomposition: ´ is a space and a mark.
    text = _without(unicodedata.normalize("NFC", text), rules)
    apart = "accents" in rules
    if "case" in rules:
        text = unicodedata.normalize("NFD", text).casefold()
        if apart:  # decomposed characters may have a case of their own
            text = unicodedata.normalize("NFKD", text).casefold()
    text = _without(unicodedata.normalize("NFKC" if apart else "NFC", text), rules)
    if "transcription" in rules:
        text = written_out(unicodedata.normalize("NFC", text))
    if apart:
        text = unicodedata.normalize("NFKD", text).translate(BASE)
        text = "".join(letter for letter in text if unicodedata.category(letter) != "Mn")
    if "digits" in rules:
        text = "".join(str(unicodedata.decimal(each)) for each in text if each.isdecimal())
    return unicodedata.normalize("NFC", text)


def _without(text: str, rules: Sequence[Rule]) -> str:
    if "spaces" not in rules and "punctuation" not in rules:
        return text
    return "".join(letter for letter in text if not _is_dropped(letter, rules))


def _is_dropped(letter: str, rules: Sequence[Rule]) -> bool:
    category = unicodedata.category(letter)
    if "spaces" in rules and (letter.isspace() or category in ("Cf", "Cc") or letter in _FILLERS):
        return True
    return "punctuation" in rules and (category[0] in "PS" or letter in _APOSTROPHES)


@cache
def _ascii_dropped(rules: tuple[Rule, ...]) -> dict[int, None]:
    """The ASCII characters that the rules drop, in the form of `str.translate`."""
    letters = (chr(code) for code in range(128))
    return {
        ord(each): None
        for each in letters
        if _is_dropped(each, rules) or ("digits" in rules and not each.isdigit())
    }
