"""New shares of a model: worth the same together, and nothing beside the old ones, wherever a node
ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.admission.cautions import cautions
from mpc_train.admission.load import load_job
from mpc_train.admission.rules import check_rules
from mpc_train.errors import ArtifactError, JobError, RefusedError
from mpc_train.estimates.rehearsal import rehearse
from mpc_train.results.outcome import check, read_outcome
from mpc_train.results.report import describe
from mpc_train.run.phases import keep
from mpc_train.shared.description import Description
from mpc_train.shared.library import Library, find, held_models, record_of, retire
from mpc_train.shared.measuring import refreshing_job, write_job
from mpc_train.shared.share import ModelShare
from parties.audit.entries import Kind
from protocols.errors import PeerLostError
from tests.support.jobs import allowing
from tests.support.linear_rule import write_study
from tests.support.sessions import Kill, Rehearsal
from tests.support.shared_models import (
    RANGED,
    SCALED,
    first_run,
    later_run,
    measuring,
    shares,
    together,
)

DORA = '[serve]\nvalidators = ["dora"]'


def trained(tmp_path: Path) -> Rehearsal:
    return first_run(tmp_path / "first", "logistic", f"{DORA}\n{SCALED}", features=RANGED)


def refreshing(folder: Path, first: Rehearsal) -> Rehearsal:
    folder.mkdir()
    path = folder / "job.toml"
    write_job(refreshing_job(described(first), "refresh-study"), path)
    run = later_run(first, path)
    run.tables = lambda _, job: [None for _ in job.owners]  # type: ignore[misc]
    return run


def described(first: Rehearsal) -> Description:
    about = shares(first)[0].about
    return Description(about.job, about.public.sid)


def versions(run: Rehearsal, name: str) -> list[int]:
    with run.vault_of(name).opened() as store:
        return [held.about.public.refreshed for held in held_models(store)]


def accuracy(tmp_path: Path, first: Rehearsal, number: int) -> float:
    run = measuring(tmp_path / f"measured{number}", first, ["log_loss"])
    run.number += 1000 * number
    run.session()
    found: Any = run.programs["ann"].found.metrics
    return float(found["log_loss"])


def test_new_shares_are_the_same_model_and_fit_no_old_one(tmp_path: Path) -> None:
    first = trained(tmp_path)
    before, old = together(shares(first)), shares(first)
    expected = accuracy(tmp_path, first, 1)
    run = refreshing(tmp_path / "refresh", first)
    run.session()
    new = shares(first)
    assert new[0].about.digest == old[0].about.digest
    assert new[0].agreed == new[1].agreed != old[0].agreed
    for name, words in together(new).items():
        np.testing.assert_array_equal(words, before[name])
        for index in (0, 1):
            mixed = old[index].parts[name] + new[1 - index].parts[name]
            assert (np.abs(mixed - words) > 1 << 40).all()
    for name in ("ann", "bob"):
        assert versions(run, name) == [1]
        with run.vault_of(name).opened() as store:
            assert record_of(store, find(store, "study")) == b"signed by all"
    said = [(node, kind) for node, kind, _ in run.events]
    assert sorted(said) == [("ann", Kind.MODEL_REFRESHED), ("bob", Kind.MODEL_REFRESHED)]
    outcome = read_outcome(run.programs["registry"].outcome())
    check(run.job, outcome)
    assert not outcome.openings and run.programs["ann"].outcome() == outcome.to_bytes()
    assert not [
        pair for pair in run.net.transcript if "registry" in pair
    ]  # the dealer hears nothing
    assert run.masks_used_twice() == 0
    assert accuracy(tmp_path, first, 2) == pytest.approx(expected, abs=1e-4)
    again = refreshing(tmp_path / "again", first)
    again.number += 50
    again.session()
    assert versions(again, "ann") == versions(again, "bob") == [2]


@pytest.mark.parametrize("node", ["ann", "bob"])
@pytest.mark.parametrize("frame", [0, 1])
def test_a_node_that_ends_loses_nothing(tmp_path: Path, node: str, frame: int) -> None:
    first = trained(tmp_path)
    before = accuracy(tmp_path, first, 1)
    run = refreshing(tmp_path / "refresh", first)
    with pytest.raises(PeerLostError):
        run.session(Kill(node, 0, frame))
    assert all(0 in versions(run, name) for name in ("ann", "bob"))
    assert accuracy(tmp_path, first, 2) == pytest.approx(before, abs=1e-4)
    run.session()
    for name in ("ann", "bob"):
        (refreshed,) = versions(run, name)
        assert refreshed >= 1
    assert accuracy(tmp_path, first, 3) == pytest.approx(before, abs=1e-4)
    assert run.masks_used_twice() == 0


@pytest.mark.parametrize("node", ["ann", "bob"])
def test_a_node_that_ends_before_it_destroys_its_old_share(
    tmp_path: Path, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained(tmp_path)
    before = accuracy(tmp_path, first, 1)
    run = refreshing(tmp_path / "refresh", first)
    whole = Library.settle

    def ended(self: Library, share: ModelShare) -> None:
        if share.about.public.refreshed and run._here.name == node:
            raise PeerLostError(f"{node} was killed")
        whole(self, share)

    monkeypatch.setattr(Library, "settle", ended)
    with pytest.raises(PeerLostError):
        run.session()
    monkeypatch.setattr(Library, "settle", whole)
    assert sorted(versions(run, node)) == [0, 1]
    assert accuracy(tmp_path, first, 2) == pytest.approx(before, abs=1e-4)
    with run.vault_of(node).opened() as store:
        retire(store, find(store, "study"))
        assert not [*held_models(store)]


def test_a_share_that_cannot_be_kept_leaves_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained(tmp_path)
    before = accuracy(tmp_path, first, 1)
    run = refreshing(tmp_path / "refresh", first)
    whole = Library.keep

    def full(self: Library, share: ModelShare) -> None:
        if run._here.name == "bob":
            raise ArtifactError("the disk is full")
        whole(self, share)

    monkeypatch.setattr(Library, "keep", full)
    with pytest.raises(ArtifactError, match="bob could not keep a new share"):
        run.session()
    monkeypatch.setattr(Library, "keep", whole)
    assert versions(run, "bob") == [0] and 0 in versions(run, "ann")
    assert accuracy(tmp_path, first, 2) == pytest.approx(before, abs=1e-4)
    run.session()
    assert versions(run, "ann") == versions(run, "bob") == [1]
    assert accuracy(tmp_path, first, 3) == pytest.approx(before, abs=1e-4)


def test_an_old_copy_of_a_vault_is_noticed(tmp_path: Path) -> None:
    first = trained(tmp_path)
    old = shares(first)
    run = refreshing(tmp_path / "refresh", first)
    run.session()
    with run.vault_of("bob").opened() as store:
        record = record_of(store, find(store, "study"))
        retire(store, find(store, "study"))
    restored = Library(run.vault_of("bob").opened)
    restored.keep(old[1])
    restored.sign("study", old[1].about.digest, record)
    with pytest.raises(ArtifactError, match="different refreshes"):
        accuracy(tmp_path, first, 1)
    run.number += 7
    with pytest.raises(ArtifactError, match="different refreshes"):
        run.session()
    assert versions(run, "ann") == [1] and versions(run, "bob") == [0]


def test_what_people_and_rules_see(tmp_path: Path) -> None:
    first = trained(tmp_path)
    run = refreshing(tmp_path / "refresh", first)
    said = describe(run.job)
    assert "in new shares at ann, bob" in said and "revealed   nothing of the model" in said
    assert "of the model's training; they stay in shares with the model" in said
    assert cautions(run.job) == []
    check_rules(allowing(run.job), run.job, "ann")
    with pytest.raises(RefusedError, match="dealers"):
        check_rules(allowing(run.job, dealers=("other",)), run.job, "ann")
    assert rehearse(run.job)["ann"].channel.bytes_sent > 0
    assert keep.KEPT


@pytest.mark.parametrize(
    ("train", "rows", "words"),
    [
        ('warm_start = { source = "ann" }\nguard = false', 0, "new shares are of a model"),
        ("START", 0, "guard = false"),
        ("START\nguard = false", 20, "0 rows"),
        ("epochs = 1\nbatch_size = 8\noptimizer = { learning_rate = 0.1 }", 20, "trains nothing"),
    ],
)
def test_a_job_says_what_is_wrong(tmp_path: Path, train: str, rows: int, words: str) -> None:
    start = f'warm_start = {{ source = "shares", sha256 = "{"0" * 64}" }}'
    path = write_study(
        tmp_path,
        "logistic",
        train.replace("START", start),
        'model = "refreshed"',
        epochs=0,
        recipients=(),
        rows={"ann": rows, "bob": rows},
        data="limit = 8",
    )
    with pytest.raises(JobError, match=words):
        load_job(path)
