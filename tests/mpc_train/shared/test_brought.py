"""A model that its recipient opened is kept in shares again, and is the same model."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from mpc_train.admission.load import load_job
from mpc_train.errors import DataError, JobError
from mpc_train.estimates.rehearsal import rehearse
from mpc_train.preparation.fitted import input_bits
from mpc_train.preparation.sealed import BITS, opened_parameters
from mpc_train.results.outcome import check, read_outcome
from mpc_train.shared.brought import INPUT_BITS, in_two, load_statistics, statistics_words
from mpc_train.shared.share import COARSE, FILL, FINE, INSTEAD, OFFSET, TENSOR
from protocols.ring.fixed_point import decode
from tests.support.linear_rule import write_study
from tests.support.sessions import Rehearsal
from tests.support.shared_models import (
    RANGED,
    RATE,
    SHARES,
    bringing_job,
    later_run,
    measuring,
    shares,
    signed,
    together,
)

FILLED = """
[prepare]
scale = "standard"
missing = "mean"
[prepare.columns.b]
scale = "declared"
"""
DORA = '[serve]\nvalidators = ["dora"]'


def opened(run: Rehearsal, folder: Path) -> Path:
    """What `mpc-train open` writes of a run that ended, but for the manifest."""
    folder.mkdir()
    words, f = run.words(), run.job.fraction_bits
    model = {name: decode(words[name], f) for name in run.job.shapes}
    sealed = {name: decode(words[name], bits) for name, bits in BITS.items() if name in words}
    found = opened_parameters(run.job.pipeline, sealed)
    (folder / "preparation.safetensors").write_bytes(safetensors.numpy.save(found))
    path = folder / "model.safetensors"
    path.write_bytes(safetensors.numpy.save(model))
    return path


def sealed_run(folder: Path) -> Rehearsal:
    folder.mkdir()
    run = Rehearsal(write_study(folder, "logistic", RATE, epochs=2, features=RANGED, more=FILLED))
    run.session()
    return run


def bringing(folder: Path, first: Rehearsal, model: Path, owner: str) -> Rehearsal:
    run = later_run(first, bringing_job(folder, owner, f"{FILLED}\n{DORA}"))
    run.lines = f'[warm_start]\nstudy = "{model}"\n'
    run.tables = lambda _, job: [None for _ in job.owners]  # type: ignore[misc]
    return run


@pytest.mark.parametrize("owner", ["ann", "registry", "office"])
def test_it_is_the_model_that_was_opened(tmp_path: Path, owner: str) -> None:
    """ann evaluates, the registry deals, the office runs a node for this alone."""
    first = sealed_run(tmp_path / "first")
    model = opened(first, tmp_path / "opened")
    run = bringing(tmp_path / "later", first, model, owner)
    run.session()
    kept, words = together(shares(run)), first.words()
    for name in run.job.shapes:
        np.testing.assert_array_equal(kept[TENSOR + name], words[name])
    assert signed(run) == shares(run)[1].about.digest
    outcome = read_outcome(run.programs["ann"].outcome())
    check(run.job, outcome)
    assert (outcome.initial.kind, outcome.initial.owner) == ("private-file", owner)
    assert run.masks_used_twice() == 0
    # The same words as of the run that computed them over shares, but for their rounding.
    opening = safetensors.numpy.load_file(tmp_path / "opened" / "preparation.safetensors")
    expected = statistics_words(run.job, opening)
    found = np.concatenate([kept[name] for name in sorted((COARSE, FINE, OFFSET, INSTEAD, FILL))])
    np.testing.assert_array_equal(found, expected)
    # It can be measured as if it had been trained so.
    later = measuring(tmp_path / "measured", run, ["accuracy", "log_loss"], more=FILLED)
    later.session()
    measured: Any = later.programs["ann"].found.metrics
    assert measured["accuracy"] > 0.8 and measured["log_loss"] < 0.6


def test_inputs_are_those_of_the_run_that_trained_it(tmp_path: Path) -> None:
    """The words are those that a training computes over shares, up to their rounding."""
    settings: dict[str, Any] = {"features": RANGED, "more": f"{FILLED}\n{DORA}", "epochs": 2}
    first = sealed_run(tmp_path / "first")
    (tmp_path / "kept").mkdir()
    whole = Rehearsal(
        write_study(tmp_path / "kept", "logistic", RATE, SHARES, recipients=(), **settings)
    )
    whole.session()
    over_shares = together(shares(whole))
    path = opened(first, tmp_path / "opened")
    words = load_statistics(path, bringing(tmp_path / "later", first, path, "ann").job)
    names = sorted((COARSE, FINE, OFFSET, INSTEAD, FILL))
    at = np.cumsum([0, *(over_shares[name].size for name in names)])
    for name, start, end in zip(names, at[:-1], at[1:], strict=True):
        bits = 20 if name == FILL else 0
        near = np.abs(words[start:end] - over_shares[name]).astype(float)
        reach = np.abs(over_shares[name]).astype(float) if name in (COARSE, FINE) else 2.0**50
        assert (near <= np.maximum(reach * 2.0**-24, 2.0 ** (bits - 16))).all(), name
    assert whole.job.pipeline.scaled and input_bits(112) == INPUT_BITS


def test_halves_add_up() -> None:
    words = np.array([0, 1, -1, 2**63 - 1, -(2**63), 123456789 << 30], np.int64)
    high, low = np.split(in_two(words), 2)
    with np.errstate(over="ignore"):
        again = high.astype(np.int64) * (1 << 32) + low.astype(np.int64)
    np.testing.assert_array_equal(again, words)
    assert Fraction(float(low.max())) < 1 << 32


def test_a_dry_run_of_it(tmp_path: Path) -> None:
    first = sealed_run(tmp_path / "first")
    run = bringing(tmp_path / "later", first, opened(first, tmp_path / "opened"), "office")
    said = rehearse(run.job)
    run.session()
    for name, node in said.items():
        sent = sum(
            len(label) + len(payload) + 32
            for pair, frames in run.net.transcript.items()
            if pair[0] == name
            for label, payload in frames
        )
        assert node.channel.bytes_sent == sent, name


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    first = sealed_run(tmp_path / "first")
    path = opened(first, tmp_path / "opened")
    job = bringing(tmp_path / "later", first, path, "ann").job
    beside = path.with_name("preparation.safetensors")
    good = safetensors.numpy.load_file(beside)
    for wrong, words in (
        (safetensors.numpy.save(good | {"prepare.more": np.zeros(1)}), "needs exactly"),
        (safetensors.numpy.save(good | {"prepare.center": np.zeros(5)}), "needs exactly"),
        (safetensors.numpy.save(good | {"prepare.center": np.full(2, np.inf)}), "not a finite"),
        (safetensors.numpy.save(good | {"prepare.fill": np.full(3, 99.0)}), "outside the declared"),
        (b"nonsense", "not a safetensors file"),
    ):
        beside.write_bytes(wrong)
        with pytest.raises(DataError, match=words):
            load_statistics(path, job)
    beside.unlink()
    with pytest.raises(DataError, match="belongs beside the tensors"):
        load_statistics(path, job)


@pytest.mark.parametrize(
    ("rows", "reveal", "words"),
    [
        ({"ann": 20}, SHARES, "comes without rows"),
        ({"ann": 20}, 'model = "none"\nmetrics = ["accuracy"]', "comes with statistics"),
        ({"ann": 0}, 'model = "sealed"', "is not sealed"),
        ({"ann": 0}, 'model = "none"\nmetrics = ["accuracy"]', "between 1 and"),
    ],
)
def test_a_job_says_what_is_wrong(
    tmp_path: Path, rows: dict[str, int], reveal: str, words: str
) -> None:
    path = write_study(
        tmp_path,
        "logistic",
        'warm_start = { source = "ann", prepare = "model" }',
        reveal,
        epochs=0,
        recipients=("ann",) if "sealed" in reveal else (),
        rows=rows,
        job='evaluators = ["ann", "bob"]',
        data="limit = 8",
    )
    with pytest.raises(JobError, match=words):
        load_job(path)
