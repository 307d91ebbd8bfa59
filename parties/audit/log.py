"""A node's audit log, for writing: entries are durable when `append` returns, or it raises.

    audit/NAME/records      the log (`record`): append-only
    audit/NAME/key          the log's key, wrapped by the vault's key service
    audit/NAME/key.AUDITOR  the same, sealed to an auditor (`auditors`)
    audit/NAME/checkpoint   the newest checkpoint that this node signed
    audit/NAME/attempts     failed attempts to open the identity, until somebody opens it

Several processes of one node may write at a time: each append takes a lock, reads what others have
added and goes on from there. One record is in flight at a time, and reaches the disk before the
lock is given back. So after a crash at most the last record is incomplete, and it is none that a
checkpoint covers: that is what distinguishes a crash from an attack when a log is opened. A torn
record is cut off, with an entry that says so; anything else that is wrong is an AuditTamperedError.

A clock that goes back is an entry, and no reason to stop. When the node's identity is rotated, the
succession is an entry, and its successor signs from there on.
"""

import contextlib
import fcntl
import hmac
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from parties.audit import auditors, merkle, reading
from parties.audit.auditors import LOG_KEY
from parties.audit.checkpoint import (
    Checkpoint,
    origin_of,
    read_checkpoint,
    sign_checkpoint,
    verify_by_line,
)
from parties.audit.entries import Entry, Kind, Value, kind_of, read_entry
from parties.audit.reading import ATTEMPTS, CHECKPOINT, KEY, LOCK, RECORDS, Fault, Public
from parties.audit.record import (
    MAX_PUBLIC_BYTES,
    SALT_BYTES,
    Record,
    first_chain,
    header,
    opening_key,
    sealer,
)
from parties.errors import AuditError, AuditTamperedError, VaultError
from parties.files import private_directory, read_bounded, write_atomic
from parties.keys.identity import Card, reason
from parties.keys.services.service import KeyService
from parties.keys.statements import Succession
from parties.keys.vault import Vault
from protocols.errors import EnvelopeError
from protocols.sealing import container, stored
from protocols.sealing.stored import ObjectInfo

log = logging.getLogger(__name__)

SPARE_BYTES = 4 << 20
"""Room that a log wants to find when it is opened: a run writes some kB."""

MAX_ATTEMPTS_BYTES = 1 << 16
_FIRST = 2
"""Entries of a log that has just been made, before its first checkpoint: a crash may come there."""

_ADVICE = (
    "the log was altered, or an older state of it was put back; keep the folder as it is, tell the "
    "others, and compare it with what they hold: mpc-train audit verify"
)


def log_folder(home: Path, name: str) -> Path:
    """Where the log of the node `name` lies."""
    return home / "audit" / name


def note_attempt(folder: Path) -> int:
    """Keep that somebody failed to open the identity: without it nothing can be encrypted yet.

    Returns how many have since somebody last succeeded; 0 where that cannot be kept.
    """
    with contextlib.suppress(OSError):
        private_directory(folder)
        path = folder / ATTEMPTS
        if not path.exists() or path.stat().st_size < MAX_ATTEMPTS_BYTES:
            with path.open("ab") as stream:
                os.chmod(path, 0o600)
                stream.write(f"{_now()}\n".encode())
            return path.read_bytes().count(b"\n")
    return 0


class AuditLog:
    """The log of the node of `identity`, in `folder`, which is made if need be.

    keys: wraps the log's key. heard: hears each entry of an alarming kind, once it is durable.
    clock: says the time, ISO 8601 with milliseconds, UTC. Raises AuditError and
    AuditTamperedError, both here and in `append`.
    """

    def __init__(
        self,
        folder: Path,
        identity: Vault,
        keys: KeyService,
        heard: Callable[[int, Entry], None] | None = None,
        clock: Callable[[], str] = lambda: _now(),
    ) -> None:
        self._folder, self._identity, self._clock = folder, identity, clock
        self._heard = heard
        self.origin = origin_of(identity.card)
        self._thread = threading.RLock()
        self._depth = 0
        self._leaves: list[bytes] = []
        self._held: dict[str, tuple[bytes, Checkpoint]] = {}
        self._last_time = self._key_file = ""
        self._successions: set[str] = set()
        self._signer: Card | None = None
        """By which identity the newest checkpoint was signed."""
        self._signed = 0
        """How many entries this process has signed."""
        self._file = self._lock = -1
        try:
            private_directory(folder)
            self._lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            if free < SPARE_BYTES:
                raise AuditError(
                    f"{folder}: {free >> 10} KiB free, and the audit log wants {SPARE_BYTES >> 20} "
                    "MiB; make room. Nothing was shared"
                )
            with self._locked():
                self._open(keys)
        except BaseException:
            self._release()
            raise

    def close(self) -> None:
        """Sign what has been added, so that nobody can take it back unnoticed, and close."""
        if self._file >= 0 and self._signed < len(self._leaves):
            try:
                self.checkpoint()
            except AuditError as error:
                log.error("%s", error)
        self._release()

    def _release(self) -> None:
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1

    def __enter__(self) -> "AuditLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """How many entries there are."""
        return len(self._leaves)

    def append(
        self,
        kind: Kind,
        fields: Mapping[str, Value] | None = None,
        *,
        job: str = "",
        digest: str = "",
        public: Public = reading.NOTHING,
    ) -> int:
        """Add an entry, which is durable afterwards; return its number.

        Raises AuditError where it cannot be written; the log is then as before.
        """
        with self._locked():
            self._catch_up()
            now = self._clock()
            if now < self._last_time:
                self._append_own(Kind.CLOCK_BACK, {"before": self._last_time})
            entry = Entry(now, kind, job, digest, dict(fields or {}))
            number = self._write(entry, public)
        if self._heard is not None:
            self._heard(number, entry)
        return number

    def failed(self, error: BaseException, *, job: str = "", digest: str = "") -> None:
        """Log what an error means for security, if anything; never raises."""
        kind = kind_of(error)
        if kind is None:
            return
        code = str(getattr(error, "code", "internal"))
        try:
            self.append(kind, {"code": code}, job=job, digest=digest)
        except AuditError as also:
            log.error("%s", also)

    def checkpoint(self) -> bytes:
        """Sign how long the log is now and its root; keep that durably, and return the note."""
        with self._locked():
            self._catch_up()
            self._check_succeeded()
            note = sign_checkpoint(self._identity, len(self._leaves), merkle.root(self._leaves))
            try:
                write_atomic(self._folder / CHECKPOINT, note)
            except OSError as error:
                raise self._unwritable(error) from error
            self._signed = len(self._leaves)
            return note

    def consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the first `new` entries go on from the first `old` ones.

        Raises ValueError where there are not so many.
        """
        with self._locked():
            return merkle.consistency_proof(self._leaves[:new], old)

    def held(self) -> dict[str, tuple[bytes, Checkpoint]]:
        """By origin, the longest checkpoint of each other log that this one holds."""
        with self._locked():
            self._catch_up()
            return dict(self._held)

    def entries(self) -> Iterator[tuple[int, Entry]]:
        """All entries so far, decrypted; AuditTamperedError names the one that is wrong."""
        with self._locked():
            self._catch_up()
            found = reading.read_log(self._folder)
            self._refuse(found)
        for number, record in enumerate(found.records):
            try:
                yield number, read_entry(record.opened(self._key, self.origin))
            except AuditTamperedError as error:
                raise AuditTamperedError(f"{self._folder}: entry {number} {error}") from error

    def mac(self, data: bytes) -> str:
        """HMAC-SHA-256 under a key of this log: says nothing to whoever has not the log's key."""
        return hmac.digest(opening_key(self._key), data, "sha256").hex()

    @property
    def key_id(self) -> str:
        """The id of the key that wraps the log's key."""
        return self._read_key()[0].key_id

    def rewrap(self, old: KeyService, new: KeyService) -> None:
        """Wrap the log's key under the current key of `new`, where it is not."""
        with self._locked():
            key, _ = self._read_key()
            if key.key_id != new.current:
                self._write_key(stored.rewrap(key, old, new))

    def share_with(self, keys: KeyService, cards: Sequence[Card]) -> None:
        """Seal the log's key to these auditors and to nobody else, where it is not.

        keys: unwraps the log's key. The change is an entry before it is made.
        """
        with self._locked():
            header, _ = self._read_key()
            if auditors.sealed_to(self._folder, header, cards):
                return
            self._catch_up()
            self._append_own(Kind.LOG_SHARED, {"with": tuple(card.name for card in cards)})
            try:
                auditors.seal_to(self._folder, header, self._file_key(keys, header), cards)
            except OSError as error:
                raise self._unwritable(error) from error

    def _open(self, keys: KeyService) -> None:
        records = self._folder / RECORDS
        try:
            fresh = not records.exists()
            if fresh and not (self._folder / KEY).exists():
                self._make_key(keys)
            self._key = self._unwrapped(keys)
            if fresh:
                if (self._folder / CHECKPOINT).exists():
                    raise AuditTamperedError(f"{records}: is gone; {_ADVICE}")
                write_atomic(records, header(self.origin))
            self._file = os.open(records, os.O_RDWR)
        except OSError as error:
            raise self._unwritable(error) from error
        self._renew()
        found = reading.read_log(self._folder)
        if found.origin != self.origin:
            raise AuditError(
                f"{self._folder}: is the log of {found.origin}, not of this identity; move the "
                "folder away, and keep it"
            )
        self._end = found.begins
        self._take(found.records, found.faults, found.torn, found.size)
        self._check_own()
        if fresh:
            self._append_own(Kind.LOG_BEGUN, {"origin": self.origin})
        self._note_key()
        self._note_rotations(None if fresh else self._signer)
        if not self._signed:
            self.checkpoint()
        self._note_attempts()

    def _note_rotations(self, signer: Card | None) -> None:
        """Keep by which successions this identity took over from the one that signed last, and go
        on under its signature.

        signer: whose checkpoint was found; None: the log is this identity's from the beginning.
        """
        current = self._identity.card
        if signer is None or signer.digest == current.digest:
            return
        for each in self._identity.successions:
            text = each.to_text()
            if each.new.sequence > signer.sequence and text not in self._successions:
                fields: dict[str, Value] = {
                    "before": each.old.fingerprint,
                    "after": each.new.fingerprint,
                    "sequence": each.new.sequence,
                }
                self._append_own(Kind.IDENTITY_ROTATED, fields, Public(succession=text))
        self._signer = current
        self.checkpoint()

    def _check_succeeded(self) -> None:
        """Raise AuditError if another process has gone on under a successor of this identity."""
        mine = self._identity.card.digest
        if any(Succession.from_text(text).old.digest == mine for text in self._successions):
            raise AuditError(
                f"{self._folder}: the identity of {self._identity.card.name} was rotated since "
                "this process opened it; start it again"
            )

    def succeed(self, identity: Vault) -> None:
        """Go on under the successor of this log's identity, in the same process."""
        with self._locked():
            self._catch_up()
            if origin_of(identity.card) != self.origin:
                raise AuditError(f"{self._folder}: is not the log of {identity.card.name}")
            before, self._identity = self._identity.card, identity
            self._note_rotations(before)

    def _check_own(self) -> None:
        """That the log goes on from what this node signed last."""
        newest = self._own_checkpoint()
        if newest is None:
            if len(self._leaves) > _FIRST:
                raise AuditTamperedError(f"{self._folder / CHECKPOINT}: is gone; {_ADVICE}")
            return
        self._signed = newest.size
        if newest.size > len(self._leaves):
            raise AuditTamperedError(
                f"{self._folder}: has {len(self._leaves)} entries, and this node has signed "
                f"{newest.size}; {_ADVICE}"
            )
        if merkle.root(self._leaves[: newest.size]) != newest.root:
            raise AuditTamperedError(
                f"{self._folder}: one of the first {newest.size} entries is not the one that was "
                f"there when this node signed them; {_ADVICE}"
            )

    def _own_checkpoint(self) -> Checkpoint | None:
        path = self._folder / CHECKPOINT
        try:
            data = read_bounded(path, 1 << 18)
            before = [each.old for each in reversed(self._identity.successions)]
            found, self._signer = verify_by_line(data, [self._identity.card, *before])
            return found
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise AuditError(f"{path}: cannot be read: {error}") from error
        except AuditTamperedError as error:
            raise AuditTamperedError(f"{path}: {error}; {_ADVICE}") from error

    def _catch_up(self) -> None:
        """Take in what other processes have added since; cut off what one left incomplete."""
        try:
            size = os.fstat(self._file).st_size
            if size == self._end:
                return
            data = os.pread(self._file, max(size - self._end, 0), self._end)
        except OSError as error:
            raise self._unwritable(error) from error
        if size < self._end:
            raise AuditTamperedError(f"{self._folder}: became shorter; {_ADVICE}")
        chain = self._chain()
        records, faults, torn = reading.parse(data, 0, chain, len(self._leaves))
        start = self._end
        self._take(records, faults, None if torn is None else start + torn, size, start)

    def _take(
        self,
        records: Sequence[Record],
        faults: Sequence[Fault],
        torn: int | None,
        size: int,
        start: int = 0,
    ) -> None:
        """Go on behind these records, which begin at byte `start` of the file."""
        if faults:
            raise AuditTamperedError(f"{self._folder}: {faults[0]}; {_ADVICE}")
        for record in records:
            self._leaves.append(record.leaf)
            self._end = start + record.end
            if record.public:
                self._hold(reading.public_of(record))
        if records:
            try:
                self._last_time = read_entry(records[-1].opened(self._key, self.origin)).time
            except AuditTamperedError as error:
                number = len(self._leaves) - 1
                raise AuditTamperedError(f"{self._folder}: entry {number} {error}") from error
        if torn is not None:
            newest = self._own_checkpoint()
            if newest is not None and newest.size > len(self._leaves):
                raise AuditTamperedError(
                    f"{self._folder}: entry {len(self._leaves)} is altered; {_ADVICE}"
                )
            try:
                os.ftruncate(self._file, torn)
                os.fsync(self._file)
            except OSError as error:
                raise self._unwritable(error) from error
            self._append_own(Kind.LOG_TORN, {"bytes": size - torn})

    def _hold(self, public: Public) -> None:
        self._key_file = public.key_file or self._key_file
        if public.succession:
            self._successions.add(public.succession)
        if not public.checkpoint:
            return
        note = public.checkpoint.encode()
        found = read_checkpoint(note)
        known = self._held.get(found.origin)
        if known is None or known[1].size <= found.size:
            self._held[found.origin] = (note, found)

    def _write(self, entry: Entry, public: Public) -> int:
        """One record, durable. Nothing of it is there if this raises."""
        number = len(self._leaves)
        shown = public.encoded() if public != reading.NOTHING else b""
        if len(shown) > MAX_PUBLIC_BYTES:
            # Nobody could read the log any more, this node included.
            raise AuditError(f"the public part of an entry has {len(shown)} bytes")
        data = self._sealed(self.origin, number, self._chain(), shown, entry.encoded())
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self._end + written)
            os.fsync(self._file)
        except BaseException as error:
            # Somebody may have seen what is taken back here: its key and nonce are done with.
            self._renew()
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
                os.fsync(self._file)
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise
        self._leaves.append(data[-merkle.HASH_BYTES :])
        self._end += len(data)
        self._last_time = entry.time
        self._hold(public)
        return number

    def _append_own(
        self, kind: Kind, fields: Mapping[str, Value], public: Public = reading.NOTHING
    ) -> int:
        return self._write(Entry(self._clock(), kind, fields=dict(fields)), public)

    def _chain(self) -> bytes:
        if self._leaves:
            return self._leaves[-1]
        return first_chain(self.origin)

    def _renew(self) -> None:
        self._sealed = sealer(self._key, os.urandom(SALT_BYTES))

    def _make_key(self, keys: KeyService) -> None:
        info = ObjectInfo(self._identity.card.name, *LOG_KEY, 1, "", _now())
        context, key = info.context(), container.new_file_key()
        wrap_info = container.wrap_info(container.OBJECT, context)
        key_id, wrapped = keys.wrap(key, wrap_info)
        made = container.Header(container.OBJECT, context, key_id, wrapped)
        write_atomic(self._folder / KEY, made.framed())

    def _write_key(self, key: container.Header) -> None:
        try:
            write_atomic(self._folder / KEY, key.framed())
        except OSError as error:
            raise self._unwritable(error) from error
        self._note_key()

    def _read_key(self) -> tuple[container.Header, bytes]:
        path = self._folder / KEY
        try:
            data = read_bounded(path, container.MAX_HEADER_BYTES)
            key, info = stored.read_header(data)
        except (OSError, ValueError) as error:
            raise AuditError(f"{path}: cannot be read: {reason(error)}") from error
        except EnvelopeError as error:
            raise AuditTamperedError(f"{path}: {error}; {_ADVICE}") from error
        if (info.node, info.kind, info.name) != (self._identity.card.name, *LOG_KEY):
            raise AuditTamperedError(f"{path}: is another key: {info.title}; {_ADVICE}")
        return key, data

    def _unwrapped(self, keys: KeyService) -> bytes:
        key, _ = self._read_key()
        return key.payload_key(self._file_key(keys, key))

    def _file_key(self, keys: KeyService, key: container.Header) -> bytes:
        try:
            return keys.unwrap(key.key_id, key.wrapped_key, key.wrap_info)
        except VaultError as error:
            raise AuditError(f"{self._folder / KEY}: {error}") from error

    def _note_key(self) -> None:
        """Keep which file holds the key, where the log does not say so yet."""
        said = sha256(self._read_key()[1]).hexdigest()
        if said != self._key_file:
            fields = {"key": self._read_key()[0].key_id}
            self._append_own(Kind.LOG_KEY, fields, Public(key_file=said))

    def _note_attempts(self) -> None:
        path = self._folder / ATTEMPTS
        try:
            lines = path.read_bytes().count(b"\n")
            path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unwritable(error) from error
        if lines:
            fields: dict[str, Value] = {"of": "identity", "times": lines}
            number = self._append_own(Kind.AUTHENTICATION_FAILED, fields)
            if self._heard is not None:
                self._heard(
                    number, Entry(self._last_time, Kind.AUTHENTICATION_FAILED, "", "", fields)
                )

    def _refuse(self, found: reading.Log) -> None:
        if found.faults:
            raise AuditTamperedError(f"{self._folder}: {found.faults[0]}; {_ADVICE}")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One thread and one process at a time; may be nested."""
        with self._thread:
            if self._lock < 0:
                raise AuditError(f"{self._folder}: the audit log is closed")
            if not self._depth:
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _unwritable(self, error: OSError) -> AuditError:
        return AuditError(
            f"{self._folder}: the audit log cannot be written: {reason(error)}; make it writable, "
            "or make room. Without it nothing is shared or revealed"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
