"""A key service in the operating system's keyring, which the user's login opens.

The keys are one secret, under a service and a name. On Linux this is a Secret Service (GNOME
Keyring, KWallet), on macOS the Keychain, on Windows the Credential Locker. The keyring is asked
without a time limit: it may be asking its user.
"""

import base64
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from parties.errors import KeyServiceError
from parties.files import locked, private_directory
from parties.keys.identity import reason
from parties.keys.services.client import Problem, asked, brief, imported
from parties.keys.services.key_set import KeySetService, decoded, encoded, first_keys

SCHEME = "keyring"
EXTRA = "keyring"
MAX_KEYS = 32
"""So that the secret fits where 2,560 bytes are the most, in Windows."""
MAX_SECRET_CHARS = 1 << 14
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}/[A-Za-z0-9._-]{1,100}")
_UNENCRYPTED = ("keyrings.alt.", "keyring.backends.null")


def parse(rest: str) -> tuple[str, str]:
    """Service and name; raises ValueError."""
    if not _NAME.fullmatch(rest):
        raise ValueError("keyring: is followed by SERVICE/NAME, of letters, digits, ., _ and -")
    service, _, name = rest.partition("/")
    return service, name


class KeyringService(KeySetService):
    """`keyring:SERVICE/NAME`; `create` makes the entry."""

    def __init__(self, rest: str) -> None:
        self._entry = parse(rest)
        uri = f"{SCHEME}:{rest}"
        self._keyring = _library(uri)
        super().__init__(uri, f"{uri}#", MAX_KEYS)

    @classmethod
    def create(cls, rest: str) -> "KeyringService":
        """Make the entry with one key; it never replaces one."""
        uri, entry = f"{SCHEME}:{rest}", parse(rest)
        keyring = _library(uri)
        with _locked(uri):
            if _get(keyring, uri, entry) is not None:
                raise KeyServiceError(f"{uri}: exists; keys are never overwritten")
            _set(keyring, uri, entry, first_keys())
        return cls(rest)

    @contextmanager
    def _changing(self) -> Iterator[dict[int, bytes]]:
        with _locked(self.uri):
            keys = self._read()
            yield keys
            _set(self._keyring, self.uri, self._entry, keys)
            self._keys = keys

    def _read(self) -> dict[int, bytes]:
        keys = _get(self._keyring, self.uri, self._entry)
        if keys is None:
            raise KeyServiceError(
                f"{self.uri}: this user's keyring has no such entry; mpc-train vault key "
                f"{self.uri} makes it"
            )
        return keys


def _library(uri: str) -> Any:
    """The library; raises KeyServiceError where no keyring, or none that encrypts, is there."""
    keyring = imported("keyring", EXTRA, uri)

    def backends() -> list[str]:
        backend = keyring.get_keyring()
        kinds = [type(each) for each in getattr(backend, "backends", [backend])]
        return [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds]

    names = asked(uri, "find a keyring", backends, _explained)
    if bare := [name for name in names if name.startswith(_UNENCRYPTED)]:
        raise KeyServiceError(
            f"{uri}: the keyring {bare[0]} does not protect secrets; set up another, or use a "
            "file: of keys"
        )
    return keyring


def _get(keyring: Any, uri: str, entry: tuple[str, str]) -> dict[int, bytes] | None:
    secret = asked(uri, "read the keyring", lambda: keyring.get_password(*entry), _explained)
    if secret is None:
        return None
    if isinstance(secret, str) and len(secret) <= MAX_SECRET_CHARS:
        try:
            return decoded(base64.b64decode(secret, validate=True))
        except ValueError:
            pass
    raise KeyServiceError(f"{uri}: the keyring's entry holds no keys of this version")


def _set(keyring: Any, uri: str, entry: tuple[str, str], keys: dict[int, bytes]) -> None:
    """Keep the keys, and read them again: a keyring that forgets would lose what they wrap."""
    secret = base64.b64encode(encoded(keys)).decode()
    asked(uri, "write to the keyring", lambda: keyring.set_password(*entry, secret), _explained)
    if _get(keyring, uri, entry) != keys:
        raise KeyServiceError(f"{uri}: the keyring did not keep what was written")


def _explained(error: Exception) -> Problem:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "NoKeyringError" in kinds:
        return Problem(
            "this session has no keyring; start a Secret Service, or use a file: of keys instead"
        )
    if "KeyringLocked" in kinds or "InitError" in kinds:
        return Problem(f"the keyring is locked; unlock it ({brief(error)})")
    return Problem(f"the keyring failed ({type(error).__name__}: {brief(error)})")


@contextmanager
def _locked(uri: str) -> Iterator[None]:
    """One process of this user at a time: keyrings have no locks of their own."""
    path = Path.home() / ".mpc-train" / "keyring.lock"
    with ExitStack() as held:
        try:
            private_directory(path.parent)
            held.enter_context(locked(path))
        except OSError as error:
            raise KeyServiceError(f"{uri}: {path} cannot be locked: {reason(error)}") from error
        yield
