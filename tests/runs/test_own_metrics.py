"""Metrics of one owner's rows reach that owner, whatever else it does, and nobody else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpc_train.admission.load import load_job
from mpc_train.evaluation.own import own_halves, own_names
from mpc_train.jobs.schedule import held_out_of
from mpc_train.owners.applied import applied
from mpc_train.owners.local import Local
from mpc_train.owners.table import load_table
from mpc_train.results.predicting import load_predictor
from mpc_train.run.phases.prepare import agreed_outputs
from mpc_train.tables.source import Source
from mpc_train.twin.metrics import twin_metric
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.roles.role import Role
from protocols.shares.reveal import RevealGate, SealedHalf
from tests.support.commands import ended, launch
from tests.support.csv_tables import fitting_tables, write_tables
from tests.support.jobs import JOB, write_job
from tests.support.privacy import same_views
from tests.support.tensors import attached
from tests.support.transcript_first import run_scripted

ROLES = """
name = "study"
owners = ["ann", "bob", "cleo", "dora"]
evaluators = ["ann", "bob"]
dealer = "dora"
recipients = ["office"]
"""
ROWS = {"ann": 120, "bob": 90, "cleo": 100, "dora": 110}


@pytest.mark.slow
def test_each_owner_gets_its_own(tmp_path: Path) -> None:
    """ann and bob compute, dora deals and has rows, cleo only brings rows."""
    text = JOB[JOB.index("[data]") :].replace(
        "{ ann = 40, bob = 30, cleo = 30 }", "{ ann = 120, bob = 90, cleo = 100, dora = 110 }"
    )
    text = text.replace('metrics = ["accuracy", "auc"]', 'per_party = ["accuracy", "confusion"]')
    more = 'least_test_rows = 10\n[prepare]\nscale = "standard"\n'
    path = write_job(tmp_path, f"[job]{ROLES}\n{text}{more}")
    write_tables(tmp_path, fitting_tables(ROWS))
    record, err = ended(launch(path))
    assert record["status"] == "ok", err
    assert record["metrics"] == {}
    job, predictor = load_job(path), load_predictor(tmp_path / "run")
    refused: dict[str, bool] = {}
    for owner in ROWS:
        (found,) = (tmp_path / "run" / "nodes" / owner).rglob("own-metrics.json")
        assert found.stat().st_mode & 0o077 == 0
        table = load_table(Source(str(tmp_path / "data" / f"{owner}.csv")), job, owner)
        mine = held_out_of(job, owner) - job.first_row(owner)
        weight, bias = (value.detach().numpy() for value in predictor.module.parameters())
        local = Local(table.features, table.present)
        inputs = applied(job.pipeline, local, predictor.parameters)
        outputs = inputs[mine] @ weight.T + bias
        expected = {
            name: twin_metric(name, job, outputs, table.labels[mine])
            for name in ("accuracy", "confusion")
        }
        metrics = json.loads(found.read_text())
        table_of = np.array(expected["confusion"])
        margins = [*table_of.sum(axis=0), *table_of.sum(axis=1)]
        refused[owner] = any(0 < rows < 10 for rows in margins)
        if refused[owner]:
            assert metrics["confusion"] is None
            assert "fewer than 10 of the" in metrics["unavailable"]["confusion"]
        else:
            assert metrics["confusion"] == expected["confusion"] and "unavailable" not in metrics
        assert metrics["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-9)
        assert predictor.parameters["prepare.center"].shape == (2,)
        assert record["learnt"][owner] == ["range", f"accuracy@{owner}", f"confusion@{owner}"]
    assert refused["bob"] and not all(refused.values())


@pytest.mark.parametrize("corrupted", [0, 1, 2])
def test_what_an_owner_is_sent_tells_it_the_metric_alone(tmp_path: Path, corrupted: int) -> None:
    """Other outputs and labels with the same accuracy: one view, the owner's shares included.

    Of two evaluators each could work out the other's share; of three, it must not.
    """
    names = ("ann", "bob", "cleo")
    text = JOB.replace('metrics = ["accuracy", "auc"]', 'per_party = ["accuracy"]')
    job = load_job(write_job(tmp_path, f"{text}least_test_rows = 3\n"))
    rng = np.random.default_rng(1)
    z, y = rng.normal(0, 2, (job.rows, 1)), (rng.random((job.rows, 1)) < 0.5) * 1.0
    views = []
    for outputs, labels in ((z, y), (-z, 1 - y), (z / 2, y), (-z / 4, 1 - y)):

        def program(role: Role, outputs: Any = outputs, labels: Any = labels) -> Any:
            gate = RevealGate(agreed_outputs(job))
            with attached(role, job.fraction_bits):
                tensors = [
                    MaskedTensor(v, src=(corrupted + 1) % 3, shape=v.shape)
                    for v in (outputs, labels)
                ]
                halves = own_halves(job, gate, lambda inputs: inputs, *tensors)
            assert [output.name for output in gate.passed] == [
                name for owner in names for name in own_names(job, owner)
            ]
            return halves

        results, view = run_scripted(program, 3, (corrupted,))
        found: list[SealedHalf] = [
            halves[name] for name in own_names(job, names[corrupted]) for halves in results[:-1]
        ]
        right = found[0].delta - sum(half.lam for half in found)
        mine = held_out_of(job, names[corrupted])
        assert right.tolist() == [1, int(((z > 0) == y)[mine].sum()) << job.fraction_bits]
        views.append([*view, *(("half", h.delta.tobytes() + h.lam.tobytes()) for h in found)])
    same_views(views)
