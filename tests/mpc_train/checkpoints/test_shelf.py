"""Checkpoints on a disk that is full, and in a vault whose keys are away."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from mpc_train.checkpoints.keeper import Keeper, place_of, token_of
from mpc_train.checkpoints.state import Position, State
from mpc_train.commands.nodes import _Guarded
from mpc_train.errors import ArtifactError
from mpc_train.run.phases import shelf as shelves
from mpc_train.run.phases.shelf import VaultShelf
from parties.errors import KeyServiceError, RetiredKeyError, VaultError
from parties.vault.store import Store
from tests.support.checkpointed import InsecureShelf, session
from tests.support.divergence import MLP, Setting
from tests.support.failing_keys import FailingKeys, InsecureMemoryKeys

DIGEST = "ab" * 32


class Vault:
    """A vault whose key service a test switches off."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.keys = folder, FailingKeys(InsecureMemoryKeys())
        self.shelf = VaultShelf(self.opened, "study", DIGEST)

    @contextmanager
    def opened(self) -> Iterator[Store]:
        yield Store(self.folder, "ann", self.keys)

    def away(self) -> None:
        self.keys.fails_at = self.keys.calls

    def back(self) -> None:
        self.keys.fails_at = -1


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    made = Vault(tmp_path / "vault")
    for step in (1, 2, 3):
        made.shelf.write(token(step), b"state %d" % step)
    return made


def token(step: int) -> bytes:
    return token_of(step, False, bytes(32))


def steps(shelf: VaultShelf) -> list[int]:
    return [place_of(each)[0] for each in shelf.tokens()]


def test_what_cannot_be_read_now_is_neither_lost_nor_destroyed(vault: Vault) -> None:
    """A node that took it for lost would begin the training anew, and destroy it."""
    vault.away()
    with pytest.raises(KeyServiceError, match="away"):
        vault.shelf.tokens()
    with pytest.raises(ArtifactError, match="away"):
        vault.shelf.discard(token(3))
    vault.back()
    assert steps(vault.shelf) == [1, 2, 3]
    vault.away()
    vault.shelf.prune(2)  # by what was written last, which needs no key
    vault.back()
    assert steps(vault.shelf) == [2, 3]
    vault.shelf.discard(token(3))
    assert steps(vault.shelf) == [2]


def test_all_can_be_destroyed_without_a_key(vault: Vault) -> None:
    vault.away()
    vault.shelf.prune(0)
    vault.back()
    assert vault.shelf.tokens() == ()


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE])
def test_a_disk_that_does_not_read_is_not_an_empty_one(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fails(*of: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("parties.vault.store._regular", fails)
        with pytest.raises(VaultError, match=os.strerror(number)):
            vault.shelf.tokens()
    with monkeypatch.context() as patch:
        patch.setattr(shelves, "place_of", fails)  # while it is read
        with pytest.raises(VaultError, match=os.strerror(number)):
            vault.shelf.tokens()
    assert steps(vault.shelf) == [1, 2, 3]


def test_one_whose_key_is_gone_for_good_is_lost(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwrap, calls = vault.keys.inner.unwrap, iter(range(9))

    def unwrapped(*of: Any) -> bytes:
        if next(calls) == 2:
            raise RetiredKeyError("memory: the key was destroyed")
        return unwrap(*of)

    monkeypatch.setattr(vault.keys.inner, "unwrap", unwrapped)
    assert steps(vault.shelf) == [1, 2]


def test_swapped_objects_are_not_there(vault: Vault) -> None:
    folder = vault.folder / "checkpoint"
    for end in ("header", "chunks"):
        a, b, aside = (folder / f"study.{name}.{end}" for name in ("1", "2", "9"))
        shutil.move(a, aside)
        shutil.move(b, a)
        shutil.move(aside, b)
    assert steps(vault.shelf) == [3]


def test_an_empty_object_is_not_a_checkpoint(vault: Vault) -> None:
    with vault.opened() as store, store.writing(shelves.CHECKPOINT, "study", DIGEST):
        pass
    assert steps(vault.shelf) == [1, 2, 3]


class FullShelf(InsecureShelf):
    """Takes the first `room` checkpoints, and no other. tidies: whether it can destroy any."""

    def __init__(self, room: int = 99, *, tidies: bool = True) -> None:
        super().__init__()
        self.room, self.tidies, self.most = room, tidies, 0

    def write(self, token: bytes, data: bytes, rows: bytes = b"") -> None:
        if self.room == 0:
            raise ArtifactError("No space left on device")
        self.room -= 1
        super().write(token, data, rows)
        self.most = max(self.most, len(self.kept))

    def prune(self, newest: int) -> None:
        if newest and not self.tidies:
            raise ArtifactError("the service is away")
        super().prune(newest)
        if not newest:
            self.kept.clear()


def trained(**kept: FullShelf) -> None:
    setting = Setting("{ learning_rate = 0.1 }", MLP, epochs=3, extra="checkpoint_every = 1")
    job = setting.job()
    session(job, setting.tables(job), kept, 1)


def test_a_full_disk_does_not_fill_the_others(caplog: pytest.LogCaptureFixture) -> None:
    setting = Setting("{ learning_rate = 0.1 }", MLP, epochs=3, extra="checkpoint_every = 1")
    first, second = setting.job().evaluators
    kept = {first: FullShelf(), second: FullShelf(3)}
    trained(**kept)
    # Two that both have, and the one that the other could not write.
    assert kept[first].most == 3
    assert "No space left" in caplog.text


def test_checkpoints_that_cannot_be_tidied_do_not_end_a_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    setting = Setting("{ learning_rate = 0.1 }", MLP, epochs=3, extra="checkpoint_every = 1")
    first, second = setting.job().evaluators
    kept = {first: FullShelf(tidies=False), second: FullShelf()}
    trained(**kept)
    assert "older checkpoints stay: the service is away" in caplog.text
    # Before results leave there may be none but the last, and if need be none at all.
    assert not kept[first].kept and len(kept[second].kept) == 1


class Asked:
    """One evaluator's session, which was asked to stop; no other has anything to say."""

    def __init__(self) -> None:
        self.me, self.sid = "ann", bytes(32)
        self.channel: Any = None

    def asked_to_stop(self) -> bool:
        return True


@pytest.mark.parametrize("room", [0, 1])
def test_a_node_that_was_asked_to_stop_does_so_on_a_full_disk_too(
    monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    setting = Setting("{ learning_rate = 0.1 }", MLP, epochs=3, extra="checkpoint_every = 1")
    monkeypatch.setattr(
        "mpc_train.checkpoints.keeper.swap",
        lambda channel, peers, label, mine: dict.fromkeys(peers, mine),
    )
    state: Any = SimpleNamespace(to_bytes=lambda: b"state", rows=b"")
    live: Any = SimpleNamespace(guard=None, captured=lambda number, finished, joined: state)
    asked: Any = Asked()
    keeper = Keeper(asked, setting.job(), FullShelf(room), 0.0, warn=lambda said: None)
    keeper._live = live
    with pytest.raises(KeyboardInterrupt):
        keeper.point(1)


def test_a_run_that_ended_well_keeps_its_results_if_the_vault_is_away() -> None:
    said: list[str] = []

    def away() -> None:
        raise KeyServiceError("the service is away")

    guarded: Any = _Guarded.__new__(_Guarded)
    guarded._note, guarded._held = SimpleNamespace(clear=away), None
    guarded._events = SimpleNamespace(say=said.append)
    with guarded.checkpoint_told("party", Path("ann.toml")):
        pass
    assert said == ["Warning checkpoints stay until --fresh destroys them: the service is away"]


def keeper_of(
    monkeypatch: pytest.MonkeyPatch, shelf: Any, others: bytes, every_s: float = 0.0
) -> tuple[Keeper, list[float]]:
    """The first evaluator's, whose peers write what `others` says (0 or 1), and its clock."""
    setting = Setting("{ learning_rate = 0.1 }", MLP, epochs=3, extra="checkpoint_every = 1")
    monkeypatch.setattr(
        "mpc_train.checkpoints.keeper.swap",
        lambda channel, peers, label, mine: dict.fromkeys(
            peers, others if label == b"checkpoint kept" else mine
        ),
    )
    job, now = setting.job(), [0.0]
    place: Any = SimpleNamespace(
        me=job.evaluators[0], sid=bytes(32), channel=None, asked_to_stop=lambda: False
    )
    keeper = Keeper(place, job, shelf, every_s, lambda said: None, lambda: now[0])
    state: Any = SimpleNamespace(to_bytes=lambda: b"state", rows=b"")
    keeper._live = cast(
        Any, SimpleNamespace(guard=None, captured=lambda number, finished, joined: state)
    )
    return keeper, now


def test_what_others_lack_does_not_push_out_what_all_have(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = FullShelf()
    for step in (1, 2):
        shelf.write(token(step), b"of all")
    keeper, _ = keeper_of(monkeypatch, shelf, b"\0")
    for step in (3, 4, 5):
        keeper.point(step)
    assert [place_of(each)[0] for each in shelf.tokens()] == [1, 2]
    keeper, _ = keeper_of(monkeypatch, shelf, b"\1")
    keeper.point(6)
    assert [place_of(each)[0] for each in shelf.tokens()] == [2, 6]
    # At the end of a training that others could not keep there is none to go on from.
    keeper, _ = keeper_of(monkeypatch, shelf, b"\0")
    keeper.finish(7)
    assert shelf.tokens() == ()


def test_checkpoints_are_as_far_apart_as_the_first_evaluator_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf = FullShelf()
    keeper, now = keeper_of(monkeypatch, shelf, b"\1", every_s=10.0)
    for step, second in enumerate((5.0, 10.0, 15.0, 19.0, 21.0), 1):
        now[0] = second
        keeper.point(step)
    assert [place_of(each)[0] for each in shelf.tokens()] == [2, 5]


POSITION = Position(3, False, (), {}, 0, 3, losses=((1, 0.25), (2, 0.125)))


def test_the_dealer_hears_no_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = FullShelf()
    shelf.write(token(3), State(POSITION, {}, bytes(32)).to_bytes())
    keeper, _ = keeper_of(monkeypatch, shelf, b"\1")
    keeper._peers = []
    sent: list[tuple[str, bytes, bytes]] = []
    keeper._session = cast(
        Any,
        SimpleNamespace(
            channel=SimpleNamespace(send=lambda *what: sent.append(what)), me="ann", sid=bytes(32)
        ),
    )
    keeper.resume(token(3))
    ((to, _, said),) = sent
    assert to == keeper._job.dealer
    assert Position.from_bytes(said) == replace(POSITION, losses=())
    assert keeper._resumed is not None and keeper._resumed.position == POSITION


@pytest.mark.parametrize("said", [POSITION, replace(POSITION, finished=True)])
def test_a_state_of_another_step_than_was_signed_is_refused(
    monkeypatch: pytest.MonkeyPatch, said: Position
) -> None:
    keeper, _ = keeper_of(monkeypatch, None, b"\1")
    monkeypatch.setattr(keeper, "_told", lambda: said)
    keeper.resume(token_of(said.step, said.finished, bytes(32)))
    for wrong in (token_of(4, said.finished, bytes(32)), token_of(3, not said.finished, bytes(32))):
        with pytest.raises(ArtifactError, match="of another step"):
            keeper.resume(wrong)
