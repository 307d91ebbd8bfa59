"""Rows that count several times, or in part: as scikit-learn and PyTorch weigh them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import (
    GammaRegressor,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
)

from mpc_train.errors import DataError, JobError
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import split
from mpc_train.owners.row_norms import weights_of
from mpc_train.owners.table import Table, load_table, table_of
from mpc_train.preparation.sharing import pieces_of, share_in, words_brought
from mpc_train.privacy.clip_plan import clipped_by_owners
from mpc_train.results.report import describe
from mpc_train.run.phases.train import train_model
from mpc_train.tables.source import Source
from mpc_train.tables.typed import TypedTable
from mpc_train.training.first_weights import initial_weights
from mpc_train.training.optimizers import row_clipping
from mpc_train.twin.private import Curator
from mpc_train.twin.training import max_weight_difference, train_twin
from protocols.crypten_tensor.tensor import Source as From
from protocols.ring.fixed_point import decode
from protocols.roles.role import Role
from tests.support.commands import trained
from tests.support.csv_tables import csv_lines, write_tables
from tests.support.jobs import SCHEMA_FILE, column, job_toml, loaded, schema_toml, with_data
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, shares_of
from tests.support.privacy import same_views
from tests.support.tensors import attached
from tests.support.transcript_first import run_scripted

OWNERS = {"ann": 130, "bob": 60, "cleo": 50}
WEIGHT = '{ name = "w", range = [0, 4] }'
SGD_TRAIN = 'epochs = 2\nbatch_size = 32\noptimizer = { name = "sgd", learning_rate = RATE }\n'
LABELS = {
    "linear": '{ name = "y", range = [-8, 8] }',
    "poisson": '{ name = "y", range = [0, 60] }',
    "gamma": '{ name = "y", range = [0.001, 60] }',
}


def weighted_job(
    folder: Path, kind: str, train: str, evaluators: int = 2, weight: str = WEIGHT
) -> Job:
    text = job_toml(
        ("x0", '{ name = "x1", scale = 2 }', "x2"),
        kind,
        label=LABELS.get(kind, "y"),
        rows=OWNERS,
        dealer="registry" if evaluators == 3 else "cleo",
        data="limit = 8\n" + (f"weight = {weight}" if weight else ""),
        model="classes = 3" if kind == "softmax" else "",
        train=train,
    )
    return loaded(folder, text)


def rows_of(job: Job, kind: str, ones: bool = False) -> list[Table]:
    """Rows whose rule differs between heavy and light ones, so that weights matter."""
    generator = np.random.default_rng(4)
    x = np.rint(generator.normal(size=(job.rows, 3)).clip(-4, 4) * 2**10) / 2**10
    w = np.rint(generator.uniform(0, 4, job.rows) * 2**6) / 2**6
    w[::7] = 0
    z = (x @ [0.5, -0.4, 0.2] + 0.4 * (w > 2) * x[:, 0] + 0.2).clip(-3, 3)
    if kind == "linear":
        y = (z + generator.normal(0, 0.5, job.rows)).clip(-7, 7)
    elif kind == "logistic":
        y = (generator.random(job.rows) < 1 / (1 + np.exp(-z))).astype(np.float64)
    elif kind == "softmax":
        y = np.digitize(z + generator.normal(0, 0.3, job.rows), [-0.4, 0.6]).astype(np.float64)
    elif kind == "poisson":
        y = generator.poisson(np.exp(z)).clip(0, 60).astype(np.float64)
    else:
        y = (np.exp(z) * generator.gamma(4, size=job.rows) / 4).clip(0.01, 60)
    w = np.ones(job.rows) if ones else w
    values = np.column_stack([x * [1, 2, 1], y, *([w] if job.weight else [])])
    names = ("x0", "x1", "x2", "y", *(["w"] if job.weight else []))
    cuts = np.cumsum([0, *OWNERS.values()])
    parts = [values[start:end].copy() for start, end in pairwise(cuts)]
    return [table_of(job, TypedTable(names, part, np.zeros(part.shape, bool))) for part in parts]


def training(job: Job, tables: list[Table]) -> Callable[[Role], Any]:
    """Every owner shares in its own rows, cleo as the dealer where she is; shares of the model."""
    evaluators = len(job.evaluators)
    sources: dict[str, From] = {"ann": 0, "bob": 1, "cleo": 2 if evaluators == 3 else "dealer"}

    def program(role: Role) -> Any:
        with attached(role, job.fraction_bits):
            place = evaluators if role.index is None else role.index
            me, table = ("registry", None) if place == 3 else (job.owners[place], tables[place])
            shared = share_in(job, sources, me, table, lambda *_: None)
            role.finish()
            model = train_model(job, role, None, shared, {}, lambda _: None).model
            return {name: shares_of(model.tensors[name].masked()) for name in job.shapes}

    return program


def over_shares(job: Job, tables: list[Table]) -> dict[str, np.ndarray]:
    """The trained model."""
    return opened(job, run_lockstep(training(job, tables), len(job.evaluators)))


def opened(job: Job, results: list[Any]) -> dict[str, np.ndarray]:
    return {
        name: decode(combine_masked([result[name] for result in results]), job.fraction_bits)
        for name in job.shapes
    }


LOSSES = [
    ("logistic", "", "0.5", 2),
    ("logistic", "loss = { positive_weight = 3 }", "0.5", 3),
    ("linear", "", "0.05", 3),
    ("linear", 'loss = { name = "mse" }', "0.05", 2),
    ("linear", 'loss = { name = "l1" }', "0.05", 2),
    ("linear", 'loss = { name = "huber", delta = 0.5 }', "0.05", 2),
    ("linear", 'loss = { name = "poisson" }', "0.02", 2),
    ("softmax", "loss = { class_weights = [2, 1, 0.5] }", "0.5", 2),
]


@pytest.mark.parametrize(("kind", "loss", "rate", "evaluators"), LOSSES)
def test_training_is_the_twins(
    kind: str, loss: str, rate: str, evaluators: int, tmp_path: Path
) -> None:
    job = weighted_job(tmp_path, kind, SGD_TRAIN.replace("RATE", rate) + loss, evaluators)
    tables = rows_of(job, kind)
    start = initial_weights(job)
    twin = train_twin(job, tables, start).state
    # Sigmoid, softmax and exp are off by up to 2^-14, 2^-10 in the case of softmax, times weights.
    assert max_weight_difference(over_shares(job, tables), twin) < 1e-3
    others = [replace(table, weights=np.ones(table.rows)) for table in tables]
    assert max_weight_difference(train_twin(job, others, start).state, twin) > 1e-2


ADAM_TRAIN = SGD_TRAIN.replace('"sgd"', '"adam", epsilon = 1e-3').replace("RATE", "0.01")
ADAM_TRAIN += "[fixed_point]\ngradient_limit = 1"
HEAVY = [
    ("logistic", SGD_TRAIN.replace("RATE", "0.01"), 2e-3),
    ("linear", SGD_TRAIN.replace("RATE", "0.002") + "[fixed_point]\nfraction_bits = 18", 2e-3),
    ("logistic", ADAM_TRAIN, 1e-2),
    ("linear", 'optimizer = { name = "newton" }', 2e-4),
    ("logistic", 'optimizer = { name = "newton" }', 5e-4),
]


@pytest.mark.parametrize(("kind", "train", "bound"), HEAVY)
def test_the_largest_weights_fit(kind: str, train: str, bound: float, tmp_path: Path) -> None:
    """All rows weigh 64: means of gradients are far above the default gradient_limit."""
    job = weighted_job(tmp_path, kind, train, weight='{ name = "w", range = [0, 64] }')
    assert job.most_gradient == 64 * job.fixed_point.gradient_limit
    heavy = [replace(t, weights=np.full(t.rows, 64.0)) for t in rows_of(job, kind)]
    twin = train_twin(job, heavy, initial_weights(job)).state
    assert max_weight_difference(over_shares(job, heavy), twin) < bound


@pytest.mark.parametrize(
    ("kind", "train"),
    [
        ("logistic", SGD_TRAIN.replace("RATE", "0.5")),
        ("linear", 'optimizer = { name = "newton" }'),
        ("logistic", 'optimizer = { name = "newton" }'),
    ],
)
def test_weights_of_one_change_nothing(kind: str, train: str, tmp_path: Path) -> None:
    job = weighted_job(tmp_path, kind, train)
    plain = weighted_job(tmp_path, kind, train, weight="")
    assert job.weight and not plain.weight and plain.most_weight == 1
    found = over_shares(job, rows_of(job, kind, ones=True))
    assert max_weight_difference(found, over_shares(plain, rows_of(plain, kind))) < 1e-4


SKLEARN = {
    "linear": LinearRegression(),
    "logistic": LogisticRegression(C=1e9, tol=1e-9, max_iter=10_000),
    "poisson": PoissonRegressor(alpha=0, tol=1e-9, max_iter=10_000),
    "gamma": GammaRegressor(alpha=0, tol=1e-9, max_iter=10_000),
}


def pooled(job: Job, tables: list[Table]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, _ = split(job)
    parts = ("features", "labels", "weights")
    x, y, w = (np.concatenate([getattr(table, part) for table in tables])[rows] for part in parts)
    return x, y, w


@pytest.mark.parametrize("evaluators", [2, 3])
@pytest.mark.parametrize("kind", list(SKLEARN))
def test_regressions_are_those_of_scikit_learn(kind: str, evaluators: int, tmp_path: Path) -> None:
    job = weighted_job(tmp_path, kind, 'optimizer = { name = "newton" }', evaluators)
    tables = rows_of(job, kind)
    found = over_shares(job, tables)
    x, y, w = pooled(job, tables)
    model = SKLEARN[kind].fit(x, y, sample_weight=w)
    exact = np.append(model.coef_, model.intercept_)
    assert np.abs(np.append(found["weight"], found["bias"]) - exact).max() < 2e-4
    assert max_weight_difference(found, train_twin(job, tables, initial_weights(job)).state) < 2e-4
    unweighted = SKLEARN[kind].fit(x, y)
    assert np.abs(np.append(unweighted.coef_, unweighted.intercept_) - exact).max() > 1e-2


def test_penalties_are_on_the_sum_over_the_number_of_rows(tmp_path: Path) -> None:
    job = weighted_job(tmp_path, "logistic", 'optimizer = { name = "newton", l2 = 0.1 }')
    tables = rows_of(job, "logistic")
    found = over_shares(job, tables)
    x, y, w = pooled(job, tables)
    model = LogisticRegression(C=10 / len(y), tol=1e-9, max_iter=10_000)
    exact = model.fit(x, y, sample_weight=w)
    exact = np.append(model.coef_, model.intercept_)
    assert np.abs(np.append(found["weight"], found["bias"]) - exact).max() < 2e-4
    sparse = weighted_job(tmp_path, "linear", 'optimizer = { name = "newton", l1 = 0.2 }')
    tables = rows_of(sparse, "linear")
    twin = train_twin(sparse, tables, initial_weights(sparse)).state
    assert max_weight_difference(over_shares(sparse, tables), twin) < 5e-4


def test_gradients_converge_to_scikit_learn_in_the_clear(tmp_path: Path) -> None:
    train = SGD_TRAIN.replace("RATE", "0.5").replace("epochs = 2", "epochs = 400")
    job = weighted_job(tmp_path, "logistic", train.replace("= 32", "= 192"))
    tables = rows_of(job, "logistic")
    x, y, w = pooled(job, tables)
    assert len(y) == 192
    model = SKLEARN["logistic"].fit(x, y, sample_weight=w)
    state = train_twin(job, tables, initial_weights(job)).state
    assert np.abs(state["weight"] - model.coef_).max() < 1e-3


@pytest.mark.parametrize(("evaluators", "corrupted"), [(2, (1,)), (3, (0, 2))])
@pytest.mark.parametrize(
    ("kind", "train"),
    [
        ("logistic", SGD_TRAIN.replace("RATE", "0.5").replace("epochs = 2", "epochs = 1")),
        ("linear", 'optimizer = { name = "newton", steps = 2 }'),
    ],
)
def test_views_do_not_depend_on_weights(
    kind: str, train: str, evaluators: int, corrupted: tuple[int, ...], tmp_path: Path
) -> None:
    """Sharing in and training: those of honest owners, all 0 or all different."""
    job = weighted_job(tmp_path, kind, train, evaluators)
    drawn, views = rows_of(job, kind), []
    for factor in (0.0, 0.5, 1.0):
        tables = [
            table if place in corrupted else replace(table, weights=factor * table.weights)
            for place, table in enumerate(drawn)
        ]
        coins = round(2 * factor)
        results, view = run_scripted(training(job, tables), evaluators, corrupted, coins=coins)
        exact = train_twin(job, tables, initial_weights(job)).state
        if kind == "logistic":
            assert max_weight_difference(opened(job, results), exact) < 1e-2
        views.append(view)
    same_views(views)


def test_an_owner_shares_its_weights_with_its_rows(tmp_path: Path) -> None:
    job = weighted_job(tmp_path, "logistic", SGD_TRAIN.replace("RATE", "0.5"))
    table = rows_of(job, "logistic")[0]
    pieces = list(pieces_of(job, "ann"))
    words = list(words_brought(job, "ann", table, lambda *_: None))
    assert [piece.shape for piece in pieces] == [each.shape for each in words]
    place = [piece.name for piece in pieces].index("weights")
    assert np.array_equal(decode(words[place][:, 0], job.fraction_bits), table.weights)
    order = np.arange(table.rows)[::-1]
    assert np.array_equal(table.ordered(order).weights, table.weights[::-1])


# Bad input

SCHEMA = schema_toml(
    column("age", range=[0, 120]),
    column("dose"),
    column("ill", "category", levels=["0", "1"]),
    column("survey_weight", range=[0, 10]),
)


def study(folder: Path, data: str = "", more: str = "", schema: str = SCHEMA) -> Job:
    weight = data or 'weight = "survey_weight"'
    text = with_data(f"limit = 128\n{weight}\n{SCHEMA_FILE}")
    return loaded(folder, text.replace("seed = 7", f"seed = 7\n{more}"), schema)


def table_file(folder: Path, cell: str = "1", header: str = "survey_weight") -> Source:
    lines = csv_lines(30)
    path = folder / "bob.csv"
    ends = [header, *["1"] * 6, cell, *["1"] * 23]
    path.write_text("\n".join(f"{line},{end}" for line, end in zip(lines, ends, strict=True)))
    return Source(str(path))


def test_a_schemas_weight_is_no_feature_and_may_be_the_same_everywhere(tmp_path: Path) -> None:
    job = study(tmp_path)
    assert [feature.name for feature in job.features] == ["age", "dose"]
    assert job.most_weight == 10
    table = load_table(table_file(tmp_path), job, "bob")
    assert table.weights.tolist() == [1.0] * 30 and table.features.shape == (30, 2)
    said = describe(job)
    assert "each row counts 'survey_weight' times in the loss, at most 10" in said
    assert "metrics and the statistics of [prepare] count every row once" in said


@pytest.mark.parametrize(
    ("cell", "what"),
    [("-0.5", "range"), ("10.5", "range"), ("", "empty"), ("NaN", "NaN"), ("heavy", "number")],
)
def test_a_bad_weight_is_named(cell: str, what: str, tmp_path: Path) -> None:
    source = table_file(tmp_path, cell)
    with pytest.raises(DataError) as caught:
        load_table(source, study(tmp_path), "bob")
    message = str(caught.value)
    assert message.startswith(f"{source.file}: line 8: column 'survey_weight'")
    assert what in message
    with pytest.raises(DataError, match="missing column 'survey_weight'"):
        load_table(table_file(tmp_path, header="other"), study(tmp_path), "bob")


@pytest.mark.parametrize(
    ("data", "more", "schema", "message"),
    [
        ('weight = "wait"', "", SCHEMA, "data.weight.*not a column of the schema"),
        ('weight = "ill"', "", SCHEMA, "data.weight.*also a feature or the label"),
        (
            'weight = "age"\nfeatures = ["age", "dose"]',
            "",
            SCHEMA,
            "data.weight.*also a feature or the label",
        ),
        (
            'weight = { name = "survey_weight", range = [0, 1] }',
            "",
            SCHEMA,
            "data.weight.range.*is in the schema",
        ),
        ("", "", SCHEMA.replace("[0, 10]", "[-1, 10]"), "data.weight.range.*within 0 to 64"),
        ("", "", SCHEMA.replace("[0, 10]", "[0, 65]"), "data.weight.range.*within 0 to 64"),
        ("", "", SCHEMA.replace("range = [0, 10]\n", ""), "data.weight.range.*declare it"),
        (
            "",
            "",
            SCHEMA.replace("[0, 10]", '[0, 10]\nmissing = [""]'),
            "data.weight.*may be missing",
        ),
        (
            "",
            "",
            SCHEMA.replace("[0, 10]", "[0, 10]").replace(
                'name = "survey_weight"\nkind = "number"\nrange = [0, 10]',
                'name = "survey_weight"\nkind = "boolean"',
            ),
            "data.weight.*of kind boolean",
        ),
        ("", "loss = { balanced = true }", SCHEMA, "train.loss.balanced.*data.weight"),
        (
            "",
            "early_stopping = { fraction = 0.5, patience = 2 }",
            SCHEMA,
            "train.early_stopping.*data.weight",
        ),
        ("", "[fixed_point]\nfraction_bits = 26", SCHEMA, "data.weight.*bits at fraction_bits"),
    ],
)
def test_contradictions_name_the_key(
    data: str, more: str, schema: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match=message):
        study(tmp_path, data, more, schema)


def test_statistics_and_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    newton = 'optimizer = { name = "newton" }'
    with pytest.raises(JobError, match=r"reveal\.statistics.*data\.weight"):
        weighted_job(tmp_path, "linear", f"{newton}\n[reveal]\nstatistics = true")
    wide = 'optimizer = { name = "newton" }\n[fixed_point]\nactivation_limit = 1_000_000'
    steps = SGD_TRAIN.replace("RATE", "0.002")
    with pytest.raises(JobError, match=r"learning_rate.*data\.weight multiplies it"):
        weighted_job(tmp_path, "linear", steps, weight='{ name = "w", range = [0, 64] }')
    with pytest.raises(JobError, match=r"data\.weight"):
        weighted_job(tmp_path, "linear", wide, weight='{ name = "w", range = [0, 64] }')


@pytest.mark.slow
def test_a_run_with_an_owner_that_only_brings_rows(tmp_path: Path) -> None:
    """Real processes: cleo neither evaluates nor deals."""
    job = weighted_job(tmp_path, "logistic", SGD_TRAIN.replace("RATE", "0.5"), 3)
    text = (tmp_path / "job.toml").read_text()
    owners = 'owners = ["ann", "bob", "cleo"]'
    (tmp_path / "job.toml").write_text(
        text.replace(owners, f'{owners}\nevaluators = ["ann", "bob"]')
    )
    for owner, table in zip(job.owners, rows_of(job, "logistic"), strict=True):
        rows = zip(table.features * [1, 2, 1], table.labels, table.weights, strict=True)
        lines = [f"{x[0]},{x[1]},{w},{x[2]},{int(y)}" for x, y, w in rows]
        write_tables(tmp_path, {owner: ["x0,x1,w,x2,y", *lines]})
    record = trained(tmp_path / "job.toml", "--compare")
    assert record["max_weight_difference"] < 1e-3


PRIVACY = """
[privacy]
epsilon = 8
delta = 0.001
neighbours = "zeroed"
clip = 2
"""


@pytest.mark.parametrize("kind", ["logistic", "linear"])
def test_weights_count_in_private_sums(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the noise the model is the twin's, clipped by owners and over shares; a weight above
    the declared range counts as its end."""
    train = f"guard = false\n{SGD_TRAIN.replace('RATE', '0.1')}{PRIVACY}"
    job = weighted_job(tmp_path, kind, train)
    assert clipped_by_owners(job) == (kind == "logistic")
    tables = rows_of(job, kind)
    monkeypatch.setattr(row_clipping, "with_noise", lambda gradient, *_: gradient)
    monkeypatch.setattr(Curator, "words", lambda self, job, count, variance: np.zeros(count))
    found = over_shares(job, tables)
    expected = train_twin(job, tables, initial_weights(job)).state
    assert max_weight_difference(found, expected) < 0.01
    ones = train_twin(job, rows_of(job, kind, ones=True), initial_weights(job)).state
    assert max_weight_difference(found, ones) > 0.02
    assert weights_of(job, np.array([-1.0, 0, 2, 4, 900])).tolist() == [0, 0, 0.5, 1, 1]
