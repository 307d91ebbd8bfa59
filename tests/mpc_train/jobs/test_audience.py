"""What each node learns: what the job says before a run is what passed the gate in it."""

from pathlib import Path

import numpy as np

from mpc_train.admission.load import load_job
from mpc_train.jobs.audience import audience, grouped, learnt
from mpc_train.jobs.outputs import through_the_gate
from mpc_train.jobs.sealed import preparation_shapes
from mpc_train.preparation.gaps import EMPTY
from mpc_train.preparation.sealed import BITS, in_words, remarks
from mpc_train.results.report import describe, outcome
from mpc_train.run.phases.prepare import agreed_outputs
from tests.support.jobs import replaced, write_job
from tests.support.preparation_case import prepared_job


def test_metrics_are_everybodys_and_the_model_the_recipients(tmp_path: Path) -> None:
    job = load_job(write_job(tmp_path))
    found = learnt(job, ["accuracy", "weight", "accuracy", "bias"])
    assert found["bob"] == found["registry"] == ["accuracy"]
    assert found["ann"] == found["office"] == ["accuracy", "weight", "bias"]
    assert audience(job, "auc@cleo") == ("cleo",)
    assert grouped(found)[0] == (["ann", "office"], ["accuracy", "weight", "bias"])


def test_parameters_of_the_preparation_are_sealed(tmp_path: Path) -> None:
    job = prepared_job(tmp_path)
    names = {output.name for output in agreed_outputs(job)}
    assert names >= set(preparation_shapes(job.pipeline)) == set(BITS)
    found = learnt(job, sorted(names))
    assert found["bob"] == [EMPTY, "range"]
    assert set(found["office"]) == names


def test_who_sees_no_gate_is_told_of_all_that_may_pass_it(tmp_path: Path) -> None:
    job = prepared_job(tmp_path)
    names = through_the_gate(job)
    assert names[0] == EMPTY and sorted(names) == sorted(each.name for each in agreed_outputs(job))
    assert learnt(job, names)["bob"] == [EMPTY, "range"]


def test_what_the_contract_says_in_words(tmp_path: Path) -> None:
    job = prepared_job(tmp_path)
    said = describe(job)
    for line in (
        "15 inputs: age, age:missing, income",
        "by each owner alone: clipped: income; logarithm: income; powers: visits^2",
        "over shares: mean 0, variance 1: age, income",
        "nobody learns means, deviations and extremes; they are sealed with the model",
        "a scaled input is 0, and recipients are told, if its training values are equal or "
        "closer than 2^-46 of half the declared range",
    ):
        assert line in said, said
    text = replaced(
        'metrics = ["accuracy", "auc"]', 'metrics = ["auc"]\nleast_group = 7\ndecimals = 2'
    )
    said = describe(load_job(write_job(tmp_path, text)))
    assert (
        "whether a metric is refused (a class, the rows predicted as one, or a bin has 1 to 6 rows)"
        in said
    )
    assert "rounded over shares to 2 decimals" in said


def test_people_are_told_what_was_not_scaled(tmp_path: Path) -> None:
    pipeline = prepared_job(tmp_path).pipeline
    places = np.array(pipeline.names)[list(pipeline.scaled)].tolist()
    inverse = np.ones(len(places))
    inverse[places.index("visits")], inverse[places.index("income")] = 0, 2.0**45
    said = remarks(pipeline, {"prepare.inverse": inverse})
    assert said == {"constant": ["visits"], "coarse": ["income"]}
    result = {"train_seconds": 1, "steps": 1, "step_seconds_median": 1, "rounds": 1}
    words = outcome({**result, "warnings": in_words(said)})
    assert "Warning   visits: not scaled, the input is 0: the training rows' values" in words
    assert "Warning   income: rounded: the declared range is" in words


def test_the_report_lists_it() -> None:
    result = {"train_seconds": 1, "steps": 1, "step_seconds_median": 1, "rounds": 1}
    said = outcome({**result, "learnt": {"ann": ["auc", "weight"], "bob": ["auc"], "cleo": []}})
    assert "Learnt    ann: auc, weight\nLearnt    bob: auc\nLearnt    cleo: nothing" in said
