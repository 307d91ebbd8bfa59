"""A round that was opened is not opened a second time, whatever the evaluators have lost; keys and
masks are those of one round and one update."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from msgspec import structs

from mpc_train.checkpoints.keeper import token_of
from mpc_train.errors import OwnersError
from mpc_train.federated.adding import Sum
from mpc_train.federated.rounds import program
from mpc_train.federated.rounds.kept import Kept, Memory
from mpc_train.federated.rounds.messages import Arrived, Record, mask_label
from mpc_train.federated.rounds.program import FederatedProgram, Rounds
from mpc_train.federated.sizes import limits_of
from mpc_train.run.phases.notes import Note
from parties.errors import ResumeError
from protocols.roles.streams import one_time
from tests.support.federated import federated_job

SID = bytes(32)


class Noted:
    """A note in memory."""

    def __init__(self, note: Note | None) -> None:
        self.note = note

    def read(self) -> Note | None:
        return self.note

    def write(self, note: Note) -> None:
        self.note = note


def begin(note: Noted, resume: bytes) -> None:
    node = FederatedProgram("ann", note=cast(Any, note))
    node._begin(cast(Any, SimpleNamespace(me="ann", resume=resume)))


def test_a_run_does_not_go_on_before_a_round_that_was_opened() -> None:
    """An evaluator that has lost its part of round 5, or says so, would have the sum of it added up
    with other owners and other noise."""
    note = Noted(Note("", leaving=True, opened=5))
    with pytest.raises(ResumeError, match=r"round 5 was opened, .* keep is 4"):
        begin(note, token_of(4, False, SID))
    begin(note, token_of(5, False, SID))
    begin(note, token_of(6, False, SID))
    assert note.note == Note("", leaving=True, opened=5)


def test_who_has_lost_its_note_does_not_begin_anew_later() -> None:
    note = Noted(None)
    begin(note, token_of(4, False, SID))
    assert note.note == Note("", leaving=True, opened=4)
    begin(note := Noted(None), b"")
    assert note.note == Note("")


@pytest.mark.parametrize("me", ["ann", "bob"])
def test_a_round_is_noted_before_it_is_opened(me: str) -> None:
    """At the first evaluator before it lets the others open it, at every one before it hands the
    sum to owners."""
    said: list[str] = []
    note = Noted(Note("mark"))
    number = (3).to_bytes(4, "big")

    class Net:
        def send(self, peer: str, label: bytes, data: bytes) -> None:
            assert label.endswith(b"stored v1") or cast(Note, note.note).opened == 3
            said.append(peer)

        def receive(self, peer: str, most: int) -> tuple[bytes, bytes]:
            word = b"stored" if me == "ann" else b"released"
            return b"mpc-train federated " + word + b" v1", number

    def release(at: int) -> None:
        assert cast(Note, note.note) == Note("mark", leaving=True, opened=at)
        said.append("released")

    rounds = cast(Any, object.__new__(Rounds))
    rounds._net, rounds._note, rounds._mark = Net(), note, "mark"
    rounds._names, rounds._first, rounds._dealer = ("ann", "bob"), "ann", "registry"
    rounds._leads = me == "ann"
    rounds._session = SimpleNamespace(is_evaluator=True, is_dealer=False)
    rounds._kept = SimpleNamespace(store=lambda *_: None, release=release)
    rounds._store(SimpleNamespace(round=3), b"")
    assert said == (["bob", "registry", "released"] if me == "ann" else ["ann", "released"])


def test_a_round_that_one_evaluator_stored_does_not_stay_beside_that_of_another_session() -> None:
    shelf, record = Memory(), Record(1, ("ann",), (), 3)
    Kept(shelf, SID).store(record, b"")  # the others have not, and the run begins anew
    second = Kept(shelf, bytes([1]) * 32)
    second.begin()
    for number in (1, 2):
        second.store(structs.replace(record, round=number), b"")
    Kept(shelf, bytes([2]) * 32).resume(shelf.tokens()[-1])
    assert len(shelf.tokens()) == 2


@pytest.mark.parametrize("goes_on", [True, False])
def test_what_was_opened_is_known_before_any_owner_asks(goes_on: bool) -> None:
    shelf, record = Memory(), Record(1, ("ann",), (), 3)
    Kept(shelf, SID).store(record, b"")
    (token,) = shelf.tokens()
    rounds = cast(Any, object.__new__(Rounds))
    rounds.begun, rounds._kept = 0, Kept(shelf, bytes([1]) * 32)
    resume = token if goes_on else b""
    rounds._session = SimpleNamespace(resume=resume, is_evaluator=True)
    rounds._recall()
    assert rounds.begun == rounds._kept.opened == len(shelf.tokens()) == int(goes_on)
    assert rounds._kept.run == (SID if goes_on else b"")


def test_no_two_updates_have_one_mask_and_no_two_rounds_one_key() -> None:
    labels = {
        mask_label(Arrived(owner, bytes([update]) * 16))
        for owner in ("cas", "dan")
        for update in (1, 2)
    }
    assert len(labels) == 4
    asked: list[str] = []

    def export(peer: str, label: str) -> bytes:
        asked.append(label)
        return bytes(32)

    rounds = cast(Any, object.__new__(Rounds))
    rounds._net, rounds._names, rounds._dealer = None, ("ann", "bob"), "registry"
    for is_dealer in (False, True):
        rounds._session = SimpleNamespace(is_dealer=is_dealer, me="ann", export=export)
        asked.clear()
        for number in (1, 2):
            rounds._role(number)
        assert len(set(asked)) == 2


def test_the_first_evaluator_gets_a_summand_under_a_fresh_pad() -> None:
    sent: list[bytes] = []
    rounds = cast(Any, object.__new__(Rounds))
    rounds._net = SimpleNamespace(send=lambda peer, label, data: sent.append(bytes(data)))
    rounds._leads, rounds._first = False, "ann"
    pads = [rounds._padded(np.arange(50)) for _ in range(2)]
    assert pads[0] != pads[1]
    with np.errstate(over="ignore"):
        for data, pad in zip(sent, pads, strict=True):
            hidden = np.frombuffer(data, np.int64)
            assert (abs(hidden) > 1 << 40).sum() > 40
            assert (hidden + one_time(pad).words(50) == np.arange(50)).all()


def test_the_sum_of_fewer_updates_within_the_clip_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose update is too large is known only after the round has begun."""
    job = federated_job(tmp_path)
    found = Sum(cast(Any, object()), (True, False, False, False), 20)
    monkeypatch.setattr(program, "add_up", lambda *_, **__: found)
    rounds = cast(Any, object.__new__(Rounds))
    rounds._job, rounds._limits, rounds.ledger = job, limits_of(job), None
    rounds._secret, rounds._variance = False, None
    with pytest.raises(OwnersError, match="only the updates of 1 owners are within the clip"):
        rounds._summed(None, 1, job.owners, {}, None)
