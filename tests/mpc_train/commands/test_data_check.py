"""`mpc-train data check`: an owner's own table against the job, without a run."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import Result

from mpc_train.admission import load
from mpc_train.admission.load import load_job
from tests.support.commands import mpc_train
from tests.support.jobs import JOB, write_job
from tests.support.node_files import party_toml

PARTY = party_toml(
    "bob",
    recipients=["ann"],
    metrics=["auc"],
    data='study = { file = "table.csv", rename = { Alter = "age" } }',
)
LINES = ["Alter,dose,ill", *(f"{40 + row % 9},{row % 5},{row % 2}" for row in range(30))]


def check(folder: Path, lines: list[str], *options: str, party: str = PARTY) -> Result:
    (folder / "party.toml").write_text(party)
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    job = write_job(folder)
    return mpc_train("data", "check", "--config", folder / "party.toml", job, *options)


def test_a_table_that_fits(tmp_path: Path) -> None:
    result = check(tmp_path, LINES)
    assert result.exit_code == 0, result.output
    assert "fits the job study: 30 rows, 3 columns; nothing was sent" in result.stdout
    record = json.loads(check(tmp_path, LINES, "--format", "json").stdout)
    assert record == {
        "status": "ok",
        "job": "study",
        "table": str(tmp_path / "table.csv"),
        "rows": 30,
        "columns": ["age", "dose", "ill"],
        "warnings": [],
    }


def test_every_fault_of_a_table_is_said(tmp_path: Path) -> None:
    lines = list(LINES)
    lines[3], lines[7] = "130,1,0", "forty,2,yes"
    result = check(tmp_path, lines[:-1], "--format", "json")
    assert result.exit_code == 4
    record = json.loads(result.stdout)
    assert record["status"] == "DataError"
    for what in (
        "line 4: column 'age' ('Alter' there): outside the declared range [0, 120]",
        "line 8: column 'age' ('Alter' there): not a number",
        "line 8: column 'ill': not one of the declared levels '0', '1'",
        "the table's rows are 29, but the job says 30",
    ):
        assert what in record["message"]
        assert what in result.stderr
    assert "forty" not in result.output


@pytest.mark.parametrize(
    ("old", "new", "status", "says"),
    [
        (
            'name = "bob"',
            'name = "dora"',
            3,
            "dora provides no data for this job, so there is nothing to check; its rows are of ann",
        ),
        ("study =", "other =", 4, "no table for the job 'study'"),
        ("[coordinator]", "[coordinators]", 3, "coordinators: unknown key"),
        ("table.csv", "nothing.csv", 4, "there is no such file"),
    ],
)
def test_files_that_do_not_fit_each_other(
    tmp_path: Path, old: str, new: str, status: int, says: str
) -> None:
    result = check(tmp_path, LINES, party=PARTY.replace(old, new))
    assert result.exit_code == status
    assert says in result.stderr


def test_who_brings_a_model_has_no_table_to_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an owner without rows; the table that its file names is for other jobs."""
    job = load_job(write_job(tmp_path))
    brought = replace(job, data=replace(job.data, rows={**job.data.rows, "bob": 0}))
    monkeypatch.setattr(load, "load_job", lambda path: brought)
    result = check(tmp_path, LINES)
    assert result.exit_code == 3
    assert "bob provides no data for this job" in result.stderr


def test_warnings_are_shown_and_end_nothing(tmp_path: Path) -> None:
    text = JOB.replace("[model]", '[prepare]\nmissing = "mean"\n\n[model]')
    (tmp_path / "party.toml").write_text(PARTY)
    (tmp_path / "table.csv").write_text(
        "\n".join(["Alter,ill", *(f"{row},{row % 2}" for row in range(30))])
    )
    job = write_job(tmp_path, text)
    result = mpc_train("data", "check", "--config", tmp_path / "party.toml", job)
    assert result.exit_code == 0, result.output
    assert "warning: " in result.stderr and "column 'dose'" in result.stderr


def test_job_check_with_a_node_s_file_holds_the_job_against_its_rules(tmp_path: Path) -> None:
    """Otherwise the rules are first heard of when all organisations have started their nodes."""
    job = write_job(tmp_path)

    def against(party: str, *options: str) -> Result:
        (tmp_path / "party.toml").write_text(party)
        return mpc_train("job", "check", "--config", tmp_path / "party.toml", job, *options)

    party = PARTY.replace('["ann"]', '["ann", "office"]')
    allowed = against(party.replace('["auc"]', '["auc", "accuracy"]\nleast_group = 9'))
    assert allowed.exit_code == 0, allowed.output
    assert (
        f"The rules of {tmp_path / 'party.toml'} allow the job to bob; earlier runs over"
        in allowed.stdout
    )
    refused = against(PARTY.replace('"registry"', '"other"').replace('["auc"]', "[]"))
    assert refused.exit_code == 6
    assert "registry would deal but is not listed under dealers; " in refused.stderr
    assert "would be revealed but is not listed under metrics" in refused.stderr
    stranger = against(PARTY.replace('name = "bob"', 'name = "zoe"'))
    assert stranger.exit_code == 3
    assert "zoe is not a node of the job study" in stranger.stderr
