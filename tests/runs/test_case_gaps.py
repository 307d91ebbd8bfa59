"""A column that one hospital never measured, or where it has one value only: a normal pooled table.

The result is scikit-learn's on the pooled table; where no hospital has a value there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from safetensors.numpy import load_file
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

from mpc_train.admission.load import load_job
from mpc_train.admission.rules import check_rules
from mpc_train.errors import DataError, RefusedError
from mpc_train.jobs.audience import learnt
from mpc_train.jobs.job import Job
from mpc_train.jobs.outputs import disclosed_on_the_way
from mpc_train.jobs.schedule import split
from mpc_train.owners.table import load_table
from mpc_train.preparation.gaps import EMPTY, check_gaps, gap_outputs
from mpc_train.preparation.sharing import share_in
from mpc_train.results.report import describe
from mpc_train.run.phases.prepare import agreed_outputs
from mpc_train.tables.source import Source
from protocols.arrays import Reals
from protocols.comparison.compare import below
from protocols.crypten_tensor.tensor import Source as From
from protocols.ring.fixed_point import decode
from protocols.roles.role import Role
from protocols.shares.arithmetic import remask
from protocols.shares.reveal import RevealGate
from tests.support.cases import CASES, run_case
from tests.support.jobs import NEWTON, SCHEMA_FILE, allowing, column, job_toml, loaded, schema_toml
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, secret, shares_of
from tests.support.privacy import honest_owner, same_views
from tests.support.tensors import attached
from tests.support.transcript_first import run_scripted

OWNERS = ("alpha", "beta", "gamma")


def pooled_case() -> polars.DataFrame:
    """Case 23: beta never measured c."""
    tables = [polars.read_csv(CASES / "23" / "data" / f"{name}.csv") for name in OWNERS]
    return polars.concat([table.cast({"c": polars.Float64}, strict=False) for table in tables])


@pytest.mark.slow
def test_case_23(tmp_path: Path) -> None:
    """Coefficients, and means in the table's own units, of scikit-learn on the pooled rows."""
    run = run_case("23", tmp_path, "--compare")
    assert run.status == 0, run.words
    assert run.record["max_weight_difference"] < 2e-3
    (warning,) = run.record["warnings"]
    assert warning.startswith("beta: ")
    assert warning.endswith("beta.csv: column 'c': every cell is missing")
    assert all(EMPTY in what for what in run.record["learnt"].values())

    job, frame = load_job(run.folder / "job.toml"), pooled_case()
    training, held_out = split(job)
    values = frame.select("a", "b", "c").to_numpy()
    labels = frame["y"].to_numpy()
    model = make_pipeline(
        SimpleImputer(), StandardScaler(), LogisticRegression(C=1e10, tol=1e-10, max_iter=1000)
    ).fit(values[training], labels[training])
    weights = load_file(run.folder / "run" / "model.safetensors")
    coefficients = model[-1].coef_[0]
    np.testing.assert_allclose(weights["weight"][0], coefficients, atol=2e-3)
    assert weights["bias"][0] == pytest.approx(model[-1].intercept_[0], abs=2e-3)
    called = model.predict(values[held_out]) == labels[held_out]
    assert run.record["metrics"]["accuracy"] == pytest.approx(called.mean(), abs=1e-3)
    # The declared range [-6, 6] is u in [-1, 1].
    found = load_file(run.folder / "run" / "preparation.safetensors")
    np.testing.assert_allclose(found["prepare.fill"] * 6, model[0].statistics_, atol=1e-4)
    np.testing.assert_allclose(found["prepare.center"] * 6, model[1].mean_, atol=1e-4)
    np.testing.assert_allclose(6 / found["prepare.inverse"], model[1].scale_, rtol=1e-3)


@pytest.mark.slow
def test_a_column_that_nobody_measured_ends_the_run(tmp_path: Path) -> None:
    """No table alone shows it: beta's cells are missing anyhow, the others' are here."""

    def emptied(text: str) -> str:
        for owner in ("alpha", "gamma"):
            path = tmp_path / "23" / "data" / f"{owner}.csv"
            header, *lines = path.read_text().splitlines()
            cells = (line.split(",") for line in lines)
            path.write_text("\n".join([header, *(f"{a},{b},,{y}" for a, b, _, y in cells)]))
        return text

    run = run_case("23", tmp_path, change=emptied)
    assert run.status == 4 and run.record["status"] == "DataError", run.words
    assert "column 'c': no owner has a value in its training rows" in run.record["message"]
    assert not list(run.folder.rglob("*.sealed"))


SCHEMA = schema_toml(
    column("lab", range=[0, 300], missing=[""]),
    column("score", range=[-10, 30], missing=["", "NA"]),
    column("dose", range=[0, 50], missing=[""]),
    column("ward", "category", levels=["surgery", "children", "other ward"], missing=[""]),
    column("adult", "boolean"),
    column("ill", "boolean"),
)
ROWS = {"ann": 120, "bob": 60, "cleo": 40}
JOB = job_toml(
    label="ill",
    rows=ROWS,
    dealer="cleo",
    job='evaluators = ["ann", "bob"]',
    data=f"{SCHEMA_FILE}\ntest_fraction = 0.25",
    train=NEWTON,
    more="""
[prepare]
scale = "standard"
missing = "mean"
indicator = true
columns.score.scale = "minmax"
columns.dose.fill = 12.5
""",
)


def hospitals(folder: Path, text: str = JOB) -> tuple[Job, polars.DataFrame]:
    """Bob's is for children: none is an adult, and neither labs, scores, doses nor wards are
    known; gaps at the others too. The pooled table is as scikit-learn takes it."""
    job = loaded(folder, text, SCHEMA)
    rng = np.random.default_rng(5)
    frames = []
    for place, (owner, rows) in enumerate(ROWS.items()):
        gap = rng.random((rows, 4)) < (1 if owner == "bob" else 0.2)
        frame = polars.DataFrame(
            {
                "lab": rng.normal(90 + 20 * place, 15, rows).round(2),
                "score": rng.normal(4, 3, rows).clip(-9, 29).round(3),
                "dose": rng.uniform(0, 50, rows).round(2),
                "ward": rng.choice(["surgery", "children"], rows),
                "adult": np.zeros(rows, int) if owner == "bob" else rng.integers(0, 2, rows),
                "ill": rng.integers(0, 2, rows),
            }
        ).with_columns(
            polars.when(polars.Series(~gap[:, column])).then(polars.col(name)).alias(name)
            for column, name in enumerate(("lab", "score", "dose", "ward"))
        )
        frame.write_csv(folder / f"{owner}.csv")
        frames.append(frame)
    return job, polars.concat(frames)


def over_shares(folder: Path, job: Job, read_as: Job | None = None) -> Reals:
    """The model's inputs for all rows, and whether a mean exists for each filled column.

    read_as: the job that owners read their tables for, where it is not this one.
    """
    tables = {
        owner: load_table(Source(str(folder / f"{owner}.csv")), read_as or job, owner)
        for owner in job.owners
    }
    sources: dict[str, From] = {"ann": 0, "bob": 1, "cleo": "dealer"}

    def program(role: Role) -> Any:
        with attached(role, job.fraction_bits):
            me = "cleo" if role.index is None else job.evaluators[role.index]
            shared = share_in(job, sources, me, tables[me], lambda *_: None)
            check_gaps(job, RevealGate(gap_outputs(job)), shared.parameters.some)
            return shares_of(shared.inputs.masked())

    words: Any = combine_masked(run_lockstep(program, 2))
    return decode(words, job.fraction_bits)


def test_every_step_is_that_of_the_pooled_table(tmp_path: Path) -> None:
    job, frame = hospitals(tmp_path)
    training, _ = split(job)
    found = dict(zip(job.pipeline.names, over_shares(tmp_path, job).T, strict=True))

    def fitted(steps: Any, name: str) -> Reals:
        column = frame[name].cast(polars.Float64).fill_null(np.nan).to_numpy()[:, None]
        result: Reals = steps.fit(column[training]).transform(column)[:, 0]
        return result

    constant = SimpleImputer(strategy="constant", fill_value=12.5)
    expected = {
        "lab": fitted(make_pipeline(SimpleImputer(), StandardScaler()), "lab"),
        "score": fitted(make_pipeline(SimpleImputer(), MinMaxScaler()), "score"),
        "dose": fitted(make_pipeline(constant, StandardScaler()), "dose"),
        "adult": fitted(SimpleImputer(), "adult"),
    }
    for name in ("lab", "score", "dose", "ward"):
        expected[f"{name}:missing"] = frame[name].is_null().to_numpy().astype(float)
    levels = ["surgery", "children", "other ward"]
    hot = OneHotEncoder(categories=[levels], handle_unknown="ignore", sparse_output=False)
    one = hot.fit_transform(frame["ward"].fill_null("?").to_numpy().astype(object)[:, None])
    expected |= {f"ward={level}": column for level, column in zip(levels, one.T, strict=True)}
    assert set(expected) == set(found)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=2e-3, err_msg=name)


def test_the_owner_is_warned_and_nobody_else(tmp_path: Path) -> None:
    job, _ = hospitals(tmp_path)
    warnings = {
        owner: load_table(Source(str(tmp_path / f"{owner}.csv")), job, owner).warnings
        for owner in job.owners
    }
    assert not warnings["ann"] and not warnings["cleo"]
    for name in ("lab", "score", "dose", "ward"):
        assert any(f"column {name!r}: every cell is missing" in each for each in warnings["bob"])
    assert any("column 'adult': every row has the same value" in each for each in warnings["bob"])
    assert len(warnings["bob"]) == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        # Nothing fills the gap: the first missing cell is an error.
        (
            lambda text: text.replace('missing = "mean"\nindicator = true', ""),
            r"line 2: column 'lab': the cell is missing, and the job does not say how",
        ),
        # Nobody else has rows.
        (
            lambda text: (
                text.replace('["ann", "bob", "cleo"]', '["bob"]')
                .replace("ann = 120, bob = 60, cleo = 40", "bob = 60")
                .replace('dealer = "cleo"', 'dealer = "dee"')
            ),
            r"column 'lab': every cell is missing; no other owner(.|\n)*'adult': every row has the",
        ),
    ],
)
def test_where_it_is_still_an_error(
    tmp_path: Path, change: Callable[[str], str], words: str
) -> None:
    job, _ = hospitals(tmp_path, change(JOB))
    with pytest.raises(DataError, match=words):
        load_table(Source(str(tmp_path / "bob.csv")), job, "bob")


def test_in_a_job_of_columns_nobody_else_has_the_column(tmp_path: Path) -> None:
    text = (CASES / "47c" / "job.toml").read_text()
    (tmp_path / "job.toml").write_text(text.replace("[prepare]", '[prepare]\nmissing = "mean"'))
    schema = (CASES / "47c" / "schema.toml").read_text()
    both = 'kind = "number"\nrange = [-6, 6]\n'
    (tmp_path / "schema.toml").write_text(schema.replace(both, f'{both}missing = [""]\n'))
    (tmp_path / "shop.csv").write_text("\n".join(["id,b", *(f"{row}," for row in range(60))]))
    with pytest.raises(DataError, match="column 'b': every cell is missing; no other owner"):
        load_table(Source(str(tmp_path / "shop.csv")), load_job(tmp_path / "job.toml"), "shop")


@pytest.mark.parametrize("evaluators", [2, 3])
@pytest.mark.parametrize("there", [(1, 1, 1), (0, 1, 1), (1, 0, 0), (0, 0, 0)])
def test_a_bit_a_column_says_whether_a_mean_exists(
    tmp_path: Path, there: tuple[int, int, int], evaluators: int
) -> None:
    """To all nodes, the dealer included."""
    job, _ = hospitals(tmp_path)
    terms = [job.pipeline.terms[place].column for place in job.pipeline.filled]
    assert terms == ["lab", "score", "adult"]

    def program(role: Role) -> object:
        some = below(secret(role, np.array(there, np.int64)), [1]).reshape(3).negate()
        gate = RevealGate(gap_outputs(job))
        message = ""
        try:
            check_gaps(job, gate, some)
        except DataError as error:
            message = str(error)
        # What is left of the computation is as before.
        rest = shares_of(remask(some.shares()))
        return message, [output.name for output in gate.passed], rest

    results = run_lockstep(program, evaluators)
    assert combine_masked([rest for *_, rest in results]).tolist() == list(there)
    empty = [name for name, bit in zip(terms, there, strict=True) if not bit]
    listed = ", ".join(map(repr, empty))
    for message, passed, _ in results:
        assert passed == [EMPTY]
        assert message.startswith(f"column {listed}: no owner has a value") == bool(empty)


@pytest.mark.parametrize(("evaluators", "corrupted"), [(2, (1,)), (3, (0, 2))])
@pytest.mark.parametrize("empty", [False, True])
def test_nothing_but_the_bits_depends_on_the_cells(
    tmp_path: Path, evaluators: int, corrupted: tuple[int, ...], empty: bool
) -> None:
    """How many cells hold a value is in no view: the same for other numbers of them."""
    job, _ = hospitals(tmp_path)
    views = []
    for count in (1, 7, 1 << 20):

        def program(role: Role, count: int = count) -> Any:
            numbers = np.array([count, 0 if empty else count // 2 + 1, count], np.int64)
            np.seterr(over="ignore")  # words wrap around; NumPy keeps this for each thread
            some = below(secret(role, numbers, honest_owner(evaluators, corrupted)), [1])
            try:
                check_gaps(job, RevealGate(gap_outputs(job)), some.reshape(3).negate())
            except DataError as error:
                return str(error)
            return ""

        # The same honest coins: shares of a disclosed bit are among what is seen.
        results, view = run_scripted(program, evaluators, corrupted, coins=1)
        assert all(bool(message) == empty for message in results)
        views.append(view)
    same_views(views)


def test_a_mean_of_values_in_held_out_rows_alone_does_not_exist(tmp_path: Path) -> None:
    job, frame = hospitals(tmp_path)
    held_out = set(split(job)[1].tolist())
    first = 0
    for owner, rows in ROWS.items():
        here = frame.slice(first, rows).with_columns(
            lab=polars.Series([50.0 + r if first + r in held_out else None for r in range(rows)])
        )
        here.write_csv(tmp_path / f"{owner}.csv")
        first += rows
    with pytest.raises(DataError, match="column 'lab': no owner has a value in its training rows"):
        over_shares(tmp_path, job)


def with_labs(folder: Path, frame: polars.DataFrame, owner: str, rows: list[int]) -> None:
    """Have these rows, numbered over all owners, alone have a lab value, and them at `owner`."""
    first = 0
    for name, count in ROWS.items():
        here = frame.slice(first, count).with_columns(
            lab=polars.Series(
                [50.0 + r if name == owner and first + r in rows else None for r in range(count)],
                dtype=polars.Float64,
            )
        )
        here.write_csv(folder / f"{name}.csv")
        first += count


def test_a_mean_of_few_values_of_an_owner_is_refused_at_it(tmp_path: Path) -> None:
    """Recipients get the mean: whoever knows the others' values has the sum of these."""
    job, frame = hospitals(tmp_path)
    training = split(job)[0].tolist()
    source = Source(str(tmp_path / "ann.csv"))
    held_out = split(job)[1].tolist()
    with_labs(tmp_path, frame, "ann", training[:9] + held_out)
    with pytest.raises(DataError, match=r"ann.csv: column 'lab': only 9 .* at least 10 rows"):
        load_table(source, job, "ann")
    with_labs(tmp_path, frame, "ann", training[:10])
    load_table(source, job, "ann")
    few, _ = hospitals(tmp_path, JOB + "[reveal]\nleast_group = 9\n")
    with_labs(tmp_path, frame, "ann", training[:9])
    load_table(source, few, "ann")


def test_a_mean_of_few_values_at_all_owners_does_not_exist(tmp_path: Path) -> None:
    job, frame = hospitals(tmp_path)
    lower, _ = hospitals(tmp_path, JOB + "[reveal]\nleast_group = 2\n")
    training = split(job)[0].tolist()
    with_labs(tmp_path, frame, "ann", training[:9])
    with pytest.raises(DataError, match=r"column .lab.: .* in fewer than 10"):
        over_shares(tmp_path, job, lower)
    over_shares(tmp_path, lower)
    with_labs(tmp_path, frame, "ann", training[:10])
    over_shares(tmp_path, job)


def test_the_bit_is_listed_where_there_is_one(tmp_path: Path) -> None:
    job, _ = hospitals(tmp_path)
    assert gap_outputs(job) < agreed_outputs(job)
    assert "whether a column whose missing cells get the mean has no value" in describe(job)
    said = learnt(job, [EMPTY])
    assert all(EMPTY in said[name] for name in job.nodes)
    text = JOB.replace('missing = "mean"', "columns.lab.fill = 1\ncolumns.score.fill = 1")
    other, _ = hospitals(tmp_path, text)
    assert not gap_outputs(other) and "has no value" not in describe(other)
    assert disclosed_on_the_way(job) == [EMPTY, "extremes"]
    assert disclosed_on_the_way(other) == ["extremes"]
    with pytest.raises(RefusedError, match="empty_columns, extremes would be disclosed"):
        check_rules(allowing(job, disclosures=()), job, "ann")
    with pytest.raises(RefusedError, match=r"means of 10 rows may fill missing cells"):
        check_rules(allowing(job, least_group=11), job, "ann")
    assert "the smallest and the largest training value of score, each a cell" in describe(job)
    declared, _ = hospitals(tmp_path, JOB.replace('"minmax"', '"declared"'))
    assert "extremes" not in disclosed_on_the_way(declared)
    check_rules(allowing(job), job, "ann")


@pytest.mark.parametrize("how", ["absent", "empty"])
def test_a_column_that_one_hospital_lacks_needs_no_word_of_the_others(
    tmp_path: Path, how: str
) -> None:
    """No code of missing cells in the schema: an empty cell is an error at whoever measured."""
    plain = SCHEMA.replace('missing = [""]\n', "").replace('missing = ["", "NA"]\n', "")
    text = JOB.replace("indicator = true\n", "").replace("columns.dose.fill = 12.5\n", "")
    job = loaded(tmp_path, text, plain)
    rng = np.random.default_rng(7)
    frames = []
    for owner, rows in ROWS.items():
        frame = polars.DataFrame(
            {
                "lab": rng.normal(90, 15, rows).round(2),
                "score": rng.normal(4, 3, rows).clip(-9, 29).round(3),
                "dose": rng.uniform(0, 50, rows).round(2),
                "ward": rng.choice(["surgery", "children"], rows),
                "adult": rng.integers(0, 2, rows),
                "ill": rng.integers(0, 2, rows),
            }
        )
        if owner == "bob":
            frame = frame.with_columns(lab=polars.lit(None, polars.Float64))
        written = frame.drop("lab") if owner == "bob" and how == "absent" else frame
        written.write_csv(tmp_path / f"{owner}.csv")
        frames.append(frame)
    pooled = polars.concat(frames)
    training, _ = split(job)
    (warning,) = load_table(Source(str(tmp_path / "bob.csv")), job, "bob").warnings
    assert "column 'lab'" in warning and "every cell is missing" in warning
    found = dict(zip(job.pipeline.names, over_shares(tmp_path, job).T, strict=True))
    column = pooled["lab"].fill_null(np.nan).to_numpy()[:, None]
    steps = make_pipeline(SimpleImputer(), StandardScaler()).fit(column[training])
    np.testing.assert_allclose(found["lab"], steps.transform(column)[:, 0], atol=2e-3)

    path = tmp_path / "ann.csv"
    lines = path.read_text().splitlines()
    lines[5] = lines[5][lines[5].index(",") :]
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match="line 6: column 'lab': the cell is empty"):
        load_table(Source(str(path)), job, "ann")
    lines[1:5] = [line[line.index(",") :] for line in lines[1:5]]
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"line 2: column 'lab': .* \(and lines 3, 4, 5 and 1 more"):
        load_table(Source(str(path)), job, "ann")
    unfilled = loaded(tmp_path, text.replace('missing = "mean"\n', ""))
    what = "missing column 'lab'" if how == "absent" else "line 2: column 'lab': the cell is empty"
    with pytest.raises(DataError, match=what):
        load_table(Source(str(tmp_path / "bob.csv")), unfilled, "bob")
