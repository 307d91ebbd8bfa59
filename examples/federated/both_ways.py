"""Trains on the same tables over shares and in federated rounds; a table says what each way costs
and reveals.

    python examples/breast_cancer/make_data.py
    python examples/federated/both_ways.py
"""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars
import safetensors.torch
import torch
from rich.console import Console
from rich.table import Table

from mpc_train.admission.load import load_job
from mpc_train.jobs.schedule import split

HERE = Path(__file__).resolve().parent
ROOT, DATA = HERE.parents[1], HERE.parent / "breast_cancer" / "data"
JOBS = {"over shares": HERE.parent / "breast_cancer" / "job.toml", "federated": HERE / "job.toml"}
SEES = {
    "over shares": "nobody",
    "federated": "each hospital, after every round",
}
"""Who sees a model before the end: it follows from the way, not from a run."""


def run(job: Path) -> dict[str, Any]:
    """What a training on this machine says about itself; it is repeated in the clear."""
    words = [sys.executable, str(ROOT / "launch.py"), str(job), "--compare", "--format", "json"]
    done = subprocess.run(
        words, stdout=subprocess.PIPE, check=True, env={**os.environ, "PYTHONPATH": str(HERE)}
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def accuracy(job_file: Path, model: torch.nn.Module, weights: str) -> float:
    """Of the opened model on the rows that no hospital trained on; a rehearsal can tell, because it
    has all tables."""
    job = load_job(job_file)
    rows = polars.concat([polars.read_csv(DATA / f"{owner}.csv") for owner in job.owners])
    held_out = rows[split(job)[1].tolist()]
    inputs = [
        (held_out[each.name].to_numpy() - float(each.center)) / float(each.scale)
        for each in job.features
    ]
    model.load_state_dict(safetensors.torch.load_file(weights))
    with torch.inference_mode():
        outputs = model.eval()(torch.from_numpy(np.stack(inputs, axis=1)).float())
    right = (outputs[:, 0].numpy() > 0) == (held_out[job.label.name].to_numpy() > 0)
    return float(right.mean())


def facts(way: str, said: dict[str, Any], right: float) -> dict[str, str]:
    """The lines of the table for one way."""
    sent = said["bytes_sent"]
    evaluators = [sent[name] / 1e6 for name in said["evaluators"]]
    gets = [name for name, what in said["learnt"].items() if {"weight", "global_update"} & {*what}]
    everybody = set.intersection(*(set(what) for what in said["learnt"].values()))
    return {
        "sees a model before the end": SEES[way],
        "gets the model": ", ".join(gets),
        "everybody learns": ", ".join(sorted(everybody)),
        "compute": ", ".join(said["evaluators"]),
        "work": f"{said['steps']} {'rounds' if said.get('federated') else 'steps'}, "
        f"{said['rounds']:,} exchanges",
        "each evaluator sends": f"{min(evaluators):.1f} to {max(evaluators):.1f} MB",
        "the dealer sends": f"{sent[said['dealer']] / 1e6:.1f} MB",
        "training takes": f"{said['train_seconds']:.1f} s",
        "right on rows that were held out": f"{right:.1%}",
        "from the same training in the clear": f"{said['max_weight_difference']:.1e} in a weight",
    }


def main() -> None:
    models = {
        "over shares": torch.nn.Linear(30, 1),
        "federated": runpy.run_path(str(HERE / "tumour_net.py"))["network"](),
    }
    found = {}
    for way, job in JOBS.items():
        said = run(job)
        found[way] = facts(way, said, accuracy(job, models[way], said["model"]))
    table = Table("", *found, title="The same tables, both ways")
    for line in found["federated"]:
        table.add_row(line, *(each[line] for each in found.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
