"""Google Cloud KMS as its published service definition describes it, in memory, over TLS.

A stand-in: messages and method names are those of the package, the behaviour is written after the
reference. `spoil` lets a test change an answer, or raise in its place.
"""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.support.certificates import Authority

SERVICE = "google.cloud.kms.v1.KeyManagementService"
NAME = "projects/study/locations/europe-west3/keyRings/nodes/cryptoKeys/vault"


def castagnoli(data: bytes) -> int:
    """CRC-32C, bit by bit: written apart from the one that it checks."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 * (value & 1))
    return value ^ 0xFFFFFFFF


class Stop(Exception):
    """The status that a method ends with."""

    def __init__(self, code: Any, words: str) -> None:
        self.code, self.words = code, words


@dataclass
class GoogleServer:
    """versions: by number, the key and its state. spoil: given a method and its answer."""

    port: int
    authority: Authority
    versions: dict[int, tuple[bytes, str]] = field(default_factory=dict)
    primary: int = 1
    purpose: str = "ENCRYPT_DECRYPT"
    granted: tuple[str, ...] = ("cloudkms.cryptoKeyVersions.create", "cloudkms.cryptoKeys.update")
    spoil: Callable[[str, Any], Any] = lambda _, answer: answer
    asked: list[tuple[str, Any]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def uri(self, name: str = NAME) -> str:
        return f"gcp-kms:{name}?endpoint=127.0.0.1:{self.port}&ca={self.authority.ca}"


def credentials(path: Path) -> None:
    """A service account's file; its key signs tokens, for which no other server is asked."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = {
        "type": "service_account",
        "project_id": "study",
        "private_key_id": "1",
        "private_key": pem.decode(),
        "client_email": "node@study.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": "https://127.0.0.1:1/token",
    }
    path.write_text(json.dumps(account))


@contextmanager
def google_server(authority: Authority) -> Iterator[GoogleServer]:
    grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
    kms = pytest.importorskip("google.cloud.kms_v1", reason="google-cloud-kms is not installed")
    from google.iam.v1 import iam_policy_pb2

    codes = grpc.StatusCode
    here = GoogleServer(0, authority, {1: (os.urandom(32), "ENABLED")})

    def version_of(number: int) -> Any:
        state = kms.CryptoKeyVersion.CryptoKeyVersionState[here.versions[number][1]]
        return kms.CryptoKeyVersion(name=f"{NAME}/cryptoKeyVersions/{number}", state=state)

    def key() -> Any:
        purpose = kms.CryptoKey.CryptoKeyPurpose[here.purpose]
        return kms.CryptoKey(name=NAME, purpose=purpose, primary=version_of(here.primary))

    def known(name: str) -> None:
        if name != NAME:
            raise Stop(codes.NOT_FOUND, f"CryptoKey {name} not found.")

    def number_of(name: str) -> int:
        parent, _, number = name.rpartition("/cryptoKeyVersions/")
        known(parent)
        if int(number) not in here.versions:
            raise Stop(codes.NOT_FOUND, "CryptoKeyVersion not found.")
        return int(number)

    def key_of(number: int) -> bytes:
        if number not in here.versions:
            raise Stop(codes.INVALID_ARGUMENT, "Decryption failed: the ciphertext is invalid.")
        value, state = here.versions[number]
        if state != "ENABLED":
            raise Stop(codes.FAILED_PRECONDITION, f"version {number} is not enabled: {state}")
        return value

    def checked(data: bytes, crc: int | None) -> bool:
        if crc is not None and crc != castagnoli(data):
            raise Stop(codes.INVALID_ARGUMENT, "The checksum did not match the data.")
        return crc is not None

    def encrypt(request: Any) -> Any:
        known(request.name)
        bound = request.additional_authenticated_data
        nonce, number = os.urandom(12), here.primary
        sealed = AESGCM(key_of(number)).encrypt(nonce, request.plaintext, bound)
        data = number.to_bytes(4, "big") + nonce + sealed
        return kms.EncryptResponse(
            name=f"{NAME}/cryptoKeyVersions/{number}",
            ciphertext=data,
            ciphertext_crc32c=castagnoli(data),
            verified_plaintext_crc32c=checked(request.plaintext, request.plaintext_crc32c),
            verified_additional_authenticated_data_crc32c=checked(
                bound, request.additional_authenticated_data_crc32c
            ),
        )

    def decrypt(request: Any) -> Any:
        known(request.name)
        checked(request.ciphertext, request.ciphertext_crc32c)
        bound = request.additional_authenticated_data
        checked(bound, request.additional_authenticated_data_crc32c)
        data = request.ciphertext
        number = int.from_bytes(data[:4], "big")
        try:
            plain = AESGCM(key_of(number)).decrypt(data[4:16], data[16:], bound)
        except (InvalidTag, ValueError):
            words = "Decryption failed: the ciphertext is invalid."
            raise Stop(codes.INVALID_ARGUMENT, words) from None
        return kms.DecryptResponse(
            plaintext=plain,
            plaintext_crc32c=castagnoli(plain),
            used_primary=number == here.primary,
        )

    def create(request: Any) -> Any:
        known(request.parent)
        number = max(here.versions) + 1
        here.versions[number] = (os.urandom(32), "ENABLED")
        return version_of(number)

    def promote(request: Any) -> Any:
        known(request.name)
        key_of(int(request.crypto_key_version_id))
        here.primary = int(request.crypto_key_version_id)
        return key()

    def destroy(request: Any) -> Any:
        number = number_of(request.name)
        here.versions[number] = (here.versions[number][0], "DESTROY_SCHEDULED")
        return version_of(number)

    def get(request: Any) -> Any:
        known(request.name)
        return key()

    def versions(request: Any) -> Any:
        known(request.parent)
        return kms.ListCryptoKeyVersionsResponse(
            crypto_key_versions=[version_of(number) for number in here.versions]
        )

    def permissions(request: Any) -> Any:
        known(request.resource)
        return iam_policy_pb2.TestIamPermissionsResponse(
            permissions=[each for each in request.permissions if each in here.granted]
        )

    def served(name: str, method: Callable[[Any], Any], decode: Any, encode: Any) -> Any:
        def serve(request: Any, context: Any) -> Any:
            here.asked.append((name, request))
            here.tokens |= {v for k, v in context.invocation_metadata() if k == "authorization"}
            try:
                return here.spoil(name, method(request))
            except Stop as stop:
                context.abort(stop.code, stop.words)

        return grpc.unary_unary_rpc_method_handler(serve, decode, encode)

    def handler(name: str, method: Callable[[Any], Any], request: Any, answer: Any) -> Any:
        return served(name, method, request.deserialize, answer.serialize)

    methods = {
        "Encrypt": handler("Encrypt", encrypt, kms.EncryptRequest, kms.EncryptResponse),
        "Decrypt": handler("Decrypt", decrypt, kms.DecryptRequest, kms.DecryptResponse),
        "GetCryptoKey": handler("GetCryptoKey", get, kms.GetCryptoKeyRequest, kms.CryptoKey),
        "GetCryptoKeyVersion": handler(
            "GetCryptoKeyVersion",
            lambda request: version_of(number_of(request.name)),
            kms.GetCryptoKeyVersionRequest,
            kms.CryptoKeyVersion,
        ),
        "CreateCryptoKeyVersion": handler(
            "CreateCryptoKeyVersion",
            create,
            kms.CreateCryptoKeyVersionRequest,
            kms.CryptoKeyVersion,
        ),
        "UpdateCryptoKeyPrimaryVersion": handler(
            "UpdateCryptoKeyPrimaryVersion",
            promote,
            kms.UpdateCryptoKeyPrimaryVersionRequest,
            kms.CryptoKey,
        ),
        "DestroyCryptoKeyVersion": handler(
            "DestroyCryptoKeyVersion",
            destroy,
            kms.DestroyCryptoKeyVersionRequest,
            kms.CryptoKeyVersion,
        ),
        "ListCryptoKeyVersions": handler(
            "ListCryptoKeyVersions",
            versions,
            kms.ListCryptoKeyVersionsRequest,
            kms.ListCryptoKeyVersionsResponse,
        ),
    }
    policy = {
        "TestIamPermissions": served(
            "TestIamPermissions",
            permissions,
            iam_policy_pb2.TestIamPermissionsRequest.FromString,
            iam_policy_pb2.TestIamPermissionsResponse.SerializeToString,
        )
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(SERVICE, methods),
            grpc.method_handlers_generic_handler("google.iam.v1.IAMPolicy", policy),
        )
    )
    secure = grpc.ssl_server_credentials(
        [(authority.key.read_bytes(), authority.cert.read_bytes())]
    )
    here.port = server.add_secure_port("127.0.0.1:0", secure)
    server.start()
    try:
        yield here
    finally:
        server.stop(0).wait()
