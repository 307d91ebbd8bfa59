"""What a node keeps and shows to others: rosters, audit logs, notes, the vault, keys, evidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from mpc_train.errors import ArtifactError, ConfigError, RefusedError
from mpc_train.node.evidence import read_evidence
from mpc_train.node.pack import MANIFEST, SIGNATURE, read_pack, write_pack
from mpc_train.node.policy import _path, _seen
from mpc_train.results.kept import KeptModel
from mpc_train.run.history import History, Revealed, _difference, packed
from mpc_train.run.place import Place
from parties.audit import merkle
from parties.audit.checkpoint import read_checkpoint, sign_checkpoint, verify_checkpoint
from parties.audit.entries import Kind, read_entry
from parties.audit.log import AuditLog
from parties.audit.note import read_note
from parties.audit.reading import RECORDS, key_id_of, public_of, read_log
from parties.errors import AuditError, RosterError, VaultError
from parties.keys.roster import Roster
from parties.keys.services.key_set import decoded, encoded, first_keys
from parties.keys.vault import MemoryVault
from parties.vault.spool import Spool
from parties.vault.store import CHUNKS, HEADER, Store
from protocols.errors import EnvelopeError
from tests.fuzz.parser import Parser
from tests.support.audit_logs import KeysOfAnyDay

FOLDER = TemporaryDirectory()
HERE = Path(FOLDER.name)
DAY = "2030-05-17T00:00:00Z"


@cache
def ann() -> MemoryVault:
    return MemoryVault.generate("ann")


@cache
def log() -> AuditLog:
    """A log of a few entries; its files stay."""
    made = AuditLog(HERE / "log", ann(), KeysOfAnyDay(ann()))
    for number in range(3):
        made.append(Kind.RUN_STARTED, {"attempt": number}, job="study", digest="0" * 64)
    made.checkpoint()
    return made


def file_of(name: str) -> Callable[[], Sequence[bytes]]:
    def read() -> Sequence[bytes]:
        log()
        return [(HERE / "log" / name).read_bytes()]

    return read


def in_folder(folder: str, name: str, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    """Write the bytes as this file, and read the folder."""

    def parse(data: bytes) -> Any:
        place = HERE / folder
        place.mkdir(exist_ok=True, mode=0o700)
        (place / name).write_bytes(data)
        (place / name).chmod(0o600)
        return read(place)

    return parse


def records(folder: Path) -> Any:
    found = read_log(folder)
    return [public_of(record) for record in found.records if record.intact]


def proof(data: bytes) -> Any:
    """A claim that a tree of 3 leaves became one of 5, with these hashes as its proof."""
    hashes = [data[at : at + 32] for at in range(0, len(data), 32)]
    return merkle.is_consistent(3, 5, bytes(32), bytes(32), hashes)


def roster(data: bytes) -> Any:
    path = HERE / "roster.toml"
    path.write_bytes(data)
    return Roster.load(path)


def stored() -> Store:
    return Store(HERE / "vault", "ann", KeysOfAnyDay(ann()))


def object_file(ending: str) -> Callable[[bytes], Any]:
    """Exchange a file of an object in the vault, then open and list it."""

    def parse(data: bytes) -> Any:
        whole = kept_object(ending)
        path = HERE / "vault" / "table" / f"study.1{ending}"
        path.write_bytes(data)
        try:
            with stored().open("table", "study") as content:
                return content.reader.read()
        finally:
            path.write_bytes(whole)

    return parse


@cache
def kept_object(ending: str) -> bytes:
    if not (HERE / "vault" / "table").exists():
        with stored().writing("table", "study") as out:
            out.write(bytes(100))
    return (HERE / "vault" / "table" / f"study.1{ending}").read_bytes()


def spooled(data: bytes) -> Any:
    """A spool whose first segment was exchanged."""
    spool = Spool(HERE, bytes(32), 1 << 20)
    try:
        spool.put(b"label", bytes(100))
        spool._segments[0].flush()
        spool._segments[0].seek(0)
        spool._segments[0].truncate()
        spool._segments[0].write(data)
        spool._segments[0].flush()
        return spool.take()
    finally:
        spool.close()


def history(data: bytes) -> Any:
    """The record of what was revealed, as its rows are compared."""
    for run in msgspec.json.decode(data, type=History).runs:
        _difference(run.trained, run.pooled or run.trained)


def remembered() -> Sequence[bytes]:
    import numpy as np

    rows = packed(np.ones(40, bool))
    run = Revealed(DAY, "study", "0" * 64, "0" * 64, "0" * 64, rows, rows, rows)
    return [msgspec.json.encode(History("00", (run,)))]


def evidence_folder() -> Path:
    folder = HERE / "evidence"
    if not folder.exists():
        write_pack(folder, {"evidence.json": b"{}"}, ann(), DAY)
    return folder


def pack_file(name: str) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        folder = evidence_folder()
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(data)
        try:
            return read_pack(folder, Roster.of([ann().card]))
        finally:
            (folder / name).write_bytes(whole)

    return parse


def seen_policy(folder: Path) -> Any:
    return _seen(Place("ann", folder, folder, folder, folder, None))


NAME_OF_SEEN = _path(Place("ann", HERE, HERE, HERE, HERE, None)).name
AUDIT = (AuditError,)
PARSERS: dict[str, Parser] = {
    "roster": Parser(
        roster,
        lambda: [Roster.of([ann().card]).to_text().encode()],
        (RosterError,),
        ("parties.keys.roster",),
    ),
    "audit log": Parser(
        in_folder("other-log", RECORDS, records),
        file_of(RECORDS),
        AUDIT,
        ("parties.audit.reading", "parties.audit.record"),
    ),
    "key of an audit log": Parser(
        in_folder("other-log", "key", key_id_of),
        file_of("key"),
        AUDIT,
        ("parties.audit.reading", "protocols.sealing.stored", "protocols.sealing.container"),
    ),
    "audit entry": Parser(
        read_entry,
        lambda: [entry.encoded() for _, entry in log().entries()],
        AUDIT,
        ("parties.audit.entries",),
    ),
    "note": Parser(
        read_note, lambda: [sign_checkpoint(ann(), 3, bytes(32))], AUDIT, ("parties.audit.note",)
    ),
    "checkpoint": Parser(
        lambda data: (read_checkpoint(data), verify_checkpoint(data, ann().card)),
        lambda: [sign_checkpoint(ann(), 3, bytes(32))],
        AUDIT,
        ("parties.audit.checkpoint", "parties.audit.note"),
    ),
    "proof of consistency": Parser(
        proof, lambda: [bytes(96)], (AuditError,), ("parties.audit.merkle",)
    ),
    "header of an object": Parser(
        object_file(HEADER),
        lambda: [kept_object(HEADER)],
        (VaultError, EnvelopeError),
        ("protocols.sealing.stored", "protocols.sealing.container", "parties.vault.store"),
    ),
    "chunks of an object": Parser(
        object_file(CHUNKS),
        lambda: [kept_object(CHUNKS)],
        (VaultError, EnvelopeError),
        ("protocols.sealing.stream", "parties.vault.store"),
    ),
    "spool": Parser(
        spooled, lambda: [bytes(200)], (VaultError,), ("parties.vault.spool",), unread=True
    ),
    "keys of a vault": Parser(
        decoded,
        lambda: [encoded(first_keys())],
        (ValueError,),
        ("parties.keys.services.key_set",),
    ),
    "kept model": Parser(
        lambda data: KeptModel.of("model", data),
        lambda: [KeptModel("model", {"model.safetensors": b"x"}).packed()],
        (ArtifactError,),
        ("mpc_train.results.kept",),
    ),
    "what was revealed": Parser(
        history,
        remembered,
        (msgspec.MsgspecError, ValueError, RefusedError),
        ("mpc_train.run.history", "mpc_train.node.remembered"),
    ),
    "evidence": Parser(
        read_evidence,
        lambda: [b"{}"],
        (ValueError,),
        ("mpc_train.node.evidence",),
        unread=True,
    ),
    "manifest of evidence": Parser(
        pack_file(MANIFEST),
        lambda: [(evidence_folder() / MANIFEST).read_bytes()],
        (ArtifactError, RosterError),
        ("mpc_train.node.pack",),
    ),
    "signature of evidence": Parser(
        pack_file(SIGNATURE),
        lambda: [(evidence_folder() / SIGNATURE).read_bytes()],
        (ArtifactError, RosterError),
        ("mpc_train.node.pack",),
    ),
    "newest policy": Parser(
        in_folder("seen", NAME_OF_SEEN, seen_policy),
        lambda: [b'{"number": 1, "digest": "' + b"0" * 64 + b'", "version": 1}'],
        (ConfigError,),
        ("mpc_train.node.policy",),
        unread=True,
    ),
}
