"""`mpc-train gateway`: the command around the server, its token, and what ends it."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette", reason="Starlette is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from mpc_train.commands.serving import service
from mpc_train.commands.serving.gateway import token_in
from mpc_train.errors import ConfigError
from mpc_train.gateway.server import Server
from mpc_train.results.predicting import Predictor
from tests.support.certificates import Authority
from tests.support.commands import mpc_train
from tests.support.he_company import Company
from tests.support.patience import PATIENCE_S
from tests.support.preparation_case import prepared_job
from tests.support.serving import ClearService, opened_model

INSTANCE = {"age": 61, "income": 20000.5, "visits": 3, "smoker": True, "region": "north"}


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Company:
    return Company(tmp_path_factory.mktemp("company"))


@pytest.fixture(scope="module")
def clear(company: Company) -> Predictor:
    return opened_model(company.folder / "model", prepared_job(company.folder))


Asking = Callable[[str], None]


@pytest.fixture
def during(clear: Predictor, monkeypatch: pytest.MonkeyPatch) -> Callable[[Asking], list[str]]:
    """Puts a service behind the command, and something that asks while it serves, and then ends
    it; the addresses at which it served."""

    @contextlib.contextmanager
    def connected(config: Any, identity: Any, roster: Any, *more: Any) -> Any:
        assert (config.place.name, identity.card.name) == ("ann", "ann")
        yield ClearService((clear, {}))

    monkeypatch.setattr(service, "connected", connected)
    run = Server.run

    def made(asks: Asking) -> list[str]:
        served: list[str] = []

        def run_and_ask(server: Server) -> None:
            def ask() -> None:
                try:
                    asks(server.url)
                    served.append(server.url)
                finally:
                    server.stop()

            thread = threading.Thread(target=ask)
            thread.start()
            run(server)
            thread.join(PATIENCE_S)

        monkeypatch.setattr(Server, "run", run_and_ask)
        return served

    return made


def ask(url: str, token: str, tls: ssl.SSLContext | None = None) -> Any:
    place = urlsplit(url).netloc
    link: http.client.HTTPConnection = http.client.HTTPConnection(place, timeout=PATIENCE_S)
    if tls is not None:
        link = http.client.HTTPSConnection(place, timeout=PATIENCE_S, context=tls)
    shown = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    body = json.dumps({"instances": [INSTANCE]})
    link.request("POST", "/v1/models/study:predict", body, shown)
    answer = link.getresponse()
    found = answer.status, json.loads(answer.read())
    link.close()
    return found


def test_it_answers_with_a_token_that_it_makes(
    company: Company, during: Callable[[Asking], list[str]], clear: Predictor
) -> None:
    path = company.folder / "ann" / "ann.gateway-token"
    words = ("gateway", "--config", company.config("ann"), "--listen", "127.0.0.1:0")
    tokens: list[str] = []

    def asks(url: str) -> None:
        tokens.append(path.read_text().strip())
        status, found = ask(url, tokens[-1])
        assert status == 200 and set(found["predictions"][0]) == set(clear.columns)
        assert ask(url, "x" * 43)[0] == 401

    served = during(asks)
    result = mpc_train(*words, "--format", "json")
    assert result.exit_code == 0, result.stderr
    first, *_, last = [json.loads(line) for line in result.stdout.splitlines()]
    assert (first["event"], first["models"], first["url"]) == ("serving", ["study"], served[0])
    assert first["token_file"] == str(path) and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert last == {"status": "ok", "answered": 1}
    shown = mpc_train(*words)
    assert "Answered 1 rows." in shown.stdout and str(path) in shown.stdout
    # The same for the next start, so that callers need not be told; and never shown.
    assert len(set(tokens)) == 1 and len(served) == 2
    assert tokens[0] not in result.stdout + result.stderr + shown.stdout + shown.stderr


def test_it_answers_by_tls(
    company: Company, during: Callable[[Asking], list[str]], tmp_path: Path
) -> None:
    made = Authority(tmp_path)
    pem, key = made.cert, made.key
    token = tmp_path / "token"
    token.write_text("t" * 32)
    token.chmod(0o600)
    trusting = ssl.create_default_context(cafile=str(made.ca))
    served = during(lambda url: statuses.append(ask(url, "t" * 32, trusting)[0]))
    statuses: list[int] = []
    words = ("gateway", "--config", company.config("ann"), "--listen", "127.0.0.1:0")
    tls = ("--certificate", pem, "--key", key)
    key.chmod(0o644)
    exposed = mpc_train(*words, "--token-file", token, *tls)
    assert exposed.exit_code == 3 and "chmod 600" in exposed.stderr
    key.chmod(0o600)
    result = mpc_train(*words, "--token-file", token, *tls)
    assert result.exit_code == 0, result.stderr
    assert statuses == [200] and served[0].startswith("https://127.0.0.1:")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--listen", "0.0.0.0:0"), "without TLS"),
        (("--listen", "8080"), "HOST:PORT"),
        (("--key", "key.pem"), "belong together"),
        (("--certificate", "a.pem", "--key", "nowhere.pem"), "cannot be read"),
        (("--token-file", "nowhere/token"), "cannot be kept or read"),
    ],
)
def test_what_is_asked_wrongly_is_named(
    company: Company, during: Callable[[Asking], list[str]], words: tuple[str, ...], said: str
) -> None:
    served = during(lambda url: None)
    result = mpc_train("gateway", "--config", company.config("ann"), *words)
    assert result.exit_code == 3 and said in result.stderr, result.stderr
    assert not served


def test_a_token_that_others_know_or_guess_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    made = token_in(path)
    assert len(made) >= 43 and token_in(path) == made
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        token_in(path)
    for wrong in (
        "",
        "short",
        "x" * 31,
        "with a space in the middle of all its characters",
        "é" * 40,
    ):
        path.write_text(wrong)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match="is not a token of 32"):
            token_in(path)
