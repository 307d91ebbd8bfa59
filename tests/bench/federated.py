"""One federated round of a large module, as real processes: `python -m tests.bench.federated`.

CPU seconds of all processes, the coordinator included, in one round more: two runs that differ by
some rounds, after one of a small module, which compiles what has to be. What the owners' own steps
take is measured apart, in this process. Wall time says little on a machine that others use.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mpc_train.base.printing import say
from tests.architecture import ROOT

MODULE = """
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
    names = [f"owner-{number:02}" for number in range(owners)]
    computing = names[:evaluators] if evaluators <= 3 else names[:2]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "bench_wide.py").write_text(MODULE.format(size=size))
        rows = "{ " + ", ".join(f"{name} = 40" for name in names) + " }"
        text = JOB.format(
            owners=json.dumps(names), evaluators=json.dumps(computing), rows=rows, rounds=rounds
        )
        (folder / "job.toml").write_text(text)
        (folder / "data").mkdir()
        for place_of, name in enumerate(names):
            rng = np.random.default_rng(place_of)
            lines = [f"{a:.3f},{b:.3f},{int(a > 0)}" for a, b in rng.normal(size=(40, 2))]
            (folder / "data" / f"{name}.csv").write_text("a,b,y\n" + "\n".join(lines) + "\n")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [
                *(sys.executable, str(ROOT / "launch.py"), str(folder / "job.toml")),
                *("--format", "json", "--run-dir", str(folder / "run")),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}"},
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        peaks = []
        for log in sorted((folder / "run" / "logs").glob("*.stdout.log")):
            last = json.loads(log.read_text().strip().splitlines()[-1])
            if "took_part" in last:
                peaks.append((log.name.split(".")[0], last["peak_rss_mb"], last["sent_bytes"]))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**found, "cpu_s": cpu, "peaks": peaks}


def local_steps(size: int) -> float:
    """CPU seconds of what PyTorch does in one owner's round: load, one step, and the difference."""
    table, weights = torch.nn.Parameter(torch.zeros(size)), np.zeros(size)
    began = time.process_time()
    with torch.no_grad():
        table.copy_(torch.from_numpy(weights).to(torch.float32))
    before = table.detach().double().numpy().copy()
    (table[:64].mean() + 1e-3 * table.mean()).backward()
    with torch.no_grad():
        assert table.grad is not None
        table.add_(table.grad, alpha=-0.1)
    _ = table.detach().double().numpy() - before
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--owners", type=int, default=5)
    parser.add_argument("--evaluators", type=int, default=2)
    parser.add_argument("--size", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=2, help="More rounds of the second run.")
    given = parser.parse_args()
    run(given.owners, given.evaluators, 64, 1)
    one = run(given.owners, given.evaluators, given.size, 1)
    more = run(given.owners, given.evaluators, given.size, 1 + given.rounds)
    each = (float(str(more["cpu_s"])) - float(str(one["cpu_s"]))) / given.rounds
    say(f"all processes, one round more: {each:.2f} s of CPU, local training included")
    local = local_steps(given.size) * given.owners
    say(f"of it about {local:.2f} s in the owners' own steps")
    say(f"sent {more['bytes_sent']}")
    say(f"owners that come and go: peak MB, bytes of updates: {more['peaks']}")
    say(f"wall {more['train_seconds']:.1f} s for {1 + given.rounds} rounds")


if __name__ == "__main__":
    main()
