"""Whether a key service does what a vault needs of it, tried out on a key that nothing uses."""

import hmac
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from parties.errors import KeyServiceError, WrappedKeyError
from parties.keys.services.service import KeyService

T = TypeVar("T")

INFO = b"mpc-train/keys doctor/1"
"""What the trial is bound to: nothing that a vault keeps."""


@dataclass(frozen=True)
class Finding:
    """One thing that was tried. problem: why it failed, in words; empty: it went well.

    needed: whether a vault needs it in order to keep and open objects.
    """

    name: str
    seconds: float
    problem: str = ""
    needed: bool = True

    @property
    def ok(self) -> bool:
        return not self.problem


def examine(opened: Callable[[], KeyService]) -> list[Finding]:
    """Open a service, wrap a random key, unwrap it, unwrap it for a wrong use, ask whether the key
    could be rotated; nothing is tried after what it depends on failed. Nothing is kept."""
    findings: list[Finding] = []

    def tried(name: str, call: Callable[[], T], needed: bool = True) -> T | None:
        start, problem, result = time.perf_counter(), "", None
        try:
            result = call()
        except KeyServiceError as error:
            problem = str(error)
        findings.append(Finding(name, time.perf_counter() - start, problem, needed))
        return result

    service = tried("open", opened)
    if service is None:
        return findings
    file_key = os.urandom(32)
    kept = tried("wrap", lambda: _wrapped(service, file_key))
    if kept is not None:
        tried("unwrap", lambda: _unwrapped(service, *kept, file_key))
        tried("refuse a wrong binding", lambda: _refused(service, *kept))
    tried("can be rotated", service.check_rotation, False)
    return findings


def _wrapped(service: KeyService, file_key: bytes) -> tuple[str, bytes]:
    key_id, wrapped = service.wrap(file_key, INFO)
    if file_key in wrapped:
        raise KeyServiceError(f"{service.uri} returns the key as it was, not wrapped")
    if key_id != service.current:
        raise KeyServiceError(f"{service.uri} wrapped with {key_id}, not with {service.current}")
    return key_id, wrapped


def _unwrapped(service: KeyService, key_id: str, wrapped: bytes, file_key: bytes) -> None:
    if not hmac.compare_digest(service.unwrap(key_id, wrapped, INFO), file_key):
        raise KeyServiceError(f"{service.uri} returns another key than it wrapped")


def _refused(service: KeyService, key_id: str, wrapped: bytes) -> None:
    try:
        service.unwrap(key_id, wrapped, INFO + b"/wrong")
    except WrappedKeyError:
        return
    raise KeyServiceError(f"{service.uri} unwraps a key for another use than it was wrapped for")
