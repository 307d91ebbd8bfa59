"""Identifiers in one spelling, so that two files that write one person differently still meet.

What is done is declared in the job (`[data] join.normalise`), column by column; the result is
compared exactly. Text is brought to Unicode's composed form (NFC) whatever is declared: the same
letters in another encoding are the same text. In order, where declared:

* date: read in this node's own form (`date_format` of its table), written as 2001-12-31. Alone.
* case: Unicode's caseless form (`str.casefold`): ß is ss, a final sigma is a sigma.
* accents: compatibility decomposition (NFKD), marks dropped; letters that Unicode does not take
  apart (ø, ł, æ, …) by a fixed list.
* spaces: every white space and invisible formatting character dropped.

Unicode Standard 16, chapter 3.13 (caseless matching) and annex 15 (normalisation forms).
"""

import unicodedata
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal, get_args

Rule = Literal["case", "accents", "spaces", "date"]
RULES: tuple[Rule, ...] = get_args(Rule)

_LETTERS = str.maketrans(
    {
        "ß": "ss",
        "ẞ": "SS",
        "æ": "ae",
        "Æ": "AE",
        "œ": "oe",
        "Œ": "OE",
        "ø": "o",
        "Ø": "O",
        "ł": "l",
        "Ł": "L",
        "đ": "d",
        "Đ": "D",
        "ð": "d",
        "Ð": "D",
        "þ": "th",
        "Þ": "TH",
        "ħ": "h",
        "Ħ": "H",
        "ı": "i",
        "ŋ": "n",
        "Ŋ": "N",
        "ŧ": "t",
        "Ŧ": "T",
    }
)

MAX_CHARACTERS = 1_000
"""A longer identifier is a mistake in the table, not a name."""


def normaliser(rules: Sequence[Rule], date_format: str) -> Callable[[str], str]:
    """A function of one cell; it raises ValueError, in words that do not repeat the cell."""
    if "date" in rules:
        return lambda text: _date(text, date_format)

    def function(text: str) -> str:
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"longer than {MAX_CHARACTERS} characters")
        return normalised(text, rules)

    return function


def normalised(text: str, rules: Sequence[Rule]) -> str:
    """`text` in the one spelling that the declared rules (without "date") give it."""
    if text.isascii():  # the usual identifier, and the same result
        text = text.lower() if "case" in rules else text
        if "spaces" not in rules:
            return text
        return "".join(text.translate(_ASCII_INVISIBLE).split())
    if "case" in rules:
        text = unicodedata.normalize("NFD", text).casefold()
    if "accents" in rules:
        if "case" in rules:  # what compatibility takes apart may have a case of its own
            text = unicodedata.normalize("NFKD", text).casefold()
        text = unicodedata.normalize("NFKD", text).translate(_LETTERS)
        text = "".join(letter for letter in text if unicodedata.category(letter) != "Mn")
    if "spaces" in rules:
        text = "".join(
            letter
            for letter in text
            if not letter.isspace() and unicodedata.category(letter) not in ("Cf", "Cc")
        )
    return unicodedata.normalize("NFC", text)


_ASCII_INVISIBLE = dict.fromkeys([*range(9), *range(14, 28), 127])
"""Control characters that Python does not call white space."""


def _date(text: str, form: str) -> str:
    try:
        return datetime.strptime(text.strip(), form).date().isoformat()
    except ValueError:
        raise ValueError(
            f"not a date in the form {form} (date_format in this node's configuration); forms are "
            "not guessed and not mixed"
        ) from None
