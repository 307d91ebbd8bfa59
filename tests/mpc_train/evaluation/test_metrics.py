"""Every metric over shares is what the twin computes from the same outputs and labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sklearn
from sklearn.calibration import calibration_curve

from mpc_train.admission.load import load_job
from mpc_train.base.reading import Reading
from mpc_train.errors import JobError
from mpc_train.evaluation.figures import quotient
from mpc_train.evaluation.findings import Findings
from mpc_train.evaluation.forms import AVAILABLE, form_of, least_group
from mpc_train.evaluation.metrics import evaluation_of, revealed
from mpc_train.jobs.job import Job
from mpc_train.jobs.reveal import METRICS
from mpc_train.training import passes
from mpc_train.training.plausible import OUT_OF_RANGE, checked_loss
from mpc_train.twin.metrics import bins_of, guesses, twin_metric
from protocols.arrays import Reals
from protocols.errors import RangeError
from protocols.ring.fixed_point import decode, encode
from protocols.roles.role import Role
from protocols.shares.masked import Masked
from protocols.shares.reveal import Output, RevealGate
from tests.support.jobs import JOB, write_job
from tests.support.lockstep import compute, run_lockstep
from tests.support.loopback import secret
from tests.support.tensors import attached, shared_in

KINDS = ("linear", "logistic", "softmax")


def job_of(
    folder: Path,
    kind: str,
    metrics: Sequence[str],
    more: str = "least_group = 1\n",
    rows: int | None = 400,
) -> Job:
    text = JOB.replace('kind = "logistic"', f'kind = "{kind}"')
    if kind == "softmax":
        text = text.replace(f'kind = "{kind}"', f'kind = "{kind}"\nclasses = 4')
    if rows is not None:
        text = text.replace("ann = 40", f"ann = {rows}")
    listed = ", ".join(f'"{metric}"' for metric in metrics)
    return load_job(write_job(folder, text.replace('"accuracy", "auc"', listed) + more))


def over_shares(job: Job, outputs: Reals, labels: Reals, evaluators: int = 2) -> dict[str, Reading]:
    """The metrics as two evaluators and a dealer compute and reveal them."""
    return findings(job, outputs, labels, evaluators).metrics


def findings(job: Job, outputs: Reals, labels: Reals, evaluators: int = 2) -> Findings:
    """The same, with why some are not there."""

    def program(role: Role) -> Findings:
        with attached(role, job.fraction_bits):
            z, y = shared_in(role, outputs, labels)
            metrics, rows = job.reveal.metrics, np.arange(len(labels))
            gate = RevealGate(frozenset(Output(name, 1) for name in metrics))
            evaluation = evaluation_of(job, metrics, lambda some: some, z, y, rows)
            return revealed(job, gate, 1, metrics, evaluation)

    *found, dealer = run_lockstep(program, evaluators)
    assert all(one == found[0] for one in found)
    assert dealer == Findings()
    first: Findings = found[0]
    return first


def drawn(job: Job, kind: str, rows: int) -> tuple[Reals, Reals, Reals]:
    """Outputs, labels [rows], and labels in the shape of the outputs."""
    generator = np.random.default_rng(rows)
    outputs = generator.normal(0, 2, (rows, job.outputs))
    if kind == "linear":
        labels = (outputs + generator.normal(0, 1, outputs.shape))[:, 0]
    elif kind == "logistic":
        labels = (outputs[:, 0] + generator.normal(0, 2, rows) > 0.5).astype(np.float64)
        labels[:2] = 0, 1
    else:
        noisy = outputs + generator.normal(0, 2, outputs.shape)
        labels = noisy.argmax(axis=1).astype(np.float64)
        return outputs, labels, np.eye(4)[labels.astype(np.int64)]
    return outputs, labels, labels[:, None]


def same(found: Reading, expected: Reading, bound: float) -> bool:
    if isinstance(found, list) and isinstance(expected, list):
        assert len(found) == len(expected)
        pairs = zip(found, expected, strict=True)
        return all(same(one, other, bound) for one, other in pairs)
    if found is None or expected is None:
        return found is expected
    assert isinstance(found, float | int) and isinstance(expected, float | int)
    return bool(abs(found - expected) <= bound)


@pytest.mark.parametrize("rows", [15, 142, pytest.param(2048, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_those_of_the_twin(tmp_path: Path, kind: str, rows: int) -> None:
    job = job_of(tmp_path, kind, METRICS[kind])
    outputs, labels, matrix = drawn(job, kind, rows)
    found = over_shares(job, outputs, matrix)
    assert set(found) == set(METRICS[kind])
    for name, value in found.items():
        # A quotient is good to 2^-16 of itself, a mean to a few units of 2^-20 a row, a logarithm
        # of the spline to 2^-12.
        bound = 2**-10 if name == "log_loss" else 2**-13
        expected = twin_metric(name, job, outputs, labels)
        assert same(value, expected, bound), (name, value, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_twin_is_scikit_learn(tmp_path: Path, kind: str) -> None:
    job = job_of(tmp_path, kind, METRICS[kind])
    z, y, _ = drawn(job, kind, 600)
    called = guesses(job, z) if kind != "linear" else z[:, 0]
    odds = 1 / (1 + np.exp(-z[:, 0])) if kind == "logistic" else softmax(z, axis=1)
    one = {"average": "macro"} if kind == "softmax" else {}
    expected: dict[str, object] = {
        "mse": lambda: sklearn.mean_squared_error(y, called),
        "mae": lambda: sklearn.mean_absolute_error(y, called),
        "r2": lambda: sklearn.r2_score(y, called),
        "accuracy": lambda: sklearn.accuracy_score(y, called),
        "auc": lambda: sklearn.roc_auc_score(y, z[:, 0]),
        "log_loss": lambda: sklearn.log_loss(y, odds),
        "precision": lambda: sklearn.precision_score(y, called, **one),
        "recall": lambda: sklearn.recall_score(y, called, **one),
        "f1": lambda: sklearn.f1_score(y, called, **one),
        "confusion": lambda: sklearn.confusion_matrix(y, called).tolist(),
    }
    for name in METRICS[kind]:
        found = twin_metric(name, job, z, y)
        if name == "calibration":
            shares, means = calibration_curve(y, odds, n_bins=10)
            assert isinstance(found, list)
            np.testing.assert_allclose([one for one in found if one], np.c_[means, shares])
        else:
            assert same(found, expected[name](), 1e-12), name  # type: ignore[operator]


def test_auc_of_many_rows_by_levels(tmp_path: Path) -> None:
    job = job_of(tmp_path, "logistic", ["auc"])
    outputs, labels, matrix = drawn(job, "logistic", 6000)
    found = over_shares(job, outputs, matrix)["auc"]
    assert same(found, twin_metric("auc", job, outputs, labels), 2e-4)


@pytest.mark.parametrize("decimals", [0, 2, 4])
def test_rounding_comes_before_the_reveal(tmp_path: Path, decimals: int) -> None:
    job = job_of(
        tmp_path, "logistic", METRICS["logistic"], f"decimals = {decimals}\nleast_group = 1\n"
    )
    outputs, labels, matrix = drawn(job, "logistic", 142)
    for name, value in over_shares(job, outputs, matrix).items():
        expected = twin_metric(name, job, outputs, labels)
        # At the edge between two steps either may come out.
        assert same(value, expected, 1.001 * 10**-decimals if decimals == 4 else 1e-9), name


def test_labels_that_do_not_vary_have_no_r2(tmp_path: Path) -> None:
    job = job_of(tmp_path, "linear", ("mse", "r2"))
    outputs = np.random.default_rng(1).normal(size=(40, 1))
    labels = np.full(40, 0.75)
    found = over_shares(job, outputs, labels[:, None])
    assert found["r2"] is None and twin_metric("r2", job, outputs, labels) is None
    assert found["mse"] == pytest.approx(np.mean((outputs[:, 0] - labels) ** 2), abs=2**-14)


def test_small_groups_are_refused_by_default(tmp_path: Path) -> None:
    job = job_of(tmp_path, "logistic", METRICS["logistic"], "")
    assert job.reveal.least_group == 10
    outputs, labels, matrix = drawn(job, "logistic", 142)
    labels[:] = 0
    labels[:9] = 1
    matrix[:] = labels[:, None]
    said = findings(job, outputs, matrix, 3)
    found = said.metrics
    for name in ("auc", "recall", "f1", "confusion"):
        assert found[name] is None, name
        for words in ("refused", "fewer than 10 of the 142", "reveal.least_group", "hold out more"):
            assert words in said.reasons[name]
    assert found["accuracy"] is not None and found["precision"] is not None
    bins, sizes = found["calibration"], np.bincount(bins_of(job, outputs[:, 0]), minlength=10)
    assert isinstance(bins, list) and 0 < sum(sizes < 10) < 10
    assert [one is None for one in bins] == (sizes < 10).tolist()
    assert "refused: each has" in said.reasons["calibration"]
    assert set(said.reasons) == {"auc", "recall", "f1", "confusion", "calibration"}


def test_a_single_class_has_no_auc(tmp_path: Path) -> None:
    job = job_of(tmp_path, "logistic", ["auc"])
    outputs = np.random.default_rng(1).normal(0, 1, (40, 1))
    for label in (0.0, 1.0):
        labels = np.full((40, 1), label)
        said = findings(job, outputs, labels)
        assert said.metrics == {"auc": None}
        assert said.reasons == {"auc": "undefined: all rows are of one class"}
        assert twin_metric("auc", job, outputs, labels[:, 0]) is None


def one_hot(classes: Reals) -> Reals:
    return np.eye(4)[classes.astype(np.int64)]


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_an_empty_cell_is_a_count_of_0(tmp_path: Path, kind: str) -> None:
    """A perfect model has nothing but its diagonal, and that is scikit-learn's matrix."""
    names = ["confusion", "precision", "recall", "f1", "accuracy"]
    job = job_of(tmp_path, kind, names, "")
    labels = np.repeat(np.arange(job.classes), 12).astype(np.float64)
    outputs = 4 * labels[:, None] - 2 if kind == "logistic" else 3 * one_hot(labels)
    matrix = labels[:, None] if kind == "logistic" else one_hot(labels)
    said = findings(job, outputs, matrix)
    assert said.reasons == {}
    assert said.metrics["confusion"] == sklearn.confusion_matrix(labels, labels).tolist()
    assert all(said.metrics[name] == pytest.approx(1, abs=1e-4) for name in names[1:])


@pytest.mark.parametrize("small", [0, 1, 20, 21, 29, 30])
def test_classes_are_empty_or_large_enough(tmp_path: Path, small: int) -> None:
    """30 - small rows are called the first class; a cell of both classes may be small."""
    job = job_of(tmp_path, "logistic", ["confusion"], "")
    labels = np.repeat([0.0, 1.0], 30)
    outputs = np.where(labels == 1, 1.0, -1.0)
    outputs[:small] = 1
    said = findings(job, outputs[:, None], labels[:, None])
    expected = [[30 - small, small], [0, 30]]
    assert said.metrics["confusion"] == (None if small in (21, 29) else expected)
    assert ("confusion" in said.reasons) == (small in (21, 29))
    assert twin_metric("confusion", job, outputs[:, None], labels) == expected


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
@pytest.mark.parametrize("least", [1, 10])
def test_only_what_is_divided_by_nothing_is_undefined(
    tmp_path: Path, kind: str, least: int
) -> None:
    """No row is called the last class; later none is of it either: as scikit-learn's NaN."""
    names = ["precision", "recall", "f1"]
    job = job_of(tmp_path, kind, names, f"least_group = {least}\n")
    last = job.classes - 1
    labels = np.repeat(np.arange(job.classes), 15).astype(np.float64)
    called = np.where(labels == last, 0, labels)
    one: dict[str, object] = {} if kind == "logistic" else {"average": "macro"}
    for y in (labels, called):
        logistic = kind == "logistic"
        outputs = 2 * called[:, None] - 1 if logistic else 3 * one_hot(called)
        said = findings(job, outputs, y[:, None] if logistic else one_hot(y))
        for name in names:
            score = getattr(sklearn, f"{name}_score")
            every = {"labels": range(4), "average": None} if not logistic else {}
            defined = not np.isnan(score(y, called, zero_division=np.nan, **every)).any()
            found = said.metrics[name]
            assert same(found, twin_metric(name, job, outputs, y), 2**-12), name
            assert defined == (found is not None) == (name not in said.reasons)
            if defined:
                assert found == pytest.approx(score(y, called, **one), abs=2**-12)
            else:
                why = "no row was predicted" if name == "precision" else "no row is of"
                assert said.reasons[name].startswith(f"undefined: {why}")


def test_an_empty_bin_is_no_refusal(tmp_path: Path) -> None:
    job = job_of(tmp_path, "logistic", ["calibration"], "")
    scores = np.repeat([-1.0, 1.0, 3.0], [40, 12, 3])[:, None]
    labels = np.tile([0.0, 1.0, 0.0, 0.0, 1.0], 11)
    said = findings(job, scores, labels[:, None])
    bins = said.metrics["calibration"]
    expected = twin_metric("calibration", job, scores, labels)
    assert isinstance(bins, list) and isinstance(expected, list)
    assert [place for place, one in enumerate(bins, 1) if one] == [3, 8]
    assert same(bins[2], expected[2], 2**-12) and same(bins[7], expected[7], 2**-12)
    assert expected[9] is not None
    reason = said.reasons["calibration"]
    assert reason.startswith("bin 10: refused") and reason.endswith(
        "bins 1, 2, 4, 5, 6, 7, 9: empty"
    )


def test_equal_scores_count_one_half(tmp_path: Path) -> None:
    """As scikit-learn counts them: a model of a few categories has few different scores."""
    job = job_of(tmp_path, "logistic", ["auc"])
    generator = np.random.default_rng(3)
    outputs = generator.integers(-1, 2, (150, 1)).astype(np.float64)
    labels = (generator.random(150) < 0.3 + 0.2 * outputs[:, 0]).astype(np.float64)
    found = over_shares(job, outputs, labels[:, None])["auc"]
    assert found == pytest.approx(sklearn.roc_auc_score(labels, outputs), abs=2**-13)


def test_auc_of_few_positives_by_levels(tmp_path: Path) -> None:
    job = job_of(tmp_path, "logistic", ["auc"])
    outputs, labels, _ = drawn(job, "logistic", 6000)
    labels[:] = 0
    labels[np.argsort(outputs[:, 0])[[5990, 4000]]] = 1
    found = over_shares(job, outputs, labels[:, None])["auc"]
    # Half the share of the fullest bin; a quotient that does not see one row in 3000 gives 0.
    assert same(found, twin_metric("auc", job, outputs, labels), 0.0125)


@pytest.mark.parametrize("spread", [0.02, 1.0, 45.0])
def test_r2_of_labels_of_any_spread(tmp_path: Path, spread: float) -> None:
    job = job_of(tmp_path, "linear", ("r2",))
    generator = np.random.default_rng(5)
    outputs = np.clip(generator.normal(0, spread, (300, 1)), -60, 60)
    labels = np.clip(outputs[:, 0] + generator.normal(0, spread, 300), -60, 60)
    found = over_shares(job, outputs, labels[:, None])["r2"]
    assert same(found, float(sklearn.r2_score(labels, outputs)), 2e-3)


@pytest.mark.parametrize("bits", [14, 26])
@pytest.mark.parametrize("kind", KINDS)
def test_at_other_scales(tmp_path: Path, kind: str, bits: int) -> None:
    limit = "" if bits < 20 else "activation_limit = 16\ngradient_limit = 1\n"
    more = f"least_group = 1\n[fixed_point]\nfraction_bits = {bits}\n{limit}"
    job = job_of(tmp_path, kind, METRICS[kind], more)
    for rows in (700, 2100):
        outputs, labels, matrix = drawn(job, kind, rows)
        found = over_shares(job, outputs, matrix)
        for name, value in found.items():
            bound = {"log_loss": 2**-8, "calibration": 2**-6, "auc": 2**-10}.get(name, 2**-9)
            expected = twin_metric(name, job, outputs, labels)
            assert same(value, expected, bound), (name, rows, value, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_chunks_give_the_same(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path, kind, METRICS[kind], "least_group = 1\ndecimals = 3\n")
    for rows, size in ((142, 30), (2100, 800)):
        outputs, _, matrix = drawn(job, kind, rows)
        at_once = over_shares(job, outputs, matrix)
        with monkeypatch.context() as patch:
            patch.setattr(passes, "chunk_rows", lambda *_, size=size: size)
            assert same_digits(over_shares(job, outputs, matrix), at_once)


def same_digits(one: dict[str, Reading], other: dict[str, Reading]) -> bool:
    """To a unit of the last decimal: the roundings of rows are drawn afresh."""
    return set(one) == set(other) and all(same(one[name], other[name], 1.001e-3) for name in one)


def test_quotients_of_few_among_many_are_refused_rather_than_wrong(tmp_path: Path) -> None:
    job = job_of(tmp_path, "logistic", ["calibration"], "")
    assert least_group(job, 20) == least_group(job, 1_300_000) == 10
    rows = 50_000_000
    least = least_group(job, rows)
    assert least > 300
    words = encode(np.array([least // 3, least]), 20)

    def program(role: Role) -> Masked:
        np.seterr(over="ignore")
        counts = secret(role, words, 0)
        return quotient(counts.select(slice(0, 1)), counts.select(slice(1, 2)), rows, 20)

    assert decode(compute(program), 20)[0] == pytest.approx(1 / 3, abs=2e-3)


@pytest.mark.parametrize(
    ("cells", "possible"),
    [
        ((40, 0, 3, 17), True),
        ((40, 0, 3, 16), False),
        ((40, 0, 3, 18), False),
        ((41, -1, 3, 17), False),
        ((40.5, 0, 3, 16.5), False),
    ],
)
def test_a_matrix_counts_each_row_once(
    tmp_path: Path, cells: tuple[float, ...], possible: bool
) -> None:
    job = job_of(tmp_path, "logistic", ["confusion"], "")
    words = np.concatenate([[AVAILABLE], encode(np.array(cells, np.float64), job.fraction_bits)])
    said = Findings()
    said.take(job, "confusion", form_of(job, "confusion", 60), words)
    if possible:
        assert said.metrics["confusion"] == [[40, 0], [3, 17]] and not said.impossible
        return
    assert said.metrics["confusion"] is None and said.impossible == ["confusion"]


@pytest.mark.parametrize(
    ("kind", "beyond"),
    [("linear", 3e3), ("linear", 3e4), ("logistic", 3e5), ("softmax", 3e5)],
)
def test_a_metric_that_cannot_be_is_never_a_number(
    tmp_path: Path, kind: str, beyond: float
) -> None:
    """Outputs as of a training that diverged, within the ring and beyond it."""
    names = {"linear": ("mse", "mae", "r2"), "logistic": ("log_loss", "accuracy")}
    job = job_of(tmp_path, kind, names.get(kind, ("log_loss", "accuracy")))
    outputs, _, matrix = drawn(job, kind, 60)
    said = findings(job, outputs * 0 + beyond * (1 - 2 * matrix if kind != "linear" else 1), matrix)
    wrong = [name for name in job.reveal.metrics if name != "accuracy"]
    assert said.impossible == wrong
    for name in wrong:
        assert said.metrics[name] is None and said.reasons[name] == OUT_OF_RANGE
    with pytest.raises(
        RangeError, match=rf"{', '.join(wrong)}: not available: out of range.*lower"
    ):
        said.check()


def test_a_loss_that_cannot_be_is_never_a_number(tmp_path: Path) -> None:
    job = job_of(tmp_path, "linear", ["mse"])
    assert checked_loss(job, 3, 0.25) == 0.25
    for loss in (-0.5, float("nan")):
        with pytest.raises(RangeError, match=f"the loss of step 3: {OUT_OF_RANGE}"):
            checked_loss(job, 3, loss)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("least_group = 0", "between 1 and"),
        ("decimals = 5", "between 0 and 4"),
        ("bins = 1", "between 2 and 50"),
        ('per_party = ["mse"]', "'mse' does not suit"),
        ('per_party = ["auc"]\nleast_test_rows = 21', "reveal.least_test_rows"),
        ('per_party = ["auc"]\nleast_test_rows = 2', "auc cannot be revealed over 9 .* of ann"),
    ],
)
def test_contradictions_name_the_key(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        job_of(tmp_path, "logistic", ["accuracy"], more + "\n", rows=None)
