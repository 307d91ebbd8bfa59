"""The view of corrupted evaluators does not depend on the rows that are prepared or evaluated."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from math import ceil, floor
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

from mpc_train.admission.load import load_job
from mpc_train.evaluation import noise
from mpc_train.evaluation.forms import AVAILABLE, REFUSED, UNDEFINED
from mpc_train.evaluation.histograms import OUTPUTS
from mpc_train.evaluation.metrics import evaluation_of, words_of
from mpc_train.jobs.job import Job
from mpc_train.jobs.pipeline import Pipeline, Term
from mpc_train.jobs.schedule import split
from mpc_train.owners.applied import applied
from mpc_train.owners.cells import CELL_BITS, WORD_BITS, Affine, cells, halves, joined_bits
from mpc_train.owners.local import Local, partials, sums
from mpc_train.preparation.combined import parameters
from mpc_train.preparation.joined import joined_parameters
from mpc_train.preparation.noisy import joined_sums, noisy_parameters, noisy_sums
from mpc_train.preparation.rows import Rows, prepared
from mpc_train.training import passes
from mpc_train.twin.metrics import bins_of, counts, twin_metric
from mpc_train.twin.preparation import twin_parameters
from protocols.crypten_tensor.tensor import MaskedTensor, attach
from protocols.roles.role import Role
from protocols.shares.masked import Masked
from tests.support.counted_study import EDGES, LOGITS, counted_job, counted_of, in_bins, some_rows
from tests.support.jobs import replaced, write_job
from tests.support.loopback import combine_masked, secret, shares_of
from tests.support.noisy_case import by_hand, exact_sums, plan_of
from tests.support.privacy import CORRUPTED, ONE, F, Outputs, honest_owner, same_views
from tests.support.transcript_first import run_scripted

ROWS = 24
PIPELINE = Pipeline(
    (
        Term("a", "a", shared="standard", missing="mean"),
        Term("b", "b", shared="minmax"),
    ),
    ((0, 1),),
)
METRICS = ("auc", "precision", "confusion", "calibration", "log_loss")
FAST = {(2, (1,)), (3, (0, 2))}
SETTINGS = [
    pytest.param(*setting, marks=[] if setting in FAST else pytest.mark.slow)
    for setting in CORRUPTED
]


@cache
def job() -> Job:
    listed = ", ".join(f'"{name}"' for name in METRICS)
    text = replaced('"accuracy", "auc"', listed) + "least_group = 3\ndecimals = 2\n"
    return load_job(write_job(Path(mkdtemp()), text))


def narrow(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two columns of any width and place within their declared range, and whether the first has
    its cell."""
    width = 2.0 ** -generator.integers(0, 40, 2)
    values = generator.uniform(-1, 1, 2) * (1 - width) + generator.uniform(-1, 1, (ROWS, 2)) * width
    there = generator.random(ROWS) < generator.uniform(0, 1)
    there[0] = True
    values[:, 0] *= there
    return values, there[:, None].astype(np.float64)


def table(generator: np.random.Generator) -> np.ndarray:
    """Both words of each cell, what is there, and what an owner of all rows says of them."""
    values, there = narrow(generator)
    numbers = cells(PIPELINE, values)
    rows = np.concatenate([*halves(numbers, WORD_BITS), there], axis=1)
    local = Local(values, there)
    parts = [
        partials(PIPELINE, local, part, ROWS) for part in np.split(np.arange(ROWS), [ROWS // 3])
    ]
    said = np.pad(np.concatenate(parts), ((0, 0), (0, 3)))
    return np.concatenate([rows, said]).astype(np.int64)


def preparation(x: Masked) -> Sequence[Masked]:
    rows, said = x.select(slice(0, ROWS)), x.select(slice(ROWS, None))
    brought = [said.select((slice(9 * k, 9 * k + 9), slice(0, 2))) for k in range(2)]
    found = parameters(PIPELINE, brought, ROWS, 1, F)
    return [prepared(PIPELINE, shared(rows), found, F), *found.sealed.values()]


def shared(x: Masked) -> Rows:
    coarse, fine, there = (
        x.select((slice(None), slice(*ends))) for ends in ((0, 2), (2, 4), (4, 5))
    )
    return Rows(coarse, fine, there)


def joined_table(generator: np.random.Generator) -> np.ndarray:
    """The same of rows that are joined, and how their owner counts."""
    values, there = narrow(generator)
    numbers = cells(PIPELINE, values)
    both = np.column_stack([there == 1, np.ones(ROWS, bool)])
    affine, word = Affine.of(numbers, both, joined_bits(ROWS)), joined_bits(ROWS)
    rows = np.concatenate([*halves(affine.numbers(numbers, both), word), there], axis=1)
    return np.concatenate([rows, np.pad(affine.words, ((0, 0), (0, 3)))]).astype(np.int64)


def joined(x: Masked) -> Sequence[Masked]:
    rows, affine = shared(x.select(slice(0, ROWS))), x.select((slice(ROWS, None), slice(0, 2)))
    found = joined_parameters(PIPELINE, rows, affine, joined_bits(ROWS), 1, F)
    return [prepared(PIPELINE, rows, found, F), *found.sealed.values()]


def as_the_twin(word: int) -> Callable[[np.ndarray, Outputs], None]:
    """Whatever unit the numbers have, the inputs are those of the twin."""

    def check(x: np.ndarray, outputs: Outputs) -> None:
        there = x[:ROWS, 4:].astype(np.float64)
        numbers = np.ldexp(x[:ROWS, :2].astype(np.float64), word) + x[:ROWS, 2:4]
        local = Local(numbers, there)
        expected = applied(PIPELINE, local, twin_parameters(PIPELINE, local, np.arange(ROWS)))
        np.testing.assert_allclose(outputs[0] / ONE, expected, atol=2**-10)

    return check


NOISY = Pipeline(
    (
        Term("a", "a", shared="standard", missing="mean"),
        Term("b", "b", shared="standard"),
    )
)
PLAN = plan_of(ROWS, least=3)


def noisy_table(generator: np.random.Generator) -> np.ndarray:
    """As `table`, with the sums that an owner of all rows brings."""
    values, there = narrow(generator)
    rows = np.concatenate([*halves(cells(NOISY, values), WORD_BITS), there], axis=1)
    local = Local(values, there)
    parts = [sums(NOISY, local, part, PLAN.bits) for part in np.split(np.arange(ROWS), [ROWS // 3])]
    said = np.pad(np.concatenate(parts), ((0, 0), (0, 3)))
    return np.concatenate([rows, said]).astype(np.int64)


def noisy_preparation(x: Masked) -> Sequence[Masked]:
    rows, said = x.select(slice(0, ROWS)), x.select(slice(ROWS, None))
    brought = [said.select((slice(4 * k, 4 * k + 4), slice(0, 2))) for k in range(2)]
    drawn = noisy_sums(NOISY, brought, PLAN)
    found = noisy_parameters(NOISY, drawn, PLAN, F)
    return [prepared(NOISY, shared(rows), found, F), drawn.together()]


def noisy_joined_table(generator: np.random.Generator) -> np.ndarray:
    values, there = narrow(generator)
    both = np.column_stack([there == 1, np.ones(ROWS, bool)])
    numbers = Affine.public(2, PLAN.bits).numbers(cells(NOISY, values), both)
    return np.concatenate([*halves(numbers, PLAN.bits), there], axis=1).astype(np.int64)


def noisy_joined(x: Masked) -> Sequence[Masked]:
    rows, bits = shared(x), PLAN.bits
    drawn = joined_sums(NOISY, rows, PLAN, F)
    found = noisy_parameters(NOISY, drawn, PLAN, F, 2 * bits, bits)
    return [prepared(NOISY, rows, found, F), drawn.together()]


def as_noise_says(word: int, whole: int, x: np.ndarray, outputs: Outputs) -> None:
    """The inputs are those of the sums, which differ from the rows' by noise. word, whole: bits of
    a fine word and of a number."""
    there = x[:ROWS, 4:].astype(np.float64)
    numbers = np.ldexp(x[:ROWS, :2].astype(np.float64), word) + x[:ROWS, 2:4]
    local = Local(numbers / 2.0**whole, there)
    drawn = np.split(outputs[1] / 2.0 ** np.array([PLAN.bits] * 3 + [2 * PLAN.bits] * 2), [1, 3])
    found = outputs[0] / ONE
    assert any(
        np.allclose(
            found,
            applied(NOISY, local, by_hand(NOISY, PLAN, drawn[0], drawn[1], drawn[2], whole)),
            atol=2**-9,
            rtol=2**-10,
        )
        for whole in (floor, ceil)
    )
    for mine, exact in zip(drawn, exact_sums(NOISY, local, np.arange(ROWS)), strict=True):
        assert 0.001 < abs(mine - exact).max() < 10 * 5 * 2**0.5


def scores(generator: np.random.Generator) -> np.ndarray:
    """Outputs at scale 2^f and labels."""
    z = generator.normal(0, 2, ROWS)
    y = z + generator.normal(0, 2, ROWS) > 0
    return np.column_stack([np.rint(z * ONE), y * ONE]).astype(np.int64)


def metrics(x: Masked) -> Sequence[Masked]:
    attach(x.role, F)
    z, y = (MaskedTensor(x.select((slice(None), slice(k, k + 1)))) for k in range(2))
    evaluation = evaluation_of(job(), METRICS, lambda some: some, z, y, np.arange(ROWS))
    return [value for _, value in words_of(job(), METRICS, evaluation).values()]


def status(groups: Sequence[float], divided: bool = True) -> int:
    """What is said of a metric of groups of so many rows."""
    if any(0 < size < 3 for size in groups):
        return REFUSED
    return UNDEFINED if divided and 0 in groups else AVAILABLE


def as_the_twin_says(x: np.ndarray, outputs: Outputs) -> None:
    z, y = x[:, :1] / ONE, x[:, 1] / ONE
    table, sizes = counts(job(), z, y), np.bincount(bins_of(job(), z[:, 0]), minlength=10)
    expected = {
        "auc": status(table.sum(axis=1).tolist()),
        "precision": status(table.sum(axis=0)[1:].tolist()),
        "confusion": status([*table.sum(axis=0), *table.sum(axis=1)], divided=False),
        "log_loss": AVAILABLE,
    }
    for name, words in zip(METRICS, outputs, strict=True):
        if name == "calibration":
            assert words[:, 0].tolist() == [status([size]) for size in sizes]
            assert not words[words[:, 0] != AVAILABLE, 1:].any()
            continue
        assert words[0] == expected[name], name
        if words[0] != AVAILABLE:
            assert not words[1:].any()
        elif name != "confusion":
            assert abs(words[1] / 100 - twin_metric(name, job(), z, y)) < 0.011, name
        else:
            assert words[1:].tolist() == (table.reshape(-1) * ONE).tolist()


Case = tuple[
    Callable[[np.random.Generator], np.ndarray],
    Callable[[Masked], Sequence[Masked]],
    Callable[[np.ndarray, Outputs], None],
]
CASES: dict[str, Case] = {
    "preparation": (table, preparation, as_the_twin(WORD_BITS)),
    "preparation of joined rows": (joined_table, joined, as_the_twin(joined_bits(ROWS))),
    "preparation from noisy sums": (
        noisy_table,
        noisy_preparation,
        partial(as_noise_says, WORD_BITS, CELL_BITS),
    ),
    "preparation of joined rows from noisy sums": (
        noisy_joined_table,
        noisy_joined,
        partial(as_noise_says, PLAN.bits, 2 * PLAN.bits),
    ),
    "metrics": (scores, metrics, as_the_twin_says),
    "metrics of chunks": (scores, metrics, as_the_twin_says),
}


@pytest.mark.parametrize(("evaluators", "corrupted"), SETTINGS)
@pytest.mark.parametrize("name", CASES)
def test_views(
    name: str, evaluators: int, corrupted: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four tables under one view that was fixed before."""
    draw, program, check = CASES[name]
    if name == "metrics of chunks":
        monkeypatch.setattr(passes, "chunk_rows", lambda *_: ROWS // 3)
    views = []
    for seed in range(4):
        words = draw(np.random.default_rng(seed))

        def body(role: Role, words: np.ndarray = words) -> Any:
            np.seterr(over="ignore")  # words wrap around; NumPy keeps this for each thread
            x = secret(role, words, honest_owner(evaluators, corrupted))
            return [shares_of(output) for output in program(x)]

        results, view = run_scripted(body, evaluators, corrupted, coins=seed)
        check(words, [combine_masked(parts) for parts in zip(*results, strict=True)])
        views.append(view)
    same_views(views)


@pytest.mark.parametrize(("evaluators", "corrupted"), SETTINGS)
def test_views_of_counts(
    evaluators: int, corrupted: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training rows of the same counts under one view, that of the counts themselves included;
    test rows are not even in these."""
    monkeypatch.setattr(noise, "discrete_laplace", lambda scale: 2)
    job, views = counted_job(), []
    training = split(job)[0]
    for seed in range(4):
        words = some_rows(job, seed)

        def body(role: Role, words: np.ndarray = words) -> Any:
            np.seterr(over="ignore")  # words wrap around; NumPy keeps this for each thread
            attach(role, F)
            return counted_of(job, secret(role, words, honest_owner(evaluators, corrupted)))

        results, view = run_scripted(body, evaluators, corrupted)
        for place, (name, edges) in enumerate((EDGES | {OUTPUTS: LOGITS}).items()):
            exact = in_bins(words[training, place] / ONE, edges)
            expected = tuple(count + 2 * evaluators for count in exact)
            assert all(found[name] == expected for found in results[:-1]), name
        assert results[-1] is None
        views.append(view)
    same_views(views)
