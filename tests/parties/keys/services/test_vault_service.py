"""Keys in Vault's transit engine: a real server (OpenBao), and a stand-in where one misbehaves."""

import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parties.errors import KeyServiceError
from parties.keys.services import client
from parties.keys.services.vault_service import VaultService, parse
from parties.vault.rotation import rotate
from parties.vault.store import Store, entries_of
from tests.support.certificates import Authority
from tests.support.https_answers import Answer, Request, https_server
from tests.support.key_contract import (
    FILE_KEY,
    INFO,
    check_doctor,
    check_rotation,
    check_wrapping,
    refused,
)
from tests.support.vault_server import ROOT_TOKEN, VaultServer, vault_server

pytest.importorskip("hvac", reason="hvac is not installed")

USING = """
path "transit/keys/{key}" {{ capabilities = ["read"] }}
path "transit/encrypt/{key}" {{ capabilities = ["update"] }}
path "transit/decrypt/{key}" {{ capabilities = ["update"] }}
"""
ROTATING = """
path "transit/keys/{key}/rotate" {{ capabilities = ["update"] }}
path "transit/keys/{key}/config" {{ capabilities = ["update"] }}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultServer]:
    with vault_server(tmp_path_factory.mktemp("openbao")) as started:
        yield started


def opened(server: VaultServer, key: str, token: bytes = ROOT_TOKEN.encode()) -> VaultService:
    return VaultService(server.uri(key).removeprefix("vault:"), token)


def test_a_key_of_a_real_server(server: VaultServer) -> None:
    server.admin.secrets.transit.create_key("plain")
    token = server.token((USING + ROTATING).format(key="plain"))
    check_wrapping(lambda: opened(server, "plain", token))
    check_doctor(lambda: opened(server, "plain", token))
    check_rotation(lambda: opened(server, "plain", token))
    assert token.decode() not in repr(opened(server, "plain", token))


@pytest.mark.parametrize(
    "settings", [{"derived": True}, {"key_type": "chacha20-poly1305"}], ids=["derived", "chacha"]
)
def test_other_kinds_of_keys(server: VaultServer, settings: dict[str, Any]) -> None:
    key = "-".join(settings)
    server.admin.secrets.transit.create_key(key, **settings)
    check_wrapping(lambda: opened(server, key))


def test_keys_without_additional_data_are_refused(server: VaultServer) -> None:
    server.admin.secrets.transit.create_key("rsa", key_type="rsa-2048")
    assert "of type rsa-2048" in refused(lambda: opened(server, "rsa").current)


def test_what_a_token_may_not_do(server: VaultServer) -> None:
    server.admin.secrets.transit.create_key("used")
    token = server.token(USING.format(key="used"))
    service = opened(server, "used", token)
    kept = service.wrap(FILE_KEY, INFO)
    secrets = (token.decode(),)
    assert "may not rotate" in refused(service.check_rotation, secrets=secrets)
    assert "refuses the token" in refused(service.rotate, secrets=secrets)
    assert service.unwrap(*kept, INFO) == FILE_KEY
    wrong = opened(server, "used", b"a-wrong-token")
    assert "refuses the token" in refused(lambda: wrong.current, secrets=("a-wrong-token",))


def test_keys_that_are_gone(server: VaultServer) -> None:
    transit = server.admin.secrets.transit
    assert "make it" in refused(lambda: opened(server, "never").current)
    assert "make it" in refused(lambda: opened(server, "never").wrap(FILE_KEY, INFO))
    assert "make it" in refused(lambda: opened(server, "never").current), "Vault made none"
    transit.create_key("gone")
    service = opened(server, "gone")
    kept = service.wrap(FILE_KEY, INFO)
    transit.update_key_configuration("gone", deletion_allowed=True)
    transit.delete_key("gone")
    assert "not found" in refused(lambda: service.unwrap(*kept, INFO))
    assert "make it" in refused(lambda: opened(server, "gone").unwrap(*kept, INFO))


def test_a_key_made_anew_is_another(server: VaultServer) -> None:
    server.admin.secrets.transit.create_key("anew")
    key_id, wrapped = opened(server, "anew").wrap(FILE_KEY, INFO)
    other = key_id.partition("@")[0] + "@1"
    assert "is another key" in refused(lambda: opened(server, "anew").unwrap(other, wrapped, INFO))


def test_a_server_that_cannot_be_verified(server: VaultServer, tmp_path: Path) -> None:
    bare = server.uri("plain").partition("?")[0].removeprefix("vault:")
    token = ROOT_TOKEN.encode()
    secrets = (ROOT_TOKEN,)
    said = refused(lambda: VaultService(bare, token).current, secrets=secrets)
    assert "certificate does not verify" in said
    other = Authority(tmp_path)
    said = refused(lambda: VaultService(f"{bare}?ca={other.ca}", token).current, secrets=secrets)
    assert "certificate does not verify" in said
    said = refused(lambda: VaultService(f"{bare}?ca=/none", token).current, secrets=secrets)
    assert "cannot be read" in said


def test_the_environment_does_not_switch_verification_off(
    server: VaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VAULT_SKIP_VERIFY", "VAULT_TOKEN"):
        monkeypatch.setenv(name, "true")
    bare = server.uri("plain").partition("?")[0].removeprefix("vault:")
    said = refused(lambda: VaultService(bare, ROOT_TOKEN.encode()).current)
    assert "certificate does not verify" in said


class _Gone:
    """Takes a service's requests; from a certain one on, the connection is broken: before the
    request reaches the server, or (lost) after it was carried out."""

    def __init__(self, service: VaultService, fails_at: int, lost: bool) -> None:
        self._session = service._client.session
        self._real, self.fails_at, self._lost = self._session.request, fails_at, lost
        self.requests = 0
        self._session.request = self

    def __call__(self, **given: Any) -> Any:
        import requests

        number, self.requests = self.requests, self.requests + 1
        if number < self.fails_at:
            return self._real(**given)
        if self._lost and number == self.fails_at:
            self._real(**given)
        raise requests.ConnectionError("broken")


@pytest.mark.parametrize("lost", [False, True], ids=["not sent", "answer lost"])
def test_a_connection_that_breaks_at_each_request_of_a_rotation(
    server: VaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """Every object opens afterwards, and a second rotation finishes."""
    monkeypatch.setattr(client, "PAUSE_S", 0.0)
    names, fails_at = ("a", "b"), 0
    while True:
        key = f"breaks-{lost}-{fails_at}"
        server.admin.secrets.transit.create_key(key)
        service = opened(server, key)
        store = Store(tmp_path / key, "ann", service)
        for name in names:
            with store.writing("table", name) as out:
                out.write(name.encode())
        gone = _Gone(service, fails_at, lost)
        try:
            rotate(store)
        except KeyServiceError as error:
            assert "is Vault running" in str(error)
        else:
            break
        again = Store(tmp_path / key, "ann", opened(server, key))
        for _ in range(2):
            for name in names:
                with again.open("table", name) as content:
                    assert content.reader.read() == name.encode(), (fails_at, name)
            done = rotate(again)
        assert {entry.key_id for entry in entries_of(tmp_path / key)} == {done.key}
        fails_at += 1
    assert gone.requests == fails_at > 3 * len(names)


# A server that misbehaves, or that is not there.

KEY = {"type": "aes256-gcm96", "keys": {"1": 1700000000}, "latest_version": 1, "derived": False}


class Stand:
    """A stand-in for Vault: `answers` by the path's second last part, the rest as Vault would."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.plaintext = ""

    def __call__(self, request: Request) -> Answer:
        what = request.path.split("/")[3]
        if what == "encrypt":
            self.plaintext = json.loads(request.body)["plaintext"]
        if what in self.answers:
            return self.answers[what]
        bodies = {
            "keys": {"data": KEY},
            "encrypt": {"data": {"ciphertext": "vault:v1:AAAA"}},
            "decrypt": {"data": {"plaintext": self.plaintext}},
        }
        return Answer(200, bodies.get(what, {}))


@pytest.fixture
def stand() -> Stand:
    return Stand()


@pytest.fixture
def spoilt(
    tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[VaultService, list[Request]]]:
    monkeypatch.setattr(client, "PAUSE_S", 0.01)
    authority = Authority(tmp_path)
    with https_server(authority, stand) as (port, asked):
        rest = f"//127.0.0.1:{port}/transit/mpc?ca={authority.ca}"
        yield VaultService(rest, b"token-of-a-test"), asked


@pytest.mark.parametrize(
    ("what", "answer", "said"),
    [
        ("keys", Answer(200, "not JSON"), "without JSON"),
        ("keys", Answer(200, {}), "cannot be read"),
        ("keys", Answer(200, {"data": KEY | {"latest_version": 7}}), "not among its versions"),
        ("keys", Answer(200, {"data": KEY | {"keys": "none"}}), "cannot be read"),
        ("keys", Answer(307, "", {"Location": "https://elsewhere/v1/"}), "status 307"),
        ("encrypt", Answer(200, {"data": {}}), "cannot be read"),
        ("encrypt", Answer(200, {"data": {"ciphertext": 7}}), "no ciphertext"),
        ("encrypt", Answer(200, {"data": {"ciphertext": "v1:AAAA"}}), "no ciphertext"),
        ("encrypt", Answer(200, {"data": {"ciphertext": "vault:v1:" + "A" * 20000}}), "16384"),
        ("encrypt", Answer(200, {"data": {"ciphertext": "vault:v9:AAAA"}}), "does not list"),
        ("encrypt", Answer(503, {"errors": ["Vault is sealed"]}), "is sealed"),
        ("encrypt", Answer(500, {"errors": ["token-of-a-test"]}), "failing"),
        ("encrypt", Answer(400, {"errors": ["x" * 9999]}), "Vault refuses"),
        ("encrypt", Answer(429, {"errors": []}), "overloaded"),
        ("encrypt", Answer(0), "no connection"),
        ("decrypt", Answer(200, {"data": {"plaintext": "AAAA"}}), "no key of 32 bytes"),
        ("decrypt", Answer(200, {"data": {"plaintext": "?"}}), "cannot be read"),
        ("decrypt", Answer(400, {"errors": ["invalid ciphertext"]}), "does not open"),
        ("decrypt", Answer(403, {"errors": ["permission denied"]}), "refuses the token"),
        ("decrypt", Answer(400, {"errors": ["encryption key not found"]}), "not found"),
    ],
)
def test_answers_that_cannot_be_used(
    spoilt: tuple[VaultService, list[Request]], stand: Stand, what: str, answer: Answer, said: str
) -> None:
    service, asked = spoilt
    stand.answers[what] = answer

    def use() -> None:
        service.unwrap(*service.wrap(FILE_KEY, INFO), INFO)

    message = refused(use, secrets=("token-of-a-test",))
    assert said in message and service.uri in message and len(message) < 600
    tries = [request for request in asked if request.path.split("/")[3] == what]
    is_passing = answer.status in (0, 429, 500, 503)
    assert len(tries) == (client.ATTEMPTS if is_passing else 1)
    del stand.answers[what]
    assert service.unwrap(*service.wrap(FILE_KEY, INFO), INFO) == FILE_KEY


def test_another_authority_is_refused(
    spoilt: tuple[VaultService, list[Request]], tmp_path: Path
) -> None:
    """Nothing is sent, the token neither."""
    service, asked = spoilt
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    rest = service.uri.removeprefix("vault:").partition("?")[0]
    said = refused(lambda: VaultService(f"{rest}?ca={other.ca}", b"token-of-a-test").current)
    assert "certificate does not verify" in said and asked == []


def test_redirects_are_not_followed(tmp_path: Path, stand: Stand) -> None:
    """They would carry the token to whatever server they name."""
    authority = Authority(tmp_path)
    with https_server(authority, stand) as (port, asked):
        location = f"https://127.0.0.1:{port}/v1/transit/keys/mpc"
        to_it = Answer(307, "", {"Location": location})
        with https_server(authority, lambda _: to_it) as (first, _):
            rest = f"//127.0.0.1:{first}/transit/mpc?ca={authority.ca}"
            said = refused(lambda: VaultService(rest, b"token-of-a-test").current)
        assert "active server" in said and asked == []


def test_a_slow_server_is_given_up(
    spoilt: tuple[VaultService, list[Request]], stand: Stand
) -> None:
    service, asked = spoilt
    service._client._adapter._kwargs["timeout"] = 0.2
    stand.answers["encrypt"] = Answer(200, {"data": {}}, delay_s=2.0)
    assert "no answer within" in refused(lambda: service.wrap(FILE_KEY, INFO))
    assert sum("/encrypt/" in request.path for request in asked) == client.ATTEMPTS


def test_a_rotation_is_not_repeated(
    spoilt: tuple[VaultService, list[Request]], stand: Stand
) -> None:
    service, asked = spoilt
    stand.answers["keys"] = Answer(200, {"data": KEY})
    assert "it did not" in refused(service.rotate)
    assert sum(request.path.endswith("/rotate") for request in asked) == 1


def test_what_leaves_the_machine(
    spoilt: tuple[VaultService, list[Request]], caplog: pytest.LogCaptureFixture
) -> None:
    """A masked key of 32 bytes, a hash, and the token in its header; nothing of the object."""
    service, asked = spoilt
    with caplog.at_level(logging.DEBUG):
        _, wrapped = service.wrap(FILE_KEY, INFO)
    (body,) = [json.loads(request.body) for request in asked if "/encrypt/" in request.path]
    assert set(body) == {"plaintext", "associated_data"}
    mask, _ = client.Mask.split(wrapped, INFO)
    assert base64.b64decode(body["associated_data"]) == mask.bound != client.binding(INFO)
    assert mask.applied(base64.b64decode(body["plaintext"])) == FILE_KEY
    for secret in ("token-of-a-test", body["plaintext"]):
        assert secret not in caplog.text
    assert {request.headers.get("X-Vault-Token") for request in asked} == {"token-of-a-test"}


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE_S", 0.01)
    service = VaultService("//127.0.0.1:1/transit/mpc", b"token-of-a-test")
    said = refused(lambda: service.current, secrets=("token-of-a-test",))
    assert "is Vault running" in said


def test_a_token_that_is_none() -> None:
    for token in (b"", b"two words", b"line\nend", "müde".encode()):
        said = refused(lambda token=token: VaultService("//h/transit/mpc", token))  # type: ignore
        assert "holds no token" in said


@pytest.mark.parametrize(
    ("rest", "url"),
    [
        ("//vault.example.org/transit/mpc", "https://vault.example.org:8200 transit mpc"),
        ("//vault:8443/a/b/mpc-1", "https://vault:8443 a/b mpc-1"),
        ("//[::1]:8200/transit/mpc?ca=/etc/ca.pem", "https://[::1]:8200 transit mpc"),
        ("//[::1]/transit/mpc", "https://[::1]:8200 transit mpc"),
        ("/vault/transit/mpc", ""),
        ("//vault/mpc", ""),
        ("//vault:0/transit/mpc", ""),
        ("//vault:x/transit/mpc", ""),
        ("//vault:70000/transit/mpc", ""),
        ("//vault/transit/../mpc", ""),
        ("//vault/transit//mpc", ""),
        ("//vault/transit/mpc?ca=ca.pem", ""),
        ("//vault/transit/mpc?verify=false", ""),
        ("//vault/transit/mpc?ca=/a&ca=/b", ""),
        ("//token@vault/transit/mpc", ""),
        ("//vault/transit/mpc#1", ""),
    ],
)
def test_uris(rest: str, url: str) -> None:
    if url:
        place = parse(rest)
        assert f"{place.url} {place.mount} {place.key}" == url
    else:
        with pytest.raises(ValueError):
            parse(rest)
