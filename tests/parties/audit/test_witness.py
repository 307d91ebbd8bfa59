"""Nodes as witnesses: what a node has covered once, it cannot take back in its next run."""

import shutil
from pathlib import Path

import pytest

from parties.audit import witness
from parties.audit.checkpoint import sign_checkpoint
from parties.audit.entries import Kind
from parties.audit.log import AuditLog
from parties.audit.verify import verify_log
from parties.errors import ContractError
from parties.keys.vault import MemoryVault
from tests.support.audit_logs import audit_log

ANN, BOB = MemoryVault.generate("ann"), MemoryVault.generate("bob")


def meet(ann: AuditLog, bob: AuditLog) -> bool:
    """Ann shows Bob her log, in one run; whether it goes on from what he saw."""
    seen = witness.seen(bob, [ANN.card])
    ann.append(Kind.RUN_SIGNED)
    checkpoint = ann.checkpoint()
    proofs = witness.proofs(ann, checkpoint, {"bob": seen.get("ann", 0)})
    return witness.keep(bob, ANN.card, checkpoint, proofs.get("bob", ()), "study", "ab" * 32)


def kinds(log: AuditLog) -> list[Kind]:
    return [entry.kind for _, entry in log.entries()]


def test_an_honest_log_goes_on(tmp_path: Path) -> None:
    for number in range(9):
        with audit_log(tmp_path, ANN) as ann, audit_log(tmp_path, BOB) as bob:
            assert meet(ann, bob)
            for _ in range(number):
                ann.append(Kind.OPENING)
            assert Kind.LOG_CONTRADICTED not in kinds(bob)
    folders = [tmp_path / "audit" / name for name in ("ann", "bob")]
    report = verify_log(folders[0], ANN.card, (folders[1],))
    assert report.ok and len(report.checked) == 1 + 9
    assert verify_log(folders[1], BOB.card, (folders[0],)).ok


def test_entries_that_were_taken_back_are_noticed_at_once(tmp_path: Path) -> None:
    with audit_log(tmp_path, BOB) as bob:
        with audit_log(tmp_path, ANN) as ann:
            assert meet(ann, bob)
        shutil.copytree(tmp_path / "audit" / "ann", tmp_path / "old")
        with audit_log(tmp_path, ANN) as ann:
            ann.append(Kind.VAULT_EXPORT)
            assert meet(ann, bob)
        shutil.rmtree(tmp_path / "audit" / "ann")
        shutil.copytree(tmp_path / "old", tmp_path / "audit" / "ann")
        with audit_log(tmp_path, ANN) as ann:
            for _ in range(5):
                ann.append(Kind.IDENTITY_OPENED)
            assert not meet(ann, bob)
        assert kinds(bob)[-2:] == [Kind.LOG_CONTRADICTED, Kind.CHECKPOINT_RECEIVED]
    found = verify_log(tmp_path / "audit" / "ann", ANN.card, (tmp_path / "audit" / "bob",))
    assert str(found.faults[0]).startswith("one of the entries 3 to 4 is not the one that")
    found = verify_log(tmp_path / "audit" / "bob", BOB.card, (tmp_path / "audit" / "ann",))
    assert [fault.entry for fault in found.faults] == [3]
    assert "does not go on" in str(found.faults[0])


def test_a_log_that_was_begun_anew_is_noticed(tmp_path: Path) -> None:
    with audit_log(tmp_path, BOB) as bob:
        with audit_log(tmp_path, ANN) as ann:
            ann.append(Kind.VAULT_EXPORT)
            assert meet(ann, bob)
        shutil.rmtree(tmp_path / "audit" / "ann")
        with audit_log(tmp_path, ANN) as ann:
            assert not meet(ann, bob)
    report = verify_log(tmp_path / "audit" / "ann", ANN.card, (tmp_path / "audit" / "bob",))
    assert not report.ok
    report = verify_log(tmp_path / "audit" / "bob", BOB.card)
    assert "contradicts an earlier one" in str(report.faults[0])


def test_a_checkpoint_has_to_be_the_nodes_own(tmp_path: Path) -> None:
    with audit_log(tmp_path, BOB) as bob:
        for note in (b"", b"nothing", bob.checkpoint()):
            with pytest.raises(ContractError, match="ann sent no checkpoint of its audit log"):
                witness.keep(bob, ANN.card, note, (), "study", "")
        assert Kind.CHECKPOINT_RECEIVED not in kinds(bob)


def test_who_says_to_have_seen_more_than_there_is_gets_no_proof(tmp_path: Path) -> None:
    with audit_log(tmp_path, ANN) as ann:
        note = ann.checkpoint()
        assert witness.proofs(ann, note, {"bob": 9, "cleo": 0, "dora": 2}) == {"dora": ()}


@pytest.mark.parametrize(("size", "root"), [(5, 2), (4, 1)])
def test_checkpoints_that_contradict_each_other_are_found_without_the_other_s_log(
    tmp_path: Path, size: int, root: int
) -> None:
    """One size with two roots, or a shorter log after a longer one: somebody began anew."""
    with audit_log(tmp_path, BOB) as bob:
        for entries, first in ((5, 1), (5, 1), (size, root)):
            note = sign_checkpoint(ANN, entries, bytes([first]) * 32)
            witness.keep(bob, ANN.card, note, (), "study", "ab" * 32)
    (fault,) = verify_log(tmp_path / "audit" / "bob", BOB.card).faults
    assert "holds a checkpoint of ann that contradicts an earlier one" in str(fault)
