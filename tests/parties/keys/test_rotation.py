"""An identity gets new keys: at every moment one identity works, and nothing sealed is lost."""

import contextlib
from pathlib import Path

import pytest

from parties import files
from parties.audit.checkpoint import cosign, read_checkpoint, verify_checkpoint
from parties.audit.entries import Kind
from parties.audit.log import AuditLog
from parties.audit.verify import verify_log
from parties.audit.witness import keep, seen
from parties.errors import AuditError, IdentityError, KeyServiceError, PassphraseError
from parties.keys import identity
from parties.keys import vault as vault_module
from parties.keys.identity import Card, IdentityKeys
from parties.keys.keyfile import FileKey
from parties.keys.services.identity_service import IdentityService
from parties.keys.statements import MAX_CHAIN
from parties.keys.vault import FileVault, MemoryVault, card_path, identity_path, read_card
from parties.vault.rotation import rotate
from parties.vault.store import Store, entries_of
from protocols.errors import AuthenticationError
from protocols.sealing.recipient_keys import private_key

PASSPHRASE = b"correct horse battery staple"


@pytest.fixture
def before(tmp_path: Path) -> FileVault:
    return FileVault.create(tmp_path / "home", "ann", PASSPHRASE)


def opened(one: FileVault) -> FileVault:
    return FileVault.open(one.path, PASSPHRASE)


def test_new_keys_take_over_and_old_ones_only_open(before: FileVault) -> None:
    sealed = before.card.recipient_key.seal(b"info", b"file key")
    after = before.rotate(90)
    found = opened(before)
    assert found.card == after.card and found.successions == after.successions
    assert found.card.sequence == 1 and found.card.origin == before.card.origin
    assert found.unseal(b"info", sealed) == b"file key"
    assert found.opens_for(before.card.digest) and found.opens_for(after.card.digest)
    assert found.unseal(b"i", after.card.recipient_key.seal(b"i", b"new")) == b"new"
    with pytest.raises(AuthenticationError):
        found.unseal(b"other", sealed)
    with pytest.raises(AuthenticationError):
        before.card.verifier().verify("p", b"m", found.sign("p", b"m"))
    assert Card.load(card_path(before.path.parent, "ann")) == after.card


def test_a_process_that_is_running_finds_the_new_keys_without_a_passphrase(
    before: FileVault,
) -> None:
    assert before.reopen().card == before.card
    after = before.rotate()
    assert before.reopen().card == after.card
    assert before.reopen().reopen().successions == after.successions


def test_a_file_under_another_passphrase_is_not_opened_again(
    before: FileVault, tmp_path: Path
) -> None:
    FileVault.create(tmp_path / "other", "ann", b"another")
    before.path.write_bytes(identity_path(tmp_path / "other", "ann").read_bytes())
    with pytest.raises(IdentityError, match=r"ann\.identity: is under another passphrase"):
        before.reopen()
    with pytest.raises(IdentityError, match="another passphrase"):
        before.rotate()


def test_two_rotations_of_one_identity_do_not_make_two_successors(before: FileVault) -> None:
    after = before.rotate()
    with pytest.raises(IdentityError, match="was rotated meanwhile"):
        before.rotate()
    assert opened(before).card == after.card


@pytest.mark.parametrize("step", range(6))
def test_a_crash_at_each_step_leaves_one_identity_that_works(
    before: FileVault, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Before and after each write and each rename; a half-written file is none."""
    sealed = before.card.recipient_key.seal(b"info", b"file key")
    happened = 0

    def crashing(real: object) -> object:
        def call(*arguments: object, **more: object) -> object:
            nonlocal happened
            happened += 1
            if happened == step + 1:
                raise KeyboardInterrupt
            return real(*arguments, **more)  # type: ignore[operator]

        return call

    monkeypatch.setattr(files.os, "fsync", crashing(files.os.fsync))
    monkeypatch.setattr(files.os, "replace", crashing(files.os.replace))
    with contextlib.suppress(KeyboardInterrupt):
        before.rotate()
    monkeypatch.undo()
    found = opened(before)
    assert found.card.sequence in (0, 1)
    assert found.unseal(b"info", sealed) == b"file key"
    found.card.verifier().verify("p", b"m", found.sign("p", b"m"))
    assert read_card(before.path) == found.card
    # What the crash left beside it is put right.
    assert Card.load(card_path(before.path.parent, "ann")) == found.card
    assert found.rotate().card.sequence == found.card.sequence + 1
    assert not list(before.path.parent.glob("*.tmp"))


def test_the_chain_is_bounded_and_the_keys_that_open_are_all_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = first = MemoryVault.generate("ann")
    sealed = first.card.recipient_key.seal(b"info", b"x")
    for _ in range(MAX_CHAIN + 2):
        one = one.successor()
    assert len(one.successions) == MAX_CHAIN
    assert one.card.sequence == MAX_CHAIN + 2
    assert one.unseal(b"info", sealed) == b"x"
    key = FileKey.derive(b"x")
    assert FileVault._opened(Path("ann"), key.seal(one._secret(), one._header()), key).opens_for(
        first.card.digest
    )
    monkeypatch.setattr(vault_module, "MAX_RETIRED", MAX_CHAIN + 2)
    with pytest.raises(IdentityError, match="make a new identity"):
        one.successor()


def test_a_wrong_passphrase_is_still_told(before: FileVault) -> None:
    before.rotate()
    with pytest.raises(PassphraseError):
        FileVault.open(before.path, b"guess")


def test_successions_that_do_not_lead_to_the_card_are_refused(before: FileVault) -> None:
    after = before.successor()
    keys = IdentityKeys.generate()
    with pytest.raises(IdentityError, match="do not lead to the card"):
        MemoryVault(keys, keys.card("ann"), after.successions)


def test_objects_of_the_vault_stay_readable_and_are_wrapped_anew(
    before: FileVault, tmp_path: Path
) -> None:
    store = Store(tmp_path / "vault", "ann", IdentityService(before))
    with store.writing("table", "rows") as out:
        out.write(b"content")
    after = before.rotate()
    store = Store(tmp_path / "vault", "ann", IdentityService(after))
    with store.open("table", "rows") as content:
        assert content.reader.read() == b"content"
    done = rotate(store)
    assert (done.made, done.rewrapped) == (False, 1)
    assert [entry.key_id for entry in entries_of(store.folder)] == [
        f"identity:{after.card.digest.hex()}"
    ]
    with store.open("table", "rows") as content:
        assert content.reader.read() == b"content"
    with pytest.raises(KeyServiceError, match="another identity"):
        IdentityService(before).unwrap(f"identity:{after.card.digest.hex()}", b"", b"info")
    for strange in ("identity:xyz", "identity:", f"file:{before.card.digest.hex()}"):
        with pytest.raises(KeyServiceError):
            IdentityService(after).unwrap(strange, b"", b"info")


def log_of(folder: Path, identity: MemoryVault) -> AuditLog:
    return AuditLog(folder, identity, IdentityService(identity))


def test_the_audit_log_goes_on_and_is_verified_along_the_successions(tmp_path: Path) -> None:
    folder, first = tmp_path / "log", MemoryVault.generate("ann")
    with log_of(folder, first) as log:
        log.append(Kind.RUN_STARTED)
        early = log.checkpoint()
    second = first.successor()
    third = second.successor()
    with log_of(folder, third) as log:
        log.append(Kind.RUN_ENDED)
        late = log.checkpoint()
        kinds = [entry.kind for _, entry in log.entries()]
    assert kinds.count(Kind.IDENTITY_ROTATED) == 2
    assert read_checkpoint(early).origin == read_checkpoint(late).origin
    held = tmp_path / "held"
    held.write_bytes(early)
    for card in (first.card, second.card, third.card):
        report = verify_log(folder, card, (held,))
        assert report.ok, report.faults
    with log_of(folder, third) as log:
        assert [entry.kind for _, entry in log.entries()].count(Kind.IDENTITY_ROTATED) == 2


def test_a_log_is_not_verified_by_the_card_of_another_line(tmp_path: Path) -> None:
    folder, first = tmp_path / "log", MemoryVault.generate("ann")
    log_of(folder, first).close()
    second, rival = first.successor(), first.successor()
    log_of(folder, second).close()
    assert "another one" in str(verify_log(folder, rival.card).faults[0])
    assert not verify_log(folder, MemoryVault.generate("ann").card).ok


def test_a_rotation_that_the_log_does_not_know_yet_can_be_given(tmp_path: Path) -> None:
    folder, first = tmp_path / "log", MemoryVault.generate("ann")
    log_of(folder, first).close()
    second = first.successor()
    assert not verify_log(folder, second.card).ok
    assert verify_log(folder, second.card, (), second.successions).ok


def test_retired_keys_sign_no_checkpoint_of_what_came_later(tmp_path: Path) -> None:
    """Who stole the old keys cannot sign another continuation of the log."""
    folder, first = tmp_path / "log", MemoryVault.generate("ann")
    stale = log_of(folder, first)
    second = first.successor()
    with log_of(folder, second) as log:
        log.append(Kind.RUN_STARTED)
        size, leaves = log.size, list(log._leaves)
    with pytest.raises(AuditError, match="was rotated since this process opened it"):
        stale.checkpoint()
    from parties.audit import merkle
    from parties.audit.checkpoint import sign_checkpoint

    forged = tmp_path / "forged"
    forged.write_bytes(sign_checkpoint(first, size, merkle.root(leaves)))
    report = verify_log(folder, second.card, (forged,))
    assert "was succeeded at entry" in str(report.faults[0])


def test_the_same_process_goes_on_under_the_successor(tmp_path: Path) -> None:
    folder, first = tmp_path / "log", MemoryVault.generate("ann")
    second = first.successor()
    with log_of(folder, first) as log:
        log.succeed(second)
        assert verify_checkpoint(log.checkpoint(), second.card).size == log.size
        log.succeed(second)
        with pytest.raises(AuditError, match="is not the log of"):
            log.succeed(MemoryVault.generate("bob"))
    assert verify_log(folder, first.card).ok and verify_log(folder, second.card).ok


def test_witnesses_see_one_log_before_and_after(tmp_path: Path) -> None:
    ann, bob = MemoryVault.generate("ann"), MemoryVault.generate("bob")
    second = ann.successor()
    with log_of(tmp_path / "bob", bob) as held, log_of(tmp_path / "ann", ann) as log:
        first = log.checkpoint()
        assert keep(held, ann.card, first, (), "job", "")
        log.succeed(second)
        note = log.checkpoint()
        known = seen(held, [second.card])["ann"]
        proof = log.consistency(known, read_checkpoint(note).size)
        assert keep(held, second.card, note, proof, "job", "")
        cosigned = cosign(note, bob, 1_800_000_000)
        assert verify_checkpoint(cosigned, second.card).size == log.size


def test_a_rotation_keeps_the_kind_of_the_recipient_key(tmp_path: Path) -> None:
    first = FileVault.create(tmp_path, "ann", PASSPHRASE, kind="p384")
    sealed = first.card.recipient_key.seal(b"info", b"file key")
    second = first.rotate()
    found = opened(first)
    assert found.card == second.card and found.card.recipient_kind == "p384"
    assert found.card.recipient != first.card.recipient
    assert found.unseal(b"info", sealed) == b"file key"


def test_an_identity_with_an_rsa_key_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "vectors" / "rsa-4096.hex").read_text()
    key = private_key("rsa-4096-oaep", bytes.fromhex(text))
    monkeypatch.setattr(identity, "generate_key", lambda _: key)  # generating one takes seconds
    made = FileVault.create(tmp_path, "ann", PASSPHRASE, kind="rsa-4096-oaep")
    assert opened(made).card == made.card and made.card.recipient == key.public
