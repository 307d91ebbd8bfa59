"""What privacy adds to a training step: plain, with clipped rows and noise, and with bands.

    .venv/bin/python tests/bench/private_step.py
    .venv/bin/python tests/bench/private_step.py --network net_a --blocks 20 --format json

Real processes over the real encrypted channel on loopback, two evaluators and a dealer, one compute
thread each. The same processes hold the three trainings of a network and take turns, a block of
steps each, so that whatever else the machine does meets all three alike. CPU is that of all nodes,
as a median over blocks; a ratio is that of medians. `lr784` is clipped by its owners, `net_a` over
shares; the bands are 16 (`workloads.py`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.step import WARMUP, run_mesh, timed
from tests.bench.workloads import BANDS, FRACTION_BITS, operation

KINDS = ("", "_private", "_banded")
WORDS = {"": "plain", "_private": "private", "_banded": f"private, {BANDS} bands"}
NETWORKS = {"lr784": 25, "net_a": 5}
"""Steps of a block."""


def worker(network: str, blocks: int) -> None:
    """One node: join the session, take turns with the trainings, hand over what they cost."""
    import numpy as np
    import torch

    from mpc_train.run.memory import settle
    from mpc_train.run.program import make_role
    from protocols.crypten_tensor.tensor import attach
    from tests.bench.mesh import finish, join

    torch.set_num_threads(1)
    with join() as session:
        role = make_role(session)
        attach(role, FRACTION_BITS)
        role.begin_step(0)
        steps = {kind: operation(network + kind, np.random.default_rng(1)) for kind in KINDS}
        number = 0

        def block(kind: str, length: int) -> dict[str, float]:
            nonlocal number
            sent, rounds, cpu = session.channel.bytes_sent, role.rounds, time.process_time()
            seconds = []
            for _ in range(length):
                number += 1
                seconds.append(timed(role, steps[kind], number))
            return {
                "seconds": statistics.median(seconds),
                "cpu": (time.process_time() - cpu) / length,
                "bytes": (session.channel.bytes_sent - sent) / length,
                "rounds": (role.rounds - rounds) / length,
            }

        for kind in KINDS:
            block(kind, WARMUP)
        settle()  # as the training program does before its first step
        found = [{kind: block(kind, NETWORKS[network]) for kind in KINDS} for _ in range(blocks)]
        role.close()
        name = "dealer" if role.is_dealer else f"evaluator {role.index}"
        finish({"role": name, "blocks": found})


def measure(network: str, blocks: int) -> dict[str, Any]:
    """By kind of training: seconds, CPU, bytes and rounds of a step, and the ratio to the plain."""
    argv = [sys.executable, __file__, "--worker", "--network", network, "--blocks", str(blocks)]
    nodes = {report["role"]: report["blocks"] for report in run_mesh(argv, 2, 1, None)}
    evaluators = [nodes["evaluator 0"], nodes["evaluator 1"]]
    found: dict[str, Any] = {}
    for kind in KINDS:
        turns = range(blocks)
        slowest = [max(node[turn][kind]["seconds"] for node in evaluators) for turn in turns]
        cpu = {
            name: statistics.median(node[turn][kind]["cpu"] for turn in turns)
            for name, node in nodes.items()
        }
        together = [sum(node[turn][kind]["cpu"] for node in nodes.values()) for turn in turns]
        found[WORDS[kind]] = {
            "step_seconds": statistics.median(slowest),
            "cpu_seconds": statistics.median(together),
            "cpu_seconds_by_role": cpu,
            "rounds": round(evaluators[0][-1][kind]["rounds"]),
            "bytes_sent": {n: round(node[-1][kind]["bytes"]) for n, node in nodes.items()},
        }
    plain = found[WORDS[""]]
    for said in found.values():
        said["ratio"] = said["step_seconds"] / plain["step_seconds"]
        said["cpu_ratio"] = said["cpu_seconds"] / plain["cpu_seconds"]
    return {"network": network, "blocks": blocks, "steps": NETWORKS[network], "kinds": found}


def show(result: dict[str, Any]) -> None:
    print(f"{result['network']}: {result['blocks']} blocks of {result['steps']} steps of each kind")
    for name, said in result["kinds"].items():
        sent = said["bytes_sent"]
        print(
            f"  {name:18} {said['step_seconds'] * 1000:8.2f} ms ({said['ratio']:.2f})"
            f"  CPU {said['cpu_seconds'] * 1000:8.2f} ms ({said['cpu_ratio']:.2f})"
            f"  {said['rounds']:3} rounds  sent {sent['evaluator 0'] / 1e6:.3f} MB,"
            f" dealer {sent['dealer'] / 1e6:.3f} MB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--blocks", type=int, default=20, help="turns of each kind of training")
    parser.add_argument("--format", choices=["text", "json"], default="text")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.blocks < 1:
        parser.error("at least one block")
    if options.worker:
        worker(options.network[0], options.blocks)
        return
    for network in options.network or NETWORKS:
        result = measure(network, options.blocks)
        if options.format == "json":
            print(json.dumps(result), flush=True)
        else:
            show(result)


if __name__ == "__main__":
    main()
