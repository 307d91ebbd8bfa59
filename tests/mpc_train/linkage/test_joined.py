"""Statistics of joined rows over shares equal those of the plaintext twin."""

from pathlib import Path

import numpy as np
import pytest

from mpc_train.jobs.schedule import split
from mpc_train.owners.applied import applied
from mpc_train.owners.local import Local, local_terms
from mpc_train.twin.preparation import twin_parameters
from tests.support.preparation_case import JOB, PREPARE, pooled, prepared_job, tables
from tests.support.scaling_case import over_joined

PLAIN = 'scale = "standard"\n[prepare.columns.visits]\nscale = "minmax"\n'
MISSING = 'missing = "mean"\n[prepare.columns.income]\nclip = [0, 1000]\n'


@pytest.mark.parametrize(
    ("prepare", "evaluators"), [(PREPARE, 2), (PREPARE, 3), (PLAIN, 2), (MISSING, 2)]
)
def test_as_the_twin_finds_them(tmp_path: Path, prepare: str, evaluators: int) -> None:
    if prepare == PLAIN:
        prepare += "".join(
            f"[prepare.columns.{name}]\nfill = 1\n" for name in ("age", "income", "smoker")
        )
    # Means of numbers that are not scaled: as large as a job may declare them.
    job = prepared_job(tmp_path, prepare, JOB.replace("data]", "data]\nlimit = 1024"))
    training, _ = split(job)
    whole = local_terms(job.pipeline, pooled(tables()))
    expected = twin_parameters(job.pipeline, whole, training)

    local = Local(whole.values, whole.present)
    rows = np.arange(len(whole.values))
    found = over_joined(job.pipeline, local, rows, training, evaluators)
    assert set(found.parameters) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(
            found.parameters[name], value, rtol=2**-16, atol=2**-18, err_msg=name
        )
    inputs = applied(job.pipeline, whole, expected)
    np.testing.assert_allclose(found.inputs, inputs, rtol=2**-16, atol=2**-16)
