"""A model that nobody opens, in real processes: kept by both evaluators, listed, shown, retired."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mpc_train.cli import app
from tests.support.study import NODES, Ended, Study, csv_text

SHARES = '[reveal]\nmodel = "shares"'
AGE = '{ name = "age", center = 50, scale = 10, range = [0, 120] }'


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


@pytest.mark.slow
def test_a_hospital_that_took_no_part_measures_it(tmp_path: Path, homes: Path) -> None:
    shutil.copytree(homes, tmp_path / "homes")
    study = Study(tmp_path)
    text = study.job.read_text().replace('recipients = ["ann", "office"]\n', "")
    study.job.write_text(text.replace("[reveal]", SHARES) + '[serve]\nvalidators = ["office"]\n')
    try:
        run(study)
        (tmp_path / "data" / "office.csv").write_text(csv_text(60, 7))
        study.roles, study.rows = NODES | {"office": "party"}, {"office": 60}
        model, job = tmp_path / "model.json", tmp_path / "measured.toml"
        digest = told(study, "show", "ann", "study", "--out", str(model))["digest"]
        words = [str(model), "--out", str(job), "--name", "study", "--to", "office"]
        said = asked(study, "evaluate", "office", *words, "--metrics", "accuracy,auc")
        assert (said["rows"], said["model"]) == (60, digest)
        study.job = job
        ended = run(study)
    finally:
        study.close()
    assert ended["office"].record["learnt"] == ["range", "accuracy", "auc"]
    assert ended["ann"].record["learnt"] == ["range"] and "kept" not in ended["ann"].record
    (sealed,) = ended["office"].record["sealed"]
    words = ["open", sealed, "--home", str(study.homes / "office"), "--format", "json"]
    opened = CliRunner().invoke(app, [*words, "--passphrase-file", str(study.passphrase)])
    assert opened.exit_code == 0, opened.output
    metrics = json.loads(opened.stdout.splitlines()[-1])["metrics"]
    assert 0.5 < metrics["accuracy"] <= 1 and 0.5 < metrics["auc"] <= 1
    assert study.leaks() == set() and not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.slow
def test_it_is_refreshed_and_trained_on(tmp_path: Path, homes: Path) -> None:
    shutil.copytree(homes, tmp_path / "homes")
    study = Study(tmp_path)
    text = study.job.read_text().replace('recipients = ["ann", "office"]\n', "")
    study.job.write_text(text.replace("[reveal]", SHARES) + "[serve]\ntrain_on = true\n")
    try:
        run(study)
        first, refresh = study.job.read_text(), tmp_path / "refresh.toml"
        digest = told(study, "refresh", "ann", "study", "--out", str(refresh))["digest"]
        study.job, study.rows = refresh, {}
        assert run(study)["ann"].record["learnt"] == []
        for name in ("ann", "bob"):
            (model,) = told(study, "list", name)["models"]
            assert (model["digest"], model["refreshed"], model["signed"]) == (digest, 1, True)
            assert told(study, "show", name, "study")["signed_by"] == ["ann", "bob", "registry"]
        study.job, study.rows = tmp_path / "on.toml", {"ann": 40, "bob": 30}
        start = f'warm_start = {{ source = "shares", sha256 = "{digest}" }}'
        study.job.write_text(first.replace("seed = 3", f"seed = 3\n{start}"))
        ended = run(study)
    finally:
        study.close()
    assert ended["ann"].record["kept_digest"] == ended["bob"].record["kept_digest"] != digest
    assert len(told(study, "list", "bob")["models"]) == 2
    assert study.leaks() == set() and study.used_twice() == 0


@pytest.mark.slow
def test_an_opened_model_is_brought_back(tmp_path: Path, homes: Path) -> None:
    """By the office, whose node neither evaluates nor deals and has no rows."""
    shutil.copytree(homes, tmp_path / "homes")
    study = Study(tmp_path)
    text = study.job.read_text().replace(AGE, '{ name = "age", range = [0, 120] }')
    study.job.write_text(f'{text}[prepare.columns.age]\nscale = "standard"\n')
    try:
        run(study)
        opened = study.model()
        (folder,) = {path.parent for path in tmp_path.rglob("opened/**/model.safetensors")}
        head, _, _ = study.job.read_text().partition("[train]")
        head = head.replace('["ann", "bob"]', '["office"]\nevaluators = ["ann", "bob"]', 1)
        head = head.replace('recipients = ["ann", "office"]\n', "").replace(
            "test_fraction = 0.4", ""
        )
        head = head.replace("rows = { ann = 40, bob = 30 }", "rows = { office = 0 }")
        study.job.write_text(
            f'{head}[train]\nwarm_start = {{ source = "office", prepare = "model" }}\n'
            f"[fixed_point]\nfraction_bits = 24\ngradient_limit = 2\n{SHARES}\n"
            '[prepare.columns.age]\nscale = "standard"\n'
        )
        study.roles, study.rows = NODES | {"office": "party"}, {}
        study.start_file = folder / "model.safetensors"
        ended = run(study)
    finally:
        study.close()
    assert ended["ann"].record["kept_digest"] == ended["bob"].record["kept_digest"]
    assert ended["office"].record["learnt"] == ["range"]
    for name in ("ann", "bob"):
        (model,) = told(study, "list", name)["models"]
        assert model["signed"] and model["evaluators"] == ["ann", "bob"]
        assert told(study, "show", name, "study")["signed_by"] == [
            "ann",
            "bob",
            "office",
            "registry",
        ]
    assert opened and study.used_twice() == 0


def asked(study: Study, verb: str, name: str, *words: str) -> dict[str, Any]:
    """What `mpc-train VERB` of a node says, as JSON."""
    study.address = study.address or "tcp://127.0.0.1:9"
    config = study.config(name)
    done = CliRunner().invoke(app, [verb, *words, "--config", str(config), "--format", "json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(study: Study) -> dict[str, Ended]:
    """Run the study's job with its nodes, to its end."""
    study.coordinator()
    study.nodes()
    ended = study.ended()
    assert {name: end.status for name, end in ended.items()} == dict.fromkeys(ended, 0), ended
    return ended
