"""Units made ahead and used in any order give the answers of the model in the clear."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from mpc_train.jobs.serve import Serve
from mpc_train.owners.local import Local, local_terms
from mpc_train.serving.forward import asked_shapes, asked_values
from mpc_train.serving.lanes import Lane, LaneChannel, LaneStore, Sorted
from mpc_train.shared.agreeing import outline_of
from mpc_train.shared.share import ModelShare
from protocols.crypten_tensor import dispatch
from protocols.crypten_tensor.tensor import detach
from protocols.errors import FrameError
from protocols.ring.fixed_point import decode, encode
from protocols.roles.dealer import Dealer
from protocols.roles.evaluator import Evaluator
from protocols.roles.streams import Stream
from tests.mpc_train.shared.test_share import TOLERANCE, F, in_the_clear, kept_shares, shared_job
from tests.support.lockstep import LockstepLoopback
from tests.support.preparation_case import tables

SIZES = (1, 16)
NAMES = ("ann", "bob")
MADE, USED = (0, 1, 1, 0, 0), (1, 0, 1, 0, 0)
"""The lanes of the units that the dealer makes, and in which order they are used."""


def stream(name: str, lane: int) -> Stream:
    return Stream(hashlib.sha256(f"{name} {lane}".encode()).digest())


def dealt(net: LockstepLoopback, shares: list[ModelShare]) -> None:
    job = shares[0].about.job
    outline, lanes = outline_of(job, shares[0], whole=True), []
    for number, rows in enumerate(SIZES):
        channel = LaneChannel(net.endpoint("registry"), number)
        role = Dealer(channel, names=NAMES, streams=[stream(name, number) for name in NAMES])
        lanes.append(Lane(job, outline, rows, role, None, None))
    for number in MADE:
        lanes[number].run(lanes[number].blank())
    detach()


def evaluated(
    net: LockstepLoopback, index: int, shares: list[ModelShare], summands: list[Any]
) -> list[Any]:
    place = net.endpoint(NAMES[index])
    frames = Sorted(place, "registry", len(SIZES))
    lanes, found = [], []
    for number, rows in enumerate(SIZES):
        role = Evaluator(
            place,
            index=index,
            names=NAMES,
            dealer="registry",
            stream=stream(NAMES[index], number),
        )
        share, store = shares[index], LaneStore(frames, number)
        outline = outline_of(share.about.job, share, whole=True)
        lanes.append(Lane(share.about.job, outline, rows, role, store, share.parts))
    for turn, number in enumerate(USED):
        half = lanes[number].run(summands[turn][index])
        assert half is not None
        found.append((half.delta if index == 0 else 0) - half.lam)
    detach()
    return found


def test_units_are_used_in_another_order_than_they_are_made(tmp_path: Path) -> None:
    job = msgspec.structs.replace(shared_job(tmp_path), serve=Serve(("clinic",)))
    shares, _ = kept_shares(job)
    local = local_terms(job.pipeline, tables()[0])
    rng = np.random.default_rng(5)
    summands: list[Any] = []
    expected = []
    for turn, number in enumerate(USED):
        rows = slice(turn, turn + SIZES[number])
        part = Local(local.values[rows], local.present[rows])
        values = asked_values(job, part)
        halves: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        for name, (shape, bits) in asked_shapes(job, SIZES[number]).items():
            halves[0][name] = rng.integers(-(2**62), 2**62, shape)
            with np.errstate(over="ignore"):
                halves[1][name] = encode(values[name], bits) - halves[0][name]
        summands.append(halves)
        expected.append(in_the_clear(job, part))
    dispatch.install()
    net = LockstepLoopback()
    works = [partial(evaluated, net, index, shares, summands) for index in range(2)]
    with np.errstate(over="ignore"):
        one, other, _ = net.baton.run([*works, partial(dealt, net, shares)], 100)
        for mine, theirs, clear in zip(one, other, expected, strict=True):
            assert np.abs(decode(mine + theirs, F) - clear).max() < TOLERANCE


class Sent:
    """A channel with one frame of the dealer."""

    def __init__(self, label: bytes) -> None:
        self._label = label

    def receive(self, peer: str, max_bytes: int) -> tuple[bytes, memoryview]:
        return self._label, memoryview(b"material")


def test_frames_are_sorted_by_lane_and_those_of_no_lane_are_refused() -> None:
    frames = Sorted(cast(Any, Sent(bytes([0, 0, 0, 1]) + b"label")), "registry", 2)
    assert frames.take(1) == (b"label", memoryview(b"material"))
    assert frames.taken == [0, 8]
    for label in (bytes([0, 0, 0, 2]), bytes([255] * 4), bytes(3), b""):
        with pytest.raises(FrameError, match="registry sent material for no lane"):
            Sorted(cast(Any, Sent(label)), "registry", 2).take(1)
