"""A hospital that took no part in training measures a model in shares on rows of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from mpc_train.admission.cautions import cautions
from mpc_train.admission.load import load_job
from mpc_train.admission.ranges import check_ranges
from mpc_train.admission.rules import check_rules
from mpc_train.errors import JobError, RefusedError
from mpc_train.jobs.job import Job
from mpc_train.jobs.outputs import leaving
from mpc_train.jobs.schedule import split, split_sizes, total_steps
from mpc_train.owners.applied import applied
from mpc_train.owners.local import Local
from mpc_train.results.outcome import check, read_outcome
from mpc_train.results.plain_model import plain_module
from mpc_train.results.report import describe
from mpc_train.run.history import History
from mpc_train.shared.library import held_models
from mpc_train.shared.permits import check_use
from mpc_train.shared.share import TENSOR
from mpc_train.tables.source import Source
from mpc_train.twin.metrics import twin_metric
from mpc_train.twin.preparation import twin_parameters
from protocols.errors import PeerLostError
from protocols.ring.fixed_point import decode
from tests.support.columns_case import JOB, write_job
from tests.support.csv_tables import load_tables
from tests.support.jobs import allowing
from tests.support.linear_rule import write_study
from tests.support.sessions import Kill, Rehearsal
from tests.support.shared_models import RANGED, SCALED, first_run, measuring, shares, together

DORA = '[serve]\nvalidators = ["dora"]'
INCOME = '{ name = "income", range = [0, 100] }'
METRICS = {
    "linear": ("mse", "mae", "r2"),
    "logistic": ("accuracy", "auc", "log_loss", "confusion", "f1"),
}


def trained(folder: Path, kind: str = "logistic", more: str = f"{DORA}\n{SCALED}") -> Rehearsal:
    return first_run(folder, kind, more, features=RANGED)


def expected(first: Rehearsal, run: Rehearsal) -> dict[str, Any]:
    """The metrics of the opened model, by scikit-learn, on inputs as its recipient prepares
    them."""
    job, pipeline = first.job, first.job.pipeline
    whole = [
        np.concatenate([getattr(t, part) for t in load_tables(first.folder, job)])
        for part in ("features", "present")
    ]
    parameters = twin_parameters(pipeline, Local(*whole), split(job)[0])
    (table,) = load_tables(run.folder, run.job)
    inputs = applied(pipeline, Local(table.features, table.present), parameters)
    module = plain_module(job).double().eval()
    found = together(shares(first))
    module.load_state_dict(
        {
            name: torch.from_numpy(decode(found[TENSOR + name], job.fraction_bits))
            for name in job.shapes
        }
    )
    with torch.no_grad():
        outputs = module(torch.from_numpy(inputs)).numpy()
    names = METRICS[job.model.kind]
    return {name: twin_metric(name, run.job, outputs, table.labels) for name in names}


@pytest.mark.parametrize("kind", ["linear", "logistic"])
def test_metrics_are_those_of_the_opened_model_on_the_same_rows(tmp_path: Path, kind: str) -> None:
    first = trained(tmp_path / "first", kind)
    run = measuring(tmp_path / "later", first, METRICS[kind])
    assert split_sizes(run.job) == (0, 60) and total_steps(run.job) == 0
    run.session()
    wanted = expected(first, run)
    for name in ("ann", "bob"):
        found: Any = run.programs[name].found
        for metric, value in wanted.items():
            np.testing.assert_allclose(found.metrics[metric], value, atol=2e-3)
        assert set(found.revealed or ()) == {"range", *METRICS[kind]}
    assert run.halves == {"ann": {}, "bob": {}}  # nothing of the model is sealed to anybody
    for name in ("dora", "registry"):  # who are told what everybody learns
        assert run.programs[name].found.metrics == run.programs["ann"].found.metrics
    with run.vault_of("ann").opened() as store:
        assert [held.about.job for held in held_models(store)] == [first.job]
    assert run.masks_used_twice() == 0
    outcome = read_outcome(run.programs["ann"].outcome())
    assert outcome.to_bytes() == run.programs["registry"].outcome()
    check(run.job, outcome)
    assert outcome.initial.kind == "shared-model"


def test_the_statistics_are_not_those_of_the_rows_that_are_measured(tmp_path: Path) -> None:
    first = trained(tmp_path / "first")
    run = measuring(tmp_path / "later", first, ["log_loss"])
    assert leaving(run.job) == ["range", "log_loss"]
    path = run.folder / "data" / "dora.csv"
    lines = path.read_text().splitlines()
    run.session()
    before: Any = run.programs["ann"].found.metrics["log_loss"]
    # The same rows twice: other statistics would not matter, the same ones do not either.
    later = measuring(tmp_path / "twice", first, ["log_loss"], rows={"dora": 120})
    (later.folder / "data" / "dora.csv").write_text("\n".join([*lines, *lines[1:]]) + "\n")
    later.number += 100
    later.session()
    after: Any = later.programs["ann"].found.metrics["log_loss"]
    assert after == pytest.approx(before, abs=1e-3)


def test_a_run_that_broke_off_is_run_again(tmp_path: Path) -> None:
    first = trained(tmp_path / "first")
    run = measuring(tmp_path / "later", first, ["accuracy"])
    with pytest.raises(PeerLostError):
        run.session(Kill("bob", 1))
    assert not any(program.insists() for program in run.programs.values())
    run.session()
    found: Any = run.programs["ann"].found.metrics
    assert found["accuracy"] > 0.5
    assert run.masks_used_twice() == 0


def altered(job: Job, section: str, **fields: Any) -> Job:
    part = msgspec.structs.replace(getattr(job, section), **fields)
    return msgspec.structs.replace(job, **{section: part})


def test_only_validators_measure_and_no_more_closely_than_its_own_job(tmp_path: Path) -> None:
    said = f"{DORA}\n{SCALED}"
    first = load_job(
        write_study(
            tmp_path,
            "logistic",
            "optimizer = { learning_rate = 0.3 }",
            'model = "shares"\ndecimals = 3',
            recipients=(),
            more=said,
            features=RANGED,
        )
    )
    (tmp_path / "later").mkdir()
    path = write_study(
        tmp_path / "later",
        "logistic",
        f'warm_start = {{ source = "shares", sha256 = "{"0" * 64}", prepare = "model" }}',
        'model = "none"\nmetrics = ["accuracy"]\ndecimals = 3',
        epochs=0,
        recipients=(),
        job='evaluators = ["ann", "bob"]',
        data="limit = 8",
        more=SCALED,
        features=RANGED,
        rows={"dora": 60},
    )
    job = load_job(path)
    check_use(first, "0" * 64, job)
    for changed, words in (
        (altered(first, "serve", validators=("eve",)), "does not allow dora to measure it"),
        (altered(first, "reveal", least_test_rows=11), "least_test_rows must be at least 11"),
        (altered(first, "reveal", least_group=20), "least_group must be at least 20"),
        (altered(first, "reveal", decimals=2), "decimals must be at most 2"),
        (altered(first, "prepare", scale="minmax"), "the schema and .prepare. must be those"),
        (msgspec.structs.replace(first, serve=None), "does not allow dora"),
    ):
        with pytest.raises(RefusedError, match=words):
            check_use(changed, "0" * 64, job)
    check_use(first, "0" * 64, altered(job, "reveal", metrics_to=("dora", first.owners[0])))
    check_use(
        altered(first, "reveal", metrics_to=("eve",)),
        "0" * 64,
        altered(job, "reveal", metrics_to=("eve",)),
    )
    with pytest.raises(RefusedError, match="metrics_to names eve: metrics of this model"):
        check_use(first, "0" * 64, altered(job, "reveal", metrics_to=("dora", "eve")))


def test_what_people_and_rules_see(tmp_path: Path) -> None:
    first = trained(tmp_path / "first")
    run = measuring(tmp_path / "later", first, ["accuracy"])
    said = describe(run.job)
    assert "nothing is trained" in said and "all 60 rows are measured" in said
    assert f"the model is the model {run.job.train.warm_start.sha256} in shares" in said  # type: ignore[union-attr]
    assert "revealed   nothing of the model but metrics" in said
    (caution,) = cautions(run.job)
    assert "the answer for one row" in caution
    rules = allowing(run.job, least_test_rows=10)
    check_rules(rules, run.job, "ann")
    check_ranges(run.job)
    with pytest.raises(RefusedError, match="least_test_rows"):
        check_rules(msgspec.structs.replace(rules, least_test_rows=30), run.job, "dora")
    (table,) = load_tables(run.folder, run.job)
    entry = History.begun().entry("now", run.job, "dora", Source("dora.csv"), table)
    assert entry.trained == "" and entry.measured and entry.pooled == ""


@pytest.mark.parametrize(
    ("train", "reveal", "more", "words"),
    [
        ("", 'model = "none"\nmetrics = ["accuracy"]', "", "train.epochs: at least 1"),
        ("START", 'model = "none"', "", "list metrics"),
        ("START", 'model = "shares"', "", "is in shares already"),
        ("START\nbatch_size = 8", 'model = "none"\nmetrics = ["accuracy"]', "", "nothing else"),
        ("START\nguard = { every = 2 }", 'model = "none"\nmetrics = ["accuracy"]', "", "no steps"),
        ("START", 'model = "none"\nmetrics = ["accuracy"]', SCALED, 'prepare = "model"'),
        (
            "epochs = 1\nbatch_size = 8\noptimizer = { learning_rate = 0.1 }",
            'model = "none"\nmetrics = ["accuracy"]',
            "",
            "trains nothing and measures",
        ),
    ],
)
def test_a_job_says_what_is_wrong(
    tmp_path: Path, train: str, reveal: str, more: str, words: str
) -> None:
    start = f'warm_start = {{ source = "shares", sha256 = "{"0" * 64}" }}'
    path = write_study(
        tmp_path,
        "logistic",
        train.replace("START", start),
        reveal,
        epochs=0,
        recipients=(),
        data="limit = 8",
        more=more,
        features=RANGED,
    )
    with pytest.raises(JobError, match=words):
        load_job(path)


def test_all_rows_are_held_out(tmp_path: Path) -> None:
    start = f'warm_start = {{ source = "shares", sha256 = "{"0" * 64}" }}'
    path = write_study(
        tmp_path,
        "logistic",
        start,
        'model = "none"\nmetrics = ["accuracy"]',
        epochs=0,
        recipients=(),
        data="limit = 8\ntest_fraction = 0.5",
    )
    with pytest.raises(JobError, match="all rows are held out"):
        load_job(path)


def test_joined_records_have_no_scales_for_other_rows(tmp_path: Path) -> None:
    """Their numbers are in units of the owners: in shares they would prepare rows wrongly."""
    text = JOB.replace('recipients = ["bank"]', "")
    text = text.replace('{ name = "income", center = 50, scale = 20 }', INCOME)
    for scale, fits in (("standard", False), ("declared", True)):
        prepared = f'[prepare.columns.income]\nscale = "{scale}"\n'
        path = write_job(tmp_path, text=f'{text}model = "shares"\n{prepared}')
        if fits:
            assert load_job(path).stays_shared
        else:
            with pytest.raises(JobError, match="fit no other rows"):
                load_job(path)
