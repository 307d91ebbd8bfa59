"""Owners' rows into shares, block by block: the same as all at once, and the table is let go."""

import dataclasses
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.owners.table import Table, table_of
from mpc_train.preparation import sharing
from mpc_train.preparation.sharing import pieces_of, share_in, words_brought
from mpc_train.run.progress import ProgressView
from mpc_train.tables.reading import Progress
from protocols.crypten_tensor.tensor import Source
from protocols.roles.role import Role
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, shares_of
from tests.support.preparation_case import prepared_job, tables
from tests.support.tensors import attached


def shared(folder: Path) -> tuple[dict[str, np.ndarray], list[tuple[int, int]]]:
    """Inputs and labels of all rows, as words, and what is told; cleo's rows are the dealer's."""
    job = prepared_job(folder)
    news: list[tuple[int, int]] = []
    parts: list[Table | None] = [table_of(job, typed) for typed in tables()]
    sources: dict[str, Source] = {"ann": 0, "bob": 1, "cleo": "dealer"}

    def program(role: Role) -> Any:
        place = 2 if role.index is None else role.index
        kept, parts[place] = [parts[place]], None

        def told(rows: int, of_rows: int) -> None:
            if place == 1:
                news.append((rows, of_rows))

        watched = weakref.ref(kept[0])
        with attached(role, job.fraction_bits):
            found = share_in(job, sources, job.owners[place], kept.pop(), told)
            gc.collect()
            assert watched() is None, "the owner's rows are still in memory"
            return shares_of(found.inputs.masked()), shares_of(found.labels.masked())

    results = run_lockstep(program, 2)
    return {
        name: combine_masked([result[place] for result in results])
        for place, name in enumerate(("inputs", "labels"))
    }, news


@pytest.mark.slow
def test_blocks_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, quiet = shared(tmp_path)
    monkeypatch.setattr(sharing, "BLOCK_WORDS", 500)
    parts, news = shared(tmp_path)
    assert quiet == []
    assert len(news) > 3
    assert news == sorted(news)
    assert news[-1] == (504, 504)
    # Other masks, so that the secret statistics are rounded to other sides: some 2^-20 each.
    assert np.abs(parts["inputs"] - whole["inputs"]).max() <= 16
    assert np.array_equal(parts["labels"], whole["labels"])


def test_an_outside_owner_sends_the_same_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepared_job(tmp_path)
    monkeypatch.setattr(sharing, "BLOCK_WORDS", 500)
    table = table_of(job, tables()[0])
    pieces, words = (
        list(pieces_of(job, "ann")),
        list(words_brought(job, "ann", table, lambda *_: None)),
    )
    assert [piece.shape for piece in pieces] == [each.shape for each in words]
    assert max(each.size for each in words) <= 500
    features = [each for piece, each in zip(pieces, words, strict=True) if piece.name == "features"]
    assert len(features) > 1
    assert sum(len(each) for each in features) == job.data.rows["ann"]


def test_people_are_told_how_far_reading_and_sharing_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 1000.0
    monkeypatch.setattr("mpc_train.run.progress.time.monotonic", lambda: clock)
    view = ProgressView()
    for done, left in ((1e6, 9.0), (5e6, 20.0), (6e6, 16.0), (9e6, 4.0)):
        news = Progress(int(done), 10_000_000, "bytes", left)
        view.event("reading", dataclasses.asdict(news))
        clock += 10
    view.event("started", {})
    for node, rows in (("bob", 400), ("ann", 100), ("ann", 500)):
        clock += 60
        fields = {"rows": rows, "of_rows": 1000, "phase": "sharing", "bytes_sent": 10}
        view.event("progress", {"node": node, "fields": fields})
    view.event("progress", {"node": "ann", "fields": {"step": 1, "steps": 4}})
    clock += 16
    view.event("progress", {"node": "ann", "fields": {"step": 2, "steps": 4}})
    assert capsys.readouterr().err.splitlines() == [
        "reading the table: 5.0 MB of 10.0 MB  20 s left",
        "reading the table: 6.0 MB of 10.0 MB  16 s left",
        "reading the table: 9.0 MB of 10.0 MB  4.0 s left",
        "all nodes are connected to each other; training",
        "sharing 400/1,000 rows  1 min 30 s left",
        "sharing 100/1,000 rows  18 min 0 s left",
        "sharing 400/1,000 rows  4 min 30 s left",
        "training 2/4  0.1 steps/s  32 s left  20 B sent",
    ]
