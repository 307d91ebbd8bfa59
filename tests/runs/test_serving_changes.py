"""A service whose clients are interrupted, and whose model, nodes and cards change meanwhile."""

from __future__ import annotations

import copy
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from parties.keys import lifetime
from parties.keys.identity import Card
from parties.keys.roster import Roster
from tests.runs.test_resume import free_address
from tests.support.commands import ROOT
from tests.support.patience import PATIENCE_S, wait_until
from tests.support.serving_study import Asking, ServingStudy, newest
from tests.support.study import NODES, Study, csv_text

pytestmark = pytest.mark.slow
A_DAY = 100_000
PREDICT = "/v1/models/study:predict"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, homes: Path) -> Iterator[ServingStudy]:
    folder = tmp_path_factory.mktemp("changes")
    shutil.copytree(homes, folder / "homes")
    made = ServingStudy(folder, free_address())
    try:
        made.train("one.model", A_DAY, 0.1)
        made.serve("one.model")
        with made.client() as service:
            service.ask(newest(service), made.local())
        yield made
    finally:
        made.close()


def client_file(house: ServingStudy, name: str) -> Path:
    path = house.folder / f"{name}.toml"
    path.write_text(
        f'node = {{ name = "{name}", home = "homes/{name}" }}\n'
        f'coordinator = {{ name = "desk", address = "{house.address}" }}\n'
        "[rules]\nrecipients = []\ndealers = []\nevaluators = []\n"
    )
    return path


def command(house: ServingStudy, *words: object) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "mpc_train", *map(str, words)]
    argv += ["--passphrase-file", str(house.passphrase)]
    return subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=house.folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(house.folder)},
    )


def left_today(house: ServingStudy, name: str) -> int:
    config = client_file(house, name)
    asked = command(house, "query", "--config", config, "--list", "--format", "json")
    out, err = asked.communicate(timeout=PATIENCE_S)
    assert asked.returncode == 0, err
    (model,) = json.loads(out.splitlines()[-1])["models"]
    return int(model["rows_left"])


def table_of(house: ServingStudy, rows: int) -> Path:
    path = house.folder / f"{rows}.csv"
    path.write_text(csv_text(rows, 4))
    return path


def test_a_query_that_is_interrupted(house: ServingStudy) -> None:
    """It says what has counted, keeps what was answered, and disturbs nobody."""
    config = client_file(house, "clinic")
    before = left_today(house, "clinic")
    with house.client() as service, Asking(house, service, "one.model") as asking:
        words = (table_of(house, 20_000), "--model", "study", "--out", "p.csv")
        with house.client("clinic") as mine:
            asked = command(house, "query", *words, "--config", config, "--format", "json")
            # More than are on their way at a time, so that some are answered.
            wait_until(lambda: mine.left(newest(mine)) < before - 2000, "rows that count")
        asked.send_signal(signal.SIGINT)
        out, _ = asked.communicate(timeout=PATIENCE_S)
        assert asked.returncode == 130
        answers_again(asking)
    assert not asking.wrong and not asking.refused
    said = json.loads(out.splitlines()[-1])["message"]
    (most,) = re.findall(r"counted for up to ([0-9,]+) rows", said)
    counted = before - left_today(house, "clinic")
    assert 2000 < counted <= int(most.replace(",", ""))
    (kept,) = house.folder.glob("p.rows-1-*.csv")
    rows = len(kept.read_text().splitlines()) - 1
    assert f"--from-row {rows + 1} " in said and 0 < rows <= counted
    assert not (house.folder / "p.csv").exists()


def test_callers_of_a_gateway_hang_up(house: ServingStudy) -> None:
    """In the middle of a request, and while its answer is awaited."""
    before = left_today(house, "clinic")
    with house.client() as service, Asking(house, service, "one.model") as asking:
        words = ("--config", client_file(house, "clinic"), "--listen", "127.0.0.1:0")
        gateway = command(house, "gateway", *words, "--format", "json")
        assert gateway.stdout is not None
        at = urlsplit(json.loads(gateway.stdout.readline())["url"])
        where = (str(at.hostname), int(at.port or 0))
        token = (house.homes / "clinic" / "clinic.gateway-token").read_text().strip()
        rows = [{"age": 50, "dose": 0.25}] * 128
        whole = request_of(token, json.dumps({"instances": rows}).encode())
        for turn in range(30):
            with socket.create_connection(where) as link:
                link.sendall(whole[: len(whole) // (1 + turn % 3)])
                time.sleep(0.03 * (turn % 4))
        caller = http.client.HTTPConnection(*where, timeout=PATIENCE_S)
        permit = {"Authorization": f"Bearer {token}"}
        body = json.dumps({"instances": rows[:1]})
        caller.request("POST", PREDICT, body, {**permit, "Content-Type": "application/json"})
        answer = caller.getresponse()
        assert answer.status == 200 and len(json.loads(answer.read())["predictions"]) == 1
        caller.request("GET", "/metrics", headers=permit)
        assert "\nmpc_train_gateway_waiting 0.0\n" in caller.getresponse().read().decode()
        answers_again(asking)
        # At most the ten requests that came whole have counted, and the last one.
        spent = before - left_today(house, "clinic")
        assert spent % 128 == 1 and spent <= 10 * 128 + 1
        gateway.send_signal(signal.SIGINT)
        gateway.communicate(timeout=PATIENCE_S)
        assert gateway.returncode == 0
    assert not asking.wrong and not asking.refused


@pytest.mark.parametrize("name", ["registry", "bob"])
def test_a_node_is_stopped_and_started_again(house: ServingStudy, name: str) -> None:
    """A question that is on its way is refused, and one that begins meanwhile waits."""
    with house.client() as service, Asking(house, service, "one.model") as asking:
        answers_again(asking)
        house.stop(name)
        assert json.loads(last_line(house, name)) == {"status": "ok", "stopped": True}
        house.again(name)
        answers_again(asking)
    assert not asking.wrong and len(asking.refused) <= 1
    assert {code for code, _ in asking.refused} <= {"unavailable"}


def test_shares_are_refreshed_while_they_are_served(house: ServingStudy) -> None:
    """By other processes of the same nodes. The service goes on with the shares that it has, and
    with the new ones when a node has come back."""
    refresh = house.folder / "refresh.toml"
    with house.client() as service, Asking(house, service, "one.model") as asking:
        house.model_command("ann", "refresh", "study", "--out", str(refresh))
        other = copy.copy(house)
        other.running, other.left = {}, house.folder / "refreshing"
        other.left.mkdir()
        other.roles, other.rows, other.job = dict(NODES), {}, refresh
        other.coordinator()
        for name in NODES:
            Study.node(other, name)
        assert {end.status for end in other.ended().values()} == {0}
        answers_again(asking)
        assert not asking.refused
        house.kill("bob")
        house.again("bob")
        answers_again(asking)
    assert not asking.wrong
    assert {code for code, _ in asking.refused} <= {"unavailable"}


def test_a_service_goes_on_without_a_client_whose_card_is_revoked(house: ServingStudy) -> None:
    """First by one evaluator, then by the coordinator; both begin a new session after it."""
    card = Card.load(house.homes / "clinic" / "clinic.card")

    def revoked(known: Roster) -> Roster:
        return known.revoke(card, lifetime.now())

    with house.client() as service, Asking(house, service, "one.model") as asking:
        for name in ("bob", "desk"):
            Roster.update(house.homes / name / "roster", revoked)
            house.stop(name)
            if name == "desk":
                house.offer("one.model")
            else:
                house.again(name)
            answers_again(asking)
            said = house.output(name, "err").read_text()
            assert "clinic is not served, and others are: the card of clinic" in said
    assert not asking.wrong
    words = ("--config", client_file(house, "clinic"), "--list", "--format", "json")
    asked = command(house, "query", *words)
    out, _ = asked.communicate(timeout=PATIENCE_S)
    assert asked.returncode == 6 and "has it among its clients" in out


def test_a_model_is_retired_while_it_is_asked(house: ServingStudy) -> None:
    with house.client() as service, Asking(house, service, "one.model") as asking:
        answers_again(asking)
        house.model_command("bob", "retire", "study", "--yes")
        wait_until(lambda: len(asking.refused) > 3, "refusals")
    assert not asking.wrong
    assert {code for code, _ in asking.refused} == {"unknown-model"}
    words = (table_of(house, 20), "--model", "study", "--out", "q.csv", "--format", "json")
    asked = command(house, "query", *words, "--config", client_file(house, "office"))
    out, _ = asked.communicate(timeout=PATIENCE_S)
    assert "bob: no model of this name is served, or it was retired" in out
    assert "the share of study, version 1, was destroyed" in house.output("bob", "err").read_text()
    assert asked.returncode == 6 and not (house.folder / "q.csv").exists()
    assert house.used_twice() == 0


def answers_again(asking: Asking) -> None:
    before = asking.answered
    wait_until(lambda: asking.answered > before + 3, "answers")


def last_line(house: ServingStudy, name: str) -> str:
    return house.output(name, "out").read_text().splitlines()[-1]


def request_of(token: str, body: bytes) -> bytes:
    """A question of the gateway, as it is on the wire."""
    head = (
        f"POST {PREDICT} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
