"""A key service in HashiCorp Vault's transit engine, or OpenBao's.

Keys of the types aes256-gcm96 and chacha20-poly1305 wrap: they take the object's hash as
`associated_data`; a derived key takes it as `context` as well. The token comes from a private file.
TLS is always verified, and no redirect is followed: it would carry the token elsewhere.

The id of a key holds the time at which Vault made it, not the server's address: a Vault that moves
still opens what it wrapped, and another one's key of the same name does not pass for it.
"""

import base64
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

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

SCHEME = "vault"
EXTRA = "hashicorp"
PORT = 8200
KINDS = ("aes256-gcm96", "chacha20-poly1305")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\]")
_TOKEN = re.compile(rb"[!-~]{1,4096}")


@dataclass(frozen=True)
class Transit:
    """Where a transit key is. ca: a file of certificates to trust; empty: the system's."""

    url: str
    mount: str
    key: str
    ca: str


@dataclass(frozen=True)
class _Key:
    """What Vault says of a key. made: by version, when it was made, as Vault writes it."""

    latest: int
    made: dict[int, str]
    derived: bool


def parse(rest: str) -> Transit:
    """Raises ValueError."""
    body, settings = split_query(rest, ("ca",))
    parts = urlsplit(f"{SCHEME}:{body}")
    host, _, port = parts.netloc.partition(":") if "[" not in body else (parts.netloc, "", "")
    if "]:" in parts.netloc:
        host, _, port = parts.netloc.rpartition(":")
    names = parts.path.split("/")[1:]
    if "@" in parts.netloc:
        raise ValueError("no user or token stands in the URI; passphrase_file holds the token")
    fits = _HOST.fullmatch(host) and (not port or (port.isdecimal() and 0 < int(port) < 65536))
    if not fits or len(names) < 2 or not all(map(_NAME.fullmatch, names)) or parts.fragment:
        raise ValueError("vault: is followed by //HOST[:PORT]/MOUNT/KEY")
    url = f"https://{host}:{port or PORT}"
    return Transit(url, "/".join(names[:-1]), names[-1], settings.get("ca", ""))


class VaultService:
    """`vault://HOST[:PORT]/MOUNT/KEY[?ca=FILE]`; token: what authorises its use."""

    def __init__(self, rest: str, token: bytes) -> None:
        self._place = parse(rest)
        self.uri = f"{SCHEME}:{rest}"
        self._prefix = f"{SCHEME}:{self._place.mount}/{self._place.key}#"
        hvac = imported("hvac", EXTRA, self.uri)
        if not _TOKEN.fullmatch(token):
            raise KeyServiceError(f"{self.uri}: the passphrase file holds no token of Vault")
        self._token = token.decode("ascii")
        self._client = hvac.Client(
            url=self._place.url,
            token=self._token,
            verify=self._place.ca or True,
            timeout=TIMEOUT_S,
            allow_redirects=False,
        )
        self._known: _Key | None = None

    @property
    def current(self) -> str:
        key = self._known or self._look()
        return self._id(key, key.latest)

    def wrap(self, file_key: bytes, info: bytes) -> tuple[str, bytes]:
        mask = Mask.new(info)
        use, hidden = self._use(mask), _text(mask.applied(file_key))

        def wrap() -> tuple[int, bytes]:
            answer = self._transit.encrypt_data(
                self._place.key, plaintext=hidden, mount_point=self._place.mount, **use
            )
            text = _data(answer)["ciphertext"]
            return _version(text), mask.kept("", text.encode("ascii"))[1]

        version, wrapped = asked(self.uri, "wrap a key", wrap, self._explained)
        key = self._known
        if key is None or version > key.latest:
            key = self._look()
        return self._id(key, version), wrapped

    def unwrap(self, key_id: str, wrapped: bytes, info: bytes) -> bytes:
        version = own_part(self.uri, self._prefix, key_id).partition("@")[0]
        number = int(version) if version.isdecimal() and len(version) < 10 else 0
        key = self._known
        if key is None or number not in key.made:
            key = self._look()
        if number not in key.made:
            raise RetiredKeyError(
                f"{self.uri} does not have the key {key_id}: it was retired; Vault's operator can "
                "lower min_decryption_version, unless it was trimmed or the key was deleted"
            )
        if self._id(key, number) != key_id:
            raise RetiredKeyError(
                f"{self.uri} does not have the key {key_id}: its version {number} is another key, "
                f"made at {key.made[number]}; restore the key from Vault's backup"
            )
        mask, sealed = Mask.split(wrapped, info)
        use = self._use(mask)

        def unwrap() -> bytes:
            text = sealed.decode("ascii")
            if _version(text) != number:
                raise _Altered
            answer = self._transit.decrypt_data(
                self._place.key, ciphertext=text, mount_point=self._place.mount, **use
            )
            return mask.applied(base64.b64decode(_data(answer)["plaintext"], validate=True))

        try:
            return asked(self.uri, "unwrap a key", unwrap, self._refused)
        except _Altered:
            pass
        raise does_not_open(self.uri, key_id)

    def rotate(self) -> str:
        def rotate() -> None:
            self._transit.rotate_key(self._place.key, mount_point=self._place.mount)

        before = self._look().latest
        asked(self.uri, "rotate the key", rotate, self._explained, attempts=1)
        key = self._look()
        if key.latest <= before:
            raise KeyServiceError(f"{self.uri}: Vault said that it rotated the key, but it did not")
        return self._id(key, key.latest)

    def check_rotation(self) -> None:
        path = f"{self._place.mount}/keys/{self._place.key}/rotate"

        def look() -> list[str]:
            answer = self._client.sys.get_capabilities([path])
            return [str(each) for each in _data(answer)[path]]

        allowed = asked(self.uri, "ask what the token may do", look, self._explained)
        if not {"update", "root"} & set(allowed):
            raise KeyServiceError(
                f"{self.uri}: the token may not rotate the key; its policy has to allow update on "
                f"{path}"
            )

    def retire(self, needed: frozenset[str]) -> tuple[str, ...]:
        """Versions before the first that is needed no longer decrypt (`min_decryption_version`);
        Vault keeps them until somebody trims the key there."""
        key = self._look()
        kept = [number for number in key.made if self._id(key, number) in needed]
        first = min([*kept, key.latest])
        gone = tuple(self._id(key, number) for number in sorted(key.made) if number < first)
        if gone:

            def retire() -> None:
                self._transit.update_key_configuration(
                    self._place.key,
                    min_decryption_version=first,
                    mount_point=self._place.mount,
                )

            asked(self.uri, "retire old keys", retire, self._explained)
            self._look()
        return gone

    @property
    def _transit(self) -> Any:
        return self._client.secrets.transit

    def _look(self) -> _Key:
        """What Vault says of the key now."""

        def look() -> _Key:
            answer = self._transit.read_key(self._place.key, mount_point=self._place.mount)
            data = _data(answer)
            if data["type"] not in KINDS:
                raise Unusable(f"the key is of type {data['type']}; it has to be {KINDS[0]}")
            made = {int(number): str(when) for number, when in data["keys"].items()}
            latest = data["latest_version"]
            if not isinstance(latest, int) or latest not in made:
                raise Unusable("the newest version of the key is not among its versions")
            return _Key(latest, made, data["derived"] is True)

        self._known = asked(self.uri, "read the key", look, self._explained)
        return self._known

    def _use(self, mask: Mask) -> dict[str, str]:
        """What ties a wrapping to an object."""
        hashed = _text(mask.bound)
        derived = (self._known or self._look()).derived
        return {"associated_data": hashed} | ({"context": hashed} if derived else {})

    def _id(self, key: _Key, version: int) -> str:
        if version not in key.made:
            raise KeyServiceError(
                f"{self.uri}: Vault used version {version}, which it does not list"
            )
        return f"{self._prefix}{version}@{key.made[version]}"

    def _refused(self, error: Exception) -> Problem | None:
        """As `_explained`; Vault answers 400 to what does not verify."""
        if type(error).__name__ == "InvalidRequest" and "not found" not in str(error):
            raise _Altered
        return self._explained(error)

    def _explained(self, error: Exception) -> Problem | None:
        if isinstance(error, _Altered):
            raise error
        kind = type(error).__name__
        said = brief(error).replace(self._token, "…")
        kinds = {each.__name__ for each in type(error).__mro__}
        if kind in ("Forbidden", "Unauthorized"):
            return Problem(
                "Vault refuses the token: it is wrong, has expired, or its policy does not allow "
                "this; put a valid one into the passphrase file"
            )
        if kind == "InvalidPath":
            return Problem(f"there is no key {self._place.key} at {self._place.mount}/; make it")
        if kind in ("VaultDown", "InternalServerError", "BadGateway", "RateLimitExceeded"):
            return Problem(
                f"Vault is sealed, overloaded or failing ({said}); try again later", True
            )
        if "VaultError" in kinds:
            return Problem(f"Vault refuses: {said}")
        if kind == "SSLError":
            return Problem(
                "the server's certificate does not verify; name the file of your own CA with ?ca="
            )
        if kind == "OSError":
            return Problem(f"the file of ?ca= cannot be read ({said})")
        if {"ConnectionError", "Timeout"} & kinds:
            return Problem(
                f"no answer within {TIMEOUT_S:g} s, or no connection; is Vault running at "
                f"{self._place.url}?",
                True,
            )
        return None

    def __repr__(self) -> str:
        return f"VaultService({self.uri})"


class _Altered(Exception):
    """A wrapped key that Vault does not open."""


def _data(answer: Any) -> Any:
    """The payload of an answer; raises Unusable for a redirect or what is no JSON."""
    if not isinstance(answer, dict):
        status = getattr(answer, "status_code", "?")
        raise Unusable(f"status {status} without JSON; the URI has to name the active server")
    return answer["data"]


def _version(text: object) -> int:
    found = re.match(r"vault:v([0-9]{1,9}):", text) if isinstance(text, str) else None
    if found is None:
        raise Unusable("it holds no ciphertext of Vault")
    return int(found[1])


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
