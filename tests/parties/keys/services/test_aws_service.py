"""Keys in AWS KMS: as `moto` plays it over HTTPS, and a stand-in where it misbehaves."""

import base64
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from parties.errors import KeyServiceError
from parties.keys.services import aws_service, client
from parties.keys.services.aws_service import MAX_PAGES, AwsService, parse
from tests.support.aws_server import AwsServer, aws_server
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

pytest.importorskip("boto3", reason="boto3 is not installed")

SECRET = "the-secret-access-key"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the SDK finds them; nothing of the machine's own."""
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "node")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsServer]:
    with aws_server(Authority(tmp_path_factory.mktemp("aws"))) as started:
        yield started


def opened(server: AwsServer, name: str) -> AwsService:
    return AwsService(server.uri(name).removeprefix("aws-kms:"))


@pytest.mark.parametrize("by", ["arn", "alias"])
def test_a_key_of_moto(server: AwsServer, by: str) -> None:
    arn = server.key(f"vault-{by}")
    name = arn if by == "arn" else f"alias/vault-{by}"
    check_wrapping(lambda: opened(server, name))
    check_doctor(lambda: opened(server, name))
    check_rotation(lambda: opened(server, name), retires=False)
    assert opened(server, name).current.startswith(f"aws-kms:{arn}#")


def test_another_key_is_refused_by_name(server: AwsServer) -> None:
    """Also where an alias names another key now: what the disk says is not followed."""
    server.key("moving")
    kept = opened(server, "alias/moving").wrap(FILE_KEY, INFO)
    other = server.key()
    server.admin.update_alias(AliasName="alias/moving", TargetKeyId=other.rpartition("/")[2])
    said = refused(lambda: opened(server, "alias/moving").unwrap(*kept, INFO))
    assert kept[0] in said and f"it is {other} now" in said
    first = kept[0].removeprefix("aws-kms:").partition("#")[0]
    assert opened(server, first).unwrap(*kept, INFO) == FILE_KEY


@pytest.mark.parametrize("change", ["disabled", "deleted"])
def test_keys_that_cannot_be_used(server: AwsServer, change: str) -> None:
    arn = server.key()
    number = arn.rpartition("/")[2]
    if change == "disabled":
        server.admin.disable_key(KeyId=number)
    else:
        server.admin.schedule_key_deletion(KeyId=number)
    said = refused(lambda: opened(server, arn).wrap(FILE_KEY, INFO))
    assert ("Disabled" if change == "disabled" else "PendingDeletion") in said


def test_keys_that_are_not_there_or_of_another_kind(server: AwsServer) -> None:
    arn = server.key(KeySpec="RSA_2048")
    assert "has to be symmetric" in refused(lambda: opened(server, arn).current)
    assert "no such key" in refused(lambda: opened(server, "alias/none").current)
    outside = opened(server, server.key(Origin="EXTERNAL"))
    assert "not rotated" in refused(outside.rotate) or "state is" in refused(outside.rotate)


def test_what_the_sdk_lacks(server: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    arn = server.key()
    bare = f"{arn}?endpoint={server.endpoint}"
    assert "certificate does not verify" in refused(lambda: AwsService(bare).current)
    assert "cannot" in refused(lambda: AwsService(f"{bare}&ca=/none").current)
    assert "needs its region" in refused(lambda: AwsService("alias/vault").current)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:1")
    assert "without TLS" in refused(lambda: AwsService(arn).current)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "finds no credentials" in refused(lambda: opened(server, arn).current)


# A server that misbehaves, or that is not there.

ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd"
OTHER = ARN[:-1] + "e"
DATA = {
    "Arn": ARN,
    "KeyId": "1234abcd",
    "KeyState": "Enabled",
    "KeySpec": "SYMMETRIC_DEFAULT",
    "KeyUsage": "ENCRYPT_DECRYPT",
    "KeyManager": "CUSTOMER",
    "Origin": "AWS_KMS",
    "CurrentKeyMaterialId": "aaaa",
}


class Stand:
    """A stand-in for AWS KMS: `answers` by operation, the rest as AWS would."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[], Answer]] = {}
        self.plaintext = ""

    def __call__(self, request: Request) -> Answer:
        operation = operation_of(request)
        if operation == "Encrypt":
            self.plaintext = json.loads(request.body)["Plaintext"]
        if operation in self.answers:
            return self.answers[operation]()
        wrapped = base64.b64encode(b"wrapped").decode()
        bodies: dict[str, Any] = {
            "DescribeKey": {"KeyMetadata": DATA},
            "Encrypt": {"KeyId": ARN, "CiphertextBlob": wrapped},
            "Decrypt": {"KeyId": ARN, "Plaintext": self.plaintext},
            "GetKeyRotationStatus": {"KeyRotationEnabled": False},
            "RotateKeyOnDemand": {"KeyId": ARN},
        }
        return Answer(200, bodies[operation])


def operation_of(request: Request) -> str:
    return request.headers["X-Amz-Target"].partition(".")[2]


Spoilt = tuple[AwsService, Stand, list[Request]]


@pytest.fixture
def spoilt(tmp_path: Path) -> Iterator[Spoilt]:
    authority, stand = Authority(tmp_path), Stand()
    with https_server(authority, stand) as (port, asked):
        rest = f"{ARN}?endpoint=https://127.0.0.1:{port}&ca={authority.ca}"
        yield AwsService(rest), stand, asked


def failure(code: str, status: int = 400) -> Answer:
    return Answer(status, {"__type": code, "message": "of a test"})


@pytest.mark.parametrize(
    ("operation", "answer", "said"),
    [
        ("DescribeKey", Answer(200, {}), "cannot be read"),
        ("DescribeKey", Answer(200, {"KeyMetadata": {}}), "cannot be read"),
        ("DescribeKey", Answer(200, {"KeyMetadata": DATA | {"Arn": "x"}}), "another key"),
        ("DescribeKey", Answer(200, "no JSON"), "cannot"),
        ("Encrypt", Answer(200, {}), "cannot be read"),
        ("Encrypt", Answer(200, {"KeyId": OTHER, "CiphertextBlob": "AAAA"}), "another key"),
        ("Encrypt", Answer(200, {"KeyId": ARN, "CiphertextBlob": ""}), "32 to 16384"),
        ("Encrypt", Answer(200, {"KeyId": ARN, "CiphertextBlob": "A" * 40000}), "32 to 16384"),
        ("Encrypt", failure("DisabledException"), "disabled"),
        ("Encrypt", failure("AccessDeniedException"), "refuses the credentials"),
        ("Encrypt", failure("ThrottlingException"), "refuses"),
        ("Encrypt", failure("KMSInternalException", 500), "refuses"),
        ("Encrypt", Answer(0), "no connection"),
        ("Decrypt", Answer(200, {"KeyId": OTHER, "Plaintext": "AAAA"}), "another key"),
        ("Decrypt", Answer(200, {"KeyId": ARN, "Plaintext": "AAAA"}), "no key of 32 bytes"),
        ("Decrypt", failure("InvalidCiphertextException"), "does not open"),
        ("Decrypt", failure("IncorrectKeyException"), "does not open"),
        ("Decrypt", failure("KMSInvalidStateException"), "being deleted"),
        ("Decrypt", failure("ExpiredTokenException"), "refuses the credentials"),
    ],
)
def test_answers_that_cannot_be_used(
    spoilt: Spoilt, operation: str, answer: Answer, said: str
) -> None:
    service, stand, _ = spoilt
    stand.answers[operation] = lambda: answer

    def use() -> None:
        service.unwrap(*service.wrap(FILE_KEY, INFO), INFO)

    message = refused(use, secrets=(SECRET,))
    assert said in message and service.uri in message and len(message) < 800
    del stand.answers[operation]
    assert service.unwrap(*service.wrap(FILE_KEY, INFO), INFO) == FILE_KEY


def test_a_list_of_rotations_without_end_is_given_up(spoilt: Spoilt) -> None:
    """Empty pages, each of which promises another one."""
    service, stand, asked = spoilt
    data = {key: value for key, value in DATA.items() if key != "CurrentKeyMaterialId"}
    page = {"Rotations": [], "Truncated": True, "NextMarker": "more"}
    stand.answers["DescribeKey"] = lambda: Answer(200, {"KeyMetadata": data})
    stand.answers["ListKeyRotations"] = lambda: Answer(200, page)
    assert "the list of rotations has no end" in refused(lambda: service.current)
    assert len(asked) <= 1 + MAX_PAGES


def test_a_slow_server_is_given_up(spoilt: Spoilt, monkeypatch: pytest.MonkeyPatch) -> None:
    _, stand, asked = spoilt
    monkeypatch.setattr(aws_service, "TIMEOUT_S", 0.2)
    stand.answers["DescribeKey"] = lambda: Answer(200, {}, delay_s=2.0)
    slow = AwsService(spoilt[0].uri.removeprefix("aws-kms:"))
    assert "no answer within" in refused(lambda: slow.current)
    assert len(asked) == client.ATTEMPTS


def test_a_rotation_is_waited_for(spoilt: Spoilt, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS KMS makes new material in the background, and names what wraps."""
    service, stand, asked = spoilt
    monkeypatch.setattr(aws_service, "POLL_S", 0.01)
    first = service.current
    assert first == f"aws-kms:{ARN}#aaaa"
    looks = iter([DATA] * 3)

    def described() -> Answer:
        return Answer(200, {"KeyMetadata": next(looks, DATA | {"CurrentKeyMaterialId": "bbbb"})})

    stand.answers["DescribeKey"] = described
    assert service.rotate() == f"aws-kms:{ARN}#bbbb" == service.current
    assert [operation_of(each) for each in asked].count("RotateKeyOnDemand") == 1


def test_a_rotation_that_takes_longer_is_found_again(
    spoilt: Spoilt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not asked for twice: AWS KMS counts them."""
    service, stand, asked = spoilt
    monkeypatch.setattr(aws_service, "POLL_S", 0.01)
    monkeypatch.setattr(aws_service, "ROTATION_S", 0.05)
    assert "still making the new key" in refused(service.rotate)
    status = {"KeyRotationEnabled": False, "OnDemandRotationStartDate": 1700000000}
    stand.answers["GetKeyRotationStatus"] = lambda: Answer(200, status)
    assert "still making the new key" in refused(service.rotate)
    assert [operation_of(each) for each in asked].count("RotateKeyOnDemand") == 1


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("UnsupportedOperationException", "does not rotate this key"),
        ("LimitExceededException", "not so often"),
    ],
)
def test_keys_that_do_not_rotate(spoilt: Spoilt, code: str, said: str) -> None:
    service, stand, _ = spoilt
    stand.answers["RotateKeyOnDemand"] = lambda: failure(code)
    assert said in refused(service.rotate)
    stand.answers["GetKeyRotationStatus"] = lambda: failure(code)
    assert said in refused(service.check_rotation)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"KeyManager": "AWS"}, "only AWS rotates"), ({"Origin": "EXTERNAL"}, "from outside")],
)
def test_keys_of_kinds_that_do_not_rotate(
    spoilt: Spoilt, change: dict[str, str], said: str
) -> None:
    service, stand, _ = spoilt
    stand.answers["DescribeKey"] = lambda: Answer(200, {"KeyMetadata": DATA | change})
    for call in (service.rotate, service.check_rotation):
        assert said in refused(call)
    assert service.unwrap(*service.wrap(FILE_KEY, INFO), INFO) == FILE_KEY


def test_what_leaves_the_machine(spoilt: Spoilt, caplog: pytest.LogCaptureFixture) -> None:
    service, _, asked = spoilt
    with caplog.at_level(logging.DEBUG):
        _, wrapped = service.wrap(FILE_KEY, INFO)
    mask, _ = client.Mask.split(wrapped, INFO)
    sent = json.loads(asked[-1].body)
    assert sent == {
        "KeyId": ARN,
        "Plaintext": base64.b64encode(mask.applied(FILE_KEY)).decode(),
        "EncryptionContext": {"mpc-train": mask.bound.hex()},
    }
    for secret in (SECRET, sent["Plaintext"]):
        assert secret not in caplog.text
    assert SECRET not in repr(service)


@pytest.mark.parametrize(
    ("rest", "region"),
    [
        (ARN, "eu-central-1"),
        (f"{ARN}?region=us-east-1", "us-east-1"),
        ("alias/vault", ""),
        ("alias/vault?region=eu-west-1&endpoint=https://10.0.0.1:8443", "eu-west-1"),
        ("arn:aws-us-gov:kms:us-gov-west-1:111122223333:alias/vault", "us-gov-west-1"),
    ],
)
def test_uris(rest: str, region: str) -> None:
    assert parse(rest).region == region


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "vault",
        "alias/",
        "arn:aws:s3:::bucket",
        f"{ARN}?region=",
        f"{ARN}?region=EU",
        f"{ARN}?endpoint=http://127.0.0.1:5000",
        f"{ARN}?endpoint=https://key:secret@host",
        f"{ARN}?profile=admin",
    ],
)
def test_uris_that_are_wrong(rest: str) -> None:
    with pytest.raises((ValueError, KeyServiceError)):
        parse(rest)
