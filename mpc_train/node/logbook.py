"""A node's audit log, as its own file describes it, and the alerts that go out from it."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from mpc_train.run.node_config import Audit
from mpc_train.run.place import Place
from parties.audit.alerts import Alerts, AlertSettings
from parties.audit.entries import Entry, Kind, Value
from parties.audit.log import AuditLog, log_folder, note_attempt
from parties.errors import AuditError
from parties.keys.services.service import KeyService
from parties.keys.vault import Vault

NOT_YET = -1
"""The number of an entry that will be written when somebody opens the log."""


def failed_attempt(place: Place, settings: Audit) -> None:
    """Keep that the identity could not be opened, and tell it at the 2nd, 4th, 8th … time since it
    last was."""
    times = note_attempt(log_folder(place.home, place.name))
    if times < 2 or times.bit_count() != 1:
        return
    alerts = _alerts(place, settings, lambda way, how: None)
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields: dict[str, Value] = {"of": "identity", "times": times}
    alerts(NOT_YET, Entry(now, Kind.AUTHENTICATION_FAILED, fields=fields))
    alerts.close()


def _alerts(place: Place, settings: Audit, failed: Callable[[str, str], None]) -> Alerts:
    told = AlertSettings(settings.webhook, settings.command, settings.per_minute)
    return Alerts(place.name, told, failed)


@contextlib.contextmanager
def logbook(
    place: Place, settings: Audit, identity: Vault, keys: KeyService, verb: str
) -> Iterator[AuditLog]:
    """The log of the node of `identity`, which is open inside; begins with why it was opened.

    keys: wraps the log's key. What an error inside means for security is logged. Raises AuditError.
    """
    opened: list[AuditLog] = []

    def failed(way: str, how: str) -> None:
        with contextlib.suppress(AuditError):
            for one in opened:
                one.append(Kind.ALERT_FAILED, {"by": way, "how": how})

    alerts = _alerts(place, settings, failed)
    with AuditLog(log_folder(place.home, place.name), identity, keys, alerts) as audit:
        opened.append(audit)
        try:
            audit.append(Kind.IDENTITY_OPENED, {"by": verb})
            yield audit
        except BaseException as error:
            audit.failed(error)
            raise
        finally:
            alerts.close()
