"""What one training step costs, in real processes over the real encrypted channel on loopback.

    python tests/bench/step.py --workload net_a
    python tests/bench/step.py --workload lr784 --parties 3 --vs crypten --format json
    python tests/bench/step.py --workload net_a --rtt-ms 40 --mbit-s 100

Workloads, batch 128: `lr784` (784 features, one output), `net_a` (784-128-128-10 with ReLU and
softmax cross-entropy), both also `_private`, with clipped rows and noise, and `_banded`, where that
noise depends on steps before (`private_step.py` measures the three beside one another),
`mlp_adam` (the same with Adam instead of SGD), `lenet` (1×28×28:
convolution 5×5 to 16, ReLU, max-pool 2, twice, 256-100, ReLU, 100-10), and the operations `relu`
(10^5 elements), `matmul` (128×784 by 784×128), `softmax` (128×10), `maxpool` (2×2 on 16×24×24) and
`conv` (5×5 on 16×12×12 to 16 channels). Every node is a process with one compute thread, or
`--threads`. Rows are shared in before the clock starts, as they are in training. A step ends when
all its openings have been exchanged.

`--rtt-ms` and `--mbit-s` put a wide-area link between the nodes: a proxy that delays and paces
(`link.py`), the rate being that of each node's uplink and of its downlink. With `--rtt-ms 0` alone
the difference from a step without is what the proxy itself costs.

An evaluator's CPU time by kind of work is sampled during the timed steps (`cpu_kinds.py`);
`--profile` prints one node's functions instead.

`--vs crypten` measures stock CrypTen with its trusted third party in turn with ours, the same
network and batch, and prints the ratio of the medians: as CrypTen's tutorials train, and lean,
without its loss value and its guard against wrap errors (see `crypten_stock.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.cpu_kinds import KINDS, MEANING, RING, KindProfile, ring_share
from tests.bench.link import Link, add_options, chosen
from tests.bench.workloads import FRACTION_BITS, MAPS, STEPS, WORKLOADS

WARMUP = 5


def worker(workload: str, steps: int, threads: int, profile: str | None) -> None:
    """One node: join the session, run the steps, hand over what they cost."""
    import numpy as np
    import torch

    from mpc_train.run.memory import peak_rss_mb, settle
    from mpc_train.run.program import make_role
    from protocols.crypten_tensor.tensor import attach
    from tests.bench.mesh import finish, join
    from tests.bench.workloads import operation

    torch.set_num_threads(threads)
    kinds = KindProfile()
    with join() as session:
        role = make_role(session)
        attach(role, FRACTION_BITS)
        role.begin_step(0)
        step = operation(workload, np.random.default_rng(1))
        for number in range(1, WARMUP + 1):
            timed(role, step, number)
        settle()  # as the training program does before its first step
        profiled = profile == ("dealer" if role.is_dealer else f"evaluator {role.index}")
        sent, rounds = session.channel.bytes_sent, role.rounds
        cpu, main_cpu = time.process_time(), time.thread_time()
        begin = time.perf_counter()
        with _functions_printed() if profiled else kinds:
            seconds = [timed(role, step, WARMUP + 1 + number) for number in range(steps)]
        total = time.perf_counter() - begin
        main_cpu = time.thread_time() - main_cpu
        cpu = time.process_time() - cpu
        role.close()
        finish(
            {
                "role": "dealer" if role.is_dealer else f"evaluator {role.index}",
                "seconds": seconds,
                "total": total,
                "cpu": cpu / steps,
                "main_cpu": main_cpu / steps,
                "kinds": {kind: value / steps for kind, value in kinds.seconds.items()},
                "samples": kinds.samples,
                "bytes": (session.channel.bytes_sent - sent) / steps,
                "rounds": (role.rounds - rounds) / steps,
                "rss_mb": peak_rss_mb(),
            }
        )


@contextlib.contextmanager
def _functions_printed() -> Iterator[None]:
    import cProfile
    import pstats

    profiler = cProfile.Profile(time.thread_time)  # CPU, not waiting
    with profiler:
        yield
    pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(35)


def timed(role: Any, step: Callable[[], Any], number: int) -> float:
    begin = time.perf_counter()
    role.begin_step(number)
    step()
    role.finish()
    return time.perf_counter() - begin


def measure(
    workload: str,
    parties: int,
    steps: int,
    *,
    threads: int = 1,
    link: Link | None = None,
    profile: str | None = None,
) -> dict[str, Any]:
    """Run a workload with `parties` evaluators and a dealer; medians over the steps."""
    argv = [sys.executable, __file__, "--worker", "--workload", workload, "--steps", str(steps)]
    argv += ["--threads", str(threads)]
    if profile:
        argv += ["--profile", profile]
    reports = run_mesh(argv, parties, threads, link)
    by_role = {report["role"]: report for report in reports}
    evaluators = [by_role[f"evaluator {index}"] for index in range(parties)]
    slowest = [max(times) for times in zip(*(r["seconds"] for r in evaluators), strict=True)]
    result = {
        "workload": workload,
        "parties": parties,
        "steps": steps,
        "threads": threads,
        "link": None if link is None else link.described(),
        "step_seconds_median": statistics.median(slowest),
        "step_seconds_mean": max(r["total"] for r in reports) / steps,
        "cpu_seconds_per_step": sum(r["cpu"] for r in reports),
        "cpu_seconds_by_role": {name: r["cpu"] for name, r in sorted(by_role.items())},
        "main_thread_seconds_by_role": {n: r["main_cpu"] for n, r in sorted(by_role.items())},
        "bytes_sent": {name: round(r["bytes"]) for name, r in sorted(by_role.items())},
        "rounds": round(evaluators[0]["rounds"]),
        "peak_rss_mb": round(max(r["rss_mb"] for r in reports), 1),
    }
    sampled = [r for r in evaluators if r["kinds"]]
    if sampled:
        result["evaluator_cpu_seconds_by_kind"] = {
            kind: statistics.mean(r["kinds"][kind] for r in sampled) for kind in KINDS
        }
        result["evaluator_cpu_samples"] = sum(r["samples"] for r in sampled)
        result["evaluator_ring_share"] = ring_share(result["evaluator_cpu_seconds_by_kind"])
    return result


def run_mesh(argv: list[str], parties: int, threads: int, link: Link | None) -> list[Any]:
    """What the workers `argv` of `parties` evaluators and a dealer report."""
    from parties.agreement.contract import Roles
    from tests.bench.mesh import Mesh

    names = tuple(f"party-{index}" for index in range(parties))
    roles = Roles(names, names, "the-dealer", names[:1])
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    with Mesh(argv, roles, dict.fromkeys(variables, str(threads)), link) as mesh:
        return list(mesh.results(timeout_s=600).values())


def compare(result: dict[str, Any]) -> None:
    """Add stock CrypTen's step, as its tutorials write it and lean, and the ratios."""
    from tests.bench.crypten_stock import run_stock

    ours = result["step_seconds_median"]
    for suffix, lean in (("", False), ("_lean", True)):
        stock = run_stock(result["workload"], result["parties"], steps=20, warmup=2, lean=lean)
        result[f"crypten_step_seconds_median{suffix}"] = stock.step_seconds_median
        result[f"ratio{suffix}"] = stock.step_seconds_median / ours


def show(result: dict[str, Any]) -> None:
    print(f"{result['workload']}, {result['parties']} evaluators and a dealer")
    print(f"  between them {'loopback' if result['link'] is None else result['link']['words']}")
    print(f"  step         {result['step_seconds_median'] * 1000:9.2f} ms (median)")
    print(f"               {result['step_seconds_mean'] * 1000:9.2f} ms (mean)")
    print(f"  CPU          {result['cpu_seconds_per_step'] * 1000:9.2f} ms, all processes")
    for name, seconds in result["cpu_seconds_by_role"].items():
        main = result["main_thread_seconds_by_role"][name]
        print(f"    {name:<12} {seconds * 1000:7.2f} ms, {main * 1000:.2f} outside the transport")
    show_kinds(result)
    for name, count in result["bytes_sent"].items():
        print(f"  sent by {name:<12} {count / 1e6:8.3f} MB")
    print(f"  rounds       {result['rounds']:6}")
    print(f"  peak memory  {result['peak_rss_mb']:8.1f} MB a process")
    if "ratio" in result:
        for suffix, kind in (("", "as in its tutorials"), ("_lean", "lean")):
            seconds = result[f"crypten_step_seconds_median{suffix}"] * 1000
            print(f"  stock CrypTen {seconds:8.2f} ms {kind}, ratio {result[f'ratio{suffix}']:.1f}")


def show_kinds(result: dict[str, Any]) -> None:
    """An evaluator's CPU time by kind of work, where it was sampled."""
    kinds = result.get("evaluator_cpu_seconds_by_kind")
    if kinds is None:
        return
    whole = sum(kinds.values())
    print(f"  CPU of an evaluator by kind ({result['evaluator_cpu_samples']} samples)")
    ring = sum(kinds[kind] for kind in RING)
    for name, seconds in {"ring arithmetic": ring, **kinds}.items():
        indent = "  " if name in RING else ""
        row = f"{seconds * 1000:8.2f} ms {seconds / whole:5.0%}"
        print(f"    {indent + name:<16}{row:>18}   {MEANING.get(name, '')}".rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description="seconds, bytes and rounds of a training step")
    parser.add_argument("--workload", choices=WORKLOADS, default="net_a")
    parser.add_argument("--parties", type=int, default=2)
    parser.add_argument("--steps", type=int, default=0, help="default: by workload")
    parser.add_argument("--threads", type=int, default=1, help="compute threads of a node")
    add_options(parser)
    parser.add_argument("--vs", choices=["crypten"])
    parser.add_argument("--format", choices=["text", "json"], default="text")
    parser.add_argument("--profile", choices=["evaluator 0", "dealer"])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.parties < 2 or options.threads < 1 or options.steps < 0:
        parser.error("at least two parties, one thread and one step")
    if options.vs and options.workload in ("mlp_adam", "lenet", *MAPS):
        parser.error(f"stock CrypTen is not measured on {options.workload}")
    if options.vs and ((options.rtt_ms, options.mbit_s) != (None, None) or options.threads > 1):
        parser.error("stock CrypTen is measured on loopback with one thread")
    steps = options.steps or STEPS[options.workload]
    if options.worker:
        worker(options.workload, steps, options.threads, options.profile)
        return
    try:
        link = chosen(options)
    except ValueError as error:
        parser.error(str(error))
    with link or contextlib.nullcontext():
        result = measure(
            options.workload,
            options.parties,
            steps,
            threads=options.threads,
            link=link,
            profile=options.profile,
        )
    if options.vs:
        compare(result)
    if options.format == "json":
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
