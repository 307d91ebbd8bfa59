"""The audit log of a node: what is written stays, crashes lose nothing else, and nothing passes
for what was written."""

import contextlib
import errno
import itertools
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from parties.audit import log as log_module
from parties.audit import record as record_module
from parties.audit.entries import Entry, Kind, Value, kind_of
from parties.audit.log import AuditLog, note_attempt
from parties.audit.reading import Public, key_id_of, read_log
from parties.audit.record import MAX_PUBLIC_BYTES
from parties.audit.verify import Report, verify_log
from parties.errors import AuditError, AuditTamperedError, KeyServiceError, VaultError
from parties.keys.services.file_service import FileService
from parties.keys.services.identity_service import IdentityService
from parties.keys.vault import MemoryVault
from protocols.errors import AuthenticationError, EnvelopeError, FrameError

ANN, BOB = MemoryVault.generate("ann"), MemoryVault.generate("bob")
FIELDS: dict[str, Value] = {
    "output": "accuracy",
    "step": 3,
    "to": ("ann", "bob"),
    "values": 1,
    "last": None,
}


def opened(
    folder: Path, identity: MemoryVault = ANN, clock: Callable[[], str] | None = None
) -> AuditLog:
    keys = IdentityService(identity)
    if clock is not None:
        return AuditLog(folder, identity, keys, clock=clock)
    return AuditLog(folder, identity, keys)


def kinds(log: AuditLog) -> list[Kind]:
    return [entry.kind for _, entry in log.entries()]


def shown(folder: Path, identity: MemoryVault = ANN) -> list[Kind]:
    with opened(folder, identity) as log:
        return kinds(log)


BEGINNING = [Kind.LOG_BEGUN, Kind.LOG_KEY]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log with some entries, closed well."""
    path = tmp_path / "audit" / "ann"
    with opened(path) as log:
        for number in range(5):
            log.append(Kind.OPENING, {**FIELDS, "step": number}, job="study", digest="ab" * 32)
    return path


def test_what_is_written_is_shown(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        number = log.append(Kind.OPENING, FIELDS, job="study", digest="ab" * 32)
        found = dict(log.entries())[number]
    assert number == 2 and shown(tmp_path / "log") == [*BEGINNING, Kind.OPENING]
    assert (found.kind, found.job, found.digest) == (Kind.OPENING, "study", "ab" * 32)
    assert found.fields == FIELDS
    assert found.time.endswith("Z") and len(found.time) == 24
    assert verify_log(tmp_path / "log", ANN.card).ok


def test_nothing_of_an_entry_is_on_the_disk(folder: Path) -> None:
    blob = b"".join(path.read_bytes() for path in folder.iterdir())
    for text in (b"accuracy", b"opening", b"study", b"abab"):
        assert text not in blob
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


def test_another_identity_opens_nothing(folder: Path) -> None:
    with pytest.raises(AuditTamperedError, match="is another key: audit log"):
        opened(folder, BOB)
    with pytest.raises(AuditError, match="another identity than the present one of ann"):
        opened(folder, MemoryVault.generate("ann"))


def noted(call: Callable[..., Any], name: str, done: list[str]) -> Callable[..., Any]:
    def noting(*arguments: Any) -> Any:
        done.append(name)
        return call(*arguments)

    return noting


def test_an_entry_is_durable_when_append_returns(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("pwrite", "fsync"):
        monkeypatch.setattr(os, name, noted(getattr(os, name), name, done))
    with opened(folder) as log:
        done.clear()
        log.append(Kind.OPENING, FIELDS)
        assert done == ["pwrite", "fsync"]


def test_no_key_and_nonce_meet_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a lost entry, a restored backup, a failed write and with two writers at a time."""
    used: list[tuple[bytes, bytes]] = []

    class Watched:
        def __init__(self, key: bytes) -> None:
            self.key, self.cipher = key, AESGCM(key)

        def encrypt(self, nonce: bytes, data: bytes, bound: bytes) -> bytes:
            used.append((self.key, nonce))
            return self.cipher.encrypt(nonce, data, bound)

        def decrypt(self, nonce: bytes, data: bytes, bound: bytes) -> bytes:
            return self.cipher.decrypt(nonce, data, bound)

    monkeypatch.setattr(record_module, "AESGCM", Watched)
    backup = folder.with_name("backup")
    shutil.copytree(folder, backup)
    for number in range(3):
        with opened(folder) as log:
            log.append(Kind.OPENING, {**FIELDS, "step": number})
        cut(folder, 1)
        (folder / "checkpoint").write_bytes((backup / "checkpoint").read_bytes())
        with contextlib.suppress(AuditTamperedError), opened(folder) as log:
            log.append(Kind.RUN_ENDED)
        shutil.rmtree(folder)
        shutil.copytree(backup, folder)
    with opened(folder) as log:
        with pytest.raises(AuditError), full_disk(after=0):
            log.append(Kind.RUN_ENDED)
        log.append(Kind.RUN_ABORTED)
    with opened(folder) as one, opened(folder) as other:
        for number in range(6):
            (one, other)[number % 2].append(Kind.RUN_ENDED)
    assert len(used) == 14
    assert max(Counter(used).values()) == 1


@contextlib.contextmanager
def full_disk(after: int) -> Iterator[None]:
    """A disk that has room for so many more bytes."""
    write, left = os.pwrite, [after]

    def writing(descriptor: int, data: bytes, offset: int) -> int:
        if not left[0] and data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(left[0], len(data))
        left[0] -= taken
        return write(descriptor, data[:taken], offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", writing)
        yield


@pytest.mark.parametrize("after", [0, 1, 100])
def test_a_full_disk_is_one_clear_error_and_leaves_the_log_as_it_was(
    folder: Path, after: int
) -> None:
    before = (folder / "records").read_bytes()
    with opened(folder) as log:
        with full_disk(after), pytest.raises(AuditError, match="No space left on device; make it"):
            log.append(Kind.OPENING, FIELDS)
        assert (folder / "records").read_bytes() == before
        log.append(Kind.RUN_ABORTED)
    assert shown(folder)[-1] is Kind.RUN_ABORTED and verify_log(folder, ANN.card).ok


def test_an_entry_that_cannot_be_synced_is_taken_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "records").read_bytes()
    with opened(folder) as log:
        calls: list[int] = []

        def sync(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) == 1:
                raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", sync)
            with pytest.raises(AuditError, match="Input/output error"):
                log.append(Kind.OPENING, FIELDS)
        assert (folder / "records").read_bytes() == before


def test_a_log_without_room_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(AuditError, match="0 KiB free, and the audit log wants 4 MiB; make room"):
        opened(tmp_path / "log")
    assert not (tmp_path / "log" / "records").exists()


def cut(folder: Path, entries: int) -> int:
    """Drop so many records from the end; the file's length then."""
    found = read_log(folder)
    end = found.records[-entries - 1].end
    os.truncate(folder / "records", end)
    return end


def test_an_entry_that_is_torn_at_any_byte_is_cut_off_and_said(folder: Path) -> None:
    """A crash in the middle of a write, or before it reached the disk."""
    with opened(folder) as log:  # signed, so that what follows is not covered by a checkpoint
        pass
    backup = folder.with_name("backup")
    shutil.copytree(folder, backup)
    with opened(folder) as log:
        log.append(Kind.OPENING, FIELDS)
        whole = (folder / "records").read_bytes()
    start = len((backup / "records").read_bytes())
    before = len(shown(backup))
    for length in range(start, len(whole)):
        shutil.copyfile(backup / "checkpoint", folder / "checkpoint")
        (folder / "records").write_bytes(whole[:length])
        found = shown(folder)
        torn = [Kind.LOG_TORN] if length > start else []
        assert found[before:] == torn, length
        assert verify_log(folder, ANN.card).ok


def test_a_torn_entry_of_which_the_length_is_there_is_cut_off_as_well(folder: Path) -> None:
    """Some file systems have the new length on the disk before the bytes: zeros in their place."""
    backup = folder.with_name("backup")
    shutil.copytree(folder, backup)
    start = len((folder / "records").read_bytes())
    with opened(folder) as log:
        log.append(Kind.OPENING, FIELDS)
    whole = (folder / "records").read_bytes()
    for kept in range(start + 4, len(whole), 7):
        shutil.copyfile(backup / "checkpoint", folder / "checkpoint")
        (folder / "records").write_bytes(whole[:kept] + bytes(len(whole) - kept))
        assert shown(folder)[-1] is Kind.LOG_TORN
    said = {entry.kind: entry.fields for _, entry in opened(folder).entries()}
    assert said[Kind.LOG_TORN] == {"bytes": len(whole) - start}


def test_zeros_alone_are_torn(folder: Path) -> None:
    with (folder / "records").open("ab") as stream:
        stream.write(bytes(300))
    assert shown(folder)[-1] is Kind.LOG_TORN


def test_verify_names_a_torn_entry(folder: Path) -> None:
    with (folder / "records").open("ab") as stream:
        stream.write(b"\0\0\1\0abc")
    assert "entry 7 is incomplete" in str(verify_log(folder, ANN.card).faults[0])


def test_a_crash_while_the_log_is_made_is_no_harm(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    with opened(whole):
        pass
    records = (whole / "records").read_bytes()
    first = read_log(whole)
    for number, files in enumerate(
        [
            {"key": (whole / "key").read_bytes()},
            {"key": (whole / "key").read_bytes(), "records": records[: first.begins]},
            {"key": (whole / "key").read_bytes(), "records": records[: first.records[0].end]},
            {"key": (whole / "key").read_bytes(), "records": records},
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        assert set(BEGINNING) & set(shown(folder))
        assert verify_log(folder, ANN.card).ok


def faults(folder: Path, *against: Path) -> list[str]:
    return [str(fault) for fault in verify_log(folder, ANN.card, against).faults]


def test_each_byte_of_each_file_counts(folder: Path) -> None:
    """Flipped in every record, in the header, the key's file and the checkpoint: it is found, and
    in a record it is the right entry that is named."""
    whole = read_log(folder)
    starts = [whole.begins, *(record.end for record in whole.records)]
    sizes = {name: (folder / name).stat().st_size for name in ("records", "key", "checkpoint")}
    for name, size in sizes.items():
        path = folder / name
        before = path.read_bytes()
        step = 1 if name == "records" else 17
        for place in range(0, size, step):
            raw = bytearray(before)
            raw[place] ^= 0x10
            path.write_bytes(raw)
            found = faults(folder)
            assert found, (name, place)
            entry = sum(start <= place for start in starts) - 1
            if name == "records" and entry >= 0:
                assert f"entry {entry} " in found[0], (place, found)
        path.write_bytes(before)
    assert not faults(folder)


def test_a_node_does_not_go_on_from_an_altered_log(folder: Path) -> None:
    path = folder / "records"
    before = path.read_bytes()
    for place in range(0, len(before), 41):
        raw = bytearray(before)
        raw[place] ^= 1
        path.write_bytes(raw)
        with pytest.raises(AuditTamperedError):
            opened(folder)
        assert path.read_bytes() == raw, "it is kept as it is found"


def test_a_tail_that_is_gone_is_missed(folder: Path) -> None:
    cut(folder, 2)
    assert faults(folder) == [
        "entry 5 is missing: this node holds a signed checkpoint of 7 entries"
    ]
    with pytest.raises(AuditTamperedError, match="has 5 entries, and this node has signed 7"):
        opened(folder)
    (folder / "checkpoint").unlink()
    assert "checkpoint: is gone" in faults(folder)[0]
    with pytest.raises(AuditTamperedError, match="checkpoint: is gone"):
        opened(folder)


def test_a_log_that_is_gone_is_missed(folder: Path) -> None:
    (folder / "records").unlink()
    with pytest.raises(AuditTamperedError, match="records: is gone"):
        opened(folder)


def pieces(folder: Path) -> tuple[bytes, list[bytes]]:
    data, found = (folder / "records").read_bytes(), read_log(folder)
    ends = [found.begins, *(record.end for record in found.records)]
    return data[: found.begins], [data[a:b] for a, b in itertools.pairwise(ends)]


def test_entries_in_another_order_are_found(folder: Path) -> None:
    head, parts = pieces(folder)
    for order in ([0, 1, 3, 2, 4, 5, 6], [1, 0, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 6, 5]):
        (folder / "records").write_bytes(head + b"".join(parts[number] for number in order))
        moved = next(number for number, of in enumerate(order) if number != of)
        assert faults(folder)[0].startswith(f"entry {moved} is not there; number {order[moved]}")


@pytest.mark.parametrize("gone", [0, 3])
def test_an_entry_that_was_cut_out_is_found(folder: Path, gone: int) -> None:
    head, parts = pieces(folder)
    del parts[gone]
    (folder / "records").write_bytes(head + b"".join(parts))
    assert faults(folder)[0].startswith(f"entry {gone} is not there; number {gone + 1}")


def test_an_entry_of_another_log_does_not_fit(folder: Path, tmp_path: Path) -> None:
    """Written by the same node at the same place of a log that was begun anew."""
    other = tmp_path / "other"
    with opened(other) as log:
        for _ in range(5):
            log.append(Kind.RUN_ENDED)
    head, parts = pieces(folder)
    parts[4] = pieces(other)[1][4]
    (folder / "records").write_bytes(head + b"".join(parts))
    assert "entry 4 does not follow entry 3: one of the two was exchanged" in faults(folder)[0]
    with pytest.raises(AuditTamperedError, match="entry 4 does not follow"):
        opened(folder)


def rewritten(folder: Path, place: int) -> None:
    """What somebody with the log's key can do: replace an entry and seal all that follow anew."""
    with opened(folder) as log:
        key, origin = log._key, log.origin
        entries = [entry for _, entry in log.entries()]
        public = [record.public for record in read_log(folder).records]
    entries[place] = Entry(entries[place].time, Kind.RUN_ENDED)
    head, _ = pieces(folder)
    sealed = record_module.sealer(key, bytes(16))
    chain, data = record_module.first_chain(origin), head
    for number, entry in enumerate(entries):
        piece = sealed(origin, number, chain, public[number], entry.encoded())
        chain, data = piece[-32:], data + piece
    (folder / "records").write_bytes(data)


def test_an_entry_that_the_node_itself_replaced_is_found(folder: Path) -> None:
    signed = folder.with_name("held")
    shutil.copyfile(folder / "checkpoint", signed)
    rewritten(folder, 4)
    (found,) = faults(folder)
    assert found.startswith("one of the entries 0 to 6 is not the one that the signed checkpoint")
    with pytest.raises(AuditTamperedError, match="one of the first 7 entries is not the one"):
        opened(folder)
    # It can sign what it has made, and not take back what others hold.
    (folder / "checkpoint").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_module, "_FIRST", 100)
        with opened(folder):
            pass
    assert not faults(folder)
    assert f"which {signed} holds: it was exchanged" in faults(folder, signed)[0]


def test_a_fork_is_found_and_where(folder: Path) -> None:
    other = folder.with_name("fork")
    shutil.copytree(folder, other)
    for path, kind in ((folder, Kind.RUN_ENDED), (other, Kind.RUN_ABORTED)):
        with opened(path) as log:
            log.append(Kind.IDENTITY_OPENED)
            log.append(kind)
        assert not faults(path)
    assert faults(folder, other) == [f"entry 7 is another one in {other}: the log was forked there"]
    assert "one of the entries 0 to 8 is not the one" in faults(folder, other / "checkpoint")[0]


def test_an_old_log_in_its_place_is_found_by_what_others_hold(folder: Path) -> None:
    old = folder.with_name("old")
    shutil.copytree(folder, old)
    with opened(folder) as log:
        log.append(Kind.VAULT_EXPORT)
    held = folder.with_name("held")
    shutil.copyfile(folder / "checkpoint", held)
    shutil.rmtree(folder)
    shutil.copytree(old, folder)
    assert not faults(folder), "alone, nothing tells it from what it was"
    assert f"entry 7 is missing: {held} holds a signed checkpoint of 8" in faults(folder, held)[0]


def test_a_card_that_the_log_does_not_know_yet_is_said_to_be_newer(folder: Path) -> None:
    """Keys that were rotated between two runs have signed nothing yet: that is no forgery."""
    newer = replace(ANN.card, sequence=1, ed25519=BOB.card.ed25519)
    found = [str(fault) for fault in verify_log(folder, newer).faults]
    assert "is number 1 of ann: if the keys were rotated" in found[-1]
    assert "number 1" not in "".join(faults(folder))


def test_a_forged_checkpoint_and_a_wrong_card(folder: Path) -> None:
    report: Report = verify_log(folder, BOB.card)
    assert "and the card is of mpc-train-audit/bob" in str(report.faults[0])
    held = folder.with_name("held")
    note = (folder / "checkpoint").read_bytes()
    held.write_bytes(note.replace(b"\n7\n", b"\n6\n"))
    assert f"a checkpoint held by {held} is forged or altered" in faults(folder, held)[0]
    held.write_bytes(b"nothing")
    assert "is forged or altered" in faults(folder, held)[0]


def test_a_clock_that_goes_back_is_said_and_refused_nothing(tmp_path: Path) -> None:
    times = iter(
        f"2026-01-01T00:00:0{second}.000Z" for second in (1, 1, 2, 3, 1, 1, 1, 2, 2, 2, 0, 0, 0)
    )
    with opened(tmp_path / "log", clock=lambda: next(times)) as log:
        for _ in range(5):
            log.append(Kind.RUN_ENDED)
        found = [(entry.kind, entry.time[17:19], entry.fields) for _, entry in log.entries()]
    back = (Kind.CLOCK_BACK, "01", {"before": "2026-01-01T00:00:03.000Z"})
    assert [each for each in found if each[0] is Kind.CLOCK_BACK] == [back]
    assert [time for _, time, _ in found] == ["01", "01", "02", "03", "01", "01", "01", "02"]
    with opened(tmp_path / "log", clock=lambda: "2025-12-31T00:00:00.000Z") as log:
        log.append(Kind.RUN_ENDED)
        assert kinds(log)[-2:] == [Kind.CLOCK_BACK, Kind.RUN_ENDED]


def test_several_writers_take_turns(folder: Path) -> None:
    def write(log: AuditLog) -> None:
        for number in range(20):
            log.append(Kind.OPENING, {**FIELDS, "step": number})

    with opened(folder) as one, opened(folder) as other:
        threads = [threading.Thread(target=write, args=(log,)) for log in (one, other, one)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert one.append(Kind.RUN_ENDED) == 7 + 60
    assert verify_log(folder, ANN.card).ok and len(shown(folder)) == 68


def test_what_another_writer_left_incomplete_is_cut_off(folder: Path) -> None:
    with opened(folder) as log:
        with (folder / "records").open("ab") as stream:
            stream.write(b"\0\0\1\0abc")
        log.append(Kind.RUN_ENDED)
        assert kinds(log)[-2:] == [Kind.LOG_TORN, Kind.RUN_ENDED]
        os.truncate(folder / "records", 100)
        with pytest.raises(AuditTamperedError, match="became shorter"):
            log.append(Kind.RUN_ENDED)


def test_failed_attempts_are_entries_once_somebody_succeeds(folder: Path) -> None:
    heard: list[Entry] = []
    for _ in range(3):
        note_attempt(folder)
    with AuditLog(folder, ANN, IdentityService(ANN), lambda _, entry: heard.append(entry)) as log:
        assert kinds(log)[-1] is Kind.AUTHENTICATION_FAILED
    assert [entry.fields for entry in heard] == [{"of": "identity", "times": 3}]
    assert Kind.AUTHENTICATION_FAILED not in shown(folder)[-1:] or len(shown(folder)) == 8


def test_the_key_moves_to_another_service(folder: Path) -> None:
    old, new = IdentityService(ANN), FileService.create(folder.with_name("keys"), b"pass")
    with opened(folder) as log:
        log.rewrap(old, new)
        log.rewrap(new, new)
    assert key_id_of(folder) == new.current
    assert verify_log(folder, ANN.card).ok
    with pytest.raises(AuditError, match="another identity"):
        opened(folder)
    with AuditLog(folder, ANN, new) as log:
        assert [kind for kind in kinds(log) if kind is Kind.LOG_KEY] == [Kind.LOG_KEY] * 2
    # A crash came between the file and its entry: the next start adds it.
    with AuditLog(folder, ANN, new) as log:
        new.rotate()
        with full_disk(0), pytest.raises(AuditError):
            log.rewrap(new, new)
    assert "is not the file that the log speaks of" in faults(folder)[0]
    with AuditLog(folder, ANN, new):
        pass
    assert not faults(folder)


def test_a_digest_of_a_value_depends_on_the_log(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as one, opened(tmp_path / "two") as two:
        assert one.mac(b"value") == one.mac(b"value") != one.mac(b"other")
        assert one.mac(b"value") != two.mac(b"value")
        before = one.mac(b"value")
    with opened(tmp_path / "one") as one:
        assert one.mac(b"value") == before


def test_a_closed_log_takes_nothing(folder: Path) -> None:
    log = opened(folder)
    log.close()
    with pytest.raises(AuditError, match="is closed"):
        log.append(Kind.RUN_ENDED)


def test_errors_are_logged_by_what_they_mean() -> None:
    assert kind_of(AuthenticationError("x")) is Kind.AUTHENTICATION_FAILED
    assert kind_of(EnvelopeError("x")) is Kind.DECRYPTION_FAILED
    assert kind_of(FrameError("x")) is kind_of(ValueError("x")) is kind_of(VaultError("x")) is None
    wrapped = VaultError("of the object")
    wrapped.__cause__ = EnvelopeError("altered")
    assert kind_of(wrapped) is Kind.DECRYPTION_FAILED
    assert kind_of(KeyServiceError("away")) is None


def test_what_is_too_long_to_be_read_again_is_not_written(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with opened(folder) as log:
        before = log.size
        for length in (MAX_PUBLIC_BYTES // 2 + 1, MAX_PUBLIC_BYTES + 1):
            with pytest.raises(AuditError, match="the public part of an entry has"):
                log.append(Kind.RUN_STARTED, public=Public(checkpoint='"' * length))
        with pytest.raises(AuditError, match="at most 65536"):
            log.append(Kind.RUN_STARTED, {"long": "x" * (1 << 17)})
        assert log.size == before
    with opened(folder) as log:
        assert log.size >= before


@pytest.mark.parametrize(
    "origin", ["mpc-train-audit/ann\nall is well/0123456789abcdef", "x\x1b[2J"]
)
def test_a_header_writes_on_no_screen(tmp_path: Path, origin: str) -> None:
    (tmp_path / "records").write_bytes(record_module.header(origin))
    report = verify_log(tmp_path, ANN.card)
    assert [str(fault) for fault in report.faults] == [
        f"{tmp_path / 'records'}: the origin of a log is malformed"
    ]
    assert report.origin == ""


def test_an_entry_that_somebody_without_the_key_added_is_not_said_to_be_signed(
    folder: Path,
) -> None:
    before = verify_log(folder, ANN.card)
    assert before.signed == before.size
    found = read_log(folder)
    forge = record_module.sealer(bytes(32), bytes(record_module.SALT_BYTES))
    forged = forge(found.origin, len(found.records), found.next_chain(), b"", b"{}")
    with (folder / "records").open("ab") as stream:
        stream.write(forged)
    after = verify_log(folder, ANN.card)
    assert after.ok and (after.signed, after.size) == (before.size, before.size + 1)
    with pytest.raises(AuditTamperedError, match=f"entry {before.size} does not decrypt"):
        opened(folder)
