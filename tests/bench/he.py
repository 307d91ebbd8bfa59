"""Encrypted questions: seconds and bytes at client and server, over the real connection.

    .venv/bin/python tests/bench/he.py --rows 1 128 4096 --inputs 30
    .venv/bin/python tests/bench/he.py --rows 4096 --concrete-python /opt/concrete/bin/python

A logistic regression with random weights; the server is a process of its own. For each number of
rows: medians over `--repeat` requests. The last line is a JSON object.

With `--concrete-python`, an interpreter that has Concrete ML (its versions of PyTorch and NumPy are
not ours, so it needs an environment of its own), one more measurement follows: 4,096 records of the
breast cancer data set, scikit-learn's logistic regression of them here and there, in the same run.
"""

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mpc_train.commands.serving.connections import Port, ServerLine
from mpc_train.homomorphic.asking import Question
from mpc_train.homomorphic.description import Description
from mpc_train.homomorphic.evaluation import Weights
from mpc_train.homomorphic.keys import KeyPair
from mpc_train.homomorphic.parameters import SLOTS
from mpc_train.homomorphic.seal import Seal
from mpc_train.homomorphic.service import Served, Service
from mpc_train.jobs.data import Data, Label
from mpc_train.jobs.job import Job, Model, Roles
from mpc_train.jobs.train import Optimizer, Train
from mpc_train.owners.local import Local
from parties.keys.identity import Card
from parties.keys.vault import MemoryVault
from protocols.arrays import Reals
from tests.support.homomorphic import Counted

LIMIT = 16.0
"""The largest magnitude of an input that a job declares by default."""


def described(inputs: int) -> Description:
    job = Job(
        Roles("risk", ("ann",), "dora", ("ann",)),
        Data(Label("ill"), {"ann": 1}, tuple(f"x{k}" for k in range(inputs))),
        Model("logistic"),
        Train(Optimizer()),
    )
    return Description.of("risk", job)


Fitted = tuple[Reals, Reals]
"""Weights, float64[1, inputs], and the intercept, float64[1]."""


def random_model(inputs: int) -> Fitted:
    generator = np.random.default_rng(1)
    return generator.normal(size=(1, inputs)), generator.normal(size=1)


def random_rows(inputs: int) -> Callable[[int], Reals]:
    return lambda count: np.random.default_rng(count).uniform(-LIMIT, LIMIT, (count, inputs))


def patients(count: int) -> tuple[Reals, np.ndarray]:
    """So many records with 30 inputs, scaled, and their classes; each of 569 several times."""
    x, y = load_breast_cancer(return_X_y=True)
    rows = np.random.default_rng(1).integers(len(x), size=count)
    return np.clip(StandardScaler().fit_transform(x)[rows], -LIMIT, LIMIT), y[rows]


def serve(pipe: Connection, client: str, model: Fitted) -> None:
    """Answer until the pipe says stop; then send the CPU seconds of each request."""
    description = described(model[0].shape[1])
    weights = Weights(Seal(), *description.columns.fold(description.job.pipeline, {}, *model))
    served = Served(description, weights, {"ann"}, 10**12)
    used: list[float] = []
    begin = [0.0]

    def record(answered: bool, *_: str) -> None:
        now = time.process_time()
        used.append(now - begin[0])
        begin[0] = now

    service = Service({"risk": served}, Counted(), record)
    vault, allowed = MemoryVault.generate("company"), {"ann": Card.from_text(client)}
    with Port(vault, allowed, {}, "tcp://127.0.0.1:*", lambda who, times: None) as port:
        pipe.send((port.address, vault.card.to_text()))
        begin[0] = time.process_time()
        while not pipe.poll():
            port.attend(service)
    pipe.send(used)


def measured(
    rows: list[int], model: Fitted, values_of: Callable[[int], Reals], repeat: int
) -> dict[str, dict[str, float]]:
    client = MemoryVault.generate("ann")
    weights, intercepts = model
    near, far = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve, args=(far, client.card.to_text(), model))
    process.start()
    found = {}
    try:
        address, card = near.recv()
        pair = KeyPair.generate(Seal())
        with ServerLine(client, Card.from_text(card), address) as line:
            line.connect()
            for count in rows:
                values = values_of(count)
                walls, cpus = [], []
                for _ in range(repeat):
                    question = Question(line, pair, described(weights.shape[1]))
                    cpu, wall = time.process_time(), time.perf_counter()
                    outputs = question.outputs(Local(values, np.ones((count, 0))))
                    walls.append(time.perf_counter() - wall)
                    cpus.append(time.process_time() - cpu)
                plain = values @ weights.T + intercepts
                found[str(count)] = {
                    "seconds": statistics.median(walls),
                    "client_cpu_s": statistics.median(cpus),
                    "bytes_up": question.bytes_up,
                    "bytes_down": question.bytes_down,
                    "largest_difference": float(np.abs(outputs - plain).max()),
                    "largest_difference_of_a_probability": float(
                        np.abs(sigmoid(outputs) - sigmoid(plain)).max()
                    ),
                    "other_classes": int(((outputs > 0) != (plain > 0)).sum()),
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


def sigmoid(logits: Reals) -> Reals:
    return 1 / (1 + np.exp(-logits))


def beside_concrete(python: Path, records: int, repeat: int) -> dict[str, dict[str, float]]:
    """The same model here, for `SLOTS` records, and with Concrete ML for the first `records` of
    them; raises SystemExit where that is not there."""
    x, y = patients(SLOTS)
    fitted = LogisticRegression(max_iter=1000).fit(x, y)
    ours = measured([SLOTS], (fitted.coef_, fitted.intercept_), lambda count: x, repeat)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.npz"
        np.savez(path, x=x, y=y)
        script = Path(__file__).with_name("he_concrete.py")
        try:
            done = subprocess.run(
                [str(python), str(script), str(path), str(records)],
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise SystemExit(f"{python}: cannot be run ({error.strerror})") from error
    if done.returncode:
        raise SystemExit(f"{python}: Concrete ML was not measured (status {done.returncode})")
    return {"ours": ours[str(SLOTS)], "concrete": json.loads(done.stdout.splitlines()[-1])}


def shown(what: str, numbers: dict[str, float]) -> str:
    up, down = numbers["bytes_up"] / 1e6, numbers["bytes_down"] / 1e6
    return (
        f"{what}: CPU {numbers['client_cpu_s']:.3f} s at the client, "
        f"{numbers['server_cpu_s']:.3f} s at the server; {up:.2f} MB up, {down:.2f} MB down; "
        f"largest difference of a probability "
        f"{numbers['largest_difference_of_a_probability']:.1e}, "
        f"{numbers['other_classes']:.0f} other classes"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 128, 4096])
    parser.add_argument("--inputs", type=int, default=30)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument(
        "--concrete-python", type=Path, metavar="PATH", help="An interpreter with Concrete ML."
    )
    parser.add_argument(
        "--concrete-records", type=int, default=SLOTS, help="How many records it is asked about."
    )
    options = parser.parse_args()
    found = measured(
        options.rows, random_model(options.inputs), random_rows(options.inputs), options.repeat
    )
    for count, numbers in found.items():
        print(
            f"{shown(f'{count} rows', numbers)}; {numbers['seconds']:.3f} s, largest difference "
            f"of a logit {numbers['largest_difference']:.1e}"
        )
    if options.concrete_python is None:
        print("Concrete ML: not measured; --concrete-python names an interpreter that has it")
    else:
        compared = beside_concrete(
            options.concrete_python, options.concrete_records, options.repeat
        )
        for name, numbers in compared.items():
            records = numbers.get("records", SLOTS)
            print(shown(f"{records} patients, {name}", numbers))
        found |= compared
    print(json.dumps(found))


if __name__ == "__main__":
    main()
