"""Raw columns become the inputs of scikit-learn's preprocessing, over shares and in the clear."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    MinMaxScaler,
    OneHotEncoder,
    PolynomialFeatures,
    StandardScaler,
)

from mpc_train.admission.load import load_job
from mpc_train.errors import JobError
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import split
from mpc_train.jobs.sealed import preparation_shapes
from mpc_train.owners.applied import applied
from mpc_train.owners.cells import WORD_BITS, cells, halves
from mpc_train.owners.local import Local, check_cells, local_terms, partials
from mpc_train.preparation.combined import parameters
from mpc_train.preparation.rows import Rows, prepared
from mpc_train.preparation.sealed import BITS, opened_parameters
from mpc_train.preparation.sharing import with_coarse
from mpc_train.tables.faults import CellError
from mpc_train.twin.preparation import raw_inputs, raw_terms, twin_parameters
from protocols.arrays import Reals
from protocols.ring.fixed_point import decode, encode
from protocols.roles.role import Role
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, secret, shares_of
from tests.support.preparation_case import JOB, pooled, prepared_job, tables, with_gaps

F = 20


def together(job: Job) -> Local:
    return local_terms(job.pipeline, pooled(tables()))


def over_shares(job: Job, evaluators: int = 2) -> tuple[dict[str, Reals], Reals]:
    """The secret parameters, and the inputs of all rows."""
    pipeline, (training, _) = job.pipeline, split(job)
    parts = [local_terms(pipeline, table) for table in tables()]
    statistics = []
    for owner, part in zip(job.owners, parts, strict=True):
        first = job.first_row(owner)
        mine = training[(training >= first) & (training < first + len(part.values))] - first
        statistics.append(partials(pipeline, part, mine, len(training)))
    whole = together(job)
    features = with_coarse(job, whole.values)
    fine = halves(cells(pipeline, whole.values), WORD_BITS)[1]

    def program(role: Role) -> object:
        with np.errstate(over="ignore"):
            brought = [secret(role, encode(s, 0)) for s in statistics]
            found = parameters(pipeline, brought, len(training), 1, F)
            present = secret(role, whole.present.astype(np.int64))
            values, low = secret(role, encode(features, F)), secret(role, encode(fine, 0))
            inputs = prepared(pipeline, Rows(values, low, present), found, F)
            named = {name: shares_of(value) for name, value in found.sealed.items()}
            return named, shares_of(inputs)

    results = run_lockstep(program, evaluators)
    sealed = {
        name: np.ldexp(combine_masked([result[0][name] for result in results]), -BITS[name])
        for name in preparation_shapes(pipeline)
    }
    inputs = decode(combine_masked([result[1] for result in results]), F)
    return opened_parameters(pipeline, sealed), inputs


@pytest.mark.parametrize("evaluators", [2, 3])
def test_shares_find_what_the_twin_finds(tmp_path: Path, evaluators: int) -> None:
    job = prepared_job(tmp_path)
    training, _ = split(job)
    whole = together(job)
    expected = twin_parameters(job.pipeline, whole, training)
    found, inputs = over_shares(job, evaluators)
    assert set(found) == set(expected) == set(job.pipeline.shapes)
    for name, value in found.items():
        assert value.shape == job.pipeline.shapes[name]
        np.testing.assert_allclose(value, expected[name], rtol=2**-22, atol=2**-26, err_msg=name)
    np.testing.assert_allclose(
        inputs, applied(job.pipeline, whole, expected), rtol=2**-18, atol=2**-18
    )
    # By the parameters that came out, there is rounding only.
    np.testing.assert_allclose(
        inputs, applied(job.pipeline, whole, found), rtol=2**-18, atol=2**-18
    )


def test_blocks_of_rows_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for rounding, which draws from other masks."""
    job = prepared_job(tmp_path)
    _, whole = over_shares(job)
    monkeypatch.setattr("mpc_train.preparation.rows.BLOCK", 700)
    _, parts = over_shares(job)
    np.testing.assert_allclose(parts, whole, atol=2**-18, rtol=2**-18)


@pytest.mark.parametrize("raw", [False, True])
def test_the_twin_is_scikit_learn(tmp_path: Path, raw: bool) -> None:
    job = prepared_job(tmp_path)
    training, _ = split(job)
    table, whole = pooled(tables()), together(job)
    parameters = twin_parameters(job.pipeline, whole, training)
    inputs = applied(job.pipeline, whole, parameters)
    if raw:
        inputs, same = raw_inputs(job, raw_terms(job.pipeline, pooled(tables())), training)
        for name, value in parameters.items():
            np.testing.assert_allclose(same[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
    found = dict(zip(job.pipeline.names, inputs.T, strict=True))

    def fitted(steps: object, column: Reals) -> Reals:
        two = column.reshape(len(column), -1)
        result: Reals = steps.fit(two[training]).transform(two)  # type: ignore[attr-defined]
        return result

    age = with_gaps(table, "age")
    standard = make_pipeline(SimpleImputer(), StandardScaler())
    np.testing.assert_allclose(found["age"], fitted(standard, age)[:, 0], atol=1e-9)
    income = np.log1p(np.clip(with_gaps(table, "income"), 1000, 250000))
    np.testing.assert_allclose(found["income"], fitted(standard, income)[:, 0], atol=1e-9)
    coarse = (with_gaps(table, "visits") - 30) / 30
    powers = PolynomialFeatures(2, include_bias=False).fit_transform(coarse[:, None])
    scaled = fitted(MinMaxScaler(), powers)
    np.testing.assert_allclose(found["visits"], scaled[:, 0], atol=1e-9)
    np.testing.assert_allclose(found["visits^2"], scaled[:, 1], atol=1e-9)
    smoker = fitted(SimpleImputer(), with_gaps(table, "smoker"))[:, 0]
    np.testing.assert_allclose(found["smoker"], smoker, atol=1e-9)
    region = with_gaps(table, "region")
    hot = OneHotEncoder(
        categories=[[0.0, 1.0, 2.0, 3.0]], handle_unknown="ignore", sparse_output=False
    ).fit_transform(np.nan_to_num(region, nan=9.0)[:, None])
    for level, name in enumerate(["north", "south", "east", "other"]):
        np.testing.assert_array_equal(found[f"region={name}"], hot[:, level])
    for name in ("age", "income", "smoker", "region"):
        np.testing.assert_array_equal(found[f"{name}:missing"], np.isnan(with_gaps(table, name)))
    pair = PolynomialFeatures(2, interaction_only=True, include_bias=False).fit_transform(
        np.column_stack([found["age"], found["visits"]])
    )
    np.testing.assert_allclose(found["age*visits"], pair[:, 2], atol=1e-9)


def test_the_twin_knows_nothing_of_the_declared_range(tmp_path: Path) -> None:
    """Of which float64 itself would leave no digits; and constant fills and declared scales."""
    text = """
missing = "mean"
[prepare.columns.income]
scale = "standard"
[prepare.columns.age]
fill = 50
"""
    job = prepared_job(tmp_path, text, JOB.replace("data]", "data]\nlimit = 1024"))
    schema = tmp_path / "schema.toml"
    schema.write_text(schema.read_text().replace("1000000", "1" + 25 * "0"))
    wide = load_job(tmp_path / "job.toml")
    table = pooled(tables())
    training, _ = split(job)
    scaled = make_pipeline(SimpleImputer(), StandardScaler())
    income = with_gaps(table, "income")[:, None]
    expected = scaled.fit(income[training]).transform(income)[:, 0]
    age = SimpleImputer(strategy="constant", fill_value=50.0).fit_transform(
        with_gaps(table, "age")[:, None]
    )
    for one in (job, wide):
        inputs, _ = raw_inputs(one, raw_terms(one.pipeline, table), training)
        found = dict(zip(one.pipeline.names, inputs.T, strict=True))
        np.testing.assert_allclose(found["income"], expected, atol=1e-9)
        np.testing.assert_allclose(found["age"], age[:, 0], atol=1e-9)


def test_constant_fill_and_a_constant_column(tmp_path: Path) -> None:
    text = """
scale = "standard"
missing = "mean"
[prepare.columns.age]
fill = 50
[prepare.columns.visits]
clip = [0, 1]
"""
    job = prepared_job(tmp_path, text)
    whole = together(job)
    age = job.pipeline.names.index("age")
    assert age not in job.pipeline.filled
    column = SimpleImputer(strategy="constant", fill_value=50.0).fit_transform(
        with_gaps(pooled(tables()), "age")[:, None]
    )
    np.testing.assert_allclose(whole.values[:, age], (column[:, 0] - 60) / 60, atol=1e-12)
    training, _ = split(job)
    _, inputs = over_shares(job)
    expected = applied(job.pipeline, whole, twin_parameters(job.pipeline, whole, training))
    np.testing.assert_allclose(inputs, expected, rtol=2**-18, atol=2**-18)


def test_declared_scale_and_mean(tmp_path: Path) -> None:
    """Without secret scales only the means are found over shares."""
    text = JOB.replace(
        'schema = "schema.toml"',
        'schema = "schema.toml"\nfeatures = [{ name = "age", center = 50, scale = 20 }, "visits"]',
    ).replace("data]", "data]\nlimit = 64")
    job = prepared_job(tmp_path, 'missing = "mean"', text)
    assert set(job.pipeline.shapes) == {"prepare.fill"}
    whole = together(job)
    training, _ = split(job)
    expected = applied(job.pipeline, whole, twin_parameters(job.pipeline, whole, training))
    np.testing.assert_allclose(over_shares(job)[1], expected, atol=2**-18)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        ("[prepare.columns.weight]\nclip = [0, 1]", "weight: is not a feature"),
        ("[prepare.columns.region]\npowers = 2", "region.powers: is only for numbers"),
        ("[prepare.columns.age]\nclip = [9, 9]", "write \\[least, largest\\]"),
        ("[prepare.columns.age]\nlog = 'log'", "begins above 0"),
        ("[prepare.columns.age]\npowers = 5", "between 1 and 4"),
        ("[prepare.columns.age]\nfill = 130\nscale = 'standard'", "outside the column's range"),
        ("[prepare.columns.smoker]\npowers = 2", "a boolean has no powers"),
        ("[prepare.columns.age]\npowers = 3", "declare a center"),
        ("interactions = [['age', 'weight']]", "'weight' is not an input"),
        ("[prepare.columns.age]\nencoding = 'index'", "age.encoding: is only for categories"),
        ("[prepare.columns.region]\nencoding = 'number'", "is not possible here; write one of"),
        (
            "interactions = [['age', 'region']]\n[prepare.columns.region]\nencoding = 'index'",
            "'region' is the number of a level",
        ),
        # A regression would take the order of the levels for a quantity.
        (
            "[prepare.columns.region]\nencoding = 'index'",
            "columns.region.encoding: .* only for an Embedding, but .* uses it as a quantity",
        ),
        ("standardize = true", "unknown key"),
    ],
)
def test_contradictions_name_the_key(tmp_path: Path, prepare: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        prepared_job(tmp_path, prepare)


def test_cells_that_the_steps_cannot_take(tmp_path: Path) -> None:
    job = prepared_job(tmp_path, 'scale = "standard"')
    gap = np.array([False, False, True])
    for name in ("age", "region", "smoker"):
        with pytest.raises(CellError, match="is missing") as caught:
            check_cells(job, name, np.zeros(3), gap)
        assert caught.value.row == 2
    with pytest.raises(CellError, match="the label is missing"):
        check_cells(job, "ill", np.zeros(3), gap)
    wide = prepared_job(tmp_path, 'missing = "mean"')
    with pytest.raises(CellError, match="beyond ±16") as caught:
        check_cells(wide, "visits", np.array([3.0, 17.0]), np.zeros(2, bool))
    assert caught.value.row == 1
    check_cells(job, "age", np.array([0.0, 120.0]), np.zeros(2, bool))
