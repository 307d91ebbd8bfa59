"""A key service in Google Cloud KMS: a symmetric key whose versions never leave it.

The object's hash is additional authenticated data. Requests and answers carry CRC32C, which both
sides check (Google Cloud KMS, "Verifying end-to-end data integrity"). Credentials are the
application default ones of the machine.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from parties.errors import KeyServiceError, RetiredKeyError
from parties.keys.services.client import (
    TIMEOUT_S,
    Mask,
    Problem,
    Unusable,
    asked,
    brief,
    imported,
    split_query,
)
from parties.keys.services.service import does_not_open, own_part

SCHEME = "gcp-kms"
EXTRA = "gcp"
GENERATION_S = 30.0
"""How long `rotate` waits until a new version can be used."""
POLL_S = 0.5
MAX_VERSIONS = 10_000
MAX_CA_BYTES = 1 << 20
ROTATING = ("cloudkms.cryptoKeyVersions.create", "cloudkms.cryptoKeys.update")
_PART = r"[A-Za-z0-9_-]{1,63}"
_NAME = re.compile(
    rf"projects/[a-z0-9.:-]{{1,100}}/locations/{_PART}/keyRings/{_PART}/cryptoKeys/{_PART}"
)
_VERSION = re.compile(r"/cryptoKeyVersions/([1-9][0-9]{0,8})")

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """The name of a key, and where Google Cloud KMS is asked; empty: its public address."""

    name: str
    endpoint: str
    ca: str


def parse(rest: str) -> Place:
    """Raises ValueError."""
    name, settings = split_query(rest, ("endpoint", "ca"))
    if not _NAME.fullmatch(name):
        raise ValueError(
            "gcp-kms: is followed by projects/P/locations/L/keyRings/R/cryptoKeys/NAME"
        )
    endpoint = settings.get("endpoint", "")
    if endpoint and not re.fullmatch(r"[A-Za-z0-9.-]+:[0-9]{1,5}", endpoint):
        raise ValueError("endpoint is HOST:PORT")
    return Place(name, endpoint, settings.get("ca", ""))


class GcpService:
    """`gcp-kms:projects/…/cryptoKeys/NAME[?endpoint=…&ca=…]`."""

    def __init__(self, rest: str) -> None:
        self.uri = f"{SCHEME}:{rest}"
        self._place = parse(rest)
        kms = imported("google.cloud.kms_v1", EXTRA, self.uri)
        self._enabled = kms.CryptoKeyVersion.CryptoKeyVersionState.ENABLED
        self._pending = kms.CryptoKeyVersion.CryptoKeyVersionState.PENDING_GENERATION
        self._disabled = kms.CryptoKeyVersion.CryptoKeyVersionState.DISABLED
        self._purpose = kms.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT
        self._client: Any = self._ask("prepare a client", lambda: self._opened(kms))
        self._current = ""

    def _opened(self, kms: Any) -> Any:
        if not self._place.endpoint and not self._place.ca:
            return kms.KeyManagementServiceClient()
        roots = None
        if self._place.ca:
            with open(self._place.ca, "rb") as stream:
                roots = stream.read(MAX_CA_BYTES)
        grpc = imported("grpc", EXTRA, self.uri)
        kind = kms.KeyManagementServiceClient.get_transport_class("grpc")
        host = {"host": self._place.endpoint} if self._place.endpoint else {}
        transport = kind(
            ssl_channel_credentials=grpc.ssl_channel_credentials(roots),
            always_use_jwt_access=True,
            **host,
        )
        return kms.KeyManagementServiceClient(transport=transport)

    @property
    def current(self) -> str:
        return self._current or self._look()

    def wrap(self, file_key: bytes, info: bytes) -> tuple[str, bytes]:
        mask = Mask.new(info)
        bound, hidden = mask.bound, mask.applied(file_key)

        def wrap() -> tuple[str, bytes]:
            answer = self._client.encrypt(
                request={
                    "name": self._place.name,
                    "plaintext": hidden,
                    "plaintext_crc32c": crc32c(hidden),
                    "additional_authenticated_data": bound,
                    "additional_authenticated_data_crc32c": crc32c(bound),
                },
                **_LIMITS,
            )
            if not (
                answer.verified_plaintext_crc32c
                and answer.verified_additional_authenticated_data_crc32c
            ):
                raise Unusable("the service did not get what was sent (CRC32C)")
            _check_crc(answer.ciphertext, answer.ciphertext_crc32c)
            self._number(answer.name)
            return mask.kept(f"{SCHEME}:{answer.name}", answer.ciphertext)

        self._current, wrapped = self._ask("wrap a key", wrap)
        return self._current, wrapped

    def unwrap(self, key_id: str, wrapped: bytes, info: bytes) -> bytes:
        own_part(self.uri, f"{SCHEME}:{self._place.name}/cryptoKeyVersions/", key_id)
        mask, sealed = Mask.split(wrapped, info)
        bound = mask.bound

        def unwrap() -> bytes | KeyServiceError:
            try:
                answer = self._client.decrypt(
                    request={
                        "name": self._place.name,
                        "ciphertext": sealed,
                        "ciphertext_crc32c": crc32c(sealed),
                        "additional_authenticated_data": bound,
                        "additional_authenticated_data_crc32c": crc32c(bound),
                    },
                    **_LIMITS,
                )
            except Exception as error:
                kind = type(error).__name__
                if kind == "InvalidArgument":
                    return does_not_open(self.uri, key_id)
                if kind == "FailedPrecondition":
                    return RetiredKeyError(f"{self.uri}: {_retired(error)}")
                raise
            _check_crc(answer.plaintext, answer.plaintext_crc32c)
            return mask.applied(answer.plaintext)

        found = self._ask("unwrap a key", unwrap)
        if isinstance(found, KeyServiceError):
            raise found
        return found

    def rotate(self) -> str:
        """Make a version, wait until it can be used, and make it the primary one."""

        def create() -> Any:
            answer = self._client.create_crypto_key_version(
                request={"parent": self._place.name, "crypto_key_version": {}}, **_LIMITS
            )
            self._number(answer.name)
            return answer

        made = self._ask("make a new version", create, attempts=1)
        end = time.monotonic() + GENERATION_S
        while made.state == self._pending and time.monotonic() < end:
            time.sleep(POLL_S)
            made = self._ask("read the new version", partial(self._version, made.name))
        if made.state != self._enabled:
            raise KeyServiceError(
                f"{self.uri}: the new version {made.name} cannot be used yet; run the same command "
                "again in some minutes"
            )
        number = str(self._number(made.name))

        def promote() -> None:
            self._client.update_crypto_key_primary_version(
                request={"name": self._place.name, "crypto_key_version_id": number}, **_LIMITS
            )

        self._ask("make the new version the primary one", promote)
        now = self._look()
        if now != f"{SCHEME}:{made.name}":
            raise KeyServiceError(
                f"{self.uri}: the primary version is {now}, not the new {made.name}; run the same "
                "command again"
            )
        return now

    def check_rotation(self) -> None:
        def look() -> set[str]:
            answer = self._client.test_iam_permissions(
                request={"resource": self._place.name, "permissions": list(ROTATING)}, **_LIMITS
            )
            return set(answer.permissions)

        if missing := set(ROTATING) - self._ask("ask what is allowed", look):
            raise KeyServiceError(
                f"{self.uri}: these credentials may not rotate the key; they lack "
                f"{', '.join(sorted(missing))}"
            )

    def retire(self, needed: frozenset[str]) -> tuple[str, ...]:
        """Versions older than the primary one are scheduled for destruction; until its day, they
        can be restored there."""
        newest = self._number(self._look().removeprefix(f"{SCHEME}:"))

        def look() -> list[str]:
            names = []
            pages = self._client.list_crypto_key_versions(
                request={"parent": self._place.name}, **_LIMITS
            )
            for count, version in enumerate(pages):
                if count >= MAX_VERSIONS:
                    break
                usable = version.state in (self._enabled, self._disabled)
                if usable and self._number(version.name) < newest:
                    names.append(version.name)
            return names

        gone = []
        for name in self._ask("list versions", look):
            if f"{SCHEME}:{name}" not in needed:
                self._ask(f"destroy {name}", partial(self._destroyed, name))
                gone.append(f"{SCHEME}:{name}")
        return tuple(gone)

    def _look(self) -> str:
        """The id of the primary version as it is now."""

        def look() -> str:
            key = self._client.get_crypto_key(request={"name": self._place.name}, **_LIMITS)
            if key.name != self._place.name:
                raise Unusable("it is about another key")
            if key.purpose != self._purpose:
                raise Unusable("the key is of another kind; it has to be for symmetric encryption")
            if key.primary.state != self._enabled:
                raise Unusable(
                    "the key's primary version is not enabled; enable it, or name another"
                )
            self._number(key.primary.name)
            return f"{SCHEME}:{key.primary.name}"

        self._current = self._ask("read the key", look)
        return self._current

    def _version(self, name: str) -> Any:
        return self._client.get_crypto_key_version(request={"name": name}, **_LIMITS)

    def _destroyed(self, name: str) -> None:
        self._client.destroy_crypto_key_version(request={"name": name}, **_LIMITS)

    def _number(self, name: str) -> int:
        """The number of a version of this key; raises Unusable for another's."""
        found = _VERSION.fullmatch(name.removeprefix(self._place.name))
        if found is None:
            raise Unusable("it comes from another key")
        return int(found[1])

    def _ask(self, doing: str, call: Callable[[], T], attempts: int = 3) -> T:
        return asked(self.uri, doing, call, self._explained, attempts=attempts)

    def _explained(self, error: Exception) -> Problem | None:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "SSL_ERROR_SSL" in str(error):
            return Problem(
                "the server's certificate does not verify; name the file of your own CA with ?ca="
            )
        if kinds & {"ServiceUnavailable", "DeadlineExceeded", "TooManyRequests", "ServerError"}:
            return Problem(
                f"no answer within {TIMEOUT_S:g} s, no connection, or the service is failing "
                f"({brief(error)}); check the network, and try again",
                True,
            )
        if "NotFound" in kinds:
            return Problem("there is no such key; correct its name, or make it")
        if kinds & {"Forbidden", "Unauthorized"}:
            return Problem(f"Google refuses the credentials for this ({brief(error)})")
        if "FailedPrecondition" in kinds:
            return Problem(_retired(error))
        if "GoogleAPICallError" in kinds:
            return Problem(f"Google Cloud KMS refuses ({brief(error)})")
        if "GoogleAuthError" in kinds:
            return Problem(
                "the application default credentials cannot be used: "
                f"{brief(error)}; set them up as for any program of Google Cloud",
                "TransportError" in kinds,
            )
        if isinstance(error, OSError):
            return Problem(f"the file of ?ca= cannot be read ({brief(error.strerror)})")
        return None

    def __repr__(self) -> str:
        return f"GcpService({self.uri})"


def _retired(error: Exception) -> str:
    return f"the version is disabled or destroyed ({brief(error)}); enable or restore it"


_LIMITS: dict[str, Any] = {"timeout": TIMEOUT_S, "retry": None}


def _check_crc(data: bytes, said: int | None) -> None:
    if not isinstance(data, bytes) or crc32c(data) != said:
        raise Unusable("it was damaged on the way (CRC32C)")


def crc32c(data: bytes) -> int:
    """CRC-32 with Castagnoli's polynomial (RFC 3720, appendix B.4)."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = tuple(map(_entry, range(256)))
