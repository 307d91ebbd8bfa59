"""Metrics reach the nodes that did not open them, and only if all evaluators say the same."""

from pathlib import Path

import numpy as np
import pytest

from mpc_train.admission.load import load_job
from mpc_train.evaluation.findings import Findings
from mpc_train.evaluation.forms import metric_forms
from mpc_train.evaluation.telling import spread, told_nodes
from mpc_train.jobs.job import Job
from protocols.errors import FrameError
from tests.support.jobs import JOB, write_job
from tests.support.loopback import InsecureLoopback


def study(folder: Path, more: str = "", training: str = "") -> Job:
    """ann and bob compute, cleo only brings rows, the registry deals."""
    text = JOB.replace("dealer =", 'evaluators = ["ann", "bob"]\ndealer =')
    text = text.replace("[train]", f"[train]{training}")
    return load_job(write_job(folder, f"{text}least_group = 1\n{more}"))


def opened(job: Job, correct: int) -> Findings:
    """As two evaluators have it: so many rows were predicted well, and AUC is not available."""
    found = Findings()
    for name, form in metric_forms(job).items():
        good = np.array([1, correct << job.fraction_bits])
        found.take(job, name, form, good if name == "accuracy" else np.array([0, 0]))
    return found


def test_an_owner_that_only_provides_rows_and_the_dealer_learn_the_metrics(tmp_path: Path) -> None:
    job, net = study(tmp_path), InsecureLoopback()
    assert told_nodes(job) == ("cleo", "registry")
    found = opened(job, 7)
    for name in ("ann", "bob"):
        assert spread(job, net.endpoint(name), name, found) is found
    for name in told_nodes(job):
        told = spread(job, net.endpoint(name), name, Findings())
        assert told.metrics == found.metrics and told.reasons == found.reasons
        assert told.metrics["accuracy"] and told.metrics["auc"] is None
    # Two metrics of two words.
    sent = {pair: [len(data) for _, data in frames] for pair, frames in net.transcript.items()}
    assert sent == {(by, to): [8 * 4] for by in ("ann", "bob") for to in ("cleo", "registry")}


def test_a_node_believes_no_evaluator_alone(tmp_path: Path) -> None:
    job, net = study(tmp_path), InsecureLoopback()
    for name, correct in (("ann", 7), ("bob", 8)):
        spread(job, net.endpoint(name), name, opened(job, correct))
    with pytest.raises(FrameError, match="ann and bob say different metrics"):
        spread(job, net.endpoint("cleo"), "cleo", Findings())


def test_nobody_is_told_what_readers_alone_learn(tmp_path: Path) -> None:
    job, net = study(tmp_path, 'metrics_to = ["ann"]\n'), InsecureLoopback()
    for name in job.nodes:
        assert not spread(job, net.endpoint(name), name, Findings()).metrics
    assert not net.transcript


def test_who_has_left_is_not_told(tmp_path: Path) -> None:
    job = study(tmp_path, training="\npreprocess = true")
    assert told_nodes(job) == ("cleo",)
