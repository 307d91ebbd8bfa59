"""Reading an audit log without its key: which records there are, and whether they hang together.

`read_log` reads all of it and says where it breaks. What is found is one of three: the records are
in order; the file ends inside its last record, as after a crash (`torn`); or something was altered,
cut out or exchanged, and `faults` names the entries.
"""

import base64
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from parties.audit.checkpoint import Checkpoint, read_checkpoint
from parties.audit.record import CutOffError, Record, first_chain, read_header, read_record
from parties.errors import AuditError, AuditTamperedError
from parties.files import read_bounded
from parties.keys.identity import reason
from protocols.errors import EnvelopeError
from protocols.sealing import container, stored

RECORDS, KEY, CHECKPOINT, LOCK, ATTEMPTS = "records", "key", "checkpoint", "lock", "attempts"
"""The files of a log."""


class Public(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What of an entry everybody may read, so that an auditor needs no key. checkpoint: a note of
    another node's log. key_file: SHA-256 of the file that holds the log's key. succession: by which
    this node's identity was replaced (`statements`)."""

    checkpoint: str = ""
    key_file: str = ""
    succession: str = ""

    def encoded(self) -> bytes:
        return msgspec.json.encode(self)


NOTHING = Public()


@dataclass(frozen=True)
class Fault:
    """entry: counted from 0; -1: the log as a whole."""

    entry: int
    what: str

    def __str__(self) -> str:
        return self.what if self.entry < 0 else f"entry {self.entry} {self.what}"


@dataclass
class Log:
    """A log as it lies there. torn: where its incomplete last record begins, or None."""

    origin: str
    begins: int
    records: list[Record] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    torn: int | None = None
    size: int = 0
    """Bytes of the file."""

    @property
    def leaves(self) -> list[bytes]:
        return [record.leaf for record in self.records]

    @property
    def end(self) -> int:
        return self.records[-1].end if self.records else self.begins

    def next_chain(self) -> bytes:
        return self.records[-1].leaf if self.records else first_chain(self.origin)


def read_log(folder: Path) -> Log:
    """Raises AuditError where it cannot be read, AuditTamperedError where it is not a log."""
    path = folder / RECORDS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AuditError(f"{path}: cannot be read: {reason(error)}") from error
    try:
        origin, begins = read_header(data)
    except AuditTamperedError as error:
        raise AuditTamperedError(f"{path}: {error}") from error
    log = Log(origin, begins, size=len(data))
    log.records, log.faults, log.torn = parse(data, begins, first_chain(origin), 0)
    return log


def parse(
    data: bytes, start: int, chain: bytes, number: int
) -> tuple[list[Record], list[Fault], int | None]:
    """Records from `start` on, which follow `chain`; what is wrong; where a torn one begins."""
    records: list[Record] = []
    faults: list[Fault] = []
    while start < len(data):
        here = number + len(records)
        try:
            record = read_record(data, start)
        except CutOffError:
            return records, faults, start
        except AuditTamperedError as error:
            if not faults and not any(data[start : start + 4]):
                # Some file systems have the new length on the disk before the bytes.
                return records, faults, start
            faults.append(Fault(here, f"{error}; what follows it cannot be read"))
            return records, faults, None
        if not record.intact:
            if record.end == len(data) and not faults:
                return records, faults, start
            faults.append(Fault(here, "is altered"))
        elif record.number != here:
            faults.append(Fault(here, f"is not there; number {record.number} stands in its place"))
        elif record.chain != chain and not (faults and faults[-1].entry == here - 1):
            what = f"does not follow entry {here - 1}: one of the two was exchanged"
            faults.append(Fault(here, what if here else "does not follow the header"))
        records.append(record)
        chain, start = record.leaf, record.end
    return records, faults, None


def public_of(record: Record) -> Public:
    """Raises AuditTamperedError."""
    if not record.public:
        return NOTHING
    try:
        return msgspec.json.decode(record.public, type=Public)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise AuditTamperedError("has a public part that nobody can read") from error


def received(log: Log) -> list[tuple[int, bytes, Checkpoint]]:
    """All checkpoints of other nodes that this log holds: entry, note, what it says.

    Raises AuditTamperedError for one that is malformed.
    """
    found = []
    for number, record in enumerate(log.records):
        try:
            text = public_of(record).checkpoint.encode()
            if text:
                found.append((number, text, read_checkpoint(text)))
        except AuditTamperedError as error:
            raise AuditTamperedError(f"entry {number} {error}") from error
    return found


def shown_root(root: bytes) -> str:
    return base64.b64encode(root).decode()


def key_id_of(folder: Path) -> str:
    """The id of the key that wraps the log's key; nothing where there is no log yet.

    Raises AuditError.
    """
    path = folder / KEY
    try:
        return stored.read_header(read_bounded(path, container.MAX_HEADER_BYTES))[0].key_id
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, EnvelopeError) as error:
        raise AuditError(f"{path}: cannot be read: {error}") from error
