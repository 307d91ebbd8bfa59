"""Rows of one group stay in one part of the split."""

from decimal import Decimal
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpc_train.errors import DataError, JobError
from mpc_train.jobs.privacy import Privacy
from mpc_train.jobs.schedule import checked_rows, group_parts, held_out_of, split, split_sizes
from mpc_train.owners.grouping import GroupError, grouped_order
from mpc_train.owners.table import load_table
from mpc_train.results.report import describe
from mpc_train.tables.source import Source
from tests.support.jobs import SCHEMA_FILE, column, job_toml, loaded, schema_toml

SCHEMA = schema_toml(
    column("patient", "identifier"), column("age", range=[0, 1000]), column("ill", "boolean")
)
JOB = job_toml(
    label="ill",
    rows={"ann": 203, "bob": 61},
    recipients=["office"],
    data=f'{SCHEMA_FILE}\nsplit_by = "patient"\ntest_fraction = 0.25',
    train="epochs = 2\nbatch_size = 16\noptimizer = { learning_rate = 0.1 }\n"
    "early_stopping = { fraction = 0.2 }",
    more='[prepare]\nscale = "standard"',
)


@given(st.lists(st.integers(0, 30), min_size=60, max_size=200), st.integers(0, 2**62))
@settings(max_examples=15, deadline=None)
def test_no_group_lies_across_two_parts(numbers: list[int], seed: int) -> None:
    groups = [f"g{number}" for number in [*numbers, *range(100, 140)]]
    held_out, checked = len(groups) // 4, len(groups) // 10
    parts = (len(groups) - held_out - checked, checked, held_out)
    order = grouped_order(groups, parts, seed)
    assert sorted(order) == list(range(len(groups)))
    ends = np.cumsum(parts)
    found = [{groups[row] for row in rows} for rows in np.split(order, ends[:-1])]
    assert not found[0] & found[1] and not found[0] & found[2] and not found[1] & found[2]
    assert list(order) == list(grouped_order(groups, parts, seed))


def test_groups_that_do_not_fit() -> None:
    with pytest.raises(GroupError, match="2 groups of up to 50 rows cannot"):
        grouped_order(["a"] * 50 + ["b"] * 50, (75, 0, 25), 1)


def test_a_patient_with_more_rows_than_promised_is_refused(tmp_path: Path) -> None:
    """The guarantee of [privacy] is for `most_rows` of one unit; only the owner can count them."""
    job = loaded(tmp_path, JOB, SCHEMA)
    path = tmp_path / "ann.csv"
    # Patient 0 has four rows, all others have one.
    lines = [f"p{max(row - 3, 0)},{row},{int(row % 3 == 0)}" for row in range(203)]
    path.write_text("\n".join(["patient,age,ill", *lines]))
    for most, fits in ((4, True), (3, False)):
        privacy = Privacy(Decimal(1), Decimal("1e-6"), "zeroed", Decimal(9), "patient", most)
        private = msgspec.structs.replace(job, privacy=privacy)
        if fits:
            load_table(Source(str(path)), private, "ann")
            continue
        with pytest.raises(DataError, match=r"'patient': has up to 4 rows .*most_rows = 3"):
            load_table(Source(str(path)), private, "ann")
    # A promise for rows says nothing about how many of them one patient has.
    row = Privacy(Decimal(1), Decimal("1e-6"), "zeroed", Decimal(9))
    load_table(Source(str(path)), msgspec.structs.replace(job, privacy=row), "ann")


def test_the_loader_puts_rows_into_order(tmp_path: Path) -> None:
    job = loaded(tmp_path, JOB, SCHEMA)
    generator = np.random.default_rng(4)
    lines = [f"p{who},{who * 2},{int(who % 3 == 0)}" for who in generator.integers(0, 80, 203)]
    path = tmp_path / "ann.csv"
    path.write_text("\n".join(["patient,age,ill", *lines]))
    table = load_table(Source(str(path)), job, "ann")
    sizes = group_parts(job, "ann")
    assert sum(sizes) == 203 and sizes[2] == 50
    parts = [set(part.tolist()) for part in np.split(table.features[:, 0], np.cumsum(sizes)[:-1])]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert sum(map(len, parts)) == len({line.split(",")[0] for line in lines})
    training, held_out = split(job)
    assert (len(training), len(held_out)) == split_sizes(job)
    assert held_out_of(job, "ann").tolist() == list(range(153, 203))
    rows = np.concatenate([training, checked_rows(job), held_out])
    assert sorted(rows.tolist()) == list(range(264))
    assert "rows of one patient stay together" in describe(job)
    path.write_text(
        "\n".join(["patient,age,ill", *(f"p{k // 102},{k},{k % 2}" for k in range(203))])
    )
    with pytest.raises(DataError, match=r"column 'patient': 2 groups of up to 102 rows"):
        load_table(Source(str(path)), job, "ann")


def test_only_identifiers_group(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="'age' is not an identifier"):
        loaded(tmp_path, JOB.replace('split_by = "patient"', 'split_by = "age"'), SCHEMA)
