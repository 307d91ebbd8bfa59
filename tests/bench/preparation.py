"""Scaling a table by secret statistics: CPU time of all nodes together, and what they send.

    .venv/bin/python tests/bench/preparation.py --rows 100000 --columns 30

Two evaluators and a dealer take turns in one process. Every column is standardised, one in three
has missing cells. The last line is a JSON object.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mpc_train.jobs.pipeline import Pipeline, Term
from mpc_train.owners.cells import WORD_BITS, cells, halves
from mpc_train.owners.local import Local, partials
from mpc_train.preparation.combined import parameters
from mpc_train.preparation.rows import Rows, prepared
from protocols.ring.fixed_point import encode
from protocols.roles.role import Role
from tests.support.lockstep import LockstepLoopback, run_lockstep
from tests.support.loopback import secret, shares_of

F = 20


def measured(rows: int, columns: int) -> dict[str, object]:
    """CPU seconds from shared rows and statistics to inputs, and bytes sent for an element."""
    terms = tuple(
        Term(f"c{k}", f"c{k}", shared="standard", missing="error" if k % 3 else "mean")
        for k in range(columns)
    )
    pipeline, generator = Pipeline(terms), np.random.default_rng(3)
    values = generator.uniform(-1, 1, (rows, columns))
    present = (generator.random((rows, len(pipeline.filled))) < 0.9).astype(np.float64)
    values[:, list(pipeline.filled)] *= present
    statistics = partials(pipeline, Local(values, present), np.arange(rows), rows)
    coarse, fine = halves(cells(pipeline, values), WORD_BITS)
    net, taken = LockstepLoopback(), []

    def program(role: Role) -> None:
        np.seterr(over="ignore")
        brought = [secret(role, encode(statistics, 0))]
        x, low = secret(role, encode(coarse, 0)), secret(role, encode(fine, 0))
        there = secret(role, present.astype(np.int64))
        role.finish()
        before = _sent(net)
        begin = time.process_time()
        found = parameters(pipeline, brought, rows, 1, F)
        for value in found.sealed.values():
            shares_of(value)
        shares_of(prepared(pipeline, Rows(x, low, there), found, F))
        if role.is_dealer:
            taken.append((begin, before))

    run_lockstep(program, 2, net=net)
    end = time.process_time()
    begin, before = taken[0]
    sent = _sent(net) - before
    return {
        "rows": rows,
        "columns": columns,
        "cpu_seconds": round(end - begin, 2),
        "cpu_ns_per_element": round((end - begin) * 1e9 / (rows * columns)),
        "bytes_per_element": round(sent / (rows * columns), 1),
    }


def _sent(net: LockstepLoopback) -> int:
    return sum(len(payload) for frames in net.transcript.values() for _, payload in frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--columns", type=int, default=30)
    options = parser.parse_args()
    print(json.dumps(measured(options.rows, options.columns)))


if __name__ == "__main__":
    main()
