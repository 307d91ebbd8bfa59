"""How the cost of training grows with parties, rows, features, hidden width and batch size.

    python tests/bench/scale.py --quick
    python tests/bench/scale.py --sweep rows --sweep parties=2,4,8 --draw growth.svg
    python tests/bench/scale.py --sweep features --hidden 128 --format json

Each sweep varies one size and leaves the others at their `--parties`, `--rows`, `--features`,
`--hidden` and `--batch`. Every point is a run of its own, in real processes over the real channel,
a dealer and as many evaluators as parties: each evaluator shares in an equal part of the rows,
then a network features-hidden-10 with ReLU and softmax cross-entropy takes steps on batches of
random rows. A step takes its rows out of the shared ones, as training does. With more processes
than cores, seconds say what this machine does; CPU seconds are the ones to compare. `--rtt-ms` and
`--mbit-s` put an emulated link between the nodes, as in `step.py`.

Memory is the largest resident size of a process, and beside it what the job is meant to stay
under: three times the shared rows, labels and weights, and 500 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.chart import Chart, bars, number, svg
from tests.bench.link import Link, add_options, chosen
from tests.bench.step import run_mesh, timed
from tests.bench.workloads import FRACTION_BITS, RATE, linear_layers

CLASSES = 10
WARMUP = 2
STEPS, QUICK_STEPS = 10, 3


@dataclass(frozen=True, slots=True)
class Point:
    """The sizes of one run."""

    parties: int = 2
    rows: int = 1000
    features: int = 20
    hidden: int = 32
    batch: int = 128

    def shared_mb(self) -> float:
        """Rows, labels and weights in words of 8 bytes, in 10^6 bytes."""
        weights = (self.features + 1) * self.hidden + (self.hidden + 1) * CLASSES
        return 8e-6 * (self.rows * (self.features + CLASSES) + weights)


SWEEPS: dict[str, tuple[int, ...]] = {
    "parties": (2, 3, 4, 5, 6, 7, 8),
    "rows": (1_000, 10_000, 100_000, 1_000_000),
    "features": (10, 100, 1_000, 10_000),
    "hidden": (16, 64, 256, 1024),
    "batch": (16, 64, 256, 1024),
}
QUICK: dict[str, tuple[int, ...]] = {
    "parties": (2, 3),
    "rows": (1_000, 100_000),
    "features": (10, 1_000),
    "hidden": (16, 128),
    "batch": (16, 128),
}


def worker(point: Point, steps: int) -> None:
    """One node: share its rows in, take the steps, hand over what they cost."""
    import numpy as np
    import torch

    from mpc_train.networks.network import Network
    from mpc_train.run.memory import settle
    from mpc_train.run.program import make_role, peak_rss_mb
    from mpc_train.training.losses import CrossEntropy
    from mpc_train.training.optimizers.sgd import SGD
    from mpc_train.training.trainer import Trainer
    from protocols.crypten_tensor import dispatch
    from protocols.crypten_tensor.tensor import MaskedTensor, attach
    from tests.bench.mesh import finish, join

    torch.set_num_threads(1)
    dispatch.install()
    rng = np.random.default_rng(1)
    with join() as session:
        role = make_role(session)
        attach(role, FRACTION_BITS)
        before_mb = peak_rss_mb()
        sizes = [len(part) for part in np.array_split(np.empty(point.rows), point.parties)]
        own = 0 if role.index is None else sizes[role.index]
        table = rng.uniform(0, 1, (own, point.features))
        classes = np.eye(CLASSES)[rng.integers(0, CLASSES, own)]
        role.begin_step(0)
        begin, sent = time.perf_counter(), session.channel.bytes_sent

        def shared(mine: Any, width: int) -> MaskedTensor:
            parts = [
                MaskedTensor(mine if role.index == owner else None, src=owner, shape=(size, width))
                for owner, size in enumerate(sizes)
            ]
            return MaskedTensor.cat(parts)

        inputs, labels = shared(table, point.features), shared(classes, CLASSES)
        role.finish()
        share_seconds, share_bytes = (
            time.perf_counter() - begin,
            session.channel.bytes_sent - sent,
        )
        shared_mb = peak_rss_mb()
        model = Network(*linear_layers((point.features, point.hidden, CLASSES)))
        trainer = Trainer(model, CrossEntropy(), model.parameters, SGD(model.parameters))
        public = np.random.default_rng(2)  # the same batches at all nodes

        def step() -> None:
            rows = public.integers(0, point.rows, point.batch)
            trainer.step(inputs[rows], labels[rows], RATE)

        for number_ in range(1, WARMUP + 1):
            timed(role, step, number_)
        settle()
        sent, rounds, cpu = session.channel.bytes_sent, role.rounds, time.process_time()
        seconds = [timed(role, step, WARMUP + 1 + number_) for number_ in range(steps)]
        cpu = (time.process_time() - cpu) / steps
        role.close()
        finish(
            {
                "dealer": role.is_dealer,
                "share_seconds": share_seconds,
                "share_bytes": share_bytes,
                "seconds": seconds,
                "cpu": cpu,
                "bytes": (session.channel.bytes_sent - sent) / steps,
                "rounds": (role.rounds - rounds) / steps,
                "before_mb": before_mb,
                "shared_mb": shared_mb,
                "peak_mb": peak_rss_mb(),
            }
        )


def measure(point: Point, steps: int, link: Link | None = None) -> dict[str, Any]:
    """What `point` costs: the slowest and largest evaluator, and the dealer."""
    sizes = json.dumps(asdict(point))
    argv = [sys.executable, __file__, "--worker", sizes, "--steps", str(steps)]
    reports = run_mesh(argv, point.parties, 1, link)
    evaluators = [report for report in reports if not report["dealer"]]
    (dealer,) = (report for report in reports if report["dealer"])

    def of(key: str, take: Callable[[Iterable[float]], float] = max) -> dict[str, float]:
        return {"evaluator": take(r[key] for r in evaluators), "dealer": dealer[key]}

    slowest = [max(times) for times in zip(*(r["seconds"] for r in evaluators), strict=True)]
    return {
        **asdict(point),
        "link": None if link is None else link.described(),
        "share_seconds": max(report["share_seconds"] for report in reports),
        "share_bytes": of("share_bytes"),
        "step_seconds_median": statistics.median(slowest),
        "cpu_seconds_per_step": of("cpu", statistics.mean),
        "bytes_sent": of("bytes"),
        "rounds": round(evaluators[0]["rounds"]),
        "start_rss_mb": of("before_mb"),
        "shared_rss_mb": of("shared_mb"),
        "peak_rss_mb": of("peak_mb"),
        "rss_limit_mb": 3 * point.shared_mb() + 500,
    }


COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "step ms": lambda r: f"{1000 * r['step_seconds_median']:.1f}",
    "CPU ms": lambda r: _both(r["cpu_seconds_per_step"], 1000),
    "sent MB": lambda r: _both(r["bytes_sent"], 1e-6),
    "rounds": lambda r: str(r["rounds"]),
    "share s": lambda r: f"{r['share_seconds']:.2f}",
    "shared MB": lambda r: _both(r["share_bytes"], 1e-6),
    "memory MB": lambda r: _both(r["peak_rss_mb"], 1),
    "meant": lambda r: f"{r['rss_limit_mb']:.0f}",
}


def _both(found: Mapping[str, float], factor: float) -> str:
    return " / ".join(number(found[role] * factor) for role in ("evaluator", "dealer"))


def table(sweep: str, results: Sequence[Mapping[str, Any]]) -> str:
    """One line a point; pairs are an evaluator's and the dealer's."""
    rows = [[sweep, *COLUMNS]]
    rows += [[number(r[sweep]), *(show(r) for show in COLUMNS.values())] for r in results]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def charts(sweep: str, results: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Seconds, bytes and memory over what was swept."""

    def line(value: Callable[[Mapping[str, Any]], float]) -> list[tuple[float, float]]:
        return [(r[sweep], value(r)) for r in results]

    def both(key: str, factor: float) -> dict[str, list[tuple[float, float]]]:
        return {
            "evaluator": line(lambda r: r[key]["evaluator"] * factor),
            "dealer": line(lambda r: r[key]["dealer"] * factor),
        }

    seconds = {
        "wall clock": line(lambda r: r["step_seconds_median"] * 1000),
        "CPU of an evaluator": line(lambda r: r["cpu_seconds_per_step"]["evaluator"] * 1000),
    }
    return [
        Chart("A step, ms", sweep, seconds),
        Chart("Sent in a step, MB", sweep, both("bytes_sent", 1e-6)),
        Chart("Memory of a process, MB", sweep, both("peak_rss_mb", 1)),
    ]


def parse_sweep(text: str) -> tuple[str, tuple[int, ...] | None]:
    """`rows` or `rows=1000,1000000`."""
    name, equals, values = text.partition("=")
    if name not in SWEEPS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SWEEPS)}")
    if not equals:
        return name, None
    try:
        found = tuple(int(value) for value in values.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{values!r} is no list of whole numbers") from None
    if not found or min(found) < (2 if name == "parties" else 1):
        raise argparse.ArgumentTypeError(f"{values!r}: too small for {name}")
    return name, found


def main() -> None:
    parser = argparse.ArgumentParser(description="how seconds, bytes and memory of training grow")
    parser.add_argument("--sweep", type=parse_sweep, action="append", metavar="NAME[=VALUE,VALUE]")
    base = Point()
    for name, default in asdict(base).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    add_options(parser)
    parser.add_argument("--steps", type=int, help="timed steps of each point")
    parser.add_argument("--quick", action="store_true", help="two values a sweep, few steps")
    parser.add_argument("--draw", type=Path, metavar="FILE.svg", help="write the charts there")
    parser.add_argument("--format", choices=["text", "json"], default="text")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    steps = options.steps or (QUICK_STEPS if options.quick else STEPS)
    if options.worker:
        worker(Point(**json.loads(options.worker)), steps)
        return
    base = Point(**{name: getattr(options, name) for name in asdict(base)})
    if min(asdict(base).values()) < 1 or base.parties < 2 or steps < 1:
        parser.error("at least two parties, and one of everything else")
    if options.draw is not None and options.draw.suffix != ".svg":
        parser.error("charts are drawn as SVG: give a file that ends in .svg")
    try:
        link = chosen(options)
    except ValueError as error:
        parser.error(str(error))
    with link or contextlib.nullcontext():
        run_sweeps(base, steps, link, options)


def run_sweeps(base: Point, steps: int, link: Link | None, options: argparse.Namespace) -> None:
    """Measure and show sweep after sweep, so that a long one that is stopped has told something."""
    found: dict[str, list[dict[str, Any]]] = {}
    drawn = []
    for name, values in options.sweep or [(name, None) for name in SWEEPS]:
        results = found[name] = []
        for value in values or (QUICK if options.quick else SWEEPS)[name]:
            print(f"measuring {name} {number(value)}", file=sys.stderr)
            results.append(measure(replace(base, **{name: value}), steps, link))
        drawn.append(charts(name, results))
        if options.format == "text":
            fixed = ", ".join(f"{key} {size}" for key, size in asdict(base).items() if key != name)
            over = "loopback" if link is None else link.described()["words"]
            print(f"\n{name}, with {fixed}, over {over}; pairs: an evaluator, the dealer\n")
            print(table(name, results))
            for chart in drawn[-1]:
                print(f"\n{bars(chart)}", flush=True)
    if options.draw is not None:
        options.draw.write_text(svg(drawn))
    if options.format == "json":
        print(json.dumps(found))


if __name__ == "__main__":
    main()
