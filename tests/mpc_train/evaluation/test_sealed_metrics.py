"""Metrics with readers of their own: the readers get what all nodes would have got, and nobody else
gets anything."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mpc_train.admission.load import load_job
from mpc_train.admission.rules import check_rules
from mpc_train.errors import ArtifactError, JobError, RefusedError
from mpc_train.evaluation.findings import Findings
from mpc_train.evaluation.metrics import evaluation_of, revealed
from mpc_train.evaluation.own import own_halves
from mpc_train.jobs.audience import audience, learnt, listed, metric_outputs
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import split, total_steps
from mpc_train.node.consent import roles_of
from mpc_train.results import artifact
from mpc_train.results.artifact import METRICS, MODEL, contents_of, seal_result
from mpc_train.results.opening import METRICS_FILE, OpenedMetrics, open_metrics, open_model
from mpc_train.results.report import describe
from mpc_train.run.phases.prepare import agreed_outputs
from parties.agreement.contract import describe_trust
from protocols.errors import EnvelopeError
from protocols.roles.role import Role
from protocols.sealing.bundle import pack_bundle
from protocols.shares.reveal import RevealGate, SealedHalf
from tests.mpc_train.results.test_artifact import NODES, SID, Node, Run
from tests.support.jobs import allowing, changed, write_job
from tests.support.lockstep import run_lockstep
from tests.support.tensors import attached, shared_in

NODES.setdefault("auditor", Node())
LISTED = 'metrics = ["accuracy", "auc"]'
METRIC = 'metrics = ["accuracy", "auc", "confusion"]\nper_party = ["accuracy"]\nleast_test_rows = 3'


def job_of(folder: Path, metrics_to: str = '["auditor"]', more: str = "") -> Job:
    text = f"{METRIC}\nmetrics_to = {metrics_to}\n{more}"
    return load_job(write_job(folder, changed((LISTED, text))))


def measured(
    job: Job, positives: float = 0.5
) -> tuple[list[Findings], list[dict[str, SealedHalf]]]:
    """The three evaluators' findings and halves, of random outputs and labels."""
    rng = np.random.default_rng(1)
    z = rng.normal(0, 2, (job.rows, 1))
    y = (rng.random((job.rows, 1)) < positives).astype(np.float64)

    def program(role: Role) -> Any:
        gate, halves = RevealGate(agreed_outputs(job)), dict[str, SealedHalf]()
        with attached(role, job.fraction_bits):
            a, b = shared_in(role, z, y)
            _, rows = split(job)
            metrics = job.reveal.metrics
            evaluation = evaluation_of(job, metrics, lambda some: some, a, b, rows)
            found = revealed(job, gate, total_steps(job), metrics, evaluation, halves)
            return found, halves | own_halves(job, gate, lambda some: some, a, b)

    *results, dealer = run_lockstep(program, 3)
    assert dealer == (Findings(), {})
    return [found for found, _ in results], [halves for _, halves in results]


def sealed(job: Job, reader: str = "auditor", positives: float = 0.5, **changes: Any) -> bytes:
    _, each = measured(job, positives)
    return pack_bundle(
        b"",
        [
            seal_result(
                job,
                contents_of(job, METRICS),
                **{
                    "sid": SID,
                    "me": name,
                    "recipients": (reader,),
                    "recipient_keys": [NODES[reader].recipient_key],
                    "delta": {key: half.delta for key, half in halves.items()},
                    "mask": {key: half.lam for key, half in halves.items()},
                    "metrics": {},
                    "unavailable": {},
                    "signer": NODES[name],
                    **changes,
                },
            )
            for name, halves in zip(job.evaluators, each, strict=True)
        ],
    )


def read(blob: bytes, reader: str = "auditor", job: Job | None = None) -> OpenedMetrics:
    return open_metrics(blob, recipient=reader, private=NODES[reader], cards=NODES, job=job)


def test_a_reader_gets_what_all_nodes_would_have_got(tmp_path: Path) -> None:
    job, open_job = job_of(tmp_path), job_of(tmp_path, "[]")
    (everybody, *_), _ = measured(open_job)
    found, each = measured(job)
    assert found == [Findings()] * 3  # nobody in the run learns one
    assert set(each[0]) == set(contents_of(job, METRICS).shapes) == set(metric_outputs(job))
    opened = read(sealed(job), job=job)
    for name, value in everybody.metrics.items():
        assert opened.metrics[name] == value
    assert {f"accuracy@{owner}" for owner in job.owners} <= set(opened.metrics)
    reasons = {name: why for name, why in opened.unavailable.items() if "@" not in name}
    assert reasons == everybody.reasons
    written = json.loads(opened.files[METRICS_FILE])
    assert (written["metrics"], written["reader"]) == (opened.metrics, "auditor")
    assert "accuracy" not in repr(opened)


def test_refusals_hold_for_readers(tmp_path: Path) -> None:
    """Whether a group is too small is decided over shares; a reader gets the reason, no number."""
    opened = read(sealed(job_of(tmp_path), positives=0.1))
    assert opened.metrics["confusion"] is None
    assert "fewer than 10 of the" in opened.unavailable["confusion"]


def test_an_impossible_metric_is_not_a_number(tmp_path: Path) -> None:
    """No node can notice it in the run, so the reader does."""
    job = job_of(tmp_path)
    shapes = contents_of(job, METRICS).shapes
    far = {name: np.full(shape, 1 << 50, np.int64) for name, shape in shapes.items()}
    none = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
    for value in far.values():
        value[..., 0] = 1
    opened = read(sealed(job, delta=far, mask=none))
    assert "accuracy" in opened.impossible and opened.metrics["accuracy"] is None


def test_only_readers_open(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    blob = sealed(job)
    with pytest.raises(ArtifactError, match="an envelope for auditor"):
        read(blob, "office")
    with pytest.raises(EnvelopeError):
        open_metrics(blob, recipient="auditor", private=NODES["office"], cards=NODES)
    with pytest.raises(ArtifactError, match="does not seal its metrics to office"):
        sealed(job, "office")
    with pytest.raises(ArtifactError, match="sealed metrics, not a model"):
        open_model(blob, recipient="auditor", private=NODES["auditor"], cards=NODES)
    model = pack_bundle(b"", Run(job).envelopes())
    with pytest.raises(ArtifactError, match="states metrics, which only their readers"):
        open_model(model, recipient="office", private=NODES["office"], cards=NODES)
    run = Run(job)
    quiet = [run.seal(name, metrics={}, unavailable={}) for name in job.evaluators]
    opened = open_model(quiet, recipient="office", private=NODES["office"], cards=NODES)
    manifest = json.loads(opened.files["manifest.json"])
    assert (manifest["metrics"], manifest["metrics_to"]) == ({}, ["auditor"])


def test_another_split_of_rows_is_another_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluator that seals other tensors than the job's metrics is named."""
    job = job_of(tmp_path)
    contents = contents_of(job, METRICS)
    fewer = replace(contents, shapes={**contents.shapes, "accuracy": (3,)})
    with pytest.raises(ArtifactError, match=r"delta of ann: accuracy is int64\[2\], not"):
        monkeypatch.setattr(artifact, "contents_of", lambda *_: fewer)
        seal_result(
            job,
            fewer,
            sid=SID,
            me="ann",
            recipients=("auditor",),
            recipient_keys=[NODES["auditor"].recipient_key],
            delta={name: np.zeros(shape, np.int64) for name, shape in contents.shapes.items()},
            mask={},
            metrics={},
            unavailable={},
            signer=NODES["ann"],
        )


def test_who_learns_metrics_is_said_everywhere(tmp_path: Path) -> None:
    job = job_of(tmp_path, '["auditor", "ann"]')
    for output in metric_outputs(job):
        assert audience(job, output) == ("auditor", "ann")
    by_name = learnt(job, listed(job))
    assert "accuracy" in by_name["auditor"] and "accuracy@bob" in by_name["ann"]
    assert not [one for one in by_name["bob"] if one in metric_outputs(job)]
    text = describe(job)
    assert "metrics on the held-out rows, sealed, only to auditor, ann: accuracy, auc" in text
    assert "each owner's held-out rows, sealed, only to auditor, ann: accuracy" in text
    assert "metrics on the held-out rows, to everybody" not in text
    trust = describe_trust(roles_of(job))
    assert "Metrics are sealed to auditor, ann; nobody else learns one." in trust
    assert "auditor" in roles_of(job).names and "auditor" in job.names
    assert roles_of(job).title("auditor") == "reader of metrics"


def test_the_rules_must_list_readers(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    rules = allowing(job_of(tmp_path, "[]"), least_test_rows=3, least_group=3)
    with pytest.raises(RefusedError, match="auditor would receive"):
        check_rules(rules, job, "ann")
    allowed = (*rules.recipients, "auditor")
    check_rules(msgspec.structs.replace(rules, recipients=allowed), job, "ann")


@pytest.mark.parametrize(
    ("metrics_to", "says"),
    [('["auditor", "auditor"]', "metrics_to"), ('["no name"]', "metrics_to")],
)
def test_bad_readers_are_refused(tmp_path: Path, metrics_to: str, says: str) -> None:
    with pytest.raises(JobError, match=says):
        job_of(tmp_path, metrics_to)


def test_readers_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="there is no metric to read"):
        load_job(write_job(tmp_path, changed((LISTED, 'metrics_to = ["auditor"]'))))
    assert MODEL != METRICS
