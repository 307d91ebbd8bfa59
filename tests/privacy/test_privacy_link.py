"""Rows that follow their lists: what corrupted evaluators see does not depend on others' rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.admission.load import load_job, resolved
from mpc_train.jobs.job import Job
from mpc_train.linkage.link import Linked
from mpc_train.linkage.sharing import share_joined
from mpc_train.owners.columns import part_of
from mpc_train.owners.table import Table
from protocols.linkage.intersection import route
from protocols.ring.fixed_point import decode
from protocols.roles.role import Role
from tests.support.columns_case import JOB, three_owners, weighted, write_job
from tests.support.loopback import combine_masked, shares_of
from tests.support.privacy import same_views
from tests.support.tensors import attached
from tests.support.transcript_first import run_scripted

PREPARE = """
[prepare]
scale = "standard"
[prepare.columns.claims]
scale = "minmax"
"""
RANGES = '{ name = "claims", range = [-9, 9] }, { name = "age", range = [-9, 9] }'
ROWS = 24


def drawn(job: Job, owner: str, rng: np.random.Generator) -> Table:
    part, rows = part_of(job, owner), job.data.rows[owner]
    labels = rng.integers(0, 2, rows).astype(np.float64) if part.label else np.empty(0)
    weights = rng.uniform(0, 4, rows) if part.weight else np.empty(0)
    # Columns of another width and place within their range each time: nothing may tell of it.
    width = 2.0 ** -rng.integers(0, 40, len(part.terms))
    inputs = rng.uniform(-1, 1, len(part.terms)) + width * rng.uniform(-1, 1, (rows, len(width)))
    return Table(inputs, labels, np.ones((rows, 0)), weights=weights)


def share(role: Role, job: Job, tables: dict[str, Table], positions: dict[str, Any]) -> Any:
    """Sharing as after a linkage in which nobody learnt the rows: positions are the evaluators'."""
    me = job.dealer if role.index is None else job.evaluators[role.index]
    orders = {
        (owner, name): role.permutation(job.data.rows[owner], job.evaluators.index(name))
        for owner in job.owners
        for name in route(owner, job.evaluators)[1:]
    }
    mine = np.arange(job.data.rows[me])[::-1].copy() if me in job.owners else None
    linked = Linked(ROWS, mine, orders, {} if role.is_dealer else positions)
    with attached(role, job.fraction_bits):
        shared = share_joined(resolved(job, ROWS), role, linked, me, tables.get(me))
        tensors = [
            shared.inputs,
            shared.labels,
            *([] if shared.weights is None else [shared.weights]),
        ]
        whole = [t.plain_factor().in_full().masked() for t in tensors]
    return [shares_of(one) for one in whole], orders


@pytest.mark.parametrize(
    ("text", "corrupted"),
    [
        (JOB, (0,)),
        (JOB, (1,)),
        (three_owners(), (0, 1, 2)),
        (three_owners(), (1, 2, 3)),
        (three_owners(), (2,)),
        (weighted(), (0,)),
        (weighted(), (1,)),
    ],
)
@pytest.mark.parametrize("prepare", ["", PREPARE])
def test_view_of_shared_rows(
    tmp_path: Path, text: str, corrupted: tuple[int, ...], prepare: str
) -> None:
    if prepare:
        text = text.replace("[model]", prepare + "\n[model]").replace('"claims", "age"', RANGES, 1)
        text = text.replace('"visits"]\nlabel', '{ name = "visits", range = [-9, 9] }]\nlabel')
        text = text.replace("center = 50, scale = 20", "range = [-9, 9]")
    job = load_job(write_job(tmp_path, "nobody", text))
    rng = np.random.default_rng(1)
    positions = {name: rng.permutation(job.data.rows[name])[:ROWS] for name in job.owners}
    own = {job.evaluators[i] for i in corrupted}
    fixed = {name: drawn(job, name, rng) for name in job.owners if name in own}
    views = []
    for coins in range(3):
        others = np.random.default_rng(10 + coins)
        tables = {name: fixed.get(name) or drawn(job, name, others) for name in job.owners}

        def program(role: Role, tables: dict[str, Table] = tables) -> Any:
            return share(role, job, tables, positions)

        results, view = run_scripted(program, len(job.evaluators), corrupted, coins=coins)
        views.append(view)
        if not prepare:
            check_rows(job, tables, positions, results)
    same_views(views)


def check_rows(
    job: Job, tables: dict[str, Table], positions: dict[str, Any], results: list[Any]
) -> None:
    """The result is what the orders, known together to all evaluators, make of the rows."""
    found = decode(combine_masked([shares[0] for shares, _ in results]), job.fraction_bits)
    orders = results[-1][1]
    for owner in job.owners:
        rows = np.arange(job.data.rows[owner])[::-1]
        for name in route(owner, job.evaluators)[1:]:
            rows = rows[orders[owner, name]]
        expected = tables[owner].features[rows[positions[owner]]]
        columns = list(part_of(job, owner).terms)
        np.testing.assert_allclose(found[:, columns], expected, atol=2.0**-20)
        if part_of(job, owner).weight:
            words = combine_masked([shares[2] for shares, _ in results])
            expected = tables[owner].weights[rows[positions[owner]]]
            np.testing.assert_allclose(
                decode(words, job.fraction_bits)[:, 0], expected, atol=2.0**-20
            )
