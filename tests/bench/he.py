"""Encrypted questions: seconds and bytes at client and server, over the real connection.

    .venv/bin/python tests/bench/he.py --rows 1 128 4096 --inputs 30

A logistic regression with random weights; the server is a process of its own. For each number of
rows: medians over `--repeat` requests. The last line is a JSON object.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mpc_train.commands.serving.connections import Port, ServerLine
from mpc_train.homomorphic.asking import Question
from mpc_train.homomorphic.description import Description
from mpc_train.homomorphic.evaluation import Weights
from mpc_train.homomorphic.keys import KeyPair
from mpc_train.homomorphic.seal import Seal
from mpc_train.homomorphic.service import Served, Service
from mpc_train.jobs.data import Data, Label
from mpc_train.jobs.job import Job, Model, Roles
from mpc_train.jobs.train import Optimizer, Train
from mpc_train.owners.local import Local
from parties.keys.identity import Card
from parties.keys.vault import MemoryVault
from tests.support.homomorphic import Counted


def described(inputs: int) -> Description:
    job = Job(
        Roles("risk", ("ann",), "dora", ("ann",)),
        Data(Label("ill"), {"ann": 1}, tuple(f"x{k}" for k in range(inputs))),
        Model("logistic"),
        Train(Optimizer()),
    )
    return Description.of("risk", job)


def weights_of(inputs: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    return generator.normal(size=(1, inputs)), generator.normal(size=1)


def serve(pipe: Connection, client: str, inputs: int) -> None:
    """Answer until the pipe says stop; then send the CPU seconds of each request."""
    description = described(inputs)
    weights = Weights(Seal(), *description.columns.fold(
        description.job.pipeline, {}, *weights_of(inputs)
    ))  # fmt: skip
    model = Served(description, weights, {"ann"}, 10**12)
    used: list[float] = []
    begin = [0.0]

    def record(answered: bool, *_: str) -> None:
        now = time.process_time()
        used.append(now - begin[0])
        begin[0] = now

    service = Service({"risk": model}, Counted(), record)
    vault, allowed = MemoryVault.generate("company"), {"ann": Card.from_text(client)}
    with Port(vault, allowed, {}, "tcp://127.0.0.1:*", lambda who, times: None) as port:
        pipe.send((port.address, vault.card.to_text()))
        begin[0] = time.process_time()
        while not pipe.poll():
            port.attend(service)
    pipe.send(used)


def measured(rows: list[int], inputs: int, repeat: int) -> dict[str, dict[str, float]]:
    client = MemoryVault.generate("ann")
    near, far = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve, args=(far, client.card.to_text(), inputs))
    process.start()
    found = {}
    try:
        address, card = near.recv()
        pair = KeyPair.generate(Seal())
        weights, intercepts = weights_of(inputs)
        with ServerLine(client, Card.from_text(card), address) as line:
            line.connect()
            for count in rows:
                values = np.random.default_rng(count).uniform(-1, 1, (count, inputs))
                walls, cpus = [], []
                for _ in range(repeat):
                    question = Question(line, pair, described(inputs))
                    cpu, wall = time.process_time(), time.perf_counter()
                    outputs = question.outputs(Local(values * 16, np.ones((count, 0))))
                    walls.append(time.perf_counter() - wall)
                    cpus.append(time.process_time() - cpu)
                plain = values * 16 @ weights.T + intercepts
                found[str(count)] = {
                    "seconds": statistics.median(walls),
                    "client_cpu_s": statistics.median(cpus),
                    "bytes_up": question.bytes_up,
                    "bytes_down": question.bytes_down,
                    "largest_difference": float(np.abs(outputs - plain).max()),
                }
        near.send("stop")
        used = near.recv()
        for place, count in enumerate(rows):
            part = used[place * repeat : (place + 1) * repeat]
            found[str(count)]["server_cpu_s"] = statistics.median(part)
    finally:
        process.join(30)
        process.kill()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 128, 4096])
    parser.add_argument("--inputs", type=int, default=30)
    parser.add_argument("--repeat", type=int, default=9)
    options = parser.parse_args()
    found = measured(options.rows, options.inputs, options.repeat)
    for count, numbers in found.items():
        up, down = numbers["bytes_up"] / 1e6, numbers["bytes_down"] / 1e6
        print(
            f"{count} rows: {numbers['seconds']:.3f} s; CPU {numbers['client_cpu_s']:.3f} s at the "
            f"client, {numbers['server_cpu_s']:.3f} s at the server; {up:.2f} MB up, {down:.2f} MB "
            f"down; largest difference {numbers['largest_difference']:.1e}"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
