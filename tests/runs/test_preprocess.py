"""A run whose dealer makes everything before training and leaves, in real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import ended, launch
from tests.support.csv_tables import fitting_tables, write_tables
from tests.support.jobs import replaced, write_job


@pytest.mark.slow
def test_evaluators_train_when_the_dealer_has_left(tmp_path: Path) -> None:
    write_tables(tmp_path, fitting_tables())
    text = replaced("learning_rate = 0.5", "learning_rate = 0.1").replace(
        "epochs = 4", "epochs = 100"
    )
    text = text.replace("[reveal]", "preprocess = true\n\n[reveal]\nleast_group = 1")
    process = launch(write_job(tmp_path, text), "--compare")
    record, err = ended(process)
    assert process.returncode == 0, err
    assert record["steps"] == 400
    assert record["max_weight_difference"] < 0.01
    assert record["metrics"]["accuracy"] == pytest.approx(
        record["twin_metrics"]["accuracy"], abs=0.01
    )

    logs = tmp_path / "run" / "logs"
    said = [json.loads(line) for line in (logs / "registry.stdout.log").read_text().splitlines()]
    assert said[-1]["status"] == "ok"
    assert said[-1]["left"] is True
    lines = (logs / "coordinator.stdout.log").read_text().splitlines()
    seen = [one for one in map(json.loads, lines) if "event" in one]
    parted = [one["event"] for one in seen].index("parted")
    assert seen[parted]["node"] == "registry"
    # What follows is the evaluators' alone.
    after = [one for one in seen[parted:] if one["event"] == "progress"]
    assert {one["node"] for one in after} <= {"ann", "bob", "cleo"}
    assert any(one["fields"].get("phase") == "training" for one in after)
