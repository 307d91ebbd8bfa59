"""Dates as a node writes them, read by one strict parser for columns and identifiers.

A form has fixed text and, each once, a year (%Y, four digits, or %y, two), a month (%m, %b, %B) and
a day (%d, %e), or a year and its day (%j). A cell must fit it completely. Two digits do not
determine the century: %y needs a pivot, the first of the hundred possible years. A form may declare
a time (%H or %I with %p, %M, %S, %f), which must be midnight in every cell, so that no time is
dropped. Names of months are English. Nothing depends on the machine's language.
"""

import datetime
import re
from dataclasses import dataclass
from functools import lru_cache

ISO = "%Y-%m-%d"
MIN_PIVOT, MAX_PIVOT = 1, 9900
REMEMBERED = 1 << 17
"""Dates that occur repeatedly in a table are parsed once; this number covers three centuries."""

TIME_OF_DAY = "a time of day beside the date; give dates only"

_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_FULL = {name.lower(): number for number, name in enumerate(_MONTHS, 1)}
_SHORT = {name[:3]: number for name, number in _FULL.items()}
_WIDTHS = {"Y": 4, "y": 2, "m": 2, "d": 2, "e": 2, "j": 3, "H": 2, "I": 2, "M": 2, "S": 2, "f": 6}
_SAME = {"e": "d", "h": "b"}
_WHOLE = {"F": ISO, "D": "%m/%d/%y", "T": "%H:%M:%S", "R": "%H:%M"}
_PATTERNS = {
    "e": " ?[0-9]{1,2}",
    "f": "[0-9]{1,9}",
    "b": "|".join(_SHORT),
    "h": "|".join(_SHORT),
    "B": "|".join(_FULL),
    "p": "am|pm",
}
_SIGN = re.compile(r"%(-?.)", re.DOTALL)


class FormError(ValueError):
    """A fault of a date format. needs_pivot: it has %y, but no pivot."""

    def __init__(self, what: str, needs_pivot: bool = False) -> None:
        super().__init__(what)
        self.needs_pivot = needs_pivot


@dataclass(frozen=True)
class DateForm:
    """A date format. pivot: the first year that %y may mean; 0: none is declared."""

    form: str = ISO
    pivot: int = 0

    @property
    def two_digits(self) -> bool:
        """Whether years are written without their century. Raises FormError, like all methods
        here."""
        return "y" in _read(self.form)[1]

    def check(self) -> None:
        """Raise FormError unless the form determines the day."""
        if self.two_digits and not self.pivot:
            raise FormError(
                f"{self.form} has years of two digits, without the century; declare it: "
                "for example, date_pivot = 1930 means the years 1930 to 2029",
                needs_pivot=True,
            )

    def day(self, text: str) -> datetime.date:
        """The date in a cell; raises ValueError with a text that does not repeat the cell."""
        return _day(self, text)


@lru_cache(REMEMBERED)
def _day(form: DateForm, text: str) -> datetime.date:
    form.check()
    pattern, _ = _read(form.form)
    match = pattern.fullmatch(text.strip())
    if match is None:
        raise _no_date(form.form)
    found = {sign: part.lower() for sign, part in match.groupdict().items()}
    year = int(found.get("Y", "0"))
    if "y" in found:
        year = form.pivot + (int(found["y"]) - form.pivot) % 100
    try:
        if "j" in found:
            day = datetime.date(year, 1, 1) + datetime.timedelta(int(found["j"]) - 1)
            if day.year != year:
                raise ValueError
        else:
            month = _SHORT.get(found.get("b", "")) or _FULL.get(found.get("B", ""))
            day = datetime.date(year, month or int(found["m"]), int(found["d"]))
    except (ValueError, OverflowError):
        raise _no_date(form.form) from None
    if not _is_midnight(found):
        raise ValueError(TIME_OF_DAY)
    return day


FORM_ADVICE = " (date_format in this node's configuration); forms are not guessed and not mixed"


def _no_date(form: str) -> ValueError:
    return ValueError(f"not a date in the form {form}{FORM_ADVICE}")


def _is_midnight(found: dict[str, str]) -> bool:
    hours = int(found.get("H", "0"))
    if "I" in found:
        hours = int(found["I"]) - 12 if found["p"] == "am" else 12
    return not hours and not any(int(found.get(sign, "0")) for sign in "MSf")


@lru_cache(256)
def _read(form: str) -> tuple[re.Pattern[str], frozenset[str]]:
    """The pattern of a form with a group for each sign, and these signs; raises FormError."""
    plain = _SIGN.sub(lambda match: _WHOLE.get(match[1], match[0]), form)
    pieces = _SIGN.split(plain)  # text, sign, text, sign, …, text
    signs = [sign.removeprefix("-") for sign in pieces[1::2]]
    found = ""
    seen: list[str] = []
    for place, sign in enumerate(signs):
        before, after = pieces[2 * place], pieces[2 * place + 2]
        found += re.escape(before)
        if sign == "%":
            found += "%"
            continue
        if sign not in _WIDTHS and sign not in _PATTERNS:
            raise FormError(
                f"%{sign} is not supported; use %Y, %y, %m, %b, %B, %d, %e, %j, and for a time "
                "that is always midnight %H, %I, %M, %S, %f, %p"
            )
        joined = (
            (not before and place and signs[place - 1] in _WIDTHS)
            or (not after and place + 1 < len(signs) and signs[place + 1] in _WIDTHS)
            or before[-1:].isdigit()
            or after[:1].isdigit()
        )
        name = _SAME.get(sign, sign)
        found += f"(?P<{name}>{_pattern(sign, bool(joined))})"
        seen.append(name)
    found += re.escape(pieces[-1])
    _check_signs(seen)
    return re.compile(found, re.IGNORECASE | re.ASCII), frozenset(seen)


def _pattern(sign: str, joined: bool) -> str:
    """joined: other digits are next to it, so that its own number of digits is fixed."""
    width = _WIDTHS.get(sign, 0)
    if joined and width:
        return "[ 0-9][0-9]" if sign == "e" else f"[0-9]{{{width}}}"
    if sign in _PATTERNS:
        return _PATTERNS[sign]
    return f"[0-9]{{{width if sign in 'Yy' else 1},{width}}}"


def _check_signs(seen: list[str]) -> None:
    if len(set(seen)) < len(seen):
        raise FormError("a part of the date appears twice")
    years = [sign for sign in seen if sign in "Yy"]
    months = [sign for sign in seen if sign in "mbB"]
    days = [sign for sign in seen if sign in "dj"]
    of_month = days == ["d"] and len(months) == 1
    if len(years) != 1 or not (of_month or (days == ["j"] and not months)):
        raise FormError('write the form of a date like "%d.%m.%Y": a year, a month and a day')
    if ("I" in seen) != ("p" in seen) or {"I", "H"} <= set(seen):
        raise FormError("hours are %H, or %I with %p")
