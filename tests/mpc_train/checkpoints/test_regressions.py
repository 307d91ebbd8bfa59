"""Regressions by Newton steps that are broken off, and go on in another session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpc_train.checkpoints.state import Entry
from mpc_train.errors import ArtifactError
from mpc_train.jobs.sealed import INFLATION, SCALE
from mpc_train.regression.course import COEFFICIENTS, RegressionCourse
from tests.support.linear_rule import write_study
from tests.support.sessions import Kill, Killed, Rehearsal, difference

EVALUATORS = 'evaluators = ["ann", "bob"]'
TOLERANCE = 2**-12


def regression(
    folder: Path, kind: str = "logistic", options: str = "", reveal: str = ""
) -> Rehearsal:
    folder.mkdir(exist_ok=True)
    path = write_study(folder, kind, "", job=EVALUATORS)
    text = path.read_text()
    newton = f'[train]\noptimizer = {{ name = "newton"{options} }}\n'
    reveal = f"[reveal]\nleast_test_rows = 10\n{reveal}"
    path.write_text(text[: text.index("[train]")] + newton + reveal)
    return Rehearsal(path)


CASES = {
    "logistic": ("logistic", "", "statistics = true", 5),
    "linear": ("linear", "", "statistics = true", 3),
    "lasso": ("linear", ", l1 = 0.05, steps = 4", "", 3),
}


@pytest.mark.parametrize("case", CASES)
def test_a_regression_goes_on_where_it_was(tmp_path: Path, case: str) -> None:
    """With all that is sealed: coefficients, the last change, what standard errors follow from."""
    kind, options, reveal, step = CASES[case]
    undisturbed = regression(tmp_path / "undisturbed", kind, options, reveal)
    undisturbed.session()
    run = regression(tmp_path / "broken", kind, options, reveal)
    with pytest.raises(Killed):
        run.session(Kill("bob", step))
    run.session()
    assert run.resumed_after in (step - 2, step - 1)
    assert difference(run.model(), undisturbed.model()) < TOLERANCE
    found, wanted = run.words(), undisturbed.words()
    assert found.keys() == wanted.keys()
    for name in {SCALE, INFLATION} & {*found}:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-3)
    assert run.masks_used_twice() == 0


def test_a_regression_that_is_over_is_revealed_to_the_bit(tmp_path: Path) -> None:
    run = regression(tmp_path, reveal='statistics = true\nmetrics = ["accuracy"]')
    with pytest.raises(Killed):
        run.session(Kill("registry", 9, 3))
    kept = run.kept()
    run.session()
    assert run.resumed_after == 8
    for name, words in run.words().items():
        where = "tensor/" if name in run.job.shapes else "regression/"
        np.testing.assert_array_equal(words, kept[where + name])
    assert run.masks_used_twice() == 0


@pytest.mark.slow
@pytest.mark.parametrize("node", ["ann", "bob", "registry"])
def test_a_regression_killed_at_every_step(tmp_path: Path, node: str) -> None:
    undisturbed = regression(tmp_path / "undisturbed")
    undisturbed.session()
    for step in range(10):
        run = regression(tmp_path / str(step))
        with pytest.raises(Killed):
            run.session(Kill(node, step, 1))
        run.session()
        assert difference(run.model(), undisturbed.model()) < TOLERANCE
        assert run.masks_used_twice() == 0


def test_the_state_of_another_kind_is_refused(tmp_path: Path) -> None:
    """As after a change of the program: the coefficients where a finished model should be."""
    run = regression(tmp_path)
    course = RegressionCourse(job=run.job)
    with pytest.raises(ArtifactError, match="lacks tensors of the job"):
        course.check([], finished=True)
    with pytest.raises(ArtifactError, match=f"regression/{COEFFICIENTS}"):
        course.check([Entry(f"regression/{COEFFICIENTS}", (4, 1))], finished=True)
