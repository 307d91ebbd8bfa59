"""Encrypted questions by the commands: a server and clients as processes, their files and logs."""

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.mpc_train.results.test_predict import raw
from tests.support.commands import as_json, mpc_train
from tests.support.he_company import Company
from tests.support.patience import PATIENCE_S, wait_until
from tests.support.preparation_case import prepared_job

pytest.importorskip("tenseal", reason="TenSEAL is not installed")

from tests.support.serving import opened_model

pytestmark = pytest.mark.slow


@pytest.fixture
def company(tmp_path: Path) -> Iterator[Company]:
    company = Company(tmp_path)
    opened_model(tmp_path / "model", prepared_job(tmp_path))
    company.serving(rows=3 * 4096)
    yield company
    if company.process is not None:
        company.process.kill()


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_table_goes_in_and_a_table_comes_out(company: Company) -> None:
    folder = company.folder
    table, out, plain = raw(folder / "new.csv", 300), folder / "found.csv", folder / "plain.csv"
    config = ("--config", company.config("ann"))
    result = mpc_train("he", "query", table, *config, "--server", "company=127.0.0.1:9", "--model",
                       "risk", "--out", out)  # fmt: skip
    assert result.exit_code == 3 and "mpc-train he keys" in result.stderr
    assert as_json("he", "keys", *config)["version"] == 1
    company.start()
    there = ("--server", f"company={company.address}")
    shown = as_json("he", "show", *config, *there, "--model", "risk", "--out", folder / "r.json")
    assert [each["name"] for each in shown["columns"]] == [
        "age", "income", "visits", "smoker", "region",
    ]  # fmt: skip
    for model, name in (("risk", "risk"), (folder / "r.json", "risk")):
        told = as_json("he", "query", table, *config, *there, "--model", model, "--out", out)
        assert (told["rows"], told["model"]) == (300, name)
        assert 0 < told["bytes_sent"] < 20e6
    assert mpc_train("predict", folder / "model", table, "--out", plain).exit_code == 0
    for ours, theirs in zip(rows_of(out), rows_of(plain), strict=True):
        assert (ours["row"], ours["prediction"]) == (theirs["row"], theirs["prediction"])
        np.testing.assert_allclose(
            float(ours["p(true)"]), float(theirs["p(true)"]), rtol=0, atol=2**-13
        )
    # The quota counts a request for 4,096 rows, and survives a restart of the server.
    assert company.stop() == {"status": "ok", "answered": 2}
    company.start()
    there = ("--server", f"company={company.address}")
    ask = ("he", "query", table, *config, *there, "--model", "risk", "--out", folder / "more.csv")
    assert mpc_train(*ask).exit_code == 0
    spent = mpc_train(*ask)
    assert spent.exit_code == 6 and "spent" in spent.stderr
    company.stop()
    entries = mpc_train("audit", "show", "--config", company.config("company"), "--format", "json")
    assert entries.stdout.count("query-answered") == 3
    assert entries.stdout.count("query-refused") == 1


def test_who_is_not_named_is_refused_and_logged(company: Company) -> None:
    company.keep_model("risk-2026")
    company.serving(clients=("bob",), model="vault:risk-2026")
    table, out = raw(company.folder / "new.csv", 3), company.folder / "found.csv"
    company.start()
    there = ("--server", f"company={company.address}", "--model", "risk")
    for name in ("ann", "mallory"):
        assert mpc_train("he", "keys", "--config", company.config(name)).exit_code == 0
        result = mpc_train(
            "he", "query", table, "--config", company.config(name), *there, "--out", out
        )
        assert result.exit_code == 7, result.stderr
        assert "refuses" in result.stderr and not out.exists()
    company.stop()
    entries = mpc_train("audit", "show", "--config", company.config("company"), "--format", "json")
    assert "unexpected-peer" in entries.stdout and "ann" in entries.stdout


def test_a_client_that_is_killed_harms_no_other(company: Company) -> None:
    """Two processes ask at once; one is killed in the middle of its request."""
    folder = company.folder
    company.start()
    server = f"company={company.address}"
    table = raw(folder / "new.csv", 2 * 4096)
    asked = {}
    for name in ("ann", "bob"):
        assert mpc_train("he", "keys", "--config", company.config(name)).exit_code == 0
        command = [sys.executable, "-m", "mpc_train", "he", "query", str(table), "--model", "risk"]
        command += ["--config", str(company.config(name)), "--server", server]
        command += ["--out", str(folder / f"{name}.csv")]
        asked[name] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    counts = folder / "company" / "company.he-quota.json"
    try:
        wait_until(lambda: counts.exists() and "ann" in counts.read_text(), "ann's request")
        asked["ann"].kill()
        _, error = asked["bob"].communicate(timeout=PATIENCE_S)
        assert asked["bob"].returncode == 0, error
    finally:
        for process in asked.values():
            process.kill()
            process.wait()
    assert len(rows_of(folder / "bob.csv")) == 2 * 4096
    # Nothing half-written, and who was killed may ask again.
    assert not (folder / "ann.csv").exists()
    ask = ("he", "query", raw(folder / "few.csv", 3), "--config", company.config("ann"))
    again = mpc_train(*ask, "--server", server, "--model", "risk", "--out", folder / "ann.csv")
    assert again.exit_code == 0, again.stderr
    company.stop()
