"""Owners' tables become joined rows over shares: those of the join in the clear, and no others."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.admission.load import resolved
from mpc_train.errors import LinkageError
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import split
from mpc_train.linkage.link import Linked, Place, check_duplicates, link
from mpc_train.linkage.sharing import share_joined
from mpc_train.owners.applied import applied
from mpc_train.owners.local import Local
from mpc_train.owners.table import Table
from mpc_train.preparation import noisy
from mpc_train.privacy.accounting import row_clip
from mpc_train.privacy.statistics import statistics_plan
from mpc_train.run.phases.train import train_model
from mpc_train.training.first_weights import initial_weights
from mpc_train.training.optimizers import row_clipping
from mpc_train.twin.join import joined
from mpc_train.twin.preparation import twin_parameters
from mpc_train.twin.private import Curator
from mpc_train.twin.training import max_weight_difference, train_twin
from protocols.errors import DesyncError
from protocols.ring.fixed_point import decode
from protocols.roles.dealer import Dealer
from protocols.roles.evaluator import Evaluator
from protocols.roles.role import Role
from protocols.roles.streams import Stream
from tests.support import columns_case
from tests.support.columns_case import JOB, load, three_owners, weighted
from tests.support.jobs import duplicates_toml, loaded
from tests.support.lockstep import LockstepLoopback
from tests.support.loopback import combine_masked, insecure_root, shares_of
from tests.support.noisy_case import by_hand, exact_sums
from tests.support.tensors import attached


def run(job: Job, work: Any, net: LockstepLoopback | None = None, seed: int = 1) -> dict[str, Any]:
    """`work(role, place)` at every computing node of the job."""
    net = net or LockstepLoopback()
    names = [*job.evaluators, job.dealer]

    def at(name: str) -> Any:
        channel = net.endpoint(name)
        role: Role
        if name == job.dealer:
            streams = [Stream(insecure_root(seed, i)) for i in range(len(job.evaluators))]
            role = Dealer(channel, names=job.evaluators, streams=streams)
        else:
            index = job.evaluators.index(name)
            role = Evaluator(
                channel,
                index=index,
                names=job.evaluators,
                dealer=job.dealer,
                stream=Stream(insecure_root(seed, index)),
            )
        role.begin_step(0)
        with attached(role, job.fraction_bits):
            found = work(role, Place(name, channel, bytes(32)))
        role.close()
        return found

    results = net.baton.run([partial(at, name) for name in names])
    return dict(zip(names, results, strict=True))


def share(job: Job, tables: dict[str, Table], net: LockstepLoopback | None = None) -> Any:
    """The joined inputs and labels in the clear, and what each node knows of the linkage."""

    def work(role: Role, place: Place) -> Any:
        table = tables.get(place.me)
        linked = link(job, role, place, None if table is None else table.tokens)
        shared = share_joined(resolved(job, linked.rows), role, linked, place.me, table)
        named = {name: shares_of(value) for name, value in shared.parameters.sealed.items()}
        inputs, labels = (
            t.plain_factor().in_full().masked() for t in (shared.inputs, shared.labels)
        )
        return linked, shares_of(inputs), shares_of(labels), named

    found = run(job, work, net)
    inputs, labels = (
        decode(combine_masked([one[place] for one in found.values()]), job.fraction_bits)
        for place in (1, 2)
    )
    return inputs, labels, {name: one[0] for name, one in found.items()}


def expected(job: Job, tables: dict[str, Table]) -> tuple[Job, np.ndarray, np.ndarray]:
    resolved, table = joined(job, [tables[owner] for owner in job.owners])
    local = Local(table.features, table.present)
    found = twin_parameters(job.pipeline, local, split(resolved)[0])
    return resolved, applied(job.pipeline, local, found), table.labels


@pytest.mark.parametrize("text", [JOB, three_owners()])
def test_holders_bring_their_common_rows_in_one_order(tmp_path: Path, text: str) -> None:
    job, tables = load(tmp_path, "holders", text)
    resolved, inputs, labels = expected(job, tables)
    found, found_labels, linked = share(job, tables)
    assert resolved.rows == 35 if text == JOB else 30 <= resolved.rows < 40
    np.testing.assert_allclose(found, inputs, atol=2.0**-20)
    np.testing.assert_array_equal(found_labels[:, 0], labels)
    for name, one in linked.items():
        assert one.rows == resolved.rows
        assert (one.mine is not None) == (name in job.owners)
        assert not one.orders and not one.positions


@pytest.mark.parametrize("text", [JOB, three_owners()])
def test_rows_follow_their_lists_where_nobody_knows_them(tmp_path: Path, text: str) -> None:
    job, tables = load(tmp_path, "nobody", text)
    resolved, inputs, labels = expected(job, tables)
    found, found_labels, linked = share(job, tables)
    whole, plain = np.column_stack([found, found_labels]), np.column_stack([inputs, labels])
    # The order is that of points that only all evaluators together make: compare as sets of rows.
    order, sorted_plain = (np.lexsort(rows.round(4).T) for rows in (whole, plain))
    np.testing.assert_allclose(whole[order], plain[sorted_plain], atol=2.0**-20)
    assert not np.allclose(whole, plain, atol=2.0**-10)
    dealer = linked[job.dealer]
    assert dealer.rows == resolved.rows and not dealer.positions and dealer.mine is None
    for owner in job.owners:
        assert sorted(linked[owner].mine) == list(range(job.data.rows[owner]))
        for evaluator in job.evaluators:
            known = {pair for pair, order in linked[evaluator].orders.items() if order is not None}
            assert known == {(o, evaluator) for o in job.owners if o != evaluator}


def test_the_order_differs_from_run_to_run(tmp_path: Path) -> None:
    job, tables = load(tmp_path, "nobody")
    first, second = (share(job, tables)[0] for _ in range(2))
    assert not np.allclose(first, second, atol=2.0**-10)


PREPARE = """
[prepare]
scale = "standard"
[prepare.columns.claims]
scale = "minmax"
[prepare.columns.age]
powers = 2
"""


@pytest.mark.parametrize("membership", ["holders", "nobody"])
def test_secret_statistics_are_those_of_the_joined_rows(tmp_path: Path, membership: str) -> None:
    """All rows train, so that the order does not matter."""
    text = JOB.replace("[model]", PREPARE + "\n[model]").replace("0.25", "0")
    text = text.replace('metrics = ["accuracy"]', "").replace(
        '"claims", "age"]\nlabel',
        '{ name = "claims", range = [0, 9] }, { name = "age", range = [-4, 4] }]\nlabel',
    )
    job, tables = load(tmp_path, membership, text)
    _, inputs, _ = expected(job, tables)
    found, _, _ = share(job, tables)
    order, plain = (np.lexsort(rows.round(3).T) for rows in (found, inputs))
    np.testing.assert_allclose(found[order], inputs[plain], atol=2.0**-12)


def private_text(text: str) -> str:
    """The job with a budget; all rows train."""
    text = text.replace("[model]", NOISY + "\n[model]").replace("0.25", "0")
    text = text.replace("[train]", "[train]\nguard = false")
    text = text.replace('metrics = ["accuracy"]', "")
    return text.replace(
        '"claims", "age"]\nlabel',
        '{ name = "claims", range = [0, 9] }, { name = "age", range = [-4, 4] }]\nlabel',
    )


NOISY = """
[prepare]
missing = "mean"
[prepare.columns.claims]
scale = "standard"
[privacy]
epsilon = 8
delta = 0.00001
neighbours = "zeroed"
clip = 2
identifiers = "unprotected"
"""


@pytest.mark.parametrize("membership", ["holders", "nobody"])
def test_noisy_statistics_are_of_the_joined_rows(
    tmp_path: Path, membership: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaled and filled only; noise is taken away, and nothing of an owner's table says how its
    cells are counted."""
    job, tables = load(tmp_path, membership, private_text(JOB))
    monkeypatch.setattr(noisy, "noisy", lambda z, variance: z)
    resolved, table = joined(job, [tables[owner] for owner in job.owners])
    rows, plan = split(resolved)[0], statistics_plan(resolved)
    local = Local(table.features, table.present)
    sums = exact_sums(job.pipeline, local, rows)
    inputs = applied(job.pipeline, local, by_hand(job.pipeline, plan, *sums))
    found, _, _ = share(job, tables)
    order, plain = (np.lexsort(rows.round(3).T) for rows in (found, inputs))
    np.testing.assert_allclose(found[order], inputs[plain], atol=2.0**-10)


def test_cells_beyond_their_range_count_as_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its owner has read: the bound of a joined row is one of its words."""
    job, tables = load(tmp_path, "holders", private_text(JOB))
    monkeypatch.setattr(noisy, "noisy", lambda z, variance: z)
    (claims,) = job.pipeline.secret
    mine = tables["insurer"]
    beyond, ends = mine.features.copy(), mine.features.copy()
    most = 2.0 ** job.pipeline.terms[claims].reach
    beyond[:, 0] *= 1000
    ends[:, 0] = beyond[:, 0].clip(-most, most)
    assert (np.abs(beyond[:, 0]) > most).sum() > 10
    found, same = (
        share(job, {**tables, "insurer": replace(mine, features=cells)})[0]
        for cells in (beyond, ends)
    )
    np.testing.assert_allclose(found, same, atol=2.0**-16)


def test_private_training_of_joined_rows_is_the_twin_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without noise: rows of two owners are clipped by their whole norm, times their weights."""
    weight = np.random.default_rng(3).integers(0, 9, columns_case.PEOPLE) / 2
    people = {**columns_case.truth(), "w": weight}
    monkeypatch.setattr(columns_case, "truth", lambda: people)
    monkeypatch.setitem(columns_case.COLUMNS, "insurer", ("claims", "age", "w"))
    job, tables = load(tmp_path, "holders", private_text(weighted()))
    monkeypatch.setattr(noisy, "noisy", lambda z, variance: z)
    monkeypatch.setattr(row_clipping, "with_noise", lambda gradient, *_: gradient)
    monkeypatch.setattr(Curator, "words", lambda self, job, count, variance: np.zeros(count))

    def work(role: Role, place: Place) -> Any:
        table = tables.get(place.me)
        linked = link(job, role, place, None if table is None else table.tokens)
        one = resolved(job, linked.rows)
        shared = share_joined(one, role, linked, place.me, table)
        role.finish()
        model = train_model(one, role, None, shared, {}, lambda _: None).model
        return {name: shares_of(model.tensors[name].masked()) for name in job.shapes}

    results = list(run(job, work).values())
    found = {
        name: decode(combine_masked([one[name] for one in results]), job.fraction_bits)
        for name in job.shapes
    }
    together, table = joined(job, [tables[owner] for owner in job.owners])
    assert row_clip(together) == 8
    twin = train_twin(together, [table], initial_weights(together))
    assert max_weight_difference(found, twin.state) < 0.02 < abs(found["weight"]).max()


@pytest.mark.parametrize("membership", ["holders", "nobody"])
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("least_rows = 40", r"40 \(data.join.least_rows\)"),
        (
            "least_rows = 20\nleast_share = 0.8",
            r"36 \(data.join.least_share: 0.8 of the 45 of the shortest table\)",
        ),
    ],
)
def test_too_few_in_common_ends_everywhere(
    tmp_path: Path, membership: str, asked: str, words: str
) -> None:
    job, tables = load(tmp_path, membership, JOB.replace("least_rows = 20", asked))
    net = LockstepLoopback()
    errors: dict[str, str] = {}

    def work(role: Role, place: Place) -> None:
        table = tables.get(place.me)
        try:
            link(job, role, place, None if table is None else table.tokens)
        except LinkageError as error:
            errors[place.me] = str(error)

    run(job, work, net)
    assert set(errors) == {"bank", "insurer", "registry"}
    for message in errors.values():
        assert re.search(f"35 records in common, but the job requires {words}", message)


def test_nothing_in_common(tmp_path: Path) -> None:
    job, tables = load(tmp_path, "nobody")
    other = np.random.default_rng(1).integers(0, 256, (60, 32), np.uint8)
    tables["bank"] = replace(tables["bank"], tokens=other)
    with pytest.raises(LinkageError, match="have no records in common"):
        run(job, lambda role, place: link(job, role, place, tokens(tables, place)))


def tokens(tables: dict[str, Table], place: Place) -> Any:
    return tables[place.me].tokens if place.me in tables else None


def test_a_run_without_linkage_where_the_others_link_meets_an_error(tmp_path: Path) -> None:
    job, tables = load(tmp_path, "nobody")

    def work(role: Role, place: Place) -> Linked | None:
        if place.me == "insurer":
            place.channel.send("bank", b"x" * 16, b"")
            return None
        return link(job, role, place, tokens(tables, place))

    with pytest.raises(DesyncError):
        run(job, work)


@pytest.mark.parametrize("membership", ["holders", "nobody"])
def test_what_travels_depends_on_the_sizes_alone(tmp_path: Path, membership: str) -> None:
    """Labels and lengths of every frame, for other values, spellings and orders."""
    job, tables = load(tmp_path, membership)
    nets = [LockstepLoopback(), LockstepLoopback()]
    share(job, tables, nets[0])
    rng = np.random.default_rng(3)
    for owner, table in tables.items():
        order = rng.permutation(table.rows)
        labels = table.labels[order] if len(table.labels) else table.labels
        assert table.tokens is not None
        tables[owner] = replace(
            table,
            features=rng.uniform(-3, 3, table.features.shape),
            labels=labels,
            tokens=table.tokens[order] ^ np.uint8(85),
        )
    share(job, tables, nets[1])
    first, second = (
        {
            pair: [(label, len(payload)) for label, payload in frames]
            for pair, frames in net.transcript.items()
        }
        for net in nets
    )
    assert first == second


DUPLICATES = {"ann": 12, "bob": 9, "cleo": 10}


@pytest.mark.parametrize(("most", "passes"), [(0, False), (2, False), (3, True)])
def test_records_in_several_tables(tmp_path: Path, most: int, passes: bool) -> None:
    """Two in two tables, one in all three: three records."""
    job = loaded(tmp_path, duplicates_toml(DUPLICATES, most))
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, 256, (40, 32), np.uint8)
    lists = {"ann": drawn[:12], "bob": drawn[10:19], "cleo": drawn[[18, *range(30, 38), 11]]}

    def work(role: Role, place: Place) -> int | None:
        return check_duplicates(job, role, place, lists.get(place.me))

    if passes:
        assert run(job, work) == {"ann": 3, "bob": 3, "cleo": 3, "registry": None}
    else:
        with pytest.raises(LinkageError, match="3 records are in the tables of several"):
            run(job, work)
