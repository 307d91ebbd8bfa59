"""Counts of training rows as a whole run makes them, against the same in the clear."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.admission.load import load_job
from mpc_train.estimates.rehearsal import Rehearsed, rehearse
from mpc_train.evaluation import noise
from mpc_train.evaluation.drift import stability
from mpc_train.evaluation.histograms import OUTPUTS, histograms
from mpc_train.jobs.audience import TRAINING_COUNTS
from mpc_train.preparation import rows as rows_module
from parties.audit.entries import Kind
from tests.support.counted_study import (
    EDGES,
    SCALED,
    in_bins,
    training_rows,
    watching,
    write_counted,
)
from tests.support.sessions import Rehearsal
from tests.support.shared_models import shares

TENTHS = [k / 10 for k in range(1, 10)]
COSTS = {
    "": {"ann": (111, 34292), "bob": (111, 33604), "registry": (0, 129384)},
    SCALED: {"ann": (161, 48940), "bob": (161, 47868), "registry": (0, 147624)},
}
"""Rounds and bytes sent, all of the run's."""
PLAIN = {"": (99, 29036), SCALED: (153, 43996)}
"""Those of ann where nothing of the training rows is counted."""


def counts_of(run: Rehearsal) -> dict[str, tuple[int, ...]]:
    """What the evaluators keep with the model: all of them the same."""
    found = [share.about.training_counts for share in shares(run)]
    assert found[0] is not None and all(each == found[0] for each in found)
    return found[0]


@pytest.mark.parametrize("more", ["", SCALED], ids=["as they are", "secret statistics"])
def test_training_rows_are_counted_as_in_the_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    monkeypatch.setattr(noise, "discrete_laplace", lambda scale: 0)
    path = write_counted(tmp_path, watching(), more)
    run = Rehearsal(path)
    run.session()
    found, rows = counts_of(run), training_rows(path)
    for name, edges in EDGES.items():
        assert [*found[name]] == in_bins(rows[name], edges), name
    expected = in_bins(rows[OUTPUTS], TENTHS)
    # Of another arithmetic: a row beside an edge may be on its other side.
    assert np.abs(np.subtract(found[OUTPUTS], expected)).sum() <= 4
    assert sum(found[OUTPUTS]) == len(rows["a"]) == 128
    assert run.masks_used_twice() == 0


def test_what_leaves_is_in_every_ledger(tmp_path: Path) -> None:
    """Before it leaves; and its noise is that of every evaluator."""
    path = write_counted(tmp_path, watching("4"))
    run = Rehearsal(path)
    run.session()
    said = [
        (node, dict(fields))
        for node, kind, fields in run.events
        if kind is Kind.OPENING and fields["output"] == TRAINING_COUNTS
    ]
    bins = sum(len(one.bins) for one in histograms(run.job))
    assert sorted(node for node, _ in said) == [*run.job.evaluators, run.job.dealer]
    for _, fields in said:
        assert (fields["to"], fields["clause"]) == (run.job.evaluators, "serve.drift")
        assert (fields["values"], fields["step"]) == (bins, 8)
    # 4 / ε = 1: two evaluators' noise in 18 counts is not 0 everywhere.
    rows, found = training_rows(path), counts_of(run)
    exact = {name: in_bins(rows[name], edges) for name, edges in EDGES.items()}
    differences = np.concatenate([np.subtract(found[name], exact[name]) for name in EDGES])
    assert 0 < np.abs(differences).max() < 40


@pytest.mark.slow
def test_every_evaluator_draws_its_own_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []

    def discrete_laplace(scale: Any) -> int:
        drawn.append(scale)
        return 7

    monkeypatch.setattr(noise, "discrete_laplace", discrete_laplace)
    path = write_counted(tmp_path, watching("0.5"))
    run = Rehearsal(path)
    run.session()
    found, rows = counts_of(run), training_rows(path)
    bins = sum(len(one.bins) for one in histograms(run.job))
    assert len(drawn) == 2 * bins and set(drawn) == {4 / 0.5}
    for name, edges in EDGES.items():
        assert [*found[name]] == [count + 14 for count in in_bins(rows[name], edges)]


@pytest.mark.parametrize("more", COSTS, ids=["as they are", "secret statistics"])
def test_a_dry_run_knows_what_counting_costs(tmp_path: Path, more: str) -> None:
    found = rehearse(load_job(write_counted(tmp_path, watching(), more)))
    assert {name: spent(node) for name, node in found.items()} == COSTS[more]
    tmp_path.joinpath("plain").mkdir()
    first = watching(more=', baseline = "first-window"')
    plain = rehearse(load_job(write_counted(tmp_path / "plain", first, more)))
    assert spent(plain["ann"]) == PLAIN[more]


def spent(node: Rehearsed) -> tuple[int, int]:
    return sum(phase.rounds for phase in node.phases.values()), node.channel.bytes_sent


@pytest.mark.slow
def test_blocks_of_rows_are_counted_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpc_train.evaluation import training_counts

    monkeypatch.setattr(noise, "discrete_laplace", lambda scale: 0)
    monkeypatch.setattr(training_counts, "BLOCK", 100)
    monkeypatch.setattr(rows_module, "BLOCK", 50)
    path = write_counted(tmp_path, watching())
    run = Rehearsal(path)
    run.session()
    rows = training_rows(path)
    for name, edges in EDGES.items():
        assert [*counts_of(run)[name]] == in_bins(rows[name], edges)


@pytest.mark.slow
def test_an_index_is_that_of_the_clear_rows(tmp_path: Path) -> None:
    """Noise of ε = 20 moves a count of 128 by less than a row, mostly: the index by little."""
    path = write_counted(tmp_path, watching("20"))
    run = Rehearsal(path)
    run.session()
    found, rows = counts_of(run), training_rows(path)
    rng = np.random.default_rng(1)
    for shift, low, high in ((0.0, 0.0, 0.1), (1.5, 0.25, 10.0)):
        for name, edges in EDGES.items():
            asked = in_bins(rng.normal(shift, 1, 4000), edges)
            index, exact = stability(found[name], asked), population_index(rows[name], asked, edges)
            assert abs(index - exact) < 0.05 + 0.1 * exact, name
            assert low <= index < high, (name, shift)


def population_index(training: np.ndarray, asked: list[int], edges: Sequence[float]) -> float:
    """From the cells themselves, by the formula of the literature, without anything added."""
    p = np.histogram(training, [-np.inf, *edges, np.inf])[0] / len(training)
    q = np.array(asked) / sum(asked)
    p, q = np.maximum(p, 1e-3), np.maximum(q, 1e-3)
    return float(((q - p) * np.log(q / p)).sum())
