"""`[privacy]`: what a job may promise, and what it may not reveal with it."""

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from math import exp
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest

from mpc_train.admission import noise
from mpc_train.admission.load import job_from_bytes, load_job
from mpc_train.checks import check_privacy
from mpc_train.errors import JobError
from mpc_train.jobs.audience import OWN, RANGE, TRAINING_COUNTS, fold_outputs
from mpc_train.jobs.job import Job
from mpc_train.jobs.outputs import Disclosure, OverFolds, leaving
from mpc_train.jobs.privacy import Privacy
from mpc_train.jobs.reveal import METRICS as OF_KINDS
from mpc_train.jobs.reveal import SENSITIVITY, Metric
from mpc_train.jobs.schedule import batches
from mpc_train.jobs.sealed import CHANGE, DEPENDENCE
from mpc_train.privacy import costs
from mpc_train.privacy.accounting import counts_cost, noise_multiplier, row_clip, sensitivity
from mpc_train.privacy.clip_plan import (
    clip_plan,
    clipped_by_owners,
    deviation,
    input_norm,
    unit_of,
)
from mpc_train.privacy.statistics import statistics_plan
from mpc_train.privacy.words import as_json, lines, meaning, noise_line, rounded_up, table
from mpc_train.results.report import describe
from tests.support import columns_case
from tests.support.commands import as_json as as_json_of
from tests.support.commands import mpc_train
from tests.support.jobs import (
    JOB,
    changed,
    column,
    duplicates_toml,
    job_toml,
    schema_toml,
    with_data,
    write_job,
)
from tests.support.modules import write_modules
from tests.support.noisy_newton import noisy_toml
from tests.support.private import PRIVACY, PRIVATE


def private(**changed: object) -> Job:
    """A checked job with [privacy], some of whose parts are exchanged afterwards, unchecked."""
    job = job_from_bytes(JOB_BYTES)
    return msgspec.structs.replace(job, **changed)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(JobError) as caught:
        load_job(write_job(folder, text))
    return str(caught.value)


@pytest.fixture(scope="module", autouse=True)
def _job_bytes(tmp_path_factory: pytest.TempPathFactory) -> None:
    global JOB_BYTES
    JOB_BYTES = load_job(write_job(tmp_path_factory.mktemp("job"), PRIVATE)).to_bytes()


JOB_BYTES = b""


def test_a_job_without_the_section_keeps_its_bytes(tmp_path: Path) -> None:
    job = load_job(write_job(tmp_path))
    assert not job.privacy and b"privacy" not in job.to_bytes()
    assert as_json(job) is None and lines(job) == []
    assert job_from_bytes(job.to_bytes()) == job


def test_the_section_is_part_of_what_is_signed(tmp_path: Path) -> None:
    job = load_job(write_job(tmp_path, PRIVATE))
    assert job_from_bytes(job.to_bytes()) == job
    assert job.privacy == Privacy(Decimal(3), Decimal("0.00001"), "zeroed", Decimal(2))
    for old, new in (
        ("epsilon = 3", "epsilon = 4"),
        ('"zeroed"', '"replaced"'),
        ("clip = 2", "clip = 3"),
    ):
        other = load_job(write_job(tmp_path, PRIVATE.replace(old, new)))
        assert other.digest() != job.digest()


REACHING = schema_toml(
    column("age", range=[18, 90]),
    column("dose", range=[0, 20]),
    column("marker", range=[-16, 16]),
    column("smoker", "boolean"),
    column("ill", "boolean"),
)


def test_columns_that_reach_beyond_the_limit_are_named_at_once(tmp_path: Path) -> None:
    """An owner would refuse their cells, and end the run."""
    text = with_data(text=PRIVATE)
    (tmp_path / "schema.toml").write_text(REACHING)
    said = refused(tmp_path, text)
    assert "'age' may be 18 to 90" in said and "'dose' may be 0 to 20" in said
    assert '{ name = "age", center = 54, scale = 36 }' in said and "±16 (data.limit)" in said
    assert "marker" not in said and "smoker" not in said
    age = '{ name = "age", center = 54, scale = 36 }'
    listed = f'schema = "schema.toml"\nfeatures = [{age}, "dose", "marker", "smoker"]'
    said = refused(tmp_path, text.replace('schema = "schema.toml"', listed))
    assert "'age'" not in said and "'dose'" in said


@pytest.mark.parametrize(
    "more",
    [
        "[prepare]\ncolumns.age.clip = [0, 16]\ncolumns.dose.clip = [0, 1]\n",
        '[prepare]\ncolumns.age.log = "log"\ncolumns.dose.clip = [1, 9]\n',
        '[prepare]\nscale = "standard"\n',
        "limit = 90\n",
    ],
)
def test_columns_that_stay_within_the_limit_are_taken(tmp_path: Path, more: str) -> None:
    text = with_data(text=PRIVATE)
    (tmp_path / "schema.toml").write_text(REACHING)
    if more.startswith("limit"):
        text = text.replace('schema = "schema.toml"', 'schema = "schema.toml"\n' + more)
    else:
        text += more
    load_job(write_job(tmp_path, text))


def test_a_label_that_reaches_beyond_the_limit_is_named(tmp_path: Path) -> None:
    load_job(write_job(tmp_path, noisy_toml("linear")))
    text = noisy_toml("linear").replace("range = [-8, 8]", "range = [0, 200]")
    assert "data.label: 'y' may be 0 to 200 and has no center" in refused(tmp_path, text)
    text = noisy_toml("linear").replace(
        "range = [-8, 8]", "range = [0, 200], center = 100, scale = 100"
    )
    load_job(write_job(tmp_path, text))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("epsilon = 3", "epsilon = 0.001", "privacy.epsilon: between"),
        ("epsilon = 3", "epsilon = 21", "privacy.epsilon: between"),
        ("epsilon = 3", "epsilon = -1", "privacy.epsilon: between"),
        ("delta = 0.00001", "delta = 0", "privacy.delta: between"),
        ("delta = 0.00001", "delta = 0.5", "privacy.delta: between"),
        ("delta = 0.00001", "delta = 0.02", "privacy.delta: between"),
        ("clip = 2\n", "", "privacy.clip: declare the largest norm"),
        ("clip = 2\n", "clip = 0\n", "privacy.clip: between"),
        ("clip = 2\n", "clip = -1\n", "privacy.clip: between"),
        ('neighbours = "zeroed"\n', "", "neighbours"),
        ('"zeroed"', '"removed"', "neighbours"),
        ("clip = 2", "clip = 2\nmost_rows = 3", "privacy.most_rows: a row is one row"),
        ("clip = 2", 'clip = 2\nunit = "patient"', "privacy.unit: write"),
        ("guard = false", "guard = true", "train.guard: with [privacy]: range"),
        ("guard = false", "", "train.guard: with [privacy]: range"),
        ("guard = false", "guard = { every = 2 }", "train.guard: with [privacy]: guard"),
        ("seed = 7", "seed = 7\nclip = { norm = 1 }", "train.clip: clips the sum"),
        ("seed = 7", "seed = 7\nloss.balanced = true", "train.loss.balanced: weighs each row"),
        ("noise.epsilon = 0.5", "", "reveal.noise: with [privacy]: accuracy"),
        ('["accuracy"]', '["accuracy", "auc"]', "reveal.metrics: with [privacy]: auc"),
        ("noise.epsilon = 0.5", "noise.epsilon = 3.5", "privacy.epsilon: all that is revealed"),
    ],
)
def test_what_cannot_be_promised_is_named(tmp_path: Path, old: str, new: str, key: str) -> None:
    assert old in PRIVATE
    said = refused(tmp_path, PRIVATE.replace(old, new))
    assert key in said and "job.toml" in said


def test_all_that_cannot_be_promised_is_named_at_once(tmp_path: Path) -> None:
    text = (
        PRIVATE.replace("epsilon = 3", "epsilon = 30", 1)
        .replace("delta = 0.00001", "delta = 0.5")
        .replace("clip = 2\n", "")
        .replace("seed = 7", "seed = 7\nclip = { norm = 1 }\nloss.balanced = true")
        .replace("guard = false", "")
        .replace('["accuracy"]', '["accuracy", "auc"]')
        .replace("noise.epsilon = 0.5", "training_loss_every = 1")
    )
    said = refused(tmp_path, text)
    for key in (
        *("privacy.epsilon", "privacy.delta", "privacy.clip", "train.clip", "train.loss.balanced"),
        *("train.guard", "reveal.metrics", "reveal.noise", "reveal.training_loss_every"),
    ):
        assert f": {key}: " in said, key


@pytest.mark.parametrize(
    ("epsilon", "factor"),
    [
        ("0.1", "1.11"),
        ("1", "2.72"),
        ("3", "20.1"),
        ("5", "149"),
        ("8", "2,990"),
        ("20", "486,000,000"),
    ],
)
def test_the_factor_is_never_less_than_it_is(tmp_path: Path, epsilon: str, factor: str) -> None:
    """e^5 is 148.4: a promise of 148 would be false."""
    job = load_job(write_job(tmp_path, PRIVATE))
    assert job.privacy
    privacy = msgspec.structs.replace(job.privacy, epsilon=Decimal(epsilon))
    said = meaning(msgspec.structs.replace(job, privacy=privacy))
    assert f"at most {factor} times" in said
    assert float(factor.replace(",", "")) >= exp(float(epsilon))


def test_how_much_noise_metrics_have_is_said(tmp_path: Path) -> None:
    """Each of three evaluators draws noise of scale 2 for accuracy, and of 4 for a cell."""
    text = PRIVATE.replace('["accuracy"]', '["accuracy", "confusion"]')
    said = describe(load_job(write_job(tmp_path, text)))
    assert (
        "standard deviation is about 4.85 of 25 rows (accuracy), 9.77 in each cell (confusion)"
        in said
    )
    drawn = np.random.default_rng(5).geometric(1 - np.exp(-0.5), (2, 3, 100_000))
    assert np.std((drawn[0] - drawn[1]).sum(0)) == pytest.approx(4.85, rel=0.02)


def test_a_delta_that_publishes_rows_is_refused(tmp_path: Path) -> None:
    text = PRIVATE.replace("ann = 40, bob = 30, cleo = 30", "ann = 400, bob = 300, cleo = 300")
    assert "1e-3" in refused(tmp_path, text.replace("delta = 0.00001", "delta = 0.002"))
    load_job(write_job(tmp_path, text.replace("delta = 0.00001", "delta = 0.001")))


def test_a_sampler_that_is_not_exact_enough_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No job draws so many numbers today: the answer is exchanged instead."""
    monkeypatch.setattr(check_privacy, "sampler_fits", lambda job: False)
    said = refused(tmp_path, PRIVATE)
    assert "privacy.delta: too small" in said and "raise delta, or lower epsilon" in said


def test_more_than_the_budget_is_refused_with_a_table(tmp_path: Path) -> None:
    text = PRIVATE.replace('["accuracy"]', '["accuracy", "confusion"]')
    said = refused(tmp_path, text.replace("noise.epsilon = 0.5", "noise.epsilon = 2"))
    assert "costs ε = 4, more than the budget of 3" in said
    for row in (
        "model  ",
        "accuracy  ",
        "confusion  ",
        "metrics together",
        "the most for one unit",
    ):
        assert f"\n  {row}" in said
    job = load_job(write_job(tmp_path, text.replace("noise.epsilon = 0.5", "noise.epsilon = 1.5")))
    assert table(job)[-1].split()[5:] == ["3", "of", "3,", "at", "δ", "=", "0.00001"]


def test_a_patient_s_rows_share_the_norm_and_multiply_the_noise(tmp_path: Path) -> None:
    schema = schema_toml(
        column("patient", "identifier"),
        column("age", range=[0, 12]),
        column("dose", range=[-9, 9]),
        column("ill", "category", levels=["0", "1"]),
    )
    (tmp_path / "schema.toml").write_text(schema)
    text = with_data('schema = "schema.toml"\nsplit_by = "patient"', PRIVATE)
    unit = 'clip = 8\nunit = "patient"\nmost_rows = 4'
    assert "privacy.most_rows: write" in refused(
        tmp_path, text.replace("clip = 2", 'clip = 2\nunit = "patient"')
    )
    assert 'write "row", or' in refused(
        tmp_path, text.replace("clip = 2", 'clip = 2\nunit = "age"\nmost_rows = 4')
    )
    # Four rows of one patient: ε = 4 · 0.5 of 3, and 4 · 0.8 is too much.
    job = load_job(write_job(tmp_path, text.replace("clip = 2", unit)))
    assert (row_clip(job), sensitivity(job)) == (Fraction(2), Fraction(8))
    assert costs.total(job).held_out == 2
    said = refused(tmp_path, text.replace("clip = 2", unit).replace("0.5\n\n[p", "0.8\n\n[p"))
    assert "costs ε = 3.2" in said and "4 rows of one patient" in said


def test_replaced_takes_twice_the_noise(tmp_path: Path) -> None:
    job = load_job(write_job(tmp_path, PRIVATE.replace('"zeroed"', '"replaced"')))
    assert (row_clip(job), sensitivity(job)) == (Fraction(2), Fraction(4))
    assert "had contained anything else" in " ".join(lines(job))
    assert "had contributed nothing" in " ".join(lines(private()))


NORMED = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
"""


def test_a_row_counts_at_most_its_largest_weight(tmp_path: Path) -> None:
    """And takes as many times the noise, clipped by its owner or over shares."""
    alone = load_job(write_job(tmp_path, PRIVATE))
    text = PRIVATE.replace(
        'label = "ill"', 'label = "ill"\nweight = { name = "w", range = [0, 3] }'
    )
    job = load_job(write_job(tmp_path, text))
    assert (row_clip(job), sensitivity(job)) == (3 * row_clip(alone), 3 * sensitivity(alone))
    assert noise_multiplier(job) == noise_multiplier(alone)
    # In parts of the largest weight nothing else changes.
    assert input_norm(job) == input_norm(alone) and unit_of(job) == 3 * unit_of(alone)
    assert deviation(job) == deviation(alone)
    assert "Each row, times its weight, is clipped to norm 6" in " ".join(lines(job))
    half = load_job(write_job(tmp_path, text.replace("[0, 3]", "[0, 0.5]")))
    assert sensitivity(half) == sensitivity(alone) / 2


def test_what_mixes_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The norm of a clipped row says nothing about its effect on how others count."""
    write_modules(tmp_path, monkeypatch, normed_net=NORMED)
    module = 'kind = "logistic"\nmodule = "normed_net:net"'
    said = refused(tmp_path, PRIVATE.replace('kind = "logistic"', module))
    assert "model: a batch norm lets one row" in said


SECRET = '[prepare]\nscale = "standard"\n'


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (
            lambda text: text.replace("[train]", f"{SECRET.replace('standard', 'minmax')}[train]"),
            "prepare.scale: with [privacy]",
        ),
        (
            lambda text: text.replace("seed = 7", "seed = 7\nearly_stopping.fraction = 0.3"),
            "train.early_stopping: with [privacy]",
        ),
        (
            lambda text: text.replace("noise.epsilon = 0.5", "folds = 2"),
            "reveal.folds: with [privacy]",
        ),
        (
            lambda text: text.replace(
                "noise.epsilon", "training_loss_every = 2\nnoise.epsilon"
            ).replace("batch_size = 16", "batch_size = 20"),
            "reveal.training_loss_every: with [privacy]",
        ),
        (
            lambda text: text.replace(
                "noise.epsilon", 'per_party = ["accuracy"]\nmetrics_to = ["ann"]\nnoise.epsilon'
            ).replace("ann = 40, bob = 30, cleo = 30", "ann = 400, bob = 400, cleo = 400"),
            "reveal.per_party: with [privacy]",
        ),
        (
            lambda text: text.replace("seed = 7", 'seed = 7\nwarm_start = { source = "ann" }'),
            "train.warm_start.source: the budget does not cover",
        ),
    ],
)
def test_what_reveals_rows_without_noise_is_refused(
    tmp_path: Path, change: Callable[[str], str], key: str
) -> None:
    text = change(PRIVATE)
    assert text != PRIVATE
    assert f" {key}" in refused(tmp_path, text)


def test_statistics_of_a_budget_are_bounded_settings(tmp_path: Path) -> None:
    text = PRIVATE.replace("[train]", f"{SECRET}[train]")
    job = load_job(write_job(tmp_path, text))
    assert job.has_noisy_statistics and "empty_columns" not in leaving(job)
    assert job_from_bytes(job.to_bytes()) == job and b"statistics" in job.to_bytes()
    for setting, said in {
        "share = 0": "privacy.statistics.share: between 0.01 and 0.99",
        "share = 1": "privacy.statistics.share: between 0.01 and 0.99",
        "least_deviation = 0.6": "privacy.statistics.least_deviation: between 0.01 and 0.5",
        "least_deviation = 0.001": "privacy.statistics.least_deviation: between 0.01 and 0.5",
        "more = 1": "unknown key",
    }.items():
        assert said in refused(tmp_path, f"{text}statistics = {{ {setting} }}\n")
    said = refused(tmp_path, f"{PRIVATE}statistics = {{ share = 0.2 }}\n")
    assert "privacy.statistics: [prepare] finds no statistics over shares; remove it" in said
    own = load_job(write_job(tmp_path, f"{text}statistics = {{ share = 0.2 }}\n"))
    assert own.digest() != job.digest() and noise_multiplier(own) > noise_multiplier(job)


def test_so_much_noise_for_statistics_that_sums_do_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PRIVATE.replace("[train]", f"{SECRET}[train]")
    load_job(write_job(tmp_path, text))
    with monkeypatch.context() as change:
        change.setattr(noise, "SUM_BITS", 30)
        assert "leaves no room for sums of squares" in refused(tmp_path, text)
    monkeypatch.setattr(noise, "_check_deviation", lambda job: None)
    monkeypatch.setattr(noise, "LEAST_DEVIATION", 1 << 40)
    assert "statistics.share: the noise of one evaluator" in refused(tmp_path, text)


def test_cells_of_joined_rows_may_have_a_coarser_grid_than_other_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are only filled are words of `fraction_bits`, and noise is as fine as they are."""
    columns = (
        *(column(name, "identifier") for name in ("name", "born")),
        *(column(name, range=[-1, 1], missing=[""]) for name in ("income", "claims", "age")),
        column("default", "boolean"),
    )
    (tmp_path / "schema.toml").write_text(schema_toml(*columns))
    features = '[{ name = "income", center = 50, scale = 20 }, "claims", "age"]'
    text = columns_case.JOB.replace(f"features = {features}", 'schema = "schema.toml"')
    text = text.replace("[train]", "[train]\nguard = false").replace("MEMBERSHIP", "holders")
    text = text.replace('metrics = ["accuracy"]', "")
    text += f'[prepare]\nmissing = "mean"\n{PRIVACY}identifiers = "unprotected"\n'
    text += "[fixed_point]\nfraction_bits = 14\n"
    job = load_job(write_job(tmp_path, text))
    plan = statistics_plan(job)
    assert plan.bits == 16
    monkeypatch.setattr(noise, "_check_deviation", lambda job: None)
    for bits, fits in ((14, True), (16, False)):
        least = int(float(plan.variance(bits) / len(job.evaluators)) ** 0.5)
        monkeypatch.setattr(noise, "LEAST_DEVIATION", least)
        if fits:
            load_job(write_job(tmp_path, text))
        else:
            assert "statistics.share: the noise of one evaluator" in refused(tmp_path, text)


def test_bands_keep_each_row_in_its_step(tmp_path: Path) -> None:
    """As far apart as the bands reach; more of them than an epoch has steps are refused."""
    banded = PRIVATE.replace("clip = 2", "clip = 2\nbands = 4")
    job, alone = (load_job(write_job(tmp_path, text)) for text in (banded, PRIVATE))
    assert job.digest() != alone.digest() and job_from_bytes(job.to_bytes()) == job
    first, second = (np.concatenate(batches(job, epoch)) for epoch in (0, 1))
    assert (first == second).all()
    first, second = (np.concatenate(batches(alone, epoch)) for epoch in (0, 1))
    assert (first != second).any()
    said = refused(tmp_path, banded.replace("bands = 4", "bands = 5"))
    assert "privacy.bands: an epoch has 4 steps" in said
    assert "between 1 and 64" in refused(tmp_path, banded.replace("bands = 4", "bands = 0"))
    assert "The noise of 4 steps depends on one another" in " ".join(lines(job))
    assert "With bands = 4 under [privacy]" in " ".join(noise_line(alone))
    assert "With bands" not in " ".join(noise_line(job))


SECRET_COLUMN = '[prepare.columns.x0]\nscale = "standard"\nclip = [-8, 8]'
INTERACTION = '[prepare]\ninteractions = [["x0", "x1"]]'
WEIGHTED = 'weight = { name = "w", range = [0, 3] }'
GAMMA = '{ name = "y", range = [0.1, 8] }'


@pytest.mark.parametrize(
    ("kind", "changes", "key"),
    [
        ("logistic", {"l2": "0.01"}, "train.optimizer.l2: at least 0."),
        ("logistic", {"optimizer": ", l1 = 0.1"}, "train.optimizer.l1: with [privacy] Newton"),
        ("logistic", {"privacy": "bands = 2"}, "privacy.bands: the noise of each Newton step"),
        ("logistic", {"privacy": "clip_label = 1"}, "privacy.clip_label: bounds labels"),
        ("logistic", {"clip": "1"}, "intercept has a norm of 1 alone"),
        ("logistic", {"clip": "1.005"}, "intercept has a norm of 1 alone"),
        ("linear", {"privacy": "# clip_label"}, "privacy.clip_label: declare how large a label"),
        ("linear", {"privacy": "clip_label = 0"}, "privacy.clip_label: between 0.001 and 1024"),
        ("poisson", {"privacy": "clip_label = 9999"}, "privacy.clip_label: between 0.001 and 4096"),
        (
            "logistic",
            {"reveal": "[reveal]\nstatistics = true", "l2": "0"},
            "reveal.statistics: with [privacy]",
        ),
        # No owner knows how long such rows are.
        ("logistic", {"job": SECRET_COLUMN}, "prepare: with [privacy] and Newton steps"),
        ("linear", {"job": INTERACTION}, "prepare.interactions: with [privacy] and Newton steps"),
        ("logistic", {"data": WEIGHTED}, "data.weight: with [privacy] and Newton steps"),
    ],
)
def test_newton_steps_that_cannot_have_noise_are_refused(
    tmp_path: Path, kind: str, changes: dict[str, str], key: str
) -> None:
    load_job(write_job(tmp_path, noisy_toml(kind)))
    assert key in refused(tmp_path, noisy_toml(kind, **changes))  # type: ignore[arg-type]


def test_newton_steps_of_other_regressions_are_refused(tmp_path: Path) -> None:
    text = noisy_toml("logistic").replace('label = "y"', f"label = {GAMMA}")
    said = refused(tmp_path, text.replace('kind = "logistic"', 'kind = "gamma"'))
    assert "no noise for Newton steps of a gamma regression" in said
    steps = PRIVATE.replace("clip = 2", "clip = 2\nclip_label = 1")
    assert "privacy.clip_label: bounds labels in Newton steps" in refused(tmp_path, steps)


def test_what_newton_steps_say_and_seal(tmp_path: Path) -> None:
    """The table has the model alone, with how its equations were solved; the promise names norms,
    labels and sums; `--format json` has the same numbers."""
    for kind, clipped in (
        ("linear", "its label to 2, and both sums over rows, which all steps share"),
        ("logistic", "and both sums of each of 3 Newton steps"),
        ("poisson", "as does the sum of labels, with which the first step begins"),
    ):
        job = load_job(write_job(tmp_path, noisy_toml(kind)))
        (model,) = costs.costs(job)
        assert set(model.outputs) == {"weight", "bias", CHANGE, DEPENDENCE}
        assert model.epsilon == 8 and set(model.outputs) <= set(leaving(job))
        said = " ".join(lines(job))
        assert "The inputs of each row are clipped to norm 3" in said and clipped in said
        assert "in Frobenius norm" in " ".join(noise_line(job))
        told = as_json(job)
        assert told is not None
        assert told["clip_label"] == {"linear": "2", "poisson": "8"}.get(kind)
        assert told["mechanisms"] == {"linear": 2, "logistic": 6, "poisson": 9}[kind]


def test_poisson_regressions_in_steps_are_clipped_over_shares(tmp_path: Path) -> None:
    train = "epochs = 3\nbatch_size = 60\nguard = false\noptimizer.learning_rate = 0.1"
    text = job_toml(["age", "dose"], "linear", train=f'{train}\nloss.name = "poisson"')
    job = load_job(write_job(tmp_path, text + PRIVACY))
    assert not clipped_by_owners(job) and sensitivity(job) == 2
    text = job_toml(["age", "dose"], "poisson", label=GAMMA, train=train)
    said = refused(tmp_path, text + PRIVACY)
    assert 'in steps of gradients is kind = "linear" with loss.name = "poisson"' in said


def test_sizes_of_joins_are_refused(tmp_path: Path) -> None:
    text = duplicates_toml({"ann": 60, "bob": 60}, 0).replace(
        "epochs = 1", "guard = false\nepochs = 1"
    )
    said = refused(tmp_path, text + PRIVACY)
    assert "data.check_duplicates: with [privacy]: overlap: it tells how many records" in said
    text = columns_case.JOB.replace("[train]", "[train]\nguard = false") + PRIVACY
    said = refused(tmp_path, text.replace("MEMBERSHIP", "holders"))
    assert "data.join: with [privacy]: overlap: it tells" in said
    assert "data.join.membership: with [privacy]: membership: it tells owners" in said


def test_joins_are_possible_where_identifiers_are_not_protected(tmp_path: Path) -> None:
    """Rows of several owners are clipped over shares, and what the join tells costs nothing."""
    unprotected = PRIVACY + 'identifiers = "unprotected"\n'
    text = columns_case.JOB.replace("[train]", "[train]\nguard = false") + unprotected
    text = text.replace("MEMBERSHIP", "holders").replace('metrics = ["accuracy"]', "")
    job = load_job(write_job(tmp_path, text))
    assert not clipped_by_owners(job) and clip_plan(job).clip == 2
    priced = {one.name: one for one in costs.costs(job)}
    assert {"overlap", "membership"} <= set(priced)
    assert all(priced[name].epsilon == 0 for name in costs.LINKAGE)
    assert all(priced[name].side == "own" for name in costs.LINKAGE)
    words = " ".join(lines(job))
    assert "for one joined row, with its cells at all owners" in words
    assert "which table has which identifier (name, born), are the same in both" in words
    doubles = duplicates_toml({"ann": 60, "bob": 60}, 0).replace(
        "epochs = 1", "guard = false\nepochs = 1"
    )
    load_job(write_job(tmp_path, doubles + unprotected))
    said = refused(tmp_path, PRIVATE + 'identifiers = "unprotected"\n')
    assert "privacy.identifiers: the job links no records; remove it" in said


def test_newton_steps_of_joined_rows_are_refused(tmp_path: Path) -> None:
    """No owner knows how long they are, and nobody clips them over shares for these steps."""
    steps = 'guard = false\noptimizer = { name = "newton", l2 = 9 }\n'
    start, end = (columns_case.JOB.index(part) for part in ("epochs = 3", "\n[reveal]"))
    text = columns_case.JOB[:start] + steps + columns_case.JOB[end:]
    text = text.replace("MEMBERSHIP", "holders").replace('metrics = ["accuracy"]', "")
    said = refused(tmp_path, f'{text}{PRIVACY}identifiers = "unprotected"\n')
    assert "data.partition: with [privacy] and Newton steps" in said
    assert "columns of several owners" in said


def test_metrics_of_an_owner_s_own_rows_cost_others_nothing(tmp_path: Path) -> None:
    text = PRIVATE.replace("noise.epsilon", 'per_party = ["auc"]\nnoise.epsilon')
    text = text.replace("ann = 40, bob = 30, cleo = 30", "ann = 400, bob = 400, cleo = 400")
    job = load_job(write_job(tmp_path, text))
    (own,) = (cost for cost in costs.costs(job) if cost.side == "own")
    assert own.epsilon == 0 and set(own.outputs) == {f"auc{OWN}{name}" for name in job.owners}


def test_every_disclosure_and_metric_has_an_entry() -> None:
    """A new word of either must say what it costs, or why it cannot have a cost."""
    # Counts of training rows (below) and the sums of federated rounds have a cost; federated sizes
    # are refused with what to do about them.
    elsewhere = {TRAINING_COUNTS, "federated", "sizes"}
    assert {*costs.REFUSED, *elsewhere} == {*get_args(Disclosure), RANGE}
    assert set(costs.METRICS) == set(get_args(Metric))
    assert {name for name, why in costs.METRICS.items() if not why} == {*SENSITIVITY}
    assert all(why.strip() and key.count(".") for key, why in costs.REFUSED.values())


WATCHED = (
    changed(
        ('recipients = ["ann", "office"]\n', ""),
        ("[reveal]", '[serve]\nclients = ["clinic"]\nDRIFT\n[reveal]\nmodel = "shares"'),
        text=PRIVATE,
    )
    .replace('kind = "logistic"', 'kind = "mlp"\nhidden = [3]\nclasses = 2')
    .replace("DRIFT", 'drift = { every_rows = 1000, epsilon = "0.5", to = ["ann"] }')
)


@pytest.mark.parametrize(("neighbours", "cost"), [("zeroed", 0.5), ("replaced", 1.0)])
def test_counts_of_training_rows_are_paid_from_the_budget(
    tmp_path: Path, neighbours: str, cost: float
) -> None:
    job = load_job(write_job(tmp_path, WATCHED.replace('"zeroed"', f'"{neighbours}"')))
    found = {one.name: one for one in costs.costs(job)}
    assert found[TRAINING_COUNTS].epsilon == cost and found[TRAINING_COUNTS].side == "training"
    assert found[costs.MODEL].epsilon == 3 - cost
    assert costs.total(job).training == 3
    # As much noise as a smaller budget without counts demands.
    smaller = load_job(
        write_job(
            tmp_path,
            WATCHED.replace('"zeroed"', f'"{neighbours}"')
            .replace("epsilon = 3", f"epsilon = {3 - cost}")
            .replace('to = ["ann"]', 'to = ["ann"], baseline = "first-window"'),
        )
    )
    assert TRAINING_COUNTS not in {one.name for one in costs.costs(smaller)}
    assert noise_multiplier(job) == noise_multiplier(smaller)


def test_counts_of_a_patient_cost_what_all_its_rows_do(tmp_path: Path) -> None:
    job = load_job(write_job(tmp_path, WATCHED))
    assert job.privacy
    patient = msgspec.structs.replace(job.privacy, unit="patient", most_rows=4)
    assert counts_cost(job) == Fraction(1, 2)
    assert counts_cost(msgspec.structs.replace(job, privacy=patient)) == 2


def test_counts_that_leave_nothing_or_are_of_clipped_rows_are_refused(tmp_path: Path) -> None:
    most = WATCHED.replace('"0.5", to', '"3", to')
    assert "nothing is left of the budget of 3 for training" in refused(tmp_path, most)
    clipped = WATCHED.replace('kind = "mlp"\nhidden = [3]\nclasses = 2', 'kind = "logistic"')
    assert "of rows that their owners have clipped" in refused(tmp_path, clipped)
    text = clipped.replace('to = ["ann"]', 'to = ["ann"], baseline = "first-window"')
    assert not load_job(write_job(tmp_path, text)).counts_training


def test_a_budget_that_is_no_double_is_enough_for_itself(tmp_path: Path) -> None:
    text = PRIVATE.replace("epsilon = 3", "epsilon = 0.1").replace(
        "noise.epsilon = 0.5", "noise.epsilon = 0.05"
    )
    assert costs.total(load_job(write_job(tmp_path, text))).training <= 0.1


@pytest.mark.parametrize("kind", OF_KINDS)
def test_nothing_leaves_without_an_entry(kind: str) -> None:
    """Whatever a job reveals, `entries` knows it: here all at once, for each kind of model."""
    job = private()
    reveal = msgspec.structs.replace(
        job.reveal, metrics=OF_KINDS[kind], per_party=OF_KINDS[kind], folds=3, statistics=True
    )
    model = msgspec.structs.replace(job.model, kind=kind, classes=0 if kind != "softmax" else 3)
    if kind != "mlp":
        job = msgspec.structs.replace(job, model=model, reveal=reveal)
    else:
        job = msgspec.structs.replace(job, reveal=reveal)
    found = costs.entries(job)
    covered = {name for one in found if isinstance(one, costs.Cost) for name in one.outputs}
    covered |= {one.name for one in found if isinstance(one, costs.Refusal)}
    assert covered >= set(leaving(job)) and len(leaving(job)) > 10
    assert {*fold_outputs(job)} <= {one.name for one in found if isinstance(one, costs.Refusal)}


def test_an_output_without_an_entry_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "leaving", lambda job: [*leaving(job), "gradients"])
    with pytest.raises(RuntimeError, match="no cost is known for what leaves as gradients"):
        costs.entries(private())


def test_all_words_over_folds_are_refused() -> None:
    names = set()
    for kind in ("linear", "logistic"):
        job = private()
        model = msgspec.structs.replace(job.model, kind=kind)
        reveal = msgspec.structs.replace(job.reveal, metrics=OF_KINDS[kind], folds=2)
        job = msgspec.structs.replace(job, model=model, reveal=reveal)
        found = [one for one in costs.entries(job) if isinstance(one, costs.Refusal)]
        names |= {one.name for one in found if one.key == "reveal.folds"}
    assert names == set(get_args(OverFolds))


def test_a_job_that_only_measures_pays_for_metrics_alone(tmp_path: Path) -> None:
    start = f'warm_start = {{ source = "public", sha256 = "{"0" * 64}" }}'
    text = JOB.replace('recipients = ["ann", "office"]\n', "")
    text = text.replace("test_fraction = 0.25\n", "")
    head, _, rest = text.partition("[train]")
    _, _, reveal = rest.partition("[reveal]")
    text = f'{head}[train]\nguard = false\n{start}\n[reveal]\nmodel = "none"{reveal}'
    text = text.replace('["accuracy", "auc"]', '["accuracy"]\nnoise.epsilon = 2')
    text += PRIVACY.replace("clip = 2\n", "")
    job = load_job(write_job(tmp_path, text))
    assert costs.total(job) == costs.Total(0.0, 2.0)
    said = " ".join(lines(job))
    assert "Nobody knows all noise" in said and "clipped" not in said and "model " not in said
    assert "privacy.clip: nothing is trained" in refused(tmp_path, f"{text}clip = 1\n")


def test_the_words_say_who_is_protected_against_whom() -> None:
    said = " ".join(lines(private()))
    assert "differentially private with ε = 3 and δ = 0.00001 for one row" in said
    assert "at most 20.1 times" in said and "plus 0.00001" in said
    assert "recipients together with 2 of the 3 evaluators, and" in said
    assert "does not hold against registry together with an evaluator, or all evaluators" in said
    assert "Whoever has several rows is protected less" in said
    assert "what other runs over the same tables cost is added" in said
    assert "numbers of rows" in said and "not protected" in said
    assert "No unit has both rows that train and rows that are held out" in said


def test_epsilon_is_never_rounded_down() -> None:
    assert [rounded_up(value) for value in (0.5, 2.99999, 1.0001, 0.0)] == [
        "0.5",
        "3",
        "1.001",
        "0",
    ]


def test_noise_of_one_evaluator_must_be_wider_than_the_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No job that fits the ring has so little today: the bound is moved instead."""
    load_job(write_job(tmp_path, PRIVATE))
    monkeypatch.setattr(noise, "LEAST_DEVIATION", 1 << 40)
    said = refused(tmp_path, PRIVATE)
    assert "privacy.clip: the noise of one evaluator would have a standard deviation of" in said


def test_job_check_prints_the_table_before_anything_runs(tmp_path: Path) -> None:
    path = write_job(tmp_path, PRIVATE)
    said = as_json_of("job", "check", path)["privacy"]
    assert (said["epsilon"], said["delta"], said["neighbours"]) == ("3", "0.00001", "zeroed")
    assert said["noise_multiplier"] == pytest.approx(2.78, abs=2e-3)
    assert [cost["name"] for cost in said["costs"]] == ["model", "accuracy"]
    assert said["spent_training_computed"] <= said["spent"] == 3
    shown = mpc_train("job", "check", path).stdout
    assert "  privacy    differentially private with ε = 3" in shown
    assert "The standard deviation of the noise is at least 2.78" in shown
    assert "the most for one unit  3    of 3, at δ = 0.00001" in shown
    plain = write_job(tmp_path)
    assert as_json_of("job", "check", plain)["privacy"] is None
    assert "no differential privacy is promised" in mpc_train("job", "check", plain).stdout


def test_a_promise_that_promises_little_is_pointed_out(tmp_path: Path) -> None:
    path = write_job(tmp_path, PRIVATE.replace("epsilon = 3", "epsilon = 15"))
    warned = " ".join(as_json_of("job", "check", path)["cautions"])
    assert "ε = 15 allows conclusions" in warned and "δ" not in warned.split("ε = 15")[0]
    path = write_job(tmp_path, PRIVATE.replace("0.00001", "0.005"))
    assert "δ = 0.005 is large for 100 rows" in " ".join(
        as_json_of("job", "check", path)["cautions"]
    )
