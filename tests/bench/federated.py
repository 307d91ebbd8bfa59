"""One federated round, as real processes: `python -m tests.bench.federated`.

CPU seconds of all processes, the coordinator included, between the moments at which an owner that
comes and goes has the model of one round and of a later one. What the owners' own steps take is
measured apart, in this process. Wall time says little on a machine that others use.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from mpc_train.admission.load import load_job
from mpc_train.base.printing import say
from mpc_train.estimates.estimate import memory_needs
from tests.architecture import ROOT

MODULE = """
import psutil
import torch


class Wide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros({size}))

    def forward(self, x):
        return x[:, :1] * self.table[:64].mean() + 1e-3 * self.table.mean()


def make():
    return Wide()
"""
JOB = """
[job]
name = "wide"
owners = {owners}
evaluators = {evaluators}
dealer = "registry"
[data]
label = "y"
features = ["a", "b"]
rows = {rows}
[model]
kind = "logistic"
module = "bench_wide:make"
[train]
mode = "federated"
[train.federated]
rounds = {rounds}
local_steps = 1
batch_size = 8
learning_rate = 0.1
clip = 1
deadline_s = 3000
"""


def run(owners: int, evaluators: int, size: int, rounds: int) -> dict[str, object]:
    """The run's own summary; `cpu_s`: by process, in each round but the first; `peaks`: the largest
    size of each in MB, and what the job's estimate says."""
    names = [f"owner-{number:02}" for number in range(owners)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "bench_wide.py").write_text(MODULE.format(size=size))
        rows = "{ " + ", ".join(f"{name} = 40" for name in names) + " }"
        text = JOB.format(
            owners=json.dumps(names),
            evaluators=json.dumps(names[:evaluators]),
            rows=rows,
            rounds=rounds,
        )
        (folder / "job.toml").write_text(text)
        (folder / "data").mkdir()
        for place_of, name in enumerate(names):
            rng = np.random.default_rng(place_of)
            lines = [f"{a:.3f},{b:.3f},{int(a > 0)}" for a, b in rng.normal(size=(40, 2))]
            (folder / "data" / f"{name}.csv").write_text("a,b,y\n" + "\n".join(lines) + "\n")
        command = [sys.executable, str(ROOT / "launch.py"), str(folder / "job.toml")]
        command += ["--format", "json", "--run-dir", str(folder / "run")]
        with (folder / "said").open("w+") as said:
            child = subprocess.Popen(
                command,
                stdout=said,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}"},
            )
            log = folder / "run" / "logs" / f"{names[-1]}.stdout.log"
            cpu = list(_cpu_of_rounds(child, log, rounds))
            code = child.wait()
            said.seek(0)
            lines = said.read().strip().splitlines()
        if code:
            raise SystemExit("\n".join(lines[-40:]))
        sys.path.append(str(folder))  # where the job's module is
        peaks, needs = {}, memory_needs(load_job(folder / "job.toml"))
        for log in sorted((folder / "run" / "logs").glob("*.stdout.log")):
            last = json.loads(log.read_text().strip().splitlines()[-1])
            if isinstance(last.get("peak_rss_mb"), float):  # the coordinator's is a summary
                name = log.name.split(".")[0]
                peaks[name] = (round(last["peak_rss_mb"]), round(needs[name] / 1e6))
    each = {
        name: (cpu[-1][name] - cpu[0][name]) / (len(cpu) - 1)
        for name in (cpu[-1] if len(cpu) > 1 else ())
    }
    return {**json.loads(lines[-1]), "cpu_s": each, "peaks": peaks}


def _cpu_of_rounds(
    child: subprocess.Popen[bytes], log: Path, rounds: int
) -> Iterator[dict[str, float]]:
    """By process, the CPU seconds that it has taken when this owner notes the end of a round."""
    noted = 0
    while child.poll() is None and noted < rounds:
        time.sleep(0.05)
        here = log.read_text().count('"event":"round"') if log.exists() else 0
        if here > noted:
            noted = here
            yield {
                _name(each): sum(each.cpu_times()[:2])
                for each in psutil.Process(child.pid).children(recursive=True)
            }


def _name(process: psutil.Process) -> str:
    """Of the node that a process runs: its file lies in a folder of this name."""
    words = process.cmdline()
    return Path(words[words.index("--config") + 1]).parent.name


def local_steps(size: int) -> float:
    """CPU seconds of what PyTorch does in one owner's round: load, one step, and the difference."""
    table, weights = torch.nn.Parameter(torch.zeros(size)), np.zeros(size)
    began = time.process_time()
    with torch.no_grad():
        table.copy_(torch.from_numpy(weights))
    (table[:64].mean() + 1e-3 * table.mean()).backward()
    with torch.no_grad():
        assert table.grad is not None
        table.add_(table.grad, alpha=-0.1)
        _ = table.double().numpy() - weights
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--owners", type=int, default=5)
    parser.add_argument("--evaluators", type=int, default=2)
    parser.add_argument("--size", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=2, help="Beside the first.")
    given = parser.parse_args()
    found = run(given.owners, given.evaluators, given.size, 1 + given.rounds)
    cpu: Any = found["cpu_s"]
    say(f"all processes, one round: {sum(cpu.values()):.2f} s of CPU, local training included")
    say(", ".join(f"{name} {seconds:.2f}" for name, seconds in sorted(cpu.items())))
    local = local_steps(given.size) * given.owners
    say(f"of it about {local:.2f} s in the owners' own steps")
    say(f"sent {found['bytes_sent']}")
    say(f"peak MB, and estimated: {found['peaks']}")
    say(f"wall {found['train_seconds']:.1f} s for {1 + given.rounds} rounds")


if __name__ == "__main__":
    main()
