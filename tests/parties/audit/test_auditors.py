"""Auditors read a node's log with their own identity; others, and what was altered, fail."""

import shutil
from pathlib import Path

import pytest

from parties.audit.auditors import entries_for
from parties.audit.entries import Entry, Kind
from parties.errors import AuditError, AuditTamperedError
from parties.keys.vault import MemoryVault
from tests.support.audit_logs import KeysOfAnyDay, audit_log


@pytest.fixture(scope="module")
def people() -> dict[str, MemoryVault]:
    return {name: MemoryVault.generate(name) for name in ("ann", "eve", "olga")}


def log_shared(folder: Path, people: dict[str, MemoryVault], *auditors: str) -> Path:
    """Ann's log below `folder`, shared with these auditors, with one entry more."""
    keys = KeysOfAnyDay(people["ann"])
    with audit_log(folder, people["ann"]) as audit:
        audit.share_with(keys, [people[name].card for name in auditors])
        audit.append(Kind.RUN_STARTED, {"parties": 3}, job="study")
    return folder / "audit" / "ann"


def own(folder: Path, people: dict[str, MemoryVault]) -> list[tuple[int, Entry]]:
    with audit_log(folder, people["ann"]) as audit:
        return list(audit.entries())


def test_an_auditor_reads_what_the_node_reads(
    tmp_path: Path, people: dict[str, MemoryVault]
) -> None:
    log = log_shared(tmp_path, people, "eve")
    origin, entries = entries_for(log, people["eve"])
    assert entries == own(tmp_path, people) and "/ann/" in origin
    shared = [entry.fields for _, entry in entries if entry.kind == Kind.LOG_SHARED]
    assert shared == [{"with": ("eve",)}]
    copy = tmp_path / "copy"
    shutil.copytree(log, copy)
    assert entries_for(copy, people["eve"])[1] == entries
    with pytest.raises(AuditError, match="is not sealed to olga: its node's rules"):
        entries_for(log, people["olga"])
    # Later entries need no new key, and the same auditors no new entry.
    log_shared(tmp_path, people, "eve")
    after = entries_for(log, people["eve"])[1]
    assert len(after) == len(entries) + 1


def test_who_is_no_auditor_any_more_loses_the_file(
    tmp_path: Path, people: dict[str, MemoryVault]
) -> None:
    log = log_shared(tmp_path, people, "eve", "olga")
    assert entries_for(log, people["olga"])[1]
    log_shared(tmp_path, people, "eve")
    with pytest.raises(AuditError, match="is not sealed to olga"):
        entries_for(log, people["olga"])
    log_shared(tmp_path, people)
    assert not list(log.glob("key.*"))
    shared = [e.fields["with"] for _, e in own(tmp_path, people) if e.kind == Kind.LOG_SHARED]
    assert shared == [("eve", "olga"), ("eve",), ()]


def test_an_auditor_s_new_card_gets_the_key(tmp_path: Path, people: dict[str, MemoryVault]) -> None:
    log = log_shared(tmp_path, people, "eve")
    later = {**people, "eve": MemoryVault.generate("eve")}
    with pytest.raises(AuditError, match="belongs to another identity"):
        entries_for(log, later["eve"])
    log_shared(tmp_path, later, "eve")
    assert entries_for(log, later["eve"])[1]


@pytest.mark.parametrize("file", ["key.eve", "records"])
def test_altered_bytes(tmp_path: Path, people: dict[str, MemoryVault], file: str) -> None:
    log = log_shared(tmp_path, people, "eve")
    raw = (log / file).read_bytes()
    for place in range(0, len(raw), 37):
        changed = bytearray(raw)
        changed[place] ^= 1
        (log / file).write_bytes(changed)
        try:
            entries_for(log, people["eve"])
        except (AuditError, AuditTamperedError):
            continue
        # Only the last record may look like one that a crash cut off.
        assert file == "records" and place > len(raw) - 400


def test_a_key_file_of_an_older_log_is_made_anew(
    tmp_path: Path, people: dict[str, MemoryVault]
) -> None:
    log = log_shared(tmp_path / "a", people, "eve")
    other = log_shared(tmp_path / "b", people, "eve")
    (log / "key.eve").write_bytes((other / "key.eve").read_bytes())
    log_shared(tmp_path / "a", people, "eve")
    assert entries_for(log, people["eve"])[1]


def test_another_object_s_key_in_its_place(tmp_path: Path, people: dict[str, MemoryVault]) -> None:
    log = log_shared(tmp_path / "a", people, "eve")
    other = log_shared(tmp_path / "b", people, "eve")
    (log / "key.eve").write_bytes((other / "key.eve").read_bytes())
    with pytest.raises(AuditTamperedError, match="entry 0 does not decrypt"):
        entries_for(log, people["eve"])
    shutil.copy(log / "key", log / "key.eve")  # the node's own, which eve cannot open
    with pytest.raises(AuditError, match=r"key\.eve: "):
        entries_for(log, people["eve"])
