"""Keys in Google Cloud KMS: a stand-in that serves its published definition over TLS."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parties.keys.services import client, gcp_service
from parties.keys.services.gcp_service import GcpService, crc32c, parse
from tests.support.certificates import Authority
from tests.support.google_server import (
    NAME,
    GoogleServer,
    Stop,
    castagnoli,
    credentials,
    google_server,
)
from tests.support.key_contract import (
    FILE_KEY,
    INFO,
    check_doctor,
    check_rotation,
    check_wrapping,
    refused,
)

pytest.importorskip("google.cloud.kms_v1", reason="google-cloud-kms is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("google")
    credentials(made / "account.json")
    return made


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GoogleServer]:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(folder / "account.json"))
    monkeypatch.setattr(client, "PAUSE_S", 0.01)
    with google_server(Authority(folder)) as started:
        yield started


def opened(server: GoogleServer, name: str = NAME) -> GcpService:
    return GcpService(server.uri(name).removeprefix("gcp-kms:"))


def test_a_key(server: GoogleServer) -> None:
    check_wrapping(lambda: opened(server))
    check_doctor(lambda: opened(server))
    check_rotation(lambda: opened(server))
    assert server.versions[1][1] == "DESTROY_SCHEDULED"
    assert all(token.startswith("Bearer ") for token in server.tokens) and server.tokens


def test_crc32c() -> None:
    """RFC 3720, appendix B.4; and another way to compute it."""
    vectors = {
        bytes(32): 0x8A9136AA,
        b"\xff" * 32: 0x62A8AB43,
        bytes(range(32)): 0x46DD794E,
        bytes(range(31, -1, -1)): 0x113FDB5C,
        b"123456789": 0xE3069283,
    }
    for data, value in vectors.items():
        assert crc32c(data) == value == castagnoli(data)


@pytest.mark.parametrize(
    ("method", "field", "value", "said"),
    [
        ("Encrypt", "ciphertext_crc32c", 7, "damaged on the way"),
        ("Encrypt", "verified_plaintext_crc32c", False, "did not get what was sent"),
        ("Encrypt", "verified_additional_authenticated_data_crc32c", False, "did not get"),
        ("Encrypt", "name", f"{NAME}-other/cryptoKeyVersions/1", "another key"),
        ("Encrypt", "name", f"{NAME}/cryptoKeyVersions/x", "another key"),
        ("Decrypt", "plaintext_crc32c", 7, "damaged on the way"),
        ("Decrypt", "plaintext", b"short", "damaged on the way"),
        ("GetCryptoKey", "name", NAME + "-other", "another key"),
        ("GetCryptoKey", "purpose", 5, "another kind"),
    ],
)
def test_answers_that_cannot_be_used(
    server: GoogleServer, method: str, field: str, value: Any, said: str
) -> None:
    def spoil(name: str, answer: Any) -> Any:
        if name == method:
            setattr(answer, field, value)
        return answer

    service = opened(server)
    server.spoil = spoil

    def use() -> None:
        assert service.current
        service.unwrap(*service.wrap(FILE_KEY, INFO), INFO)

    message = refused(use)
    assert said in message and service.uri in message
    server.spoil = lambda _, answer: answer
    assert service.unwrap(*service.wrap(FILE_KEY, INFO), INFO) == FILE_KEY


def test_what_is_not_as_long_as_a_key_is_refused(server: GoogleServer) -> None:
    def spoil(name: str, answer: Any) -> Any:
        if name == "Decrypt":
            answer.plaintext, answer.plaintext_crc32c = b"short", castagnoli(b"short")
        if name == "Encrypt" and too_large:
            answer.ciphertext = bytes(1 << 15)
            answer.ciphertext_crc32c = castagnoli(answer.ciphertext)
        return answer

    too_large = False
    service = opened(server)
    kept = service.wrap(FILE_KEY, INFO)
    server.spoil = spoil
    assert "no key of 32 bytes" in refused(lambda: service.unwrap(*kept, INFO))
    too_large = True
    assert "16384" in refused(lambda: service.wrap(FILE_KEY, INFO))


def failing(times: int, code: str) -> Any:
    """A service that answers `code` so many times."""
    import grpc

    left = iter(range(times))

    def spoil(name: str, answer: Any) -> Any:
        if next(left, None) is not None:
            raise Stop(grpc.StatusCode[code], "of a test")
        return answer

    return spoil


@pytest.mark.parametrize(
    ("code", "tries", "said"),
    [
        ("UNAVAILABLE", client.ATTEMPTS, "is failing"),
        ("INTERNAL", client.ATTEMPTS, "is failing"),
        ("RESOURCE_EXHAUSTED", client.ATTEMPTS, "is failing"),
        ("PERMISSION_DENIED", 1, "refuses the credentials"),
        ("UNAUTHENTICATED", 1, "refuses the credentials"),
        ("NOT_FOUND", 1, "no such key"),
        ("FAILED_PRECONDITION", 1, "disabled or destroyed"),
        ("ABORTED", 1, "refuses"),
    ],
)
def test_refusals(server: GoogleServer, code: str, tries: int, said: str) -> None:
    service = opened(server)
    server.spoil = failing(99, code)
    assert said in refused(lambda: service.wrap(FILE_KEY, INFO))
    assert len(server.asked) == tries
    server.spoil = failing(client.ATTEMPTS - 1, "UNAVAILABLE")
    assert service.wrap(FILE_KEY, INFO)[0].endswith("/1")


def test_versions_that_cannot_be_used(server: GoogleServer) -> None:
    service = opened(server)
    kept = service.wrap(FILE_KEY, INFO)
    server.versions[1] = (server.versions[1][0], "DISABLED")
    assert "disabled or destroyed" in refused(lambda: service.unwrap(*kept, INFO))
    assert "not enabled" in refused(lambda: opened(server).current)
    assert "no such key" in refused(lambda: opened(server, NAME + "-none").current)


def test_a_new_version_is_waited_for(server: GoogleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcp_service, "POLL_S", 0.01)
    looks = 0

    def spoil(name: str, answer: Any) -> Any:
        nonlocal looks
        if name == "CreateCryptoKeyVersion" or (name == "GetCryptoKeyVersion" and looks < 3):
            looks += 1
            answer.state = "PENDING_GENERATION"
        return answer

    server.spoil = spoil
    assert opened(server).rotate().endswith("/2") and looks == 3
    monkeypatch.setattr(gcp_service, "GENERATION_S", 0.03)
    looks = -1000
    service = opened(server)
    assert "cannot be used yet" in refused(service.rotate)
    assert service.current.endswith("/2"), "the old version goes on wrapping"


def test_a_rotation_is_not_repeated(server: GoogleServer) -> None:
    """A version whose answer was lost is left behind; a second one is not made at once."""
    service = opened(server)
    server.spoil = failing(1, "UNAVAILABLE")
    assert "make a new version" in refused(service.rotate)
    assert [name for name, _ in server.asked] == ["CreateCryptoKeyVersion"]
    server.spoil = lambda _, answer: answer
    assert service.rotate().endswith("/3")


def test_what_the_credentials_lack(
    server: GoogleServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.granted = ("cloudkms.cryptoKeys.update",)
    said = refused(opened(server).check_rotation)
    assert "cloudkms.cryptoKeyVersions.create" in said
    assert "cloudkms.cryptoKeys.update" not in said
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none"))
    assert "credentials cannot be used" in refused(lambda: opened(server))


def test_a_server_that_cannot_be_verified(server: GoogleServer, tmp_path: Path) -> None:
    bare = f"{NAME}?endpoint=127.0.0.1:{server.port}"
    assert "certificate does not verify" in refused(lambda: GcpService(bare).current)
    other = Authority(tmp_path)
    assert "does not verify" in refused(lambda: GcpService(f"{bare}&ca={other.ca}").current)
    assert "cannot be read" in refused(lambda: GcpService(f"{bare}&ca=/none"))


def test_a_slow_server_is_given_up(server: GoogleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(_: str, answer: Any) -> Any:
        time.sleep(1)
        return answer

    monkeypatch.setitem(gcp_service._LIMITS, "timeout", 0.2)
    service = opened(server)
    server.spoil = slow
    assert "no answer within" in refused(lambda: service.current)


def test_what_leaves_the_machine(server: GoogleServer, caplog: pytest.LogCaptureFixture) -> None:
    service = opened(server)
    with caplog.at_level(logging.DEBUG):
        _, wrapped = service.wrap(FILE_KEY, INFO)
    ((name, request),) = server.asked
    assert name == "Encrypt"
    mask, _ = client.Mask.split(wrapped, INFO)
    assert request.additional_authenticated_data == mask.bound
    assert request.plaintext == mask.applied(FILE_KEY) != FILE_KEY
    assert str(request.plaintext) not in caplog.text


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "projects/p/cryptoKeys/k",
        f"{NAME}/cryptoKeyVersions/1",
        f"{NAME}?endpoint=https://host",
        f"{NAME}?endpoint=host",
        f"{NAME}?ca=ca.pem",
        f"{NAME}?key=value",
    ],
)
def test_uris_that_are_wrong(rest: str) -> None:
    with pytest.raises(ValueError):
        parse(rest)
    assert parse(NAME).endpoint == ""
