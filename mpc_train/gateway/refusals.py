"""What a program is told when its request is not answered: a status, one word and a sentence.

Of an unexpected error only the kind is said: its message might quote data.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from mpc_train.errors import (
    DataError,
    QueryError,
    QueryRefusedError,
    UnansweredError,
    classify,
    explain,
)
from mpc_train.gateway.instances import TooLargeError

REFUSED = {
    "unknown-model": 404,
    "not-allowed": 403,
    "quota": 429,
    "busy": 503,
    "unavailable": 503,
    "malformed": 502,
}
"""The status by a word of `offered.REFUSALS`."""
OURS = {
    "unauthorized": 401,
    "unknown-path": 404,
    "method": 405,
    "slow": 408,
    "too-large": 413,
    "media-type": 415,
    "host": 421,
    "instances": 400,
    "evaluators": 502,
    "internal": 500,
}
"""The words that the gateway adds."""
AGAIN_S = 2
"""When a request that was refused for the moment may be made again."""


class Refusal(Exception):
    """code: a word of REFUSED or OURS. again_s: after how long the request may be repeated; 0: it
    would be refused again."""

    def __init__(self, code: str, message: str, again_s: int = 0) -> None:
        super().__init__(message)
        self.code, self.message, self.again_s = code, message, again_s

    @property
    def status(self) -> int:
        return REFUSED.get(self.code) or OURS[self.code]


def refusal_of(error: BaseException, now: datetime | None = None) -> Refusal:
    """What is said of an error."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UnansweredError) and error.__cause__ is not None:
        return refusal_of(error.__cause__, now)
    if isinstance(error, TooLargeError):
        return Refusal("too-large", str(error))
    if isinstance(error, DataError):
        return Refusal("instances", str(error))
    name, code, status = classify(error)
    if isinstance(error, QueryRefusedError) and error.code in REFUSED:
        waits = {"quota": until_midnight(now), "busy": AGAIN_S, "unavailable": AGAIN_S}
        return Refusal(error.code, str(error), waits.get(error.code, 0))
    if status in (7, 8):
        return Refusal("unavailable", explain(error), AGAIN_S)
    if isinstance(error, QueryError) or code != "internal":
        return Refusal("evaluators", explain(error))
    return Refusal("internal", f"internal error: {name}; the gateway's log says where")


def until_midnight(now: datetime | None = None) -> int:
    """Seconds until the next day of UTC begins, when rows may be asked again."""
    now = datetime.now(UTC) if now is None else now
    tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return int((tomorrow - now).total_seconds()) + 1
