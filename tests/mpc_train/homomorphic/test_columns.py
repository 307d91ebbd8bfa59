"""Secret statistics folded into weights: the outputs are those of the prepared inputs."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from mpc_train.errors import DataError, ModelError, QueryError
from mpc_train.homomorphic.columns import Columns
from mpc_train.homomorphic.description import Description
from mpc_train.owners.applied import applied
from mpc_train.owners.local import local_terms
from tests.support.preparation_case import PREPARE, prepared_job, typed

PREPARES = (PREPARE, 'scale = "standard"\nmissing = "mean"', 'scale = "minmax"\nmissing = "mean"')


@pytest.mark.parametrize("prepare", PREPARES)
def test_folded_weights_give_the_same_outputs(tmp_path: Path, prepare: str) -> None:
    pipeline = prepared_job(tmp_path, prepare).pipeline
    generator = np.random.default_rng(3)
    parameters = {name: generator.normal(size=shape) for name, shape in pipeline.shapes.items()}
    weights, intercepts = generator.normal(size=(2, pipeline.width)), generator.normal(size=2)
    local = local_terms(pipeline, typed(200, 1))
    expected = applied(pipeline, local, parameters) @ weights.T + intercepts
    columns = Columns.of(pipeline)
    values = np.column_stack([columns.values(local, k) for k in range(len(columns.names))])
    assert np.abs(values).max() <= 1
    folded, constants = columns.fold(pipeline, parameters, weights, intercepts)
    np.testing.assert_allclose(values @ folded.T + constants, expected, rtol=1e-9, atol=1e-9)


def test_the_columns_do_not_depend_on_statistics(tmp_path: Path) -> None:
    pipeline = prepared_job(tmp_path).pipeline
    assert Columns.of(pipeline) == Columns.of(pipeline)
    # Terms, gaps of filled terms, and products of those that interactions need.
    names = Columns.of(pipeline).names
    assert len(set(names)) == len(names)
    singles = {name for name in names if len(name) == 1}
    assert {((index, True),) for index in pipeline.filled} <= singles
    assert all(len(name) <= 2 for name in names)


def test_a_statistic_that_nobody_folds_is_refused(tmp_path: Path) -> None:
    """Whoever adds one changes `fold`; without that, predictions would be wrong and say ok."""
    pipeline = prepared_job(tmp_path).pipeline
    parameters = {name: np.ones(shape) for name, shape in pipeline.shapes.items()}
    parameters["prepare.skew"] = np.ones(1)
    with pytest.raises(ModelError, match="skew"):
        Columns.of(pipeline).fold(pipeline, parameters, np.ones((1, pipeline.width)), np.ones(1))


def test_a_number_beyond_its_bound_is_never_cut(tmp_path: Path) -> None:
    pipeline = prepared_job(tmp_path).pipeline
    local = local_terms(pipeline, typed(4, 1))
    for value in (1.01 * pipeline.terms[0].bound * 2, np.nan, np.inf, -np.inf):
        local.values[2, 0] = value
        with pytest.raises(DataError, match=pipeline.terms[0].column):
            Columns.of(pipeline).values(local, 0)


def test_a_description_says_nothing_that_a_client_need_not_know(tmp_path: Path) -> None:
    job = prepared_job(tmp_path)
    described = Description.of("risk", job)
    text = described.data.decode()
    for word in (*job.owners, *job.recipients, job.dealer, "400", "registry"):
        assert f'"{word}"' not in text, word
    assert described.job.pipeline == job.pipeline
    assert described.job.data.rows == {"owner-a": 1, "owner-b": 1}
    again = Description.read(described.data, "risk")
    assert again == described and len(again.digest) == 32


def test_what_is_no_description_is_refused(tmp_path: Path) -> None:
    described = Description.of("risk", prepared_job(tmp_path))
    with pytest.raises(QueryError, match="not that of this model"):
        Description.read(described.data, "other")
    for data in (b"", b"{}", b"[" * 100_000, described.data[:-1], b" " * (2 << 20)):
        with pytest.raises(QueryError):
            Description.read(data)
    tree = msgspec.json.decode(described.data)
    tree["model"]["kind"], tree["model"]["hidden"] = "mlp", [3]
    with pytest.raises(QueryError, match="over shares"):
        Description.read(msgspec.json.encode(tree))


def test_networks_are_refused_and_shares_named(tmp_path: Path) -> None:
    job = prepared_job(tmp_path)
    model = msgspec.structs.replace(job.model, kind="mlp", hidden=(4,), classes=2)
    network = msgspec.structs.replace(job, model=model)
    with pytest.raises(ModelError, match="over shares"):
        Description.of("risk", network)
