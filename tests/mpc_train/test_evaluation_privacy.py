"""The view of corrupted evaluators does not depend on the rows that are prepared or evaluated."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

from mpc_train.evaluation.metrics import evaluated
from mpc_train.jobs.job import Job, load_job
from mpc_train.preparation.applied import applied
from mpc_train.preparation.combined import parameters, prepared
from mpc_train.preparation.joined import joined_statistics
from mpc_train.preparation.local import Local
from mpc_train.preparation.pipeline import Pipeline, Term
from mpc_train.twin.reference_metrics import twin_metric
from mpc_train.twin.reference_preparation import twin_parameters
from protocols.crypten_backend import MaskedTensor, attach
from protocols.masked import Masked
from protocols.role import Role
from tests.mpc_train.helpers import replaced, write_job
from tests.support.loopback import combine_masked, secret, shares_of
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


def table(generator: np.random.Generator) -> np.ndarray:
    """Two columns at scale 2^f, and whether the first is there."""
    values = generator.uniform(-1, 1, (ROWS, 2))
    there = generator.random(ROWS) < 0.8
    values[:, 0] *= there
    return np.column_stack([np.rint(values * ONE), there]).astype(np.int64)


def preparation(x: Masked) -> Sequence[Masked]:
    values = x.select((slice(None), slice(0, 2)))
    present = x.select((slice(None), slice(2, 3)))
    found = parameters(PIPELINE, [joined_statistics(PIPELINE, values, present, F)], F)
    return [prepared(PIPELINE, values, present, found, F)]


def near_the_twin(x: np.ndarray, outputs: Outputs) -> None:
    local = Local(x[:, :2] / ONE, x[:, 2:].astype(np.float64))
    expected = applied(PIPELINE, local, twin_parameters(PIPELINE, local, np.arange(ROWS)))
    np.testing.assert_allclose(outputs[0] / ONE, expected, atol=2**-9)


def scores(generator: np.random.Generator) -> np.ndarray:
    """Outputs at scale 2^f and labels."""
    z = generator.normal(0, 2, ROWS)
    y = z + generator.normal(0, 2, ROWS) > 0
    return np.column_stack([np.rint(z * ONE), y * ONE]).astype(np.int64)


def metrics(x: Masked) -> Sequence[Masked]:
    attach(x.role, F)
    z, y = (MaskedTensor(x.select((slice(None), slice(k, k + 1)))) for k in range(2))
    return [value for _, value in evaluated(job(), METRICS, z, y).values()]


def as_the_twin_says(x: np.ndarray, outputs: Outputs) -> None:
    for name, words in zip(METRICS, outputs, strict=True):
        expected = twin_metric(name, job(), x[:, :1] / ONE, x[:, 1] / ONE)
        if name == "calibration":
            assert isinstance(expected, list)
            assert words[:, 0].tolist() == [int(one is not None) for one in expected]
            assert not words[words[:, 0] == 0].any()
        else:
            assert words[0] == (expected is not None), name
            assert expected is not None or not words.any()


CASES = {
    "preparation": (table, preparation, near_the_twin),
    "metrics": (scores, metrics, as_the_twin_says),
}


@pytest.mark.parametrize(("evaluators", "corrupted"), SETTINGS)
@pytest.mark.parametrize("name", CASES)
def test_views(name: str, evaluators: int, corrupted: tuple[int, ...]) -> None:
    """Four tables under one view that was fixed before."""
    draw, program, check = CASES[name]
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
