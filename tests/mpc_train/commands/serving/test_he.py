"""`mpc-train he`: every command once, with a server in a thread; what users do wrong is named."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mpc_train.results.test_predict import raw
from tests.support.commands import as_json, mpc_train
from tests.support.he_company import Company
from tests.support.patience import PATIENCE_S
from tests.support.preparation_case import JOB, prepared_job

pytest.importorskip("tenseal", reason="TenSEAL is not installed")

from mpc_train.commands.serving import connections, serve
from mpc_train.homomorphic.service import Service
from mpc_train.homomorphic.serving_file import load_serving_file
from tests.support.serving import opened_model

PREPARE = 'scale = "standard"\nmissing = "mean"'


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Company:
    company = Company(tmp_path_factory.mktemp("company"))
    opened_model(company.folder / "model", prepared_job(company.folder, PREPARE))
    company.serving()
    return company


@pytest.fixture
def address(company: Company, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a server that runs in a thread until the test ends."""
    over, there = threading.Event(), threading.Event()
    found: list[str] = []
    attend = connections.Port.attend

    def attend_or_end(port: connections.Port, service: Service) -> None:
        if over.is_set():
            raise KeyboardInterrupt
        attend(port, service)

    monkeypatch.setattr(connections, "TEND_S", 0.02)
    monkeypatch.setattr(connections.Port, "attend", attend_or_end)

    def ready(at: str, names: list[str], clients: tuple[str, ...]) -> None:
        assert (names, clients) == (["risk"], ("ann", "bob"))
        found.append(at.removeprefix("tcp://"))
        there.set()

    file = load_serving_file(company.folder / "serving.toml")
    thread = threading.Thread(
        target=serve.serve, args=(company.config("company"), file, None, None, ready)
    )
    thread.start()
    try:
        assert there.wait(PATIENCE_S)
        yield found[0]
    finally:
        over.set()
        thread.join(PATIENCE_S)


def test_keys_show_and_query(company: Company, address: str) -> None:
    folder, config = company.folder, ("--config", company.config("ann"))
    table, out, file = raw(folder / "new.csv", 40), folder / "found.csv", folder / "risk.json"
    ask = ("he", "query", table, *config, "--server", f"company={address}", "--out")
    missing = mpc_train(*ask, out, "--model", "risk")
    assert missing.exit_code == 3 and "mpc-train he keys" in missing.stderr
    assert [as_json("he", "keys", *config)["version"] for _ in range(2)] == [1, 2]
    shown = as_json(
        "he", "show", *config, "--server", f"company={address}", "--model", "risk", "--out", file
    )
    assert (shown["kind"], shown["label"]) == ("logistic", "ill")
    assert mpc_train(*ask, out, "--model", file, "--id", "note").exit_code == 0
    plain = folder / "plain.csv"
    assert (
        mpc_train("predict", folder / "model", table, "--out", plain, "--id", "note").exit_code == 0
    )
    ours, theirs = (
        [line.split(",")[:3] for line in path.read_text().splitlines()] for path in (out, plain)
    )
    assert ours == theirs
    assert as_json(*ask, "vault:found", "--model", "risk")["rows"] == 40
    # A description that has changed, and what is none.
    out.unlink()
    file.write_text(file.read_text().replace('"limit":"16"', '"limit":"15"'))
    changed = mpc_train(*ask, out, "--model", file)
    assert changed.exit_code == 9 and "differently" in changed.stderr
    for content, status, said in (("{}", 9, "not the description"), (None, 3, "neither a model's")):
        file.write_text(content) if content else file.unlink()
        result = mpc_train(*ask, out, "--model", file)
        assert result.exit_code == status and said in result.stderr
    # A cell that does not fit, a model that is not there, nonsense for a server.
    assert mpc_train(*ask, out, "--model", "other").exit_code == 6
    good = table.read_text()
    for cell in ("\nx,9", "\nx,nan", "\nx,inf"):
        table.write_text(good.replace("\nx,", cell, 1))
        bad = mpc_train(*ask, out, "--model", "risk")
        assert bad.exit_code == 4 and "line 2" in bad.stderr, cell
    assert not out.exists()
    there = ("--server", "company", "--model", "risk", "--out", out)
    assert mpc_train("he", "query", table, *config, *there).exit_code == 2


def test_a_network_is_refused_before_the_server_listens(company: Company, tmp_path: Path) -> None:
    text = JOB.replace('"logistic"', '"mlp"\nhidden = [4]\nclasses = 2')
    opened_model(tmp_path / "network", prepared_job(tmp_path, PREPARE, text))
    models = tmp_path / "serving.toml"
    models.write_text((company.folder / "serving.toml").read_text().replace('"model"', '"network"'))
    result = mpc_train("he", "serve", "--config", company.config("company"), "--models", models)
    assert result.exit_code == 3 and "models.risk" in result.stderr
    assert "over shares" in result.stderr
