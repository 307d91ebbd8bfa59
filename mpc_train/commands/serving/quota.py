"""The rows that each client has asked for today, in a file beside the identity."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from mpc_train.errors import ConfigError
from parties.files import read_private, write_atomic

MAX_BYTES = 16 << 20


class _Counted(msgspec.Struct, forbid_unknown_fields=True):
    day: str
    rows: dict[str, dict[str, Annotated[int, Meta(ge=0)]]]


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


class FileQuota:
    """Counts in `path`, which is written before a request is admitted: a restart forgets nothing.

    A clock that goes back does not give the day anew. Raises ConfigError for a file that cannot be
    read: the operator decides whether to remove it.
    """

    def __init__(self, path: Path, today: Callable[[], str] = _today) -> None:
        self._path, self._today = path, today
        self._counted = _Counted("", {})
        if path.exists():
            try:
                data = read_private(path, MAX_BYTES)
                self._counted = msgspec.json.decode(data, type=_Counted)
            except (OSError, ValueError, RecursionError) as error:
                raise ConfigError(
                    f"{path}: the rows counted today cannot be read ({error}); remove the file to "
                    "count from 0"
                ) from error

    def take(self, client: str, model: str, rows: int, most: int) -> bool:
        """Count `rows` more if that is at most `most` today; whether it is."""
        today = max(self._today(), self._counted.day)
        if today != self._counted.day:
            self._counted = _Counted(today, {})
        of_client = self._counted.rows.setdefault(client, {})
        total = of_client.get(model, 0) + rows
        if total > most:
            return False
        of_client[model] = total
        data = json.dumps(msgspec.to_builtins(self._counted), sort_keys=True)
        write_atomic(self._path, data.encode())
        return True
