"""Lanes that count what they are asked, and the release of a window of counts."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mpc_train.evaluation import noise
from mpc_train.evaluation.histograms import OUTPUTS
from mpc_train.jobs.job import Job
from mpc_train.jobs.serve import Drift, Serve
from mpc_train.owners.local import Local, local_terms
from mpc_train.serving.forward import REAL, asked_shapes, asked_values
from mpc_train.serving.lanes import Lane, LaneChannel, LaneStore, Releases, Sorted
from mpc_train.serving.monitoring.window import Window
from mpc_train.shared.agreeing import outline_of
from mpc_train.shared.share import ModelShare
from protocols.crypten_tensor import dispatch
from protocols.crypten_tensor.tensor import detach
from protocols.ring.fixed_point import decode, encode
from protocols.roles.dealer import Dealer
from protocols.roles.evaluator import Evaluator
from protocols.roles.role import Role
from protocols.roles.streams import Stream
from tests.mpc_train.evaluation.test_drift import BINNED
from tests.mpc_train.shared.test_share import TOLERANCE, F, in_the_clear, kept_shares
from tests.support.lockstep import LockstepLoopback
from tests.support.preparation_case import JOB, PREPARE, prepared_job, tables

SIZES = (1, 16)
RELEASES = len(SIZES)
NAMES = ("ann", "bob")
MADE, USED = (RELEASES, 1, 0, 1, 1, RELEASES), (1, 1, 0, 1)
"""The lanes of the units that the dealer makes, and in which order the evaluators use those that
answer. The first release is after three of them and leaves the second one out; the other is after
the last, of which one row is real."""
LOST = 1
LEAST = 5


def stream(name: str, lane: int) -> Stream:
    return Stream(hashlib.sha256(f"counting {name} {lane}".encode()).digest())


def lanes(
    job: Job, shares: list[ModelShare], roles: list[Role], stores: list[Any], index: int | None
) -> tuple[list[Lane], Releases]:
    outline = outline_of(job, shares[0], whole=True)
    parts = None if index is None else shares[index].parts
    made = [
        Lane(job, outline, rows, roles[number], stores[number], parts)
        for number, rows in enumerate(SIZES)
    ]
    last = roles[RELEASES], stores[RELEASES]
    return made, Releases(job, *last)


def dealt(net: LockstepLoopback, job: Job, shares: list[ModelShare]) -> None:
    roles: list[Role] = []
    for number in range(RELEASES + 1):
        channel = LaneChannel(net.endpoint("registry"), number)
        streams = [stream(name, number) for name in NAMES]
        roles.append(Dealer(channel, names=NAMES, streams=streams))
    made, releases = lanes(job, shares, roles, [None] * len(roles), None)
    for number in MADE:
        (releases if number == RELEASES else made[number]).run_blank()
    detach()


def evaluated(
    net: LockstepLoopback, index: int, job: Job, shares: list[ModelShare], summands: list[Any]
) -> tuple[list[Any], list[Any], list[Any]]:
    place = net.endpoint(NAMES[index])
    frames = Sorted(place, "registry", RELEASES + 1)
    roles: list[Role] = [
        Evaluator(
            place,
            index=index,
            names=NAMES,
            dealer="registry",
            stream=stream(NAMES[index], number),
        )
        for number in range(RELEASES + 1)
    ]
    stores = [LaneStore(frames, number) for number in range(RELEASES + 1)]
    made, releases = lanes(job, shares, roles, stores, index)
    answers: list[Any] = []
    counts: list[Any] = []
    released: list[Any] = []
    window = Window(releases.bins)
    for turn, number in enumerate(USED):
        half = made[number].run(summands[turn][index])
        assert half is not None
        answers.append((half.delta if index == 0 else 0) - half.lam)
        counts.append(made[number].count())
        unit, whole = (number, made[number].units), (turn, index) != (LOST, 0)
        window.add(unit, counts[-1], SIZES[number], whole=whole)
        if turn >= 2:
            # What the first one tells the other.
            missed = [(USED[LOST], 2)] if turn == 2 else []
            assert set(window.missed) <= set(missed)
            window.settle(missed)
            released.append(releases.run(window.close()))
    detach()
    return answers, counts, released


@pytest.fixture
def job(tmp_path: Path) -> Job:
    found = prepared_job(tmp_path, PREPARE, JOB, BINNED)
    reveal = msgspec.structs.replace(found.reveal, model="shares", least_group=LEAST)
    roles = msgspec.structs.replace(found.job, recipients=())
    serve = Serve(("clinic",), drift=Drift(100, Decimal(1), NAMES))
    return msgspec.structs.replace(found, reveal=reveal, job=roles, serve=serve)


def test_units_count_their_real_rows_and_a_window_leaves_with_noise(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "discrete_laplace", lambda scale: 3)
    shares, _ = kept_shares(job)
    local = local_terms(job.pipeline, tables()[0])
    rng = np.random.default_rng(6)
    real = [(np.arange(SIZES[number]) % 3 > 0) | (number == 0) for number in USED]
    real[-1] = np.arange(16) == 0
    summands: list[Any] = []
    clear, labels = [], []
    for turn, number in enumerate(USED):
        rows = slice(20 * turn, 20 * turn + SIZES[number])
        part = Local(local.values[rows], local.present[rows])
        values = {**asked_values(job, part), REAL: real[turn].astype(np.float64)[:, None]}
        shapes = asked_shapes(job, SIZES[number])
        halves: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        for name, (shape, bits) in shapes.items():
            halves[0][name] = rng.integers(-(2**62), 2**62, shape)
            with np.errstate(over="ignore"):
                halves[1][name] = encode(values[name], bits) - halves[0][name]
        if turn == LOST:  # one evaluator did not hear its part
            halves[0].update({name: np.zeros_like(words) for name, words in halves[0].items()})
        summands.append(halves)
        clear.append(in_the_clear(job, part))
        chance = 1 / (1 + np.exp(-clear[-1][real[turn], 0]))
        labels.append(np.bincount((chance * 10).astype(int), minlength=10))
    dispatch.install()
    net = LockstepLoopback()
    works = [partial(evaluated, net, index, job, shares, summands) for index in range(2)]
    with np.errstate(over="ignore"):
        one, other, _ = net.baton.run([*works, partial(dealt, net, job, shares)], 100)
        for turn, (mine, theirs) in enumerate(zip(one[0], other[0], strict=True)):
            if turn != LOST:
                assert np.abs(decode(mine + theirs, F) - clear[turn]).max() < TOLERANCE
        for turn, (mine, theirs) in enumerate(zip(one[1], other[1], strict=True)):
            # Neither evaluator's summand says anything: they are spread over the whole ring.
            assert min(np.abs(mine >> 50).max(), np.abs(theirs >> 50).max()) > 0
            if turn != LOST:
                last = decode(mine + theirs, F)[-10:]
                assert last.tolist() == labels[turn].tolist()
    assert one[2] == other[2]
    first, second = one[2]
    # Both evaluators' noise, of all kept units but the one of which a part was lost.
    assert first[OUTPUTS] == tuple((labels[0] + labels[2] + 6).tolist())
    kept = int(real[0].sum() + real[2].sum())
    assert {sum(numbers) - 6 * len(numbers) for numbers in first.values()} == {kept}
    assert second is None  # of one real row nothing leaves
