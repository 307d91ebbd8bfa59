"""What a federated job is said to take, against rounds of all its nodes in one process."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest

from mpc_train.errors import JobError
from mpc_train.estimates.estimate import Link, disk_needs, estimate, memory_needs
from mpc_train.estimates.rounds import rounds_costs
from mpc_train.estimates.speed import Speed
from tests.support.federated import House, federated_job, tables_of


@pytest.mark.parametrize(("module", "sizes"), [("network", '"public"'), ("wide", '"secret"')])
def test_what_a_round_sends_and_keeps(tmp_path: Path, module: str, sizes: str) -> None:
    """Vectors are counted; labels and comparisons make at most a tenth of a difference."""
    job = federated_job(tmp_path, module=module, sizes=sizes, rounds="2")
    house = House(job, tmp_path, tables_of(job))
    found, costs = house.run(), rounds_costs(job)
    size = sum(prod(shape) for _, shape in job.plain.tensors) + (sizes == '"secret"')
    for name in job.visitors:
        assert costs[name].sent_bytes == costs[name].received_bytes == 8 * size
    for name in job.nodes:
        sent = found[name]["bytes_sent"] / 2
        if name == "ann":  # what she hands to owners that come and go is not on the nodes' channel
            sent += len(job.visitors) * 8 * size
        assert costs[name].sent_bytes == pytest.approx(sent, rel=0.1), name
    kept = sum(len(data) for data in house.shelves["ann"]._found.values())
    assert disk_needs(job)["ann"][0] == pytest.approx(kept, rel=0.2)


def test_memory_grows_with_the_network(tmp_path: Path) -> None:
    small, large = (federated_job(tmp_path, module=module) for module in ("network", "wide"))
    less, more = memory_needs(small), memory_needs(large)
    assert set(less) == set(more) == {*small.nodes, *small.visitors}
    assert all(more[name] > less[name] for name in less)


def test_nobody_can_say_how_long_owners_train(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="mpc-train job check"):
        estimate(federated_job(tmp_path), Link(0.01, 1e6), Speed(1, 1, 1))
