"""Runs in real processes leave logs that agree with each other, and in which nothing secret is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mpc_train.cli import app
from parties.audit.entries import Kind
from tests.support.study import NODES, PASSPHRASE, Study

ALL = (*NODES, "desk")


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, ["audit", *map(str, words)])


def log_of(study: Study, name: str) -> Path:
    return study.homes / name / "audit" / name


def card_of(study: Study, name: str) -> Path:
    return study.homes / name / f"{name}.card"


def shown(study: Study, name: str, *words: str) -> list[dict[str, Any]]:
    config, passphrase = study.folder / f"{name}.toml", study.passphrase
    given = ("--config", config, "--passphrase-file", passphrase, "--format", "json")
    result = invoke("show", *given, *words)
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])["entries"]
    return found


@pytest.fixture
def study(good_study: Study, tmp_path: Path) -> Study:
    """A copy of the good study, whose logs may be changed; nothing runs in it."""
    shutil.copytree(good_study.folder, tmp_path / "copy")
    copy = Study.__new__(Study)
    copy.__dict__ |= good_study.__dict__
    copy.folder, copy.homes = tmp_path / "copy", tmp_path / "copy" / "homes"
    copy.passphrase = copy.folder / "passphrase"
    for name in ALL:
        path = copy.folder / f"{name}.toml"
        path.write_text(path.read_text().replace(str(good_study.folder), str(copy.folder)))
    return copy


def test_all_logs_verify_against_each_other(study: Study) -> None:
    for name in ALL:
        others = [log_of(study, other) for other in NODES if other != name]
        against = [word for other in others for word in ("--against", other)]
        log, card = log_of(study, name), card_of(study, name)
        result = invoke("verify", "--log", log, "--card", card, *against, "--format", "json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout.splitlines()[-1])
        assert found["status"] == "ok" and found["faults"] == []
        held = [line for line in found["checked"] if "held by" in line]
        # Its own, and those that the two other nodes keep.
        assert len(held) == (3 if name in NODES else 1), found["checked"]


def test_one_changed_byte_is_found_and_named(study: Study) -> None:
    path = log_of(study, "ann") / "records"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    result = invoke("verify", "--log", path.parent, "--card", card_of(study, "ann"))
    assert result.exit_code == 9
    assert "is altered" in result.stderr and ": entry " in result.stderr
    config = study.folder / "ann.toml"
    given = ("--config", config, "--passphrase-file", study.passphrase)
    result = invoke("show", *given)
    assert result.exit_code == 9 and "is altered" in result.stderr


def test_an_evaluator_says_what_happened_and_what_left(study: Study) -> None:
    found = shown(study, "ann")
    kinds = [entry["kind"] for entry in found]
    assert kinds[:3] == ["log-begun", "log-key", "identity-opened"]
    order = ["run-proposed", "job-approved", "run-signed", "run-started", "opening", "run-ended"]
    assert [kind for kind in dict.fromkeys(kinds) if kind in order] == order
    ours = [entry for entry in found if entry["kind"].startswith(("run", "opening", "model"))]
    assert {entry["job"] for entry in ours} == {"study"}
    assert {entry["digest"] for entry in ours} == {study.agreed}
    openings = {e["fields"]["output"]: e["fields"] for e in found if e["kind"] == "opening"}
    assert set(openings) == {"range", "accuracy", "weight", "bias"}
    everybody = ["ann", "bob", "office", "registry"]
    accuracy = openings["accuracy"]
    assert accuracy["clause"] == "reveal.metrics" and accuracy["to"] == everybody
    weight = openings["weight"]
    assert (weight["clause"], weight["to"], weight["values"]) == (
        "job.recipients",
        ["ann", "office"],
        2,
    )
    opened = {e["fields"]["output"]: e["fields"]["digest"] for e in found if e["kind"] == "opened"}
    assert set(opened) == set(openings) and len(set(opened.values())) == len(opened)
    bob = {
        e["fields"]["output"]: e["fields"]["digest"]
        for e in shown(study, "bob")
        if e["kind"] == "opened"
    }
    assert set(bob) == set(opened) and not set(bob.values()) & set(opened.values())
    sealed = [entry["fields"]["recipient"] for entry in found if entry["kind"] == "model-sealed"]
    assert sealed == ["ann", "office"]


def test_the_dealer_says_what_it_took_part_in(study: Study) -> None:
    found = shown(study, "registry")
    openings = [e["fields"]["output"] for e in found if e["kind"] == "opening"]
    assert set(openings) == {"range", "accuracy", "weight", "bias"}
    assert not [e for e in found if e["kind"] in ("opened", "model-sealed")]


def test_each_node_keeps_the_checkpoints_of_the_others(study: Study) -> None:
    for name in NODES:
        found = shown(study, name, "--kind", "checkpoint-received")
        assert {e["fields"]["node"] for e in found} == set(NODES) - {name}
        assert shown(study, name, "--kind", "log-contradicted") == []


def test_entries_are_chosen_by_job_kind_and_time(study: Study) -> None:
    everything = shown(study, "bob")
    assert shown(study, "bob", "--job", "another") == []
    of_job = shown(study, "bob", "--job", "study")
    assert 0 < len(of_job) < len(everything)
    assert [e["kind"] for e in shown(study, "bob", "--kind", "run-ended")] == ["run-ended"]
    (started,) = shown(study, "bob", "--kind", "run-started")
    later = shown(study, "bob", "--job", "study", "--since", started["time"])
    assert later[0]["kind"] == "run-started"
    assert shown(study, "bob", "--since", "2999-01-01") == []


def test_nothing_secret_is_in_a_log(good_study: Study) -> None:
    """Neither as it lies there nor decrypted."""
    blobs = [path.read_bytes() for name in ALL for path in log_of(good_study, name).iterdir()]
    assert good_study.leaks(*blobs) == set()


def test_nothing_secret_is_in_an_entry(study: Study) -> None:
    texts = [json.dumps(shown(study, name)).encode() for name in ALL]
    assert study.leaks(*texts) == set()
    assert not any(PASSPHRASE.encode() in text for text in texts)
    assert all(b"opening" in texts[number] for number in range(3))


@pytest.mark.slow  # logs that go on are tested in test_log.py
def test_a_second_run_goes_on_from_the_first(tmp_path: Path, good_study: Study) -> None:
    shutil.copytree(good_study.homes, tmp_path / "homes")
    study = Study(tmp_path)
    for name in NODES:
        shutil.rmtree(study.homes / name / "vault", ignore_errors=True)
    # Bob has put back an older state of his log; the others hold more of it.
    log = log_of(study, "bob")
    shutil.rmtree(log)
    try:
        study.coordinator()
        study.nodes()
        ended = study.ended()
    finally:
        study.close()
    assert {name: end.status for name, end in ended.items()} == dict.fromkeys(ended, 0), ended
    assert "the audit log of bob does not go on" in ended["ann"].stderr
    assert "the audit log of ann does not go on" not in ended["registry"].stderr
    found = [e for e in shown(study, "ann") if e["kind"] == "log-contradicted"]
    assert [e["fields"]["node"] for e in found] == ["bob"]
    against = ("--against", log_of(study, "ann"))
    result = invoke("verify", "--log", log, "--card", card_of(study, "bob"), *against)
    assert result.exit_code == 9
    result = invoke(
        "verify", "--log", log_of(study, "ann"), "--card", card_of(study, "ann"),
        "--against", log_of(study, "registry"),
    )  # fmt: skip
    assert result.exit_code == 9, "ann holds two checkpoints of bob that contradict each other"


def test_a_node_that_cannot_log_shares_nothing(
    tmp_path: Path, homes: Path, good_study: Study
) -> None:
    shutil.copytree(homes, tmp_path / "homes")
    study = Study(tmp_path)
    study.address = "tcp://127.0.0.1:9"
    folder = study.homes / "ann" / "audit"
    folder.write_text("in the way")
    try:
        study.node("ann")
        ended = study.ended("ann")["ann"]
    finally:
        study.close()
    assert ended.status == 5
    (error,) = ended.errors
    assert "the audit log cannot be written" in error and "nothing is shared" in error


@pytest.mark.slow
def test_a_refused_job_is_an_entry(tmp_path: Path, homes: Path) -> None:
    shutil.copytree(homes, tmp_path / "homes")
    study = Study(tmp_path)
    try:
        study.coordinator()
        study.node("ann", rules=f'jobs = ["{"0" * 64}"]')
        study.node("bob")
        study.node("registry")
        ended = study.ended()
    finally:
        study.close()
    assert ended["ann"].status == 6
    kinds = [entry["kind"] for entry in shown(study, "ann")]
    assert kinds[-4:-1] == ["run-proposed", "run-refused", "run-aborted"]
    (aborted,) = shown(study, "bob", "--kind", "run-aborted")
    assert aborted["fields"] == {"code": "policy", "by": "ann"}
    assert [e["kind"] for e in shown(study, "desk", "--kind", "run-aborted")] == ["run-aborted"]


def test_a_wrong_passphrase_is_an_entry_later(tmp_path: Path, homes: Path) -> None:
    shutil.copytree(homes, tmp_path / "homes")
    study = Study(tmp_path)
    study.address = "tcp://127.0.0.1:9"
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong\n")
    wrong.chmod(0o600)
    try:
        study.node("ann", passphrase=wrong)
        assert study.ended("ann")["ann"].status == 5
    finally:
        study.close()
    (found,) = shown(study, "ann", "--kind", Kind.AUTHENTICATION_FAILED)
    assert found["fields"] == {"of": "identity", "times": 1}


def test_a_witness_signs_a_checkpoint_that_the_log_confirms(study: Study, tmp_path: Path) -> None:
    log, card = log_of(study, "ann"), card_of(study, "ann")
    printed = invoke("checkpoint", "--log", log)
    assert printed.exit_code == 0
    note = tmp_path / "ann.checkpoint"
    note.write_text(printed.stdout)
    given = ("--log", log, "--card", card, "--home", study.homes / "office")
    signed = invoke("cosign", note, *given, "--passphrase-file", study.passphrase)
    assert signed.exit_code == 0, signed.output
    assert signed.stdout.startswith(printed.stdout) and signed.stdout.count("\n— office ") == 2
    raw = bytearray((log / "records").read_bytes())
    raw[-1] ^= 1
    (log / "records").write_bytes(raw)
    refused = invoke("cosign", note, *given, "--passphrase-file", study.passphrase)
    assert refused.exit_code == 9 and "nothing was signed" in refused.stderr
    assert refused.stdout == ""
