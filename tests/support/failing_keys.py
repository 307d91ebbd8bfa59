"""Key services for tests: one in memory, and one that goes away at a call of a test's choice."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from parties.errors import KeyServiceError
from parties.keys.services.key_set import KeySetService, first_keys
from parties.keys.services.service import KeyService

T = TypeVar("T")


class InsecureMemoryKeys(KeySetService):
    """A set of keys that nothing protects. kept: what a file would hold; shared by those that open
    the same."""

    def __init__(self, kept: dict[int, bytes] | None = None) -> None:
        self.kept = first_keys() if kept is None else kept
        super().__init__("memory:", "memory:", 500)

    def _read(self) -> dict[int, bytes]:
        return dict(self.kept)

    @contextmanager
    def _changing(self) -> Iterator[dict[int, bytes]]:
        keys = self._read()
        yield keys
        self.kept.clear()
        self.kept.update(keys)
        self._keys = keys


class FailingKeys:
    """Passes calls on to `inner`. fails_at: the number of the call from which on nothing answers;
    lost: the answer of that call is lost, though it was carried out."""

    def __init__(self, inner: KeyService, fails_at: int = -1, *, lost: bool = False) -> None:
        self.inner, self.fails_at, self.lost = inner, fails_at, lost
        self.calls = 0

    def _call(self, call: Callable[[], T]) -> T:
        number, self.calls = self.calls, self.calls + 1
        if self.fails_at < 0 or number < self.fails_at:
            return call()
        if self.lost and number == self.fails_at:
            call()
        raise KeyServiceError(f"{self.inner.uri}: the service is away")

    @property
    def uri(self) -> str:
        return self.inner.uri

    @property
    def current(self) -> str:
        return self._call(lambda: self.inner.current)

    def wrap(self, file_key: bytes, info: bytes) -> tuple[str, bytes]:
        return self._call(lambda: self.inner.wrap(file_key, info))

    def unwrap(self, key_id: str, wrapped: bytes, info: bytes) -> bytes:
        return self._call(lambda: self.inner.unwrap(key_id, wrapped, info))

    def rotate(self) -> str:
        return self._call(self.inner.rotate)

    def check_rotation(self) -> None:
        self._call(self.inner.check_rotation)

    def retire(self, needed: frozenset[str]) -> tuple[str, ...]:
        return self._call(lambda: self.inner.retire(needed))
