"""Statistics of joined rows over shares equal those of the plaintext twin."""

from pathlib import Path

import numpy as np
import pytest

from mpc_train.jobs.schedule import split
from mpc_train.preparation.applied import applied
from mpc_train.preparation.combined import parameters, prepared
from mpc_train.preparation.joined import joined_statistics
from mpc_train.preparation.local import local_terms
from mpc_train.twin.reference_preparation import twin_parameters
from protocols.fixed_point import decode, encode
from protocols.role import Role
from tests.mpc_train.preparation_case import PREPARE, pooled, prepared_job, tables
from tests.support.lockstep import run_lockstep
from tests.support.loopback import combine_masked, secret, shares_of

F = 20
PLAIN = 'scale = "standard"\n[prepare.columns.visits]\nscale = "minmax"\n'
MISSING = 'missing = "mean"\n'


@pytest.mark.parametrize(
    ("prepare", "evaluators"), [(PREPARE, 2), (PREPARE, 3), (PLAIN, 2), (MISSING, 2)]
)
def test_as_the_twin_finds_them(tmp_path: Path, prepare: str, evaluators: int) -> None:
    if prepare == PLAIN:
        prepare += "".join(
            f"[prepare.columns.{name}]\nfill = 1\n" for name in ("age", "income", "smoker")
        )
    job = prepared_job(tmp_path, prepare)
    training, _ = split(job)
    whole = local_terms(job.pipeline, pooled(tables()))
    expected = twin_parameters(job.pipeline, whole, training)

    def program(role: Role) -> object:
        with np.errstate(over="ignore"):
            values = secret(role, encode(whole.values, F))
            present = secret(role, whole.present.astype(np.int64)) if whole.present.size else None
            there = None if present is None else present.select(training)
            brought = joined_statistics(job.pipeline, values.select(training), there, F)
            found = parameters(job.pipeline, [brought], F)
            inputs = prepared(job.pipeline, values, present, found, F)
            named = {name: shares_of(value) for name, value in found.named().items()}
            return named, shares_of(inputs)

    results = run_lockstep(program, evaluators)
    assert set(results[0][0]) == set(expected)
    for name, value in expected.items():
        found = decode(combine_masked([named[name] for named, _ in results]), F)
        np.testing.assert_allclose(found, value, rtol=2**-14, atol=2**-16, err_msg=name)
    inputs = decode(combine_masked([one for _, one in results]), F)
    np.testing.assert_allclose(
        inputs, applied(job.pipeline, whole, expected), rtol=2**-12, atol=2**-13
    )
