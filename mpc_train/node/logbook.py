"""A node's audit log, as its own file describes it, and the alerts that go out from it."""

import contextlib
import logging
from collections.abc import Iterator

from mpc_train.run.node_config import Audit, Place
from parties.audit.alerts import Alerts, AlertSettings
from parties.audit.entries import Kind
from parties.audit.log import AuditLog, log_folder
from parties.errors import AuditError
from parties.keys.services.service import KeyService
from parties.keys.vault import Vault

log = logging.getLogger(__name__)


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

    alerts = Alerts(
        place.name, AlertSettings(settings.webhook, settings.command, settings.per_minute), failed
    )
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
