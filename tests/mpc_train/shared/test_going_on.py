"""Training that goes on from a model in shares: what comes of it, and who may not."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mpc_train.admission.load import load_job
from mpc_train.errors import ArtifactError, JobError, RefusedError
from mpc_train.jobs.job import Job
from mpc_train.jobs.serve import Drift, Serve
from mpc_train.results.outcome import initial_of
from mpc_train.results.report import describe
from mpc_train.shared import permits
from mpc_train.shared.library import Library, find, retire
from mpc_train.shared.permits import check_use
from mpc_train.shared.share import COARSE, TENSOR, ModelShare
from mpc_train.twin.training import train_twin
from protocols.errors import PeerLostError
from protocols.ring.fixed_point import decode
from tests.support.csv_tables import load_tables
from tests.support.linear_rule import write_study
from tests.support.sessions import Kill, Rehearsal
from tests.support.shared_models import (
    RANGED,
    RATE,
    SCALED,
    SHARES,
    TRAIN_ON,
    digest_of,
    first_run,
    going_on,
    shares,
    signed,
    together,
)


def test_training_goes_on_as_from_the_same_model_in_a_file(tmp_path: Path) -> None:
    first = first_run(tmp_path / "first")
    before = together(shares(first))
    run = going_on(tmp_path / "later", first)
    run.session()
    start = {name: before[TENSOR + name] for name in run.job.shapes}
    twin = train_twin(run.job, load_tables(run.folder, run.job), start)
    after = together(shares(run))
    for name in run.job.shapes:
        weights = decode(after[TENSOR + name], run.job.fraction_bits)
        np.testing.assert_allclose(weights, np.array(twin.state[name]), atol=1e-3)
        assert np.abs(after[TENSOR + name] - before[TENSOR + name]).max() > 1 << 8
    assert run.masks_used_twice() == 0
    assert signed(run) != digest_of(first) or first.job.digest() != run.job.digest()
    assert initial_of(run.job).kind == "shared-model"


@pytest.mark.parametrize("statistics", ["own", "model"])
def test_inputs_are_prepared_by_the_statistics_that_the_job_names(
    tmp_path: Path, statistics: str
) -> None:
    more = f"{TRAIN_ON}\n{SCALED}"
    first = first_run(tmp_path / "first", more=more, features=RANGED)
    before = together(shares(first))
    run = going_on(
        tmp_path / "later", first, f', prepare = "{statistics}"', more=more, features=RANGED
    )
    assert f"the statistics of {'that model' if statistics == 'model' else 'this'}" in describe(
        run.job
    )
    run.session()
    same = np.array_equal(together(shares(run))[COARSE], before[COARSE])
    assert same == (statistics == "model")
    assert shares(run)[0].about.public.bits == shares(first)[0].about.public.bits
    assert run.masks_used_twice() == 0


def test_a_run_that_broke_off_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    first = first_run(tmp_path / "first")
    run = going_on(tmp_path / "whole", first)
    run.session()
    expected = together(shares(run))
    broken = going_on(tmp_path / "broken", first)
    broken.number += 100
    with pytest.raises(PeerLostError):
        broken.session(Kill("ann", 7))
    broken.session()
    assert broken.resumed_after == 4
    for name, words in together(shares(broken)).items():
        assert np.abs(words - expected[name]).max() < 1 << 8
    assert broken.masks_used_twice() == 0


def test_who_lacks_its_share_refuses_before_anything_is_signed(tmp_path: Path) -> None:
    first = first_run(tmp_path / "first")
    run = going_on(tmp_path / "later", first)
    with run.vault_of("bob").opened() as store:
        retire(store, find(store, "study"))
    with pytest.raises(ArtifactError, match="it was retired"):
        run.session()
    assert not run.net.transcript and not run.events


def test_a_share_of_a_run_that_did_not_end_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    first = Rehearsal(
        write_study(tmp_path / "first", "linear", RATE, SHARES, recipients=(), more=TRAIN_ON)
    )
    first.session()
    run = going_on(tmp_path / "later", first)
    with pytest.raises(ArtifactError, match="its run did not end"):
        run.session()


def test_shares_that_do_not_belong_together_are_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = first_run(tmp_path / "first")
    run = going_on(tmp_path / "later", first)
    whole = Library.shares

    def others(self: Library, digest: str) -> list[ModelShare]:
        (found,) = whole(self, digest)
        return [found if seen.pop() else replace(found, agreed=bytes(len(found.agreed)))]

    seen = [True, False]
    monkeypatch.setattr(Library, "shares", others)
    with pytest.raises(ArtifactError, match="do not belong together"):
        run.session()
    assert not [label for frames in run.net.transcript.values() for label, _ in frames[2:]]


def altered(job: Job, /, **sections: Any) -> Job:
    for name, fields in sections.items():
        section = getattr(job, name)
        section = Serve() if section is None else section
        job = msgspec.structs.replace(job, **{name: msgspec.structs.replace(section, **fields)})
    return job


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"job": {"evaluators": ("bob", "ann")}}, "job.evaluators must be ann, bob, in this order"),
        ({"job": {"dealer": "other"}}, "job.dealer must be registry"),
        ({"model": {"kind": "logistic"}}, r"\[model\] must be the network"),
        ({"fixed_point": {"fraction_bits": 18}}, "fraction_bits must be 20"),
        ({"fixed_point": {"activation_limit": 32}}, "activation_limit must be at least 64"),
        ({"data": {"features": ("b", "a", "c")}}, "its inputs are a, b, c, in this order"),
        ({"serve": {"clients": ("eve",)}}, "serve.clients names eve"),
        ({"serve": {"validators": ("eve",)}}, "serve.validators names eve"),
        ({"serve": {"rows_a_day": 9000}}, "serve.rows_a_day must be at most 1000"),
        ({"reveal": {"least_test_rows": 9, "metrics": ("mse",)}}, "rows must be at least 10"),
    ],
)
def test_a_job_may_do_no_more_than_the_models_job_allows(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    model = load_job(write_study(tmp_path, "linear", RATE, SHARES, recipients=(), more=TRAIN_ON))
    check_use(model, "0" * 64, altered(model, serve={}))
    with pytest.raises(RefusedError, match=words):
        check_use(model, "0" * 64, altered(model, **change))
    with pytest.raises(RefusedError, match="does not allow training to go on"):
        check_use(altered(model, serve={"train_on": False}), "0" * 64, model)


def test_answers_may_tell_no_more(tmp_path: Path) -> None:
    said = f'{TRAIN_ON}\nanswer = "probability"\ndecimals = 2'
    model = load_job(write_study(tmp_path, "logistic", RATE, SHARES, recipients=(), more=said))
    for serve, words in (
        ({"answer": "number"}, "may tell no more than probability"),
        ({"drift": Drift(1000, Decimal(1), ("ann",))}, "its job does not allow drift"),
        ({"decimals": None}, "serve.decimals must be at most 2"),
        ({"decimals": 3}, "serve.decimals must be at most 2"),
    ):
        with pytest.raises(RefusedError, match=words):
            check_use(model, "0" * 64, altered(model, serve=serve))
    check_use(model, "0" * 64, altered(model, serve={"answer": "class", "decimals": None}))


def test_drift_may_be_watched_no_closer(tmp_path: Path) -> None:
    drift = 'drift = { every_rows = 1000, epsilon = "1", to = ["ann"] }'
    said = f'{TRAIN_ON}\nclients = ["clinic"]\n{drift}'
    model = load_job(write_study(tmp_path, "logistic", RATE, SHARES, recipients=(), more=said))
    for asked, words in (
        (Drift(999, Decimal(1), ("ann",)), "drift.every_rows must be at least 1000"),
        (Drift(1000, Decimal("1.1"), ("ann",)), "drift.epsilon must be at most 1"),
        (Drift(1000, Decimal(1), ("ann", "bob")), "drift.to names bob"),
    ):
        with pytest.raises(RefusedError, match=words):
            check_use(model, "0" * 64, altered(model, serve={"drift": asked}))
    first = Drift(1000, Decimal(1), ("ann",), "first-window")
    for less in (Drift(2000, Decimal("0.5"), ("ann",)), first, msgspec.UNSET):
        check_use(model, "0" * 64, altered(model, serve={"drift": less}))
    with pytest.raises(RefusedError, match=r'drift\.baseline must be "first-window"'):
        check_use(altered(model, serve={"drift": first}), "0" * 64, model)
    fewer = altered(model, reveal={"least_group": model.reveal.least_group - 1})
    with pytest.raises(RefusedError, match="least_group must be at least 10, as in its job"):
        check_use(model, "0" * 64, fewer)
    check_use(model, "0" * 64, altered(fewer, serve={"drift": msgspec.UNSET}))


@pytest.mark.parametrize(
    ("start", "reveal", "words"),
    [
        (', prepare = "other"', SHARES, "prepare"),
        ("", "", "stays in shares"),
    ],
)
def test_a_job_says_what_is_wrong(tmp_path: Path, start: str, reveal: str, words: str) -> None:
    train = f'{RATE}\nwarm_start = {{ source = "shares", sha256 = "{"a" * 64}"{start} }}'
    recipients = () if reveal else ("ann",)
    path = write_study(tmp_path, "linear", train, reveal, recipients=recipients)
    with pytest.raises(JobError, match=words):
        load_job(path)


def test_only_a_model_in_shares_has_statistics(tmp_path: Path) -> None:
    train = f'{RATE}\nwarm_start = {{ source = "ann", prepare = "model" }}'
    with pytest.raises(JobError, match="only a model in shares, or one"):
        load_job(write_study(tmp_path, "linear", train))
    train = f'{RATE}\nwarm_start = {{ source = "shares", sha256 = "abc" }}'
    with pytest.raises(JobError, match="64 hexadecimal digits of the model"):
        load_job(write_study(tmp_path, "linear", train, SHARES, recipients=()))


def test_a_key_of_serve_that_nobody_compares_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever adds one decides here what allows less."""
    monkeypatch.setattr(permits, "_COMPARED", ("clients", "validators", "train_on"))
    model = load_job(write_study(tmp_path, "linear", RATE, SHARES, recipients=(), more=TRAIN_ON))
    check_use(model, "0" * 64, model)
    with pytest.raises(RefusedError, match="rows_a_day must be as in its job"):
        check_use(model, "0" * 64, altered(model, serve={"rows_a_day": 500}))
