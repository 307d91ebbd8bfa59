"""Jobs of regressions: what they may say, what follows from it, and whole runs of them."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mpc_train.admission.load import load_job
from mpc_train.admission.rules import check_rules
from mpc_train.errors import JobError, RefusedError
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import total_steps
from mpc_train.jobs.sealed import (
    CHANGE,
    DEPENDENCE,
    DISPERSION,
    INFLATION,
    SCALE,
    regression_shapes,
    sealed_tensors,
)
from mpc_train.regression.iteration import ridged
from mpc_train.regression.settings import regression_bits, sizes_of
from mpc_train.regression.table import results
from mpc_train.results.report import describe
from mpc_train.twin.regression import PlainFit, pooled_fit
from mpc_train.twin.training import pooled_inputs
from protocols.roles.role import Role
from tests.mpc_train.results.test_artifact import Run
from tests.mpc_train.results.test_artifact import opened as opened_by
from tests.support.commands import mpc_train, trained
from tests.support.csv_tables import csv_of, load_tables, write_tables
from tests.support.jobs import NEWTON, allowing, job_toml, loaded, replaced, write_job
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, secret, shares_of

LABELS = {
    "linear": '{ name = "y", center = 1, scale = 2 }',
    "logistic": "y",
    "poisson": '{ name = "y", range = [0, 60] }',
    "gamma": '{ name = "y", scale = 3, range = [0.001, 90] }',
}
OWNERS = {"ann": 130, "bob": 120, "cleo": 110}


def job_text(kind: str, evaluators: int = 2) -> str:
    metric = "accuracy" if kind == "logistic" else "r2"
    return job_toml(
        [
            "x0",
            '{ name = "x1", center = 5 }',
            '{ name = "x2", scale = 10, range = [-60, 60] }',
        ],
        kind,
        label=LABELS[kind],
        rows=OWNERS,
        recipients=["cleo"],
        job=f"evaluators = {list(OWNERS)[:evaluators]}",
        data="limit = 8",
        train=NEWTON,
        more=f'[reveal]\nstatistics = true\nmetrics = ["{metric}"]',
    )


def write_study(folder: Path, kind: str, evaluators: int) -> Path:
    generator = np.random.default_rng(evaluators)
    for owner, count in OWNERS.items():
        x = generator.normal(size=(count, 3)).clip(-6, 6)
        z = (x @ [0.5, -0.4, 0.0] + 0.2).clip(-3.5, 3.5)
        if kind == "linear":
            y = 1 + 2 * z + generator.normal(size=count)
        elif kind == "logistic":
            y = (generator.random(count) < 1 / (1 + np.exp(-z))).astype(float)
        elif kind == "poisson":
            y = generator.poisson(np.exp(z)).astype(float)
        else:
            y = (3 * np.exp(z) * generator.gamma(3, size=count) / 3).clip(0.002, 89)
        x = x * [1, 1, 10] + [0, 5, 0]
        y = y.astype(int) if kind == "logistic" else y
        lines = csv_of(x0=x[:, 0], x1=x[:, 1], x2=x[:, 2], y=y)
        write_tables(folder, {owner: lines})
    return write_job(folder, job_text(kind, evaluators))


def in_the_clear(job: Job, folder: Path) -> PlainFit:
    tables = load_tables(folder, job)
    return pooled_fit(
        job, pooled_inputs(job, tables)[0], np.concatenate([table.labels for table in tables])
    )


@pytest.mark.slow
@pytest.mark.parametrize("evaluators", [2, 3])
@pytest.mark.parametrize("kind", LABELS)
def test_a_run_ends_with_a_table_of_results(kind: str, evaluators: int, tmp_path: Path) -> None:
    """Real processes; the table is that of the pooled rows, and only the recipient has it."""
    path = write_study(tmp_path, kind, evaluators)
    record = trained(path, "--compare")
    assert record["max_weight_difference"] < 2e-4
    for name, value in record["metrics"].items():
        assert value == pytest.approx(record["twin_metrics"][name], abs=2e-3)
    job = load_job(path)
    plain = in_the_clear(job, tmp_path)
    with Path(record["coefficients"]).open() as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == ["x0", "x1", "x2", "(intercept)"]
    freedom = 288 - 4
    for row, exact, error in zip(table, plain.coefficients, plain.errors, strict=True):
        assert float(row["coefficient"]) == pytest.approx(exact, abs=2e-4)
        assert float(row["std_error"]) == pytest.approx(error, rel=2e-3)
        statistic = abs(exact / error)
        law = stats.t(freedom) if kind in ("linear", "gamma") else stats.norm
        assert float(row["p_value"]) == pytest.approx(2 * law.sf(statistic), rel=0.05, abs=1e-4)
    label = 2 if kind == "linear" else 1
    assert float(table[2]["per_unit"]) == pytest.approx(label * float(table[2]["coefficient"]) / 10)
    # What says something of coefficients is nowhere but with the recipient.
    shown_values = {row["std_error"][:9] for row in table}
    for log in (tmp_path / "run" / "logs").iterdir():
        assert not any(value in log.read_text() for value in shown_values)


@pytest.mark.parametrize(
    ("kind", "old", "new", "key"),
    [
        ("poisson", "range = [0, 60]", "scale = 1", "data.label.range"),
        ("poisson", "range = [0, 60]", "range = [-1, 60]", "data.label.range"),
        ("poisson", '{ name = "y", range', '{ name = "y", scale = 2, range', "data.label.scale"),
        ("gamma", "[0.001, 90]", "[0, 90]", "data.label.range"),
        ("gamma", "scale = 3", "center = 3", "data.label.center"),
        ("gamma", 'name = "newton"', 'name = "sgd", learning_rate = 1', "train.optimizer.name"),
        ("poisson", '"newton"', '"newton", log_range = [-4, 3.3]', "train.optimizer.log_range"),
        ("poisson", '"newton"', '"newton", log_range = [-9, 3]', "train.optimizer.log_range"),
        ("linear", '"newton"', '"newton", log_range = [-3, 3]', "train.optimizer.log_range"),
        ("linear", '"newton"', '"newton", momentum = 0.9', "train.optimizer.momentum"),
        ("linear", '"newton"', '"newton", learning_rate = 0.1', "train.optimizer.learning_rate"),
        ("linear", '"newton"', '"newton", steps = 101', "train.optimizer.steps"),
        ("linear", '"newton"', '"newton", l2 = -1', "train.optimizer.l2"),
        ("linear", '"newton"', '"newton", l2 = 0.1', "reveal.statistics"),
        ("linear", '"newton"', '"newton", l1 = 0.1', "reveal.statistics"),
        ("linear", "[train]", "[train]\nepochs = 3", "train.epochs"),
        ("linear", "[train]", "[train]\nguard = { every = 1 }", "train.guard"),
        ("logistic", 'kind = "logistic"', 'kind = "softmax"\nclasses = 2', "train.optimizer.name"),
        ("linear", 'name = "newton"', "learning_rate = 0.1, l1 = 0.1", "train.optimizer.l1"),
        ("linear", "ann = 130, bob = 120, cleo = 110", "ann = 2, bob = 1, cleo = 1", "reveal"),
        ("poisson", "limit = 8", "limit = 1024", "data.limit"),
        ("gamma", "range = [0.001, 90]", "range = [0.001, 1e9]", "data.limit"),
    ],
)
def test_contradictions_name_the_key(
    kind: str, old: str, new: str, key: str, tmp_path: Path
) -> None:
    text = replaced(old, new, job_text(kind))
    with pytest.raises(JobError, match=key):
        loaded(tmp_path, text)


def test_the_contract_says_who_learns_what(tmp_path: Path) -> None:
    text = job_text("poisson")
    job = loaded(tmp_path, text)
    said = describe(job)
    assert "12 Newton steps over all training rows" in said
    assert "logarithms of means between -4 and 4" in said
    assert "standard errors and p-values" in said
    with pytest.raises(RefusedError, match="statistics would be disclosed"):
        check_rules(allowing(job, disclosures=()), job, "office")
    check_rules(allowing(job), job, "office")
    plain = loaded(tmp_path, text.replace("statistics = true", ""))
    check_rules(allowing(job, disclosures=()), plain, "office")
    assert list(regression_shapes(plain)) == [CHANGE]
    assert list(regression_shapes(job)) == [CHANGE, SCALE, INFLATION, DEPENDENCE]
    assert set(sealed_tensors(job)) == {"weight", "bias", CHANGE, SCALE, INFLATION, DEPENDENCE}
    assert list(regression_bits(job)) == [CHANGE, SCALE, INFLATION, DEPENDENCE]
    linear = loaded(tmp_path, job_text("linear"))
    assert total_steps(linear) == 3 and DISPERSION in sealed_tensors(linear)


def test_a_million_rows_and_two_hundred_columns_fit(tmp_path: Path) -> None:
    """The bits that remain when everything is large."""
    names = ", ".join(f'"x{number}"' for number in range(200))
    for kind in LABELS:
        text = job_text(kind).replace("ann = 130", "ann = 1_000_000")
        start, end = text.index("features = "), text.index("label = ")
        text = f"{text[:start]}features = [{names}]\n{text[end:]}"
        for limit in (8, 16, 32):
            sizes = sizes_of(loaded(tmp_path, text.replace("limit = 8", f"limit = {limit}")))
            assert sizes.input_bits >= 10 and sizes.scaled_bits >= 20
            assert sizes.plan.matrix_bits >= 30 and sizes.chunk >= 1024


@pytest.mark.parametrize("penalty", ["", ", l2 = 0.01", ", l1 = 0.01"])
def test_inputs_of_at_most_one(tmp_path: Path, penalty: str) -> None:
    """Then the information of a row is below 1: its bound is a power of two below 1."""
    text = job_text("logistic").replace("limit = 8", "limit = 1")
    if penalty:
        text = text.replace("statistics = true", "").replace('"newton"', f'"newton"{penalty}')
    sizes = sizes_of(loaded(tmp_path, text))
    assert sizes.diagonal < 0

    def program(role: Role) -> object:
        np.seterr(over="ignore")
        words = np.full((4, 4), 1 << (sizes.moment_bits - 3), np.int64)
        return shares_of(ridged(secret(role, words), sizes))

    found = combine_masked(run_lockstep(program, 2)) / 2.0**sizes.moment_bits
    # Sums are held over 2^(L + D), and the penalty with them; the intercept has none.
    ridge = float(sizes.bounds.ridge) * sizes.bounds.rows / 2.0 ** (sizes.count + sizes.diagonal)
    np.testing.assert_allclose(np.diag(found), 1 / 8 + np.array([ridge] * 3 + [0]), atol=2e-6)


def opened(job: Job, **changes: list[float]) -> dict[str, np.ndarray]:
    sizes = sizes_of(job)
    tensors = {
        "weight": [[0.5, -0.25, 2.0]],
        "bias": [1.0],
        CHANGE: [0.0] * 4,
        SCALE: [2.0 ** ((sizes.diagonal + sizes.count) / 2) / 10] * 4,
        INFLATION: [1.0, 4.0, 1.0, 1.0],
        DEPENDENCE: [0.0, 2.0**-21, 0.0, 0.0],
        DISPERSION: [288 - 4.0],
    } | changes
    return {name: np.array(value, np.float64) for name, value in tensors.items()}


def test_a_step_far_below_an_error_may_still_go_somewhere(tmp_path: Path) -> None:
    """Where an input separates classes weights vanish: errors grow, and steps fall below them."""
    creeping = {CHANGE: [8e-4, 0.0, 0.0, 0.0]}
    job = loaded(tmp_path, job_text("logistic"))
    found = results(job, opened(job, **creeping))
    assert not found.converged and found.separated
    assert all(row.p_value is None for row in found.rows)
    assert results(job, opened(job, **{CHANGE: [4e-4, 0.0, 0.0, 0.0]})).converged
    # A label that is a number has a minimum.
    job = loaded(tmp_path, job_text("linear"))
    assert results(job, opened(job, **creeping)).converged


def test_the_table_from_what_is_sealed(tmp_path: Path) -> None:
    job = loaded(tmp_path, job_text("linear"))
    found = results(job, opened(job))
    assert [row.std_error for row in found.rows] == pytest.approx([0.1, 0.2, 0.1, 0.1])
    assert found.rows[0].p_value == pytest.approx(2 * stats.t(284).sf(5))
    assert (found.statistic, found.freedom, found.converged) == ("t", 284, True)
    assert [row.per_unit for row in found.rows] == [1.0, -0.5, 0.4, None]
    assert "Dispersion 1 with 284 degrees of freedom" in found.lines()
    # A dependence is told by its own figure: the inflation of an input with a small part is small.
    collinear = results(job, opened(job, **{DEPENDENCE: [0.0, 2.0**-16, 0.0, 0.9]}))
    assert [row.std_error is None for row in collinear.rows] == [False, True, False, True]
    assert collinear.rows[1].p_value is None and collinear.converged
    line = collinear.to_csv().decode().splitlines()[2]
    assert line == "x1,-0.25,,,,4.0,-0.5,determined by other inputs or constant"
    (warning,) = collinear.warnings  # where the table is not looked at: JSON, and the run's words
    assert "determined by other inputs or constant: their coefficients" in warning
    assert collinear.lines()[-1] == warning and not found.warnings
    exact = results(job, opened(job, **{DISPERSION: [0.0]}))
    assert [row.note for row in exact.rows] == ["every row is fitted exactly"] * 4
    assert exact.converged and not exact.warnings and exact.rows[0].p_value is None
    far = opened(job, **{DISPERSION: [0.0], CHANGE: [0.0, 0.1, 0.0, 0.0]})
    assert not results(job, far).converged
    moving = results(job, opened(job, **{CHANGE: [0.0, 0.1, 0.0, 0.0]}))
    assert not moving.converged and "did not converge" in moving.lines()[-1]
    assert not moving.separated and "separate" not in moving.lines()[-1]
    assert all(row.p_value is None and row.note == "not converged" for row in moving.rows)
    penalised = job_text("linear").replace('"newton"', '"newton", l1 = 0.1')
    job = loaded(tmp_path, penalised.replace("statistics = true", ""))
    plain = results(job, {name: opened(job)[name] for name in ("weight", "bias", CHANGE)})
    assert plain.rows[2].coefficient == 2 and plain.rows[2].std_error is None and plain.converged
    assert "std error" not in plain.lines()[0]


def test_a_recipient_opens_the_table_with_the_model(tmp_path: Path) -> None:
    job = loaded(tmp_path, job_text("poisson"))
    run = Run(job)
    model = opened_by(run.envelopes("cleo"), "cleo")
    bits = regression_bits(job)
    for name, value in run.weights.items():
        exact = np.ldexp(value, 20 - bits.get(name, 20))
        assert np.abs(model.weights[name] - exact).max() <= 2.0**-21
    table = model.results
    assert table is not None and [row.name for row in table.rows][-1] == "(intercept)"
    assert model.files["coefficients.csv"] == table.to_csv()
    assert json.loads(json.dumps(asdict(table)))["statistic"] == "z"
    # The manifest may be shown to others: nothing of the table stands there.
    manifest = json.loads(model.files["manifest.json"])
    assert set(manifest["tensors"]) == {"weight", "bias"}


def test_open_prints_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = loaded(tmp_path, job_text("linear"))
    model = opened_by(Run(job).envelopes("cleo"), "cleo")
    module = "mpc_train.commands.open"
    monkeypatch.setattr(f"{module}.is_metrics", lambda _: False)
    monkeypatch.setattr(f"{module}.opened_model", lambda *_: (model, model.files))
    monkeypatch.setattr(f"{module}.open_vault", lambda *_: None)
    monkeypatch.setattr(f"{module}.find_name", lambda *_: "cleo")
    monkeypatch.setattr("parties.keys.roster.Roster.load", lambda *_: None)
    (tmp_path / "study.sealed").touch()
    shown = mpc_train("open", tmp_path / "study.sealed", "--home", tmp_path)
    assert shown.exit_code == 0, shown.stderr
    assert model.results is not None
    assert "\n".join(model.results.lines()) in shown.stdout
    assert "std error" in shown.stdout and "degrees of freedom" in shown.stdout
    shown = mpc_train("open", tmp_path / "study.sealed", "--home", tmp_path, "--format", "json")
    found = json.loads(shown.stdout)["results"]
    assert [row["name"] for row in found["rows"]] == ["x0", "x1", "x2", "(intercept)"]


def test_penalties_are_exact_decimals(tmp_path: Path) -> None:
    job = loaded(
        tmp_path,
        job_text("linear")
        .replace('"newton"', '"newton", l2 = 0.1')
        .replace("statistics = true", ""),
    )
    assert sizes_of(job).bounds.ridge == Fraction(1, 10)
