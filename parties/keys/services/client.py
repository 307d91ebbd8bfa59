"""What the services behind a client library share: how it is imported, asked, and believed.

A library is imported only once a URI needs it. Whatever it raises becomes one KeyServiceError that
names the URI and says what to do. The library's own exception is not kept behind it: some hold the
request, and with it a token. What a service returns is checked before anything depends on it.
"""

import importlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from parties.errors import KeyServiceError
from protocols.sealing.container import FILE_KEY_BYTES, MAX_KEY_ID_BYTES

TIMEOUT_S = 5.0
"""For one attempt: to connect, and for an answer."""
ATTEMPTS = 3
PAUSE_S = 0.25
"""Before the second attempt; twice as long before the third."""
MAX_SAID = 200
"""Characters of a service's own message that are repeated."""

MAX_WRAPPED_BYTES = 1 << 14
"""Services return up to a few kB for 32 bytes."""

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """Why a request failed, and what to do. passing: whether it may go well the next time."""

    words: str
    passing: bool = False


class Unusable(Exception):
    """An answer that a service must not give; the words say what is wrong with it."""


def imported(module: str, extra: str, uri: str) -> Any:
    """A client library's module; raises KeyServiceError that names the extra to install."""
    # At the level of debugging, these libraries log requests whole, keys included.
    logging.getLogger(module.split(".")[0]).setLevel(logging.WARNING)
    missing = ""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = brief(error)
    raise KeyServiceError(
        f"{uri} needs a client library: pip install 'mpc-train[{extra}]' ({missing})"
    )


def asked(
    uri: str,
    doing: str,
    call: Callable[[], T],
    explain: Callable[[Exception], Problem | None],
    *,
    attempts: int = ATTEMPTS,
) -> T:
    """What `call` returns; its errors become one KeyServiceError, in the words of `explain`.

    attempts: how often to ask while the problem may pass; 1 for what must not be repeated.
    """
    for attempt in range(attempts):
        try:
            return call()
        except KeyServiceError:
            raise
        except Unusable as error:
            problem = Problem(f"the answer cannot be used: {brief(error)}")
        except Exception as error:
            known = explain(error)
            problem = known or Problem(f"the answer cannot be read ({type(error).__name__})")
        if not problem.passing or attempt + 1 == attempts:
            break
        time.sleep(PAUSE_S * (attempt + 1))
    raise KeyServiceError(f"{uri}: cannot {doing}: {problem.words}")


def binding(info: bytes, pad: bytes = b"") -> bytes:
    """What a service learns of an object: a hash, which it binds the wrapping to."""
    return sha256(pad + info).digest()


@dataclass(frozen=True, repr=False)
class Mask:
    """Hides a file key from the service that wraps it: a one-time pad, kept beside what it wraps.

    The service sees random bytes, also where it keeps all that it was sent: once a header is
    shredded, they say nothing. The pad goes into the hash that the wrapping is bound to: it cannot
    be altered, and the hash cannot be guessed from the names of objects.
    """

    pad: bytes
    bound: bytes

    @classmethod
    def new(cls, info: bytes) -> "Mask":
        pad = os.urandom(FILE_KEY_BYTES)
        return cls(pad, binding(info, pad))

    @classmethod
    def split(cls, wrapped: bytes, info: bytes) -> tuple["Mask", bytes]:
        """The mask of a wrapped key, and what the service made."""
        pad = wrapped[:FILE_KEY_BYTES]
        return cls(pad, binding(info, pad)), wrapped[FILE_KEY_BYTES:]

    def applied(self, file_key: object) -> bytes:
        """A file key masked, or unmasked; raises Unusable for what is none."""
        return bytes(a ^ b for a, b in zip(checked_file_key(file_key), self.pad, strict=True))

    def kept(self, key_id: str, sealed: object) -> tuple[str, bytes]:
        """What `wrap` returns, once the service made `sealed`; raises Unusable."""
        return checked_wrapping(key_id, self.pad + sealed if isinstance(sealed, bytes) else b"")


def checked_wrapping(key_id: str, wrapped: object) -> tuple[str, bytes]:
    """What `wrap` returns, within the bounds of a header; raises Unusable."""
    if not isinstance(wrapped, bytes) or not FILE_KEY_BYTES < len(wrapped) <= MAX_WRAPPED_BYTES:
        raise Unusable(f"a wrapped key has {FILE_KEY_BYTES} to {MAX_WRAPPED_BYTES} bytes")
    if len(key_id.encode()) > MAX_KEY_ID_BYTES:
        raise Unusable(f"the id of a key has at most {MAX_KEY_ID_BYTES} bytes")
    return key_id, wrapped


def checked_file_key(file_key: object) -> bytes:
    """What `unwrap` returns; raises Unusable."""
    if not isinstance(file_key, bytes) or len(file_key) != FILE_KEY_BYTES:
        raise Unusable(f"it holds no key of {FILE_KEY_BYTES} bytes")
    return file_key


def brief(message: object) -> str:
    """A service's own words: on one line, and not many."""
    text = " ".join(str(message).split())
    return text if len(text) <= MAX_SAID else f"{text[:MAX_SAID]}…"


def split_query(rest: str, allowed: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """A URI's body and the settings behind its `?`; raises ValueError for what is not `allowed`."""
    body, _, query = rest.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    settings = dict(pairs)
    if len(settings) < len(pairs) or not all(settings.values()):
        raise ValueError("a setting behind ? is empty or appears twice")
    if unknown := sorted(set(settings) - set(allowed)):
        raise ValueError(f"unknown setting {unknown[0]}; known are {', '.join(allowed)}")
    for name in ("ca", "module-path"):
        if name in settings and not PurePosixPath(settings[name]).is_absolute():
            raise ValueError(f"{name} is an absolute path")
    return body, settings
