"""A model that nobody opens, in real processes: kept by both evaluators, listed, shown, retired."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mpc_train.cli import app
from tests.support.study import Study

SHARES = '[reveal]\nmodel = "shares"'


def told(study: Study, verb: str, name: str, *words: str, status: int = 0) -> dict[str, Any]:
    """What `mpc-train model VERB` says at a node, as JSON."""
    config = str(study.folder / f"{name}.toml")
    secret = ["--passphrase-file", str(study.passphrase), "--format", "json"]
    done = CliRunner().invoke(app, ["model", verb, *words, "--config", config, *secret])
    assert done.exit_code == status, done.output
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_it_is_kept_listed_shown_and_retired(tmp_path: Path, homes: Path) -> None:
    shutil.copytree(homes, tmp_path / "homes")
    study = Study(tmp_path)
    text = study.job.read_text().replace('recipients = ["ann", "office"]\n', "")
    study.job.write_text(text.replace("[reveal]", SHARES))
    try:
        study.coordinator()
        study.nodes()
        ended = study.ended()
    finally:
        study.close()
    assert {name: end.status for name, end in ended.items()} == dict.fromkeys(ended, 0), ended
    assert study.leaks() == set()
    assert not list(tmp_path.rglob("*.sealed")) and not list(tmp_path.rglob("*.safetensors"))
    records = {name: end.record for name, end in ended.items()}
    assert records["ann"]["kept"] == "study" and "kept" not in records["registry"]
    assert records["ann"]["kept_digest"] == records["bob"]["kept_digest"]
    assert records["ann"]["learnt"] == ["range", "accuracy"]

    for name in ("ann", "bob"):
        (model,) = told(study, "list", name)["models"]
        assert (model["name"], model["version"], model["signed"]) == ("study", 1, True)
        assert model["digest"] == records["ann"]["kept_digest"]
        shown = told(study, "show", name, "study")
        assert shown["signed_by"] == ["ann", "bob", "registry"]
    assert told(study, "list", "registry")["models"] == []
    said = told(study, "show", "ann", "nobody", status=5)
    assert "no model nobody" in said["message"]

    assert "no terminal" in told(study, "retire", "ann", "study", status=3)["message"]
    assert told(study, "retire", "ann", "study", "--yes")["version"] == 1
    assert told(study, "list", "ann")["models"] == []
    told(study, "show", "ann", "study", status=5)
    assert len(told(study, "list", "bob")["models"]) == 1
