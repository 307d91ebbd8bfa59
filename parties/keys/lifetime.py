"""How long a card is valid: from `issued` to `expires`, both in its digest and its signatures.

A key that is never replaced is lost or copied at some time without anybody's notice; its lifetime
bounds how long that can last. Clocks differ, so others tolerate `SKEW` at both ends; a node is
strict with itself, and therefore stops before the others would stop it.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Protocol

from parties.errors import CardError, ExpiredError

DEFAULT_DAYS = 730
MIN_DAYS, MAX_DAYS = 1, 1826
SKEW = timedelta(minutes=10)
"""How far another machine's clock may be from this one's."""
WARN = timedelta(days=30)
"""How long before the end its owner and the others are warned."""

_FORM = "%Y-%m-%dT%H:%M:%SZ"
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


class Dated(Protocol):
    """The part of a card that says how long it is valid."""

    @property
    def name(self) -> str: ...
    @property
    def issued(self) -> str: ...
    @property
    def expires(self) -> str: ...


def now() -> datetime:
    """The present moment, UTC."""
    return datetime.now(UTC)


def shown(moment: datetime) -> str:
    """A moment as cards write it, to the second."""
    return moment.astimezone(UTC).strftime(_FORM)


def read_moment(text: str, what: str, source: str) -> datetime:
    """The moment that a card states. Raises CardError."""
    if _MOMENT.fullmatch(text):
        try:
            return datetime.strptime(text, _FORM).replace(tzinfo=UTC)
        except ValueError:
            pass
    raise CardError(f"{source}: {what} must read like 2025-01-31T12:00:00Z")


def check_days(days: int) -> int:
    """Return `days` if a card may be valid for so long. Raises CardError."""
    if not MIN_DAYS <= days <= MAX_DAYS:
        raise CardError(f"a card is valid for {MIN_DAYS} to {MAX_DAYS} days, not {days}")
    return days


def check_span(card: Dated, source: str) -> None:
    """Raise CardError unless both dates can be read and are a possible lifetime apart."""
    start = read_moment(card.issued, "issued", source)
    end = read_moment(card.expires, "expires", source)
    if not timedelta(days=MIN_DAYS) <= end - start <= timedelta(days=MAX_DAYS):
        raise CardError(
            f"{source}: the card of {card.name} must be valid for {MIN_DAYS} to {MAX_DAYS} days, "
            f"not from {card.issued} to {card.expires}"
        )


def end_of(card: Dated) -> datetime:
    """When a verified card expires."""
    return read_moment(card.expires, "expires", card.name)


def check_own(card: Dated, moment: datetime) -> None:
    """Raise ExpiredError unless this node's own card is valid at `moment`."""
    if moment >= end_of(card):
        raise ExpiredError(
            f"the identity of {card.name} expired on {card.expires}; make new keys with "
            f"mpc-train identity rotate {card.name}, and send the new card to the others"
        )
    _check_begun(card, moment)


def check_peer(card: Dated, moment: datetime) -> None:
    """Raise ExpiredError unless another node's card is valid at `moment`, give or take `SKEW`."""
    if moment >= end_of(card) + SKEW:
        raise ExpiredError(
            f"the card of {card.name} expired on {card.expires}; ask {card.name} for a new one, "
            "and add it: mpc-train roster add"
        )
    _check_begun(card, moment)


def _check_begun(card: Dated, moment: datetime) -> None:
    if moment < read_moment(card.issued, "issued", card.name) - SKEW:
        raise ExpiredError(
            f"the card of {card.name} is valid from {card.issued}, and this machine's clock says "
            f"{shown(moment)}; correct the clock that is wrong"
        )


def expiring(card: Dated, moment: datetime) -> str | None:
    """A warning if the card expires within `WARN`, otherwise None."""
    left = end_of(card) - moment
    if left > WARN:
        return None
    when = f"expires on {card.expires}"
    return f"the card of {card.name} {when}, {_left(left)}" if left > timedelta(0) else None


def _left(left: timedelta) -> str:
    return (
        f"in {left.days} days" if left.days > 1 else f"in {left.total_seconds() / 3600:.0f} hours"
    )
