"""A key service in a PKCS #11 token: a hardware module, or SoftHSM.

Keys are made in the token, cannot be read from it, and wrap by AES-256-GCM there (CKM_AES_GCM) with
the object's hash as additional data. The token asks for a PIN, which the passphrase file holds; a
wrong one is tried once. Keys are labelled OBJECT.1, OBJECT.2, …, the last one current, each with a
random CKA_ID. The URI is of RFC 7512, with `token`, `object` and `module-path` only.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from parties.errors import KeyServiceError, RetiredKeyError
from parties.keys.services.client import (
    Problem,
    Unusable,
    asked,
    binding,
    brief,
    checked_file_key,
    checked_wrapping,
    imported,
    split_query,
)
from parties.keys.services.service import does_not_open, own_part

SCHEME = "pkcs11"
EXTRA = "pkcs11"
MAX_KEYS = 500
_NONCE_BYTES = 12
_ID_BYTES = 8

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Label of the token, name of the key in it, and the library that drives it."""

    token: str
    object: str
    module: str


def parse(rest: str) -> Place:
    """Raises ValueError."""
    if "pin-value" in rest or "pin-source" in rest:
        raise ValueError("no PIN stands in the URI; passphrase_file holds it")
    body, settings = split_query(rest, ("module-path",))
    attributes = [part.partition("=") for part in body.split(";")]
    named = {name: unquote(text) for name, _, text in attributes}
    if set(named) != {"token", "object"} or len(attributes) != 2 or not all(named.values()):
        raise ValueError("pkcs11: is followed by token=LABEL;object=NAME?module-path=FILE")
    if "module-path" not in settings:
        raise ValueError("pkcs11: needs ?module-path=, the library that drives the token")
    return Place(named["token"], named["object"], settings["module-path"])


@dataclass(frozen=True)
class _Found:
    """A key of the token."""

    number: int
    tag: str
    key: Any


class Pkcs11Service:
    """`pkcs11:token=…;object=…?module-path=…`; `create` makes the first key."""

    def __init__(self, rest: str, pin: bytes) -> None:
        self._place = parse(rest)
        self.uri = f"{SCHEME}:{rest}"
        self._prefix = (
            f"{SCHEME}:token={quote(self._place.token)};object={quote(self._place.object)}#"
        )
        try:
            self._pin = pin.decode()
        except UnicodeDecodeError:
            self._pin = ""
        if not self._pin:
            raise KeyServiceError(f"{self.uri}: the passphrase file holds no PIN")
        self._pkcs11 = imported("pkcs11", EXTRA, self.uri)
        if not Path(self._place.module).is_file():
            raise KeyServiceError(
                f"{self.uri}: there is no library {self._place.module}; install it"
            )

    @classmethod
    def create(cls, rest: str, pin: bytes) -> "Pkcs11Service":
        """Make the first key in the token."""
        service = cls(rest, pin)

        def create(session: Any) -> None:
            if service._keys(session):
                raise KeyServiceError(f"{service.uri}: exists; keys are never overwritten")
            service._generate(session, 1)

        service._ask("make a key", create, rw=True)
        return service

    @property
    def current(self) -> str:
        return self._ask("read the token", lambda session: self._id(self._newest(session)))

    def wrap(self, file_key: bytes, info: bytes) -> tuple[str, bytes]:
        def wrap(session: Any) -> tuple[str, bytes]:
            newest = self._newest(session)
            if newest.key[self._pkcs11.Attribute.EXTRACTABLE]:
                raise Unusable(f"the key {self._place.object}.{newest.number} can leave the token")
            nonce = os.urandom(_NONCE_BYTES)
            sealed = newest.key.encrypt(file_key, **self._gcm(nonce, info))
            return checked_wrapping(self._id(newest), nonce + sealed)

        return self._ask("wrap a key", wrap)

    def unwrap(self, key_id: str, wrapped: bytes, info: bytes) -> bytes:
        own_part(self.uri, self._prefix, key_id)

        def unwrap(session: Any) -> bytes | None:
            for found in self._keys(session):
                if self._id(found) == key_id:
                    return self._opened(found.key, wrapped, info)
            raise RetiredKeyError(
                f"{self.uri} does not have the key {key_id}: it was destroyed, or the token was "
                "made anew; use the token that has it"
            )

        file_key = self._ask("unwrap a key", unwrap)
        if file_key is None:
            raise does_not_open(self.uri, key_id)
        return file_key

    def rotate(self) -> str:
        def rotate(session: Any) -> str:
            keys = self._keys(session)
            self._check_room(keys)
            self._generate(session, 1 + max((found.number for found in keys), default=0))
            return self._id(self._newest(session))

        return self._ask("make a new key", rotate, rw=True)

    def check_rotation(self) -> None:
        def look(session: Any) -> None:
            self._check_room(self._keys(session))
            mechanisms = session.token.slot.get_mechanisms()
            if self._pkcs11.Mechanism.AES_KEY_GEN not in mechanisms:
                raise KeyServiceError(f"{self.uri}: the token makes no AES keys")

        self._ask("look at the token", look, rw=True)

    def retire(self, needed: frozenset[str]) -> tuple[str, ...]:
        def retire(session: Any) -> tuple[str, ...]:
            newest, gone = self._newest(session), []
            for found in self._keys(session):
                key_id = self._id(found)
                if key_id not in needed and key_id != self._id(newest):
                    found.key.destroy()
                    gone.append(key_id)
            return tuple(gone)

        return self._ask("destroy old keys", retire, rw=True)

    def _gcm(self, nonce: bytes, info: bytes) -> dict[str, Any]:
        return {
            "mechanism": self._pkcs11.Mechanism.AES_GCM,
            "mechanism_param": self._pkcs11.GCMParams(nonce, binding(info), 128),
        }

    def _opened(self, key: Any, wrapped: bytes, info: bytes) -> bytes | None:
        """The file key; None where it does not verify."""
        nonce, sealed = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
        if not sealed:
            return None
        try:
            return checked_file_key(key.decrypt(sealed, **self._gcm(nonce, info)))
        except Exception as error:
            # Tokens differ in how they say that a tag does not verify; some call it a failure.
            kind = type(error).__name__
            if kind in _UNVERIFIED or (kind in _FAILED and self._works(key)):
                return None
            raise

    def _works(self, key: Any) -> bool:
        """Whether a key opens what it wrapped just now."""
        nonce, text = os.urandom(_NONCE_BYTES), os.urandom(32)
        sealed = key.encrypt(text, **self._gcm(nonce, b""))
        return key.decrypt(sealed, **self._gcm(nonce, b"")) == text

    def _generate(self, session: Any, number: int) -> None:
        names = self._pkcs11.Attribute
        flags = self._pkcs11.MechanismFlag
        session.generate_key(
            self._pkcs11.KeyType.AES,
            256,
            id=os.urandom(_ID_BYTES),
            label=f"{self._place.object}.{number}",
            store=True,
            capabilities=flags.ENCRYPT | flags.DECRYPT,
            template={names.SENSITIVE: True, names.EXTRACTABLE: False, names.PRIVATE: True},
        )

    def _keys(self, session: Any) -> list[_Found]:
        """The keys of this name, oldest first."""
        names, found = self._pkcs11.Attribute, []
        wanted = {names.CLASS: self._pkcs11.ObjectClass.SECRET_KEY}
        for key in session.get_objects(wanted):
            name, _, number = str(key.label).rpartition(".")
            if name == self._place.object and re.fullmatch("[1-9][0-9]{0,8}", number):
                found.append(_Found(int(number), key.id.hex(), key))
        return sorted(found, key=lambda each: (each.number, each.tag))

    def _newest(self, session: Any) -> _Found:
        keys = self._keys(session)
        if not keys:
            raise KeyServiceError(
                f"{self.uri}: the token has no key {self._place.object}.1; mpc-train vault key "
                "makes it"
            )
        return keys[-1]

    def _check_room(self, keys: list[_Found]) -> None:
        if len(keys) >= MAX_KEYS:
            raise KeyServiceError(f"{self.uri} has {len(keys)} keys; retire old ones first")

    def _id(self, found: _Found) -> str:
        return f"{self._prefix}{found.number}-{found.tag}"

    def _ask(self, doing: str, call: Callable[[Any], T], *, rw: bool = False) -> T:
        """What `call` returns with a session of its own, so that a token may go and come back."""

        def ask() -> T:
            with self._session(rw) as session:
                return call(session)

        # Not repeated: a token counts wrong PINs, and locks itself.
        return asked(self.uri, doing, ask, self._explained, attempts=1)

    @contextmanager
    def _session(self, rw: bool) -> Iterator[Any]:
        library = self._pkcs11.lib(self._place.module)
        token = library.get_token(token_label=self._place.token)
        with token.open(rw=rw, user_pin=self._pin) as session:
            yield session

    def _explained(self, error: Exception) -> Problem | None:
        kind = type(error).__name__
        if kind in ("PinIncorrect", "PinInvalid", "PinLenRange", "PinTooWeak"):
            return Problem(
                "the token refuses the PIN; correct the passphrase file before the token locks "
                "itself"
            )
        if kind in ("PinLocked", "PinExpired", "UserPinNotInitialized"):
            return Problem(
                f"the PIN cannot be used any more ({kind}); its security officer sets it"
            )
        if kind in ("NoSuchToken", "TokenNotPresent", "DeviceRemoved", "SlotIDInvalid"):
            return Problem(
                f"there is no token {self._place.token}; plug it in, or correct the label"
            )
        if kind == "MultipleTokensReturned":
            return Problem(f"there are several tokens {self._place.token}; give one another label")
        if kind in ("MechanismInvalid", "MechanismParamInvalid", "FunctionNotSupported"):
            return Problem("the token does not offer AES-GCM with additional data (CKM_AES_GCM)")
        if any(each.__name__ == "PKCS11Error" for each in type(error).__mro__):
            return Problem(f"the token fails ({kind}: {brief(error)})")
        if isinstance(error, OSError | RuntimeError):
            return Problem(f"the library {self._place.module} cannot be used ({brief(error)})")
        return None

    def __repr__(self) -> str:
        return f"Pkcs11Service({self.uri})"


_UNVERIFIED = (
    "EncryptedDataInvalid",
    "EncryptedDataLenRange",
    "DataInvalid",
    "DataLenRange",
    "SignatureInvalid",
)
_FAILED = ("GeneralError", "FunctionFailed", "ArgumentsBad", "DeviceError")
