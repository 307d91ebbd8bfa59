"""Owners' rows into shares, block by block: the same as all at once, and the table is let go."""

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.data import Table, table_of
from mpc_train.preparation import sharing
from mpc_train.preparation.sharing import pieces_of, share_in, words_brought
from protocols.crypten_backend import Source, attach, detach
from protocols.role import Role
from tests.mpc_train.preparation_case import prepared_job, tables
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, shares_of


def shared(folder: Path) -> dict[str, np.ndarray]:
    """Inputs and labels of all rows, as words; cleo's rows are the dealer's."""
    job = prepared_job(folder)
    parts: list[Table | None] = [table_of(job, typed) for typed in tables()]
    sources: dict[str, Source] = {"ann": 0, "bob": 1, "cleo": "dealer"}

    def program(role: Role) -> Any:
        attach(role, job.fraction_bits)
        place = 2 if role.index is None else role.index
        kept, parts[place] = [parts[place]], None
        watched = weakref.ref(kept[0])
        try:
            found = share_in(job, sources, job.owners[place], kept.pop())
            gc.collect()
            assert watched() is None, "the owner's rows are still in memory"
            return shares_of(found.inputs.masked()), shares_of(found.labels.masked())
        finally:
            detach()

    results = run_lockstep(program, 2)
    return {
        name: combine_masked([result[place] for result in results])
        for place, name in enumerate(("inputs", "labels"))
    }


def test_blocks_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shared(tmp_path)
    monkeypatch.setattr(sharing, "BLOCK_WORDS", 500)
    parts = shared(tmp_path)
    # Other masks, so that the secret statistics are rounded to other sides: some 2^-20 each.
    assert np.abs(parts["inputs"] - whole["inputs"]).max() <= 16
    assert np.array_equal(parts["labels"], whole["labels"])


def test_an_outside_owner_sends_the_same_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepared_job(tmp_path)
    monkeypatch.setattr(sharing, "BLOCK_WORDS", 500)
    table = table_of(job, tables()[0])
    pieces, words = list(pieces_of(job, "ann")), list(words_brought(job, "ann", table))
    assert [piece.shape for piece in pieces] == [each.shape for each in words]
    assert max(each.size for each in words) <= 500
    features = [each for piece, each in zip(pieces, words, strict=True) if piece.name == "features"]
    assert len(features) > 1
    assert sum(len(each) for each in features) == job.data.rows["ann"]
