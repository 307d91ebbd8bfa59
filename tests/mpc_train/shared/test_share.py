"""A model in shares: what an evaluator keeps of it, and what a later session makes of that."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from mpc_train.errors import ArtifactError
from mpc_train.evaluation.histograms import OUTPUTS
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import split
from mpc_train.jobs.serve import Drift
from mpc_train.owners.applied import applied
from mpc_train.owners.local import Local, local_terms, partials
from mpc_train.preparation.combined import parameters
from mpc_train.preparation.fitted import Parameters
from mpc_train.results.plain_model import plain_module
from mpc_train.serving.forward import answered, asked_shapes, asked_values, network_of
from mpc_train.shared.share import (
    TENSOR,
    ModelShare,
    captured,
    expected_shapes,
    kept_tensors,
    renewed,
    returned,
    zero_shares,
)
from mpc_train.twin.preparation import twin_parameters
from protocols.arrays import Words
from protocols.ring.fixed_point import decode, encode
from protocols.roles.role import Role
from protocols.roles.streams import Stream
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, secret, shares_of
from tests.support.preparation_case import pooled, prepared_job, tables
from tests.support.served import counting, served_job, some_weights
from tests.support.served import shares_of as shares_of_weights
from tests.support.tensors import attached

F, SID = 20, bytes(range(32))
TOLERANCE = 2**-10


def shared_job(folder: Path) -> Job:
    """A job with every kind of preparation, whose model stays in shares."""
    job = prepared_job(folder)
    reveal = msgspec.structs.replace(job.reveal, model="shares")
    roles = msgspec.structs.replace(job.job, recipients=())
    return msgspec.structs.replace(job, reveal=reveal, job=roles)


def weights(job: Job) -> dict[str, Words]:
    rng = np.random.default_rng(4)
    return {name: encode(rng.normal(0, 0.5, shape), F) for name, shape in job.shapes.items()}


def zeros(role: Role, count: int) -> Callable[[int], Words]:
    """Zero shares of a test's evaluator; the dealer has none."""
    me, streams = role.index or 0, {}
    for other in set(range(count)) - {me}:
        pair = f"{min(me, other)} {max(me, other)}"
        streams[other] = Stream(hashlib.sha256(pair.encode()).digest())
        streams[other].begin_step(0)
    return zero_shares(me, streams)


def kept_shares(job: Job, evaluators: int = 2) -> tuple[list[ModelShare], list[Any]]:
    """What each evaluator keeps, and (Δ, [λ]) of the network's tensors at each role."""
    pipeline, (training, _) = job.pipeline, split(job)
    parts = [local_terms(pipeline, table) for table in tables()]
    statistics = []
    for owner, part in zip(job.owners, parts, strict=True):
        first = job.first_row(owner)
        mine = training[(training >= first) & (training < first + len(part.values))] - first
        statistics.append(partials(pipeline, part, mine, len(training)))

    def program(role: Role) -> Any:
        with attached(role, F):
            brought = [secret(role, encode(s, 0)) for s in statistics]
            found = parameters(pipeline, brought, len(training), 1, F)
            tensors = {name: secret(role, words) for name, words in weights(job).items()}
            kept = kept_tensors(tensors, found)
            role.finish()
            masks = {name: shares_of(x) for name, x in tensors.items()}
            if role.is_dealer:
                return None, masks
            share = captured(job, role, SID, kept, found.factors, zeros(role, evaluators))
            return share, masks

    results = run_lockstep(program, evaluators)
    return [share for share, _ in results[:-1]], [masks for _, masks in results]


def predictions(job: Job, shares: list[ModelShare], local: Local) -> np.ndarray:
    """The outputs of a later session, for rows that an asker shares in."""
    about = shares[0].about
    values = asked_values(job, local)

    def program(role: Role) -> Any:
        with attached(role, F):
            parts = None if role.index is None else shares[role.index].parts
            tensors, found = returned(role, about.public, parts)
            network = network_of(job, tensors)
            asked = {
                name: secret(role, encode(values[name], bits))
                for name, (_, bits) in asked_shapes(job, len(local.values)).items()
            }
            return shares_of(answered(job, network, found, asked))

    return decode(combine_masked(run_lockstep(program, len(shares), seed=2)), F)


def in_the_clear(job: Job, local: Local) -> np.ndarray:
    training, _ = split(job)
    whole = local_terms(job.pipeline, pooled(tables()))
    inputs = applied(job.pipeline, local, twin_parameters(job.pipeline, whole, training))
    module = plain_module(job).double().eval()
    module.load_state_dict(
        {name: torch.from_numpy(decode(words, F)) for name, words in weights(job).items()}
    )
    with torch.no_grad():
        found: np.ndarray = module(torch.from_numpy(inputs)).numpy()
    return found


@pytest.mark.parametrize("evaluators", [2, 3])
def test_a_later_session_predicts_what_the_model_in_the_clear_does(
    tmp_path: Path, evaluators: int
) -> None:
    job = shared_job(tmp_path)
    shares, _ = kept_shares(job, evaluators)
    again = [ModelShare.from_bytes(share.to_bytes()) for share in shares]
    some = local_terms(job.pipeline, pooled(tables()))
    some = Local(some.values[::7].copy(), some.present[::7].copy())
    expected = in_the_clear(job, some)
    found = predictions(job, again, some)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    # Fewer than all say nothing, however the others' words are guessed.
    alone = replace(again[0], parts={name: words * 0 for name, words in again[0].parts.items()})
    assert np.abs(predictions(job, [alone, *again[1:]], some) - expected).max() > 1


def test_what_is_kept_adds_up_and_not_with_the_masks_that_were_dealt(tmp_path: Path) -> None:
    """Who dealt knows every λ: of one evaluator's part alone it learns nothing for all that."""
    job = shared_job(tmp_path)
    shares, masks = kept_shares(job)
    *parts, dealt = masks
    for name, words in weights(job).items():
        kept = [share.parts[TENSOR + name] for share in shares]
        np.testing.assert_array_equal(kept[0] + kept[1], words)
        _, lam = dealt[name]
        _, second = parts[1][name]
        for guess in (kept[0] - second, -kept[1] - second, kept[0] + kept[1] * 0 - lam):
            assert not np.array_equal(guess.reshape(-1)[:2], words.reshape(-1)[:2])
        assert not np.array_equal(kept[1], -second)
    assert shares[0].agreed == shares[1].agreed
    assert shares[0].about.digest == shares[1].about.digest


def test_zero_shares_add_up_to_nothing() -> None:
    class One:
        is_dealer = False

        def __init__(self, index: int) -> None:
            self.index = index

    drawn = [zeros(One(index), 3)(5) for index in range(3)]  # type: ignore[arg-type]
    np.testing.assert_array_equal(sum(drawn), np.zeros(5, np.int64))
    assert all(np.abs(words).min() > 2**32 for words in drawn)


def test_a_share_of_another_shape_is_refused(tmp_path: Path) -> None:
    job = shared_job(tmp_path)
    (share, _), _ = kept_shares(job)
    data = share.to_bytes()
    head = msgspec.json.encode(share.about.public, order="deterministic")
    assert {*expected_shapes(job)} == {*share.parts}
    for wrong in (
        *(b"", data[:30], data[:-1], data[1:], b"x" + data[1:]),
        data.replace(b'"word":', b'"ward":', 1),
        data.replace(head[-30:], head[-30:][::-1], 1),
        data.replace(SID.hex().encode(), SID.hex()[2:].encode() + b"zz", 1),
    ):
        with pytest.raises(ArtifactError):
            ModelShare.from_bytes(wrong)
    fewer = {name: words for name, words in share.parts.items() if name != "tensor/bias"}
    with pytest.raises(ArtifactError, match="other tensors"):
        ModelShare.from_bytes(replace(share, parts=fewer).to_bytes())
    assert "Masked" not in repr(share) and "array" not in repr(share)


# Counts of the training rows

TENS: dict[str, tuple[int, ...]] = {OUTPUTS: (3,) * 10}


def watched(folder: Path, **more: Any) -> Job:
    """A job that counts its training rows' outputs, and nothing else."""
    return served_job(folder, drift=Drift(1000, Decimal(1), ("ann",), **more))


def test_counts_of_training_rows_are_those_of_the_job(tmp_path: Path) -> None:
    job = watched(tmp_path)
    share = counting(shares_of_weights(job, some_weights(job)), TENS)[0]
    data = share.to_bytes()
    assert ModelShare.from_bytes(data).about.training_counts == TENS
    tens = TENS[OUTPUTS]
    for wrong in ({}, {OUTPUTS: tens[1:]}, {"a": tens}, {OUTPUTS: tens, "a": tens}):
        with pytest.raises(ArtifactError, match="counts of training rows are not those of job"):
            ModelShare.from_bytes(counting([share], wrong)[0].to_bytes())
    with pytest.raises(ArtifactError):
        ModelShare.from_bytes(data.replace(b"[3,3,", b'["3",', 1))
    first = watched(tmp_path, baseline="first-window")
    with pytest.raises(ArtifactError, match="counts of training rows are not those of job"):
        counted = counting(shares_of_weights(first, some_weights(first)), TENS)[0]
        ModelShare.from_bytes(counted.to_bytes())


def test_new_shares_keep_the_counts(tmp_path: Path) -> None:
    job = watched(tmp_path)
    share = counting(shares_of_weights(job, some_weights(job)), TENS)[0]
    new = renewed(share, bytes(32), lambda count: np.ones(count, np.int64))
    assert new.about.training_counts == TENS and new.about.public.refreshed == 1


def test_shares_of_different_counts_do_not_belong_together(tmp_path: Path) -> None:
    job, other = watched(tmp_path), TENS | {OUTPUTS: (3,) * 9 + (4,)}
    same = agreed(job, TENS, TENS)
    assert same[0] == same[1]
    assert len({*same, *agreed(job, other, None)}) == 3


def agreed(job: Job, *counts: dict[str, tuple[int, ...]] | None) -> list[bytes]:
    """What shows which share each evaluator has, of one model and these counts."""

    def program(role: Role) -> bytes:
        with attached(role, F):
            tensors = {name: secret(role, words) for name, words in weights(job).items()}
            kept = kept_tensors(tensors, Parameters())
            role.finish()
            if role.index is None:
                return b""
            none = zeros(role, 2)
            return captured(job, role, SID, kept, None, none, counts[role.index]).agreed

    found: list[bytes] = run_lockstep(program, 2)
    return found[:2]
