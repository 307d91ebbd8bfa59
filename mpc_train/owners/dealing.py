"""Deals a pooled data set out to the owners of a job: for examples and trials on one machine."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpc_train.base.printing import say
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import permutation


def deal_out(job: Job, rows: int) -> dict[str, NDArray[np.int64]]:
    """Return which of the rows each owner gets: as many as the job says, in a fixed order that does
    not depend on their content."""
    order = permutation(rows, "example", 1)
    return {
        owner: order[job.first_row(owner) :][: job.data.rows[owner]].astype(np.int64)
        for owner in job.owners
    }


def write_tables(
    folder: Path, names: Sequence[str], tables: Mapping[str, Sequence[Iterable[object]]]
) -> None:
    """Write `folder`/<owner>.csv for each owner's rows, with `names` as the header, and print
    it."""
    folder.mkdir(exist_ok=True)
    for owner, rows in tables.items():
        with (folder / f"{owner}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(names)
            writer.writerows(rows)
        say(f"wrote {owner}.csv: {len(rows)} rows")
