"""A log's key for its auditors: sealed to their cards, beside the key that the vault wraps.

    audit/NAME/key.AUDITOR   the header of the file `key`, its file key sealed to the auditor's card

Guarantees that an auditor named in the node's rules reads the log, or a copy of its folder, with
the auditor's own identity and nothing of the node's. An auditor who was named once may have kept
the key, which stays the same: what is taken away is the file, not what somebody remembers. Whether
entries are missing at the end is for `verify` to say, which needs no key.
"""

from collections.abc import Iterable
from pathlib import Path

from parties.audit import reading
from parties.audit.entries import Entry, read_entry
from parties.audit.reading import KEY
from parties.errors import AuditError, AuditTamperedError, VaultError
from parties.files import read_bounded, write_atomic
from parties.keys.identity import Card, check_name, reason
from parties.keys.services.identity_service import IdentityService, key_id_of, wrap_for
from parties.keys.vault import Vault
from protocols.errors import EnvelopeError
from protocols.sealing import container, stored
from protocols.sealing.container import Header

LOG_KEY = ("audit", "log")
"""Kind and name of the object that a log's key belongs to."""


def sealed_to(folder: Path, key: Header, cards: Iterable[Card]) -> bool:
    """Whether exactly these cards' owners have the log's key in the folder; raises AuditError."""
    wanted = {card.name: key_id_of(card) for card in cards}
    found = {}
    for path in _key_files(folder):
        try:
            header, _ = stored.read_header(read_bounded(path, container.MAX_HEADER_BYTES))
        except (OSError, ValueError, EnvelopeError):
            return False  # it is written anew
        same = header.context == key.context
        found[path.name.removeprefix(f"{KEY}.")] = header.key_id if same else ""
    return found == wanted


def seal_to(folder: Path, key: Header, file_key: bytes, cards: Iterable[Card]) -> None:
    """Seal the log's key to these cards, and remove the files of others; raises OSError."""
    wanted = {_path(folder, card.name): card for card in cards}
    for path in _key_files(folder):
        if path not in wanted:
            path.unlink()
    for path, card in wanted.items():
        key_id, wrapped = wrap_for(card, file_key, key.wrap_info)
        made = Header(container.OBJECT, key.context, key_id, wrapped)
        write_atomic(path, made.framed())


def entries_for(folder: Path, auditor: Vault) -> tuple[str, list[tuple[int, Entry]]]:
    """The origin of the log in `folder`, and its entries, opened with an auditor's identity.

    Raises AuditError where the log's key is not sealed to it, AuditTamperedError, which names the
    entry, for a log that was altered.
    """
    name = auditor.card.name
    path = _path(folder, name)
    try:
        data = read_bounded(path, container.MAX_HEADER_BYTES)
        header, info = stored.read_header(data)
    except FileNotFoundError as error:
        raise AuditError(
            f"{folder}: the key of this log is not sealed to {name}: its node's rules have to list "
            f"{name} under auditors, and the node has to be started since"
        ) from error
    except (OSError, ValueError) as error:
        raise AuditError(f"{path}: cannot be read: {reason(error)}") from error
    except EnvelopeError as error:
        raise AuditTamperedError(f"{path}: {error}") from error
    if (info.kind, info.name) != LOG_KEY:
        raise AuditTamperedError(f"{path}: is another key: {info.title}")
    try:
        file_key = IdentityService(auditor).unwrap(
            header.key_id, header.wrapped_key, header.wrap_info
        )
    except VaultError as error:
        raise AuditError(f"{path}: {error}") from error
    key, log = header.payload_key(file_key), reading.read_log(folder)
    if log.faults:
        raise AuditTamperedError(f"{folder}: {log.faults[0]}")
    found = []
    for number, record in enumerate(log.records):
        try:
            found.append((number, read_entry(record.opened(key, log.origin))))
        except AuditTamperedError as error:
            raise AuditTamperedError(f"{folder}: entry {number} {error}") from error
    return log.origin, found


def _path(folder: Path, name: str) -> Path:
    return folder / f"{KEY}.{check_name(name)}"


def _key_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{KEY}.*"))
