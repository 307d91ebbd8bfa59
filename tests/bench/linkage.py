"""Time and traffic of record linkage: owners' lists of made-up identifiers, in real processes.

    python tests/bench/linkage.py --rows 100000 --membership nobody --columns 10

Each owner is a process of its own with an encrypted channel to every other, on loopback; a dealer
is another one. What is timed begins with identifiers as text and ends with joined rows, shared.
`--threads`: at each node. Prints one JSON object; `--format text` for people.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec
import numpy as np

from mpc_train.admission.load import job_from_bytes, resolved
from mpc_train.jobs.job import Job
from mpc_train.linkage.link import Place, link, patience_s
from mpc_train.linkage.sharing import share_joined
from mpc_train.owners.table import Table
from mpc_train.owners.tokens import token_key, tokens_of
from mpc_train.run.program import make_role
from mpc_train.tables.dates import DateForm
from parties.agreement.contract import Roles
from protocols.crypten_tensor.tensor import attach, detach
from tests.bench.mesh import Mesh, finish, join

DEALER = "dealer"


def made_job(args: argparse.Namespace) -> Job:
    """Owners with so many rows and columns each; the first has the label."""
    owners = [f"owner-{i}" for i in range(args.owners)]
    columns = {name: [f"{name}-{i}" for i in range(args.columns)] for name in owners}
    features = [name for names in columns.values() for name in names]
    columns[owners[0]].append("label")
    sections = {
        "job": {
            "name": "bench",
            "owners": owners,
            "evaluators": owners,
            "dealer": DEALER,
            "recipients": owners[:1],
        },
        "data": {
            "partition": "columns",
            "features": features,
            "label": "label",
            "rows": dict.fromkeys(owners, args.rows),
            "columns": columns,
            "join": {
                "on": ["name", "born"],
                "normalise": {"name": ["case", "spaces"]},
                "membership": args.membership,
                "least_rows": 2,
            },
            "test_fraction": "0",
        },
        "model": {"kind": "logistic"},
        "train": {
            "epochs": 1,
            "batch_size": 1,
            "optimizer": {"name": "sgd", "learning_rate": "0.5"},
        },
    }
    return job_from_bytes(msgspec.convert(sections, Job).to_bytes())


def work(args: argparse.Namespace) -> None:
    job = made_job(args)
    with join(timeout_s=600) as session:
        role = make_role(session)
        attach(role, job.fraction_bits)
        role.begin_step(0)
        table, clock = None, _Clock()
        if session.me in job.owners:
            table = made_table(args, job, session.me)
            clock.lap("tokens")
        place = Place(session.me, session.channel, session.sid, args.threads)
        with session.channel.patience(patience_s(job)), np.errstate(over="ignore"):
            linked = link(job, role, place, None if table is None else table.tokens)
            clock.lap("link")
            share_joined(resolved(job, linked.rows), role, linked, session.me, table)
            role.close()
            clock.lap("share")
        detach()
        finish(
            {
                "rows": linked.rows,
                **clock.laps,
                "bytes_sent": session.channel.bytes_sent,
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
            }
        )


def made_table(args: argparse.Namespace, job: Job, me: str) -> Table:
    place = job.owners.index(me)
    first = round(place * args.rows * (1 - args.overlap))
    order = np.random.default_rng(place).permutation(args.rows) + first
    identifiers = {
        "name": [f"Person Number {n}" for n in order],
        "born": [f"19{n % 100:02}-{1 + n % 12:02}-{1 + n % 28:02}" for n in order],
    }
    link_by = job.data.join
    assert link_by is not None
    key = token_key(job.digest())
    tokens = tokens_of(identifiers, link_by.on, link_by.normalise, lambda _: DateForm(), key)
    rng = np.random.default_rng(1)
    return Table(
        rng.uniform(-1, 1, (args.rows, args.columns)),
        rng.integers(0, 2, args.rows).astype(np.float64) if place == 0 else np.empty(0),
        np.ones((args.rows, 0)),
        tokens,
    )


class _Clock:
    """Wall and CPU seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        now = time.perf_counter(), time.process_time()
        self.laps[f"{name}_s"] = round(now[0] - self._last[0], 2)
        self.laps[f"{name}_cpu_s"] = round(now[1] - self._last[1], 2)
        self._last = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="of each owner")
    parser.add_argument("--owners", type=int, default=2)
    parser.add_argument("--columns", type=int, default=10, help="of each owner")
    parser.add_argument("--overlap", type=float, default=0.7, help="of neighbouring owners")
    parser.add_argument("--membership", choices=["holders", "nobody"], default="nobody")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--format", choices=["json", "text"], default="json")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    owners = tuple(f"owner-{i}" for i in range(args.owners))
    begin = time.perf_counter()
    argv = [sys.executable, __file__, *sys.argv[1:], "--worker"]
    with Mesh(argv, Roles(owners, owners, DEALER, owners[:1])) as mesh:
        found = mesh.results(7200)
    result: dict[str, Any] = {
        **{name: getattr(args, name) for name in ("rows", "owners", "columns", "membership")},
        "joined_rows": found[owners[0]]["rows"],
        "seconds": round(time.perf_counter() - begin, 1),
        "nodes": found,
    }
    if args.format == "json":
        print(json.dumps(result))
        return
    print(f"{args.owners} owners of {args.rows} rows, {result['joined_rows']} in common:")
    for name, one in found.items():
        laps = ", ".join(f"{key} {value}" for key, value in one.items())
        print(f"  {name}: {laps}")


if __name__ == "__main__":
    main()
