"""Which model in shares a session uses: what one evaluator says of its share deceives no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from mpc_train.errors import ArtifactError
from mpc_train.shared.agreeing import PROOF, TOLD, common_share, tell_outline, told_outline
from mpc_train.shared.share import ModelShare
from protocols.errors import DesyncError
from tests.support.served import served_job, shares_of, some_weights

KEY = bytes(32)


class Channel:
    """What one node hears of the others, by name, and what it has sent."""

    def __init__(self, label: bytes, heard: dict[str, bytes]) -> None:
        self._label, self._heard = label, heard
        self.sent: dict[str, bytes] = {}

    def send(self, peer: str, label: bytes, payload: bytes) -> None:
        self.sent[peer] = payload
        # Who has nothing to show may show what it was shown.
        self._heard.setdefault(peer, payload)

    def receive(self, peer: str, max_bytes: int) -> tuple[bytes, memoryview]:
        return self._label, memoryview(self._heard[peer])


def session(channel: Channel, me: str = "ann") -> Any:
    return cast(Any, SimpleNamespace(me=me, channel=channel, export=lambda peer, label: KEY))


@pytest.fixture
def share(tmp_path: Path) -> ModelShare:
    job = served_job(tmp_path)
    job = msgspec.structs.replace(
        job, job=msgspec.structs.replace(job.job, evaluators=("ann", "bob"))
    )
    return shares_of(job, some_weights(job))[0]


def test_the_newest_share_that_all_evaluators_have_is_used(share: ModelShare) -> None:
    job, newer = share.about.job, replace(share, agreed=bytes(31) + b"\1")
    for theirs, expected in (([newer, share], newer), ([share], share)):
        shown = b"".join(one.proof(KEY, "bob") for one in theirs)
        channel = Channel(PROOF, {"bob": shown})
        assert common_share(session(channel), job, [newer, share]) is expected
        assert len(channel.sent["bob"]) == 2 * 32


def test_a_proof_that_was_sent_back_or_of_another_session_is_none(share: ModelShare) -> None:
    job = share.about.job
    for heard in ({}, {"bob": share.proof(bytes(31) + b"\1", "bob")}, {"bob": b""}):
        with pytest.raises(ArtifactError, match="at ann and at bob do not belong together"):
            common_share(session(Channel(PROOF, heard)), job, [share])


def test_a_dealer_deals_to_evaluators_of_one_model(share: ModelShare) -> None:
    job = share.about.job
    channel = Channel(TOLD, {})
    mine = tell_outline(session(channel), job, share, whole=True)
    said = channel.sent[job.dealer]
    same = dict.fromkeys(job.evaluators, said)
    assert told_outline(session(Channel(TOLD, same), job.dealer), job, whole=True) == mine
    other = same | {job.evaluators[-1]: said.replace(b'"constant":false', b'"constant":true', 1)}
    assert other != same
    with pytest.raises(DesyncError, match="shares of different models"):
        told_outline(session(Channel(TOLD, other), job.dealer), job, whole=True)
