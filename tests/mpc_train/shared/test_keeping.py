"""Whole runs of a job whose model stays in shares: what the vaults hold when they end or break
off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mpc_train.errors import ArtifactError
from mpc_train.shared.library import (
    Library,
    find,
    held_models,
    is_kept,
    record_of,
    retire,
    share_of,
)
from mpc_train.shared.share import TENSOR, ModelShare, model_digest
from parties.audit.entries import Kind
from parties.errors import VaultError
from protocols.ring.fixed_point import decode
from tests.support.linear_rule import twin_of, write_study
from tests.support.node_vaults import node_vault
from tests.support.served import served_job, shares_of, some_weights
from tests.support.sessions import Rehearsal

TRAIN = "optimizer = { learning_rate = 0.3 }\ncheckpoint_every = 4"


def study(folder: Path) -> Rehearsal:
    folder.mkdir()
    path = write_study(folder, "linear", TRAIN, 'model = "shares"', epochs=2, recipients=())
    return Rehearsal(path)


def held(run: Rehearsal, name: str) -> list[Any]:
    with run.vault_of(name).opened() as store:
        return [*held_models(store)]


def test_the_shares_of_all_evaluators_are_the_model_of_the_twin(tmp_path: Path) -> None:
    run = study(tmp_path / "study")
    run.session()
    job, twin = twin_of(run.path)
    shares = []
    for name in job.evaluators:
        with run.vault_of(name).opened() as store:
            (found,) = held_models(store)
            shares.append(share_of(store, found))
            assert not found.is_signed
            with pytest.raises(VaultError, match="did not end"):
                find(store, job.name)
    for name in job.shapes:
        together = np.sum([share.parts[TENSOR + name] for share in shares], axis=0)
        weights = decode(together, job.fraction_bits)
        np.testing.assert_allclose(weights, np.array(twin.state[name]), atol=1e-3)
    assert run.halves == {name: {} for name in job.evaluators}  # nobody was given anything
    kept = [(node, dict(fields)) for node, kind, fields in run.events if kind is Kind.MODEL_KEPT]
    assert kept == [(name, {"model": shares[0].about.digest}) for name in job.evaluators]
    assert run.masks_used_twice() == 0


def test_a_share_that_cannot_be_kept_ends_the_run_and_the_next_one_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = study(tmp_path / "study")
    whole = Library.keep

    def full(self: Library, share: ModelShare) -> None:
        if run._here.name == "bob":
            raise ArtifactError("the disk is full")
        whole(self, share)

    monkeypatch.setattr(Library, "keep", full)
    with pytest.raises(ArtifactError, match="bob could not keep a share of the model"):
        run.session()
    (first,) = held(run, "ann")
    assert held(run, "bob") == []
    monkeypatch.setattr(Library, "keep", whole)
    run.session()
    assert run.resumed_after == 8
    (again,), (other,) = held(run, "ann"), held(run, "bob")
    assert again.about == other.about != first.about  # what was kept in vain is gone
    assert run.masks_used_twice() == 0


def test_a_model_is_signed_found_and_retired(tmp_path: Path) -> None:
    run = study(tmp_path / "study")
    run.session()
    job = run.job
    (mine,) = held(run, "ann")
    library = Library(run.vault_of("ann").opened)
    library.sign(job.name, "another model", b"of another run")
    library.sign(job.name, mine.about.digest, b"signed by all")
    with run.vault_of("ann").opened() as store:
        found = find(store, job.name)
        assert record_of(store, found) == b"signed by all"
        assert find(store, job.name, found.version) == found
        with pytest.raises(VaultError, match="no version 7"):
            find(store, job.name, 7)
        with pytest.raises(VaultError, match="no model other"):
            find(store, "other")
        retire(store, found)
        assert [*held_models(store)] == []
        with pytest.raises(VaultError, match="no model"):
            find(store, job.name)
    run.session()  # trained again, it is another model
    (anew,) = held(run, "ann")
    assert anew.stored == 2 and anew.about.digest != mine.about.digest
    assert anew.version == 0, "not signed yet"


def test_a_refresh_of_an_older_model_makes_it_no_newer(tmp_path: Path) -> None:
    """Who names no version means the model that was trained last."""
    run = study(tmp_path / "study")
    library = Library(run.vault_of("ann").opened)
    for _ in range(2):
        run.session()
        (mine,) = [one for one in held(run, "ann") if not one.is_signed]
        library.sign(run.job.name, mine.about.digest, b"signed by all")
    with run.vault_of("ann").opened() as store:
        first, second = find(store, run.job.name, 1), find(store, run.job.name, 2)
        old = share_of(store, first)
    public = msgspec.structs.replace(old.about.public, refreshed=1)
    library.keep(replace(old, about=replace(old.about, public=public), agreed=bytes(32)))
    with run.vault_of("ann").opened() as store:
        assert find(store, run.job.name) == second
        found = find(store, run.job.name, 1)
        assert (found.about.public.refreshed, found.about.digest) == (1, first.about.digest)
        retire(store, found)
        assert [*held_models(store)] == [second]


def test_a_vault_says_without_its_key_whether_it_keeps_a_model(tmp_path: Path) -> None:
    """This very one, signed by all: not another of its name."""
    job = served_job(tmp_path)
    share = shares_of(job, some_weights(job))[0]
    vault = node_vault(tmp_path)
    library, digest = Library(vault.opened), share.about.digest

    def kept(name: str = job.name, digest: str = digest) -> bool:
        return is_kept(vault.folder, name, digest)

    assert not kept()
    library.keep(share)
    assert not kept()
    library.sign(job.name, digest, b"signed by all")
    library.sign(job.name, "another model", b"of another run")
    assert kept() and not kept("other") and not kept(digest="0" * 64)
    with vault.opened() as store:
        retire(store, find(store, job.name))
    assert not kept() and kept(digest="another model")


def test_no_session_trains_two_models_of_one_digest(tmp_path: Path) -> None:
    job = study(tmp_path / "study").job
    digests = {model_digest(job, bytes([number]) * 32) for number in range(3)}
    assert len(digests) == 3


def test_without_a_vault_nothing_is_said_to_be_kept(tmp_path: Path) -> None:
    run = study(tmp_path / "study")
    made = run._programs

    def without() -> Any:
        programs = made()
        programs["bob"]._library = None
        return programs

    run._programs = without  # type: ignore[method-assign]
    with pytest.raises(ArtifactError, match="bob could not keep"):
        run.session()
