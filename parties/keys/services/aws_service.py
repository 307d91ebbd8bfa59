"""A key service in AWS KMS: a symmetric key of the customer's that never leaves it.

The object's hash is the EncryptionContext, which AWS KMS authenticates and writes into its log.
Credentials come from where the SDK finds them (a role of the machine, a profile in ~/.aws).

AWS KMS keeps all material of a key for as long as the key: `rotate` makes new material, and nothing
can be retired but the key itself. The id of a key is its ARN and the material that wraps.
"""

import re
import time
from dataclasses import dataclass
from typing import Any

from parties.errors import KeyServiceError, RetiredKeyError
from parties.keys.services.client import (
    ATTEMPTS,
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

SCHEME = "aws-kms"
EXTRA = "aws"
ROTATION_S = 30.0
"""How long `rotate` waits for new material; AWS makes it in the background."""
POLL_S = 1.0
MAX_PAGES = 100
"""Of rotations, 100 on each unless the service says less."""
_NAME = re.compile(
    r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):[0-9]{12}:(key|alias)/[A-Za-z0-9/_-]{1,256}"
    r"|alias/[A-Za-z0-9/_-]{1,250}"
)
_ARN = re.compile(r"arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]{1,256}")
_REGION = re.compile(r"[a-z0-9-]{1,40}")


@dataclass(frozen=True)
class Place:
    """A key's ARN or alias, and where AWS KMS is asked; empty: what the SDK chooses."""

    name: str
    region: str
    endpoint: str
    ca: str


def parse(rest: str) -> Place:
    """Raises ValueError."""
    name, settings = split_query(rest, ("region", "endpoint", "ca"))
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError("aws-kms: is followed by a key's ARN, an alias's ARN, or alias/NAME")
    region = settings.get("region", found["region"] or "")
    if region and not _REGION.fullmatch(region):
        raise ValueError("region is none of AWS")
    endpoint = settings.get("endpoint", "")
    if endpoint and not re.fullmatch(r"https://[A-Za-z0-9.\[\]:-]+/?", endpoint):
        raise ValueError("endpoint is https://HOST[:PORT]")
    return Place(name, region, endpoint, settings.get("ca", ""))


class AwsService:
    """`aws-kms:KEY-ARN-OR-ALIAS[?region=…&endpoint=…&ca=…]`."""

    def __init__(self, rest: str) -> None:
        self.uri = f"{SCHEME}:{rest}"
        self._place = parse(rest)
        boto3 = imported("boto3", EXTRA, self.uri)
        config = imported("botocore.config", EXTRA, self.uri)
        imported("urllib3", EXTRA, self.uri)
        self._client: Any = asked(
            self.uri, "prepare a client", lambda: self._opened(boto3, config), self._explained
        )
        self._arn = ""
        self._current = ""

    def _opened(self, boto3: Any, config: Any) -> Any:
        # A session of its own: the library's default one keeps the credentials that it found first.
        client = boto3.session.Session().client(
            "kms",
            region_name=self._place.region or None,
            endpoint_url=self._place.endpoint or None,
            verify=self._place.ca or None,
            config=config.Config(
                connect_timeout=TIMEOUT_S,
                read_timeout=TIMEOUT_S,
                retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
            ),
        )
        if not client.meta.endpoint_url.startswith("https://"):
            raise KeyServiceError(
                f"{self.uri}: the SDK's own settings name an endpoint without TLS"
            )
        return client

    @property
    def current(self) -> str:
        return self._current or self._look()

    def wrap(self, file_key: bytes, info: bytes) -> tuple[str, bytes]:
        key_id, mask = self.current, Mask.new(info)
        hidden = mask.applied(file_key)

        def wrap() -> tuple[str, bytes]:
            answer = self._client.encrypt(
                KeyId=self._arn, Plaintext=hidden, EncryptionContext=_context(mask)
            )
            self._check_key(answer)
            return mask.kept(key_id, answer["CiphertextBlob"])

        return self._ask("wrap a key", wrap)

    def unwrap(self, key_id: str, wrapped: bytes, info: bytes) -> bytes:
        rest = own_part(self.uri, f"{SCHEME}:", key_id)
        if not self._arn:
            self._look()
        if rest.partition("#")[0] != self._arn:
            # Not followed: whoever can write to the disk could name a key of their own there.
            raise RetiredKeyError(
                f"{self.uri} does not have the key {key_id}: it is {self._arn} now; name the other "
                "in [vault] key, and move from it with mpc-train vault rotate --to"
            )

        mask, sealed = Mask.split(wrapped, info)

        def unwrap() -> bytes | None:
            try:
                answer = self._client.decrypt(
                    KeyId=self._arn, CiphertextBlob=sealed, EncryptionContext=_context(mask)
                )
            except Exception as error:
                if _code(error) in ("InvalidCiphertextException", "IncorrectKeyException"):
                    return None
                raise
            self._check_key(answer)
            return mask.applied(answer["Plaintext"])

        file_key = self._ask("unwrap a key", unwrap) if sealed else None
        if file_key is None:
            raise does_not_open(self.uri, key_id)
        return file_key

    def rotate(self) -> str:
        before = self._look()
        self._check_kind()
        if not self._is_rotating():
            self._ask("rotate the key", lambda: self._client.rotate_key_on_demand(KeyId=self._arn))
        end = time.monotonic() + ROTATION_S
        while (now := self._look()) == before:
            if time.monotonic() >= end:
                raise KeyServiceError(
                    f"{self.uri}: AWS KMS is still making the new key; run the same command again "
                    "in some minutes"
                )
            time.sleep(POLL_S)
        return now

    def check_rotation(self) -> None:
        self._look()
        self._check_kind()
        self._is_rotating()

    def retire(self, needed: frozenset[str]) -> tuple[str, ...]:
        """Nothing: AWS KMS keeps all material until the key itself is deleted there."""
        return ()

    def _look(self) -> str:
        """The id of the key as it is now; remembers the key's ARN."""

        def look() -> tuple[str, dict[str, Any]]:
            data = self._client.describe_key(KeyId=self._arn or self._place.name)["KeyMetadata"]
            if not _ARN.fullmatch(data["Arn"]) or (self._arn and data["Arn"] != self._arn):
                raise Unusable("it is about another key")
            return data["Arn"], data

        arn, data = self._ask("read the key", look)
        state, spec = data.get("KeyState"), data.get("KeySpec")
        if state != "Enabled":
            raise KeyServiceError(
                f"{self.uri}: the key's state is {brief(state)}; enable it, or cancel its deletion"
            )
        if spec != "SYMMETRIC_DEFAULT" or data.get("KeyUsage") != "ENCRYPT_DECRYPT":
            raise KeyServiceError(
                f"{self.uri}: the key is of another kind; it has to be symmetric, for encryption"
            )
        self._arn, self._data = arn, data
        material = data.get("CurrentKeyMaterialId") or self._ask("list rotations", self._rotations)
        self._current = f"{SCHEME}:{arn}#{material}"
        return self._current

    def _rotations(self) -> str:
        """How often the material was changed, for a service that does not name it."""
        count, marker = 0, ""
        for _ in range(MAX_PAGES):
            more = {"Marker": marker} if marker else {}
            answer = self._client.list_key_rotations(KeyId=self._arn, **more)
            count += len(answer["Rotations"])
            if not answer.get("Truncated"):
                return str(count)
            marker = answer["NextMarker"]
        raise Unusable("the list of rotations has no end")

    def _is_rotating(self) -> bool:
        def look() -> bool:
            answer = self._client.get_key_rotation_status(KeyId=self._arn)
            return "OnDemandRotationStartDate" in answer

        return bool(self._ask("read the key's rotation", look))

    def _check_kind(self) -> None:
        """Raise KeyServiceError for a key that AWS KMS does not rotate."""
        if self._data.get("KeyManager", "CUSTOMER") != "CUSTOMER":
            raise KeyServiceError(f"{self.uri} is AWS's own key, which only AWS rotates")
        if self._data.get("Origin", "AWS_KMS") != "AWS_KMS":
            raise KeyServiceError(
                f"{self.uri} has material from outside AWS KMS, which is not rotated there; make a "
                "new key, and move to it with mpc-train vault rotate --to"
            )

    def _check_key(self, answer: Any) -> None:
        if answer["KeyId"] != self._arn:
            raise Unusable("it comes from another key")

    def _ask(self, doing: str, call: Any) -> Any:
        # The SDK repeats what may be repeated.
        return asked(self.uri, doing, call, self._explained, attempts=1)

    def _explained(self, error: Exception) -> Problem | None:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        code = _code(error)
        if code == "NotFoundException":
            return Problem("AWS KMS has no such key in this region; correct the ARN or the region")
        if code in ("DisabledException", "KMSInvalidStateException", "KeyUnavailableException"):
            return Problem(f"the key is disabled, being deleted or not available ({code})")
        if code in ("UnsupportedOperationException", "LimitExceededException"):
            return Problem(
                f"AWS KMS does not rotate this key, or not so often ({code}); make a new key, and "
                "move to it with mpc-train vault rotate --to"
            )
        if code in _CREDENTIALS:
            return Problem(
                f"AWS refuses the credentials, or their policy does not allow this ({code})"
            )
        if code:
            return Problem(f"AWS KMS refuses ({brief(error)})")
        if {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"} & kinds:
            return Problem("the SDK finds no credentials: give this machine a role, or a profile")
        if "NoRegionError" in kinds:
            return Problem("an alias needs its region: add ?region=")
        if "SSLError" in kinds:
            return Problem(
                "the server's certificate does not verify; name the file of your own CA with ?ca="
            )
        if {"HTTPClientError", "ConnectionError"} & kinds:
            return Problem(
                f"no answer within {TIMEOUT_S:g} s, or no connection, {ATTEMPTS} times; check the "
                "network, and try again"
            )
        if "BotoCoreError" in kinds or isinstance(error, OSError):
            return Problem(f"the SDK cannot ask ({brief(error)})")
        return None

    def __repr__(self) -> str:
        return f"AwsService({self.uri})"


_CREDENTIALS = (
    "AccessDeniedException",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidSignatureException",
    "UnrecognizedClientException",
)


def _context(mask: Mask) -> dict[str, str]:
    return {"mpc-train": mask.bound.hex()}


def _code(error: Exception) -> str:
    """AWS's name for an error; empty for those of the SDK itself."""
    response = getattr(error, "response", None)
    details = response.get("Error") if isinstance(response, dict) else None
    return brief(details.get("Code", "?")) if isinstance(details, dict) else ""
