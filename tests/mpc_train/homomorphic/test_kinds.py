"""Every kind of model that is served gives the predictions of the opened model."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.preparation_case import JOB, SCHEMA, prepared_job, typed

pytest.importorskip("tenseal", reason="TenSEAL is not installed")

from mpc_train.homomorphic.asking import EncryptedPredictor, Question, describe
from tests.support.homomorphic import Desk, pair, served
from tests.support.serving import opened_model

TWICE = 'label = { name = "visits", center = 5, scale = 2 }'
NEWTON = 'optimizer = { name = "newton" }'
SGD = "epochs = 2\nbatch_size = 32\noptimizer = { learning_rate = 0.5 }"
FEATURES = 'data]\nfeatures = ["age", "smoker"]'
PREPARE = 'scale = "standard"\nmissing = "mean"'
NUMBER = JOB.replace("data]", FEATURES)

KINDS = {
    "linear": NUMBER.replace('label = "ill"', TWICE).replace('"logistic"', '"linear"'),
    "softmax": NUMBER.replace('label = "ill"', 'label = "region"').replace(
        '"logistic"', '"softmax"\nclasses = 4'
    ),
    "poisson": NUMBER.replace('label = "ill"', 'label = "visits"')
    .replace('"logistic"', '"poisson"')
    .replace(SGD, NEWTON),
}
SCHEMAS = {
    "softmax": SCHEMA.replace('"east"]\nother = true\nmissing = [""]', '"east", "elsewhere"]')
}


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_equal_those_of_the_opened_model(tmp_path: Path, kind: str) -> None:
    predictor = opened_model(
        tmp_path, prepared_job(tmp_path, PREPARE, KINDS[kind], SCHEMAS.get(kind, SCHEMA))
    )
    assert predictor.job.model.kind == kind
    line = Desk({"risk": served(predictor)}).line("ann")
    asking = EncryptedPredictor.of(Question(line, pair(), describe(line, "risk")))
    found, plain = asking.predicted(typed(300, 2)), predictor.predicted(typed(300, 2))
    assert asking.columns == predictor.columns
    numbers = slice(None) if kind != "softmax" else slice(1, None)
    if kind == "softmax":
        assert [row[0] for row in found] == [row[0] for row in plain]
    ours = np.array([row[numbers] for row in found], float)
    theirs = np.array([row[numbers] for row in plain], float)
    np.testing.assert_allclose(ours, theirs, rtol=2**-13, atol=2**-13)
