"""What one training step costs, in real processes over the real encrypted channel on loopback.

    python tests/bench/step.py --workload net_a
    python tests/bench/step.py --workload lr784 --parties 3 --vs crypten --format json

Workloads, batch 128: `lr784` (784 features, one output), `net_a` (784-128-128-10 with ReLU and
softmax cross-entropy), `mlp_adam` (the same with Adam instead of SGD), `lenet` (1×28×28:
convolution 5×5 to 16, ReLU, max-pool 2, twice, 256-100, ReLU, 100-10), and the operations `relu`
(10^5 elements), `matmul` (128×784 by 784×128), `softmax` (128×10), `maxpool` (2×2 on 16×24×24) and
`conv` (5×5 on 16×12×12 to 16 channels). Every node is a process with one compute thread. Rows are
shared in before the clock starts, as they are in training. A step ends when all its openings have
been exchanged.

`--vs crypten` measures stock CrypTen with its trusted third party in turn with ours, the same
network and batch, and prints the ratio of the medians: as CrypTen's tutorials train, and lean,
without its loss value and its guard against wrap errors (see `crypten_stock.py`).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

BATCH = 128
NET_A = (784, 128, 128, 10)
WIDTHS = {"lr784": (784, 1), "net_a": NET_A, "mlp_adam": NET_A}
MAPS = {"maxpool": (16, 128, 24, 24), "conv": (16, 128, 12, 12)}
WORKLOADS = ("lr784", "net_a", "mlp_adam", "lenet", "relu", "matmul", "softmax", "maxpool", "conv")
STEPS = {
    "lr784": 200,
    "net_a": 40,
    "mlp_adam": 20,
    "lenet": 10,
    "relu": 40,
    "matmul": 60,
    "softmax": 60,
    "maxpool": 10,
    "conv": 40,
}
WARMUP = 5
RATE = Fraction(1, 10)
FRACTION_BITS = 20


def worker(workload: str, steps: int, profile: str | None) -> None:
    """One node: join the session, run the steps, hand over what they cost."""
    import numpy as np
    import torch

    from mpc_train.program import make_role
    from protocols.crypten_backend import attach
    from tests.bench.mesh import finish, join

    torch.set_num_threads(1)
    with join() as session:
        role = make_role(session)
        attach(role, FRACTION_BITS)
        role.begin_step(0)
        step = _operation(workload, np.random.default_rng(1))
        for number in range(1, WARMUP + 1):
            _timed(role, step, number)
        gc.collect()  # as the training program does before its first step
        gc.freeze()
        profiled = profile == ("dealer" if role.is_dealer else f"evaluator {role.index}")
        sent, rounds = session.channel.bytes_sent, role.rounds
        cpu, main_cpu = time.process_time(), time.thread_time()
        begin = time.perf_counter()
        if profiled:
            import cProfile

            profiler = cProfile.Profile(time.thread_time)  # CPU, not waiting
            profiler.enable()
        seconds = [_timed(role, step, WARMUP + 1 + number) for number in range(steps)]
        if profiled:
            import pstats

            profiler.disable()
            pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(35)
        total = time.perf_counter() - begin
        main_cpu = time.thread_time() - main_cpu
        role.close()
        finish(
            {
                "role": "dealer" if role.is_dealer else f"evaluator {role.index}",
                "seconds": seconds,
                "total": total,
                "cpu": (time.process_time() - cpu) / steps,
                "main_cpu": main_cpu / steps,
                "bytes": (session.channel.bytes_sent - sent) / steps,
                "rounds": (role.rounds - rounds) / steps,
                "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )


def _timed(role: Any, step: Callable[[], Any], number: int) -> float:
    begin = time.perf_counter()
    role.begin_step(number)
    step()
    role.finish()
    return time.perf_counter() - begin


def _operation(workload: str, rng: Any) -> Callable[[], Any]:
    """The step of a workload; every node draws the same test values and the owners use theirs."""
    import numpy as np
    import torch

    from mpc_train.networks.graph import layers_of
    from mpc_train.networks.models import uniform_words
    from mpc_train.networks.network import Network
    from mpc_train.training.adaptive import Adaptive
    from mpc_train.training.losses import BinaryCrossEntropy, CrossEntropy
    from mpc_train.training.moments import Moments
    from mpc_train.training.optim import SGD, Optimizer
    from mpc_train.training.trainer import Trainer
    from protocols import crypten_functions  # noqa: F401  registers the functions
    from protocols.crypten_backend import MaskedTensor
    from protocols.layers_window import Window

    def shared(values: Any, src: int) -> MaskedTensor:
        return MaskedTensor(torch.from_numpy(values), src=src)

    if workload == "relu":
        x = shared(rng.uniform(-8, 8, 100_000), 0)
        return lambda: x.relu()
    if workload == "softmax":
        x = shared(rng.uniform(-4, 4, (BATCH, 10)), 0)
        return lambda: x.softmax(-1)
    a = rng.uniform(0, 1, (BATCH, 784))
    if workload == "matmul":
        x, y = shared(a, 0), shared(rng.uniform(-1, 1, (784, 128)), 1)
        return lambda: x.matmul(y).masked()
    if workload in MAPS:
        maps = shared(rng.uniform(-1, 1, MAPS[workload]), 0)
        if workload == "maxpool":
            pool = Window((2, 2), (2, 2), (0, 0), (1, 1))
            return lambda: maps.max_pool(pool)
        weight = shared(rng.uniform(-0.1, 0.1, (16, 16, 5, 5)), 1)
        window = Window((5, 5), (1, 1), (0, 0), (1, 1))
        return lambda: maps.convolve(weight, None, window, 1).masked()
    if workload == "lenet":
        graph, weights = lenet()
    else:
        widths = WIDTHS[workload]
        graph, weights = layers_of(widths), {}
        for index, (inputs, outputs) in enumerate(pairwise(widths)):
            prefix = f"{2 * index}." if len(widths) > 2 else ""
            bound = round((1 << FRACTION_BITS) / inputs**0.5)
            weights[f"{prefix}weight"] = uniform_words((outputs, inputs), bound, index, "weight")
            weights[f"{prefix}bias"] = uniform_words((outputs,), bound, index, "bias")
    model = Network(graph, weights)
    binary = workload == "lr784"
    named = model.parameters
    optimizer: Optimizer = SGD(named)
    rate = RATE
    if workload == "mlp_adam":
        moments = Moments(Fraction(9, 10), Fraction(999, 1000), Fraction(1, 100_000))
        optimizer = Adaptive(
            named, moments, fraction_bits=FRACTION_BITS, gradient_limit=Fraction(8)
        )
        rate = Fraction(1, 1000)
    loss = BinaryCrossEntropy() if binary else CrossEntropy()
    trainer = Trainer(model, loss, named, optimizer)
    if binary:
        labels = (rng.uniform(-1, 1, (BATCH, 1)) > 0).astype(np.float64)
    else:
        labels = np.eye(10)[rng.integers(0, 10, BATCH)]
    rows, targets = shared(a, 0), shared(labels, 0)
    return lambda: trainer.step(rows, targets, rate)


def lenet() -> tuple[Any, Any]:
    """The convolutional network as a graph, and its first weights from a fixed seed."""
    import torch
    from torch import nn

    from mpc_train.networks.carried import WEIGHT_BITS
    from mpc_train.networks.convert import convert

    torch.manual_seed(1)
    module = nn.Sequential(
        *(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 100), nn.ReLU(), nn.Linear(100, 10)),
    )
    found = convert(module, (1, 28, 28))
    shift = WEIGHT_BITS - FRACTION_BITS
    return found.graph, {name: words >> shift for name, words in found.initial.items()}


def measure(workload: str, parties: int, steps: int, profile: str | None = None) -> dict[str, Any]:
    """Run a workload with `parties` evaluators and a dealer; medians over the steps."""
    from parties.contract import Roles
    from tests.bench.mesh import Mesh

    names = tuple(f"party-{index}" for index in range(parties))
    roles = Roles(names, names, "the-dealer", names[:1])
    argv = [sys.executable, __file__, "--worker", "--workload", workload, "--steps", str(steps)]
    if profile:
        argv += ["--profile", profile]
    environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with Mesh(argv, roles, environment) as mesh:
        reports = list(mesh.results(timeout_s=600).values())
    by_role = {report["role"]: report for report in reports}
    evaluators = [by_role[f"evaluator {index}"] for index in range(parties)]
    slowest = [max(times) for times in zip(*(r["seconds"] for r in evaluators), strict=True)]
    return {
        "workload": workload,
        "parties": parties,
        "steps": steps,
        "step_seconds_median": statistics.median(slowest),
        "step_seconds_mean": max(r["total"] for r in reports) / steps,
        "cpu_seconds_per_step": sum(r["cpu"] for r in reports),
        "cpu_seconds_by_role": {name: r["cpu"] for name, r in sorted(by_role.items())},
        "main_thread_seconds_by_role": {n: r["main_cpu"] for n, r in sorted(by_role.items())},
        "bytes_sent": {name: round(r["bytes"]) for name, r in sorted(by_role.items())},
        "rounds": round(evaluators[0]["rounds"]),
        "peak_rss_mb": round(max(r["rss_mb"] for r in reports), 1),
    }


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
    print(f"  step         {result['step_seconds_median'] * 1000:9.2f} ms (median)")
    print(f"               {result['step_seconds_mean'] * 1000:9.2f} ms (mean)")
    print(f"  CPU          {result['cpu_seconds_per_step'] * 1000:9.2f} ms, all processes")
    for name, seconds in result["cpu_seconds_by_role"].items():
        main = result["main_thread_seconds_by_role"][name]
        print(f"    {name:<12} {seconds * 1000:7.2f} ms, {main * 1000:.2f} outside the transport")
    for name, count in result["bytes_sent"].items():
        print(f"  sent by {name:<12} {count / 1e6:8.3f} MB")
    print(f"  rounds       {result['rounds']:6}")
    print(f"  peak memory  {result['peak_rss_mb']:8.1f} MB a process")
    if "ratio" in result:
        for suffix, kind in (("", "as in its tutorials"), ("_lean", "lean")):
            seconds = result[f"crypten_step_seconds_median{suffix}"] * 1000
            print(f"  stock CrypTen {seconds:8.2f} ms {kind}, ratio {result[f'ratio{suffix}']:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="seconds, bytes and rounds of a training step")
    parser.add_argument("--workload", choices=WORKLOADS, default="net_a")
    parser.add_argument("--parties", type=int, default=2)
    parser.add_argument("--steps", type=int, default=0, help="default: by workload")
    parser.add_argument("--vs", choices=["crypten"])
    parser.add_argument("--format", choices=["text", "json"], default="text")
    parser.add_argument("--profile", choices=["evaluator 0", "dealer"])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.vs and options.workload in ("mlp_adam", "lenet", *MAPS):
        parser.error(f"stock CrypTen is not measured on {options.workload}")
    steps = options.steps or STEPS[options.workload]
    if options.worker:
        worker(options.workload, steps, options.profile)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    result = measure(options.workload, options.parties, steps, options.profile)
    if options.vs:
        compare(result)
    if options.format == "json":
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()
