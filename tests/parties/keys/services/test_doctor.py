"""The doctor tells a sound key service from one that does less than it says."""

from collections.abc import Callable

import pytest

from parties.errors import KeyServiceError, WrappedKeyError
from parties.keys.services.doctor import examine
from parties.keys.services.identity_service import IdentityService
from parties.keys.services.service import KeyService
from parties.keys.vault import MemoryVault
from tests.support.failing_keys import FailingKeys, InsecureMemoryKeys
from tests.support.key_contract import check_doctor


def problems(service: KeyService) -> dict[str, str]:
    return {each.name: each.problem for each in examine(lambda: service) if not each.ok}


def test_a_sound_service() -> None:
    kept = InsecureMemoryKeys().kept
    check_doctor(lambda: InsecureMemoryKeys(kept))
    assert len(kept) == 1


def test_an_identity_cannot_be_rotated_but_serves() -> None:
    findings = examine(lambda: IdentityService(MemoryVault.generate("ann")))
    failed = [finding for finding in findings if not finding.ok]
    assert [(each.name, each.needed) for each in failed] == [("can be rotated", False)]
    assert all(finding.seconds >= 0 for finding in findings)


def test_a_service_that_does_not_open() -> None:
    def opened() -> KeyService:
        raise KeyServiceError("away")

    assert [(each.name, each.problem) for each in examine(opened)] == [("open", "away")]


def test_a_service_that_goes_away() -> None:
    """Whatever call fails is reported; what depends on it is not tried."""
    for fails_at, name in enumerate(["wrap", "wrap", "unwrap"]):
        found = problems(FailingKeys(InsecureMemoryKeys(), fails_at))
        assert name in found and "is away" in found[name], (fails_at, found)
        assert ("unwrap" in found) == (name == "unwrap")


class Spoilt(InsecureMemoryKeys):
    """Wraps and unwraps as a test says."""

    def __init__(
        self,
        wraps: Callable[[bytes], bytes] | None = None,
        unwraps: Callable[[bytes], bytes] | None = None,
        key_id: str = "",
    ) -> None:
        super().__init__()
        self._wraps, self._unwraps, self._as = wraps, unwraps, key_id
        self._told: dict[bytes, bytes] = {}

    def wrap(self, file_key: bytes, info: bytes) -> tuple[str, bytes]:
        key_id, wrapped = super().wrap(file_key, info)
        wrapped = self._wraps(file_key) if self._wraps else wrapped
        self._told[wrapped] = file_key
        return self._as or key_id, wrapped

    def unwrap(self, key_id: str, wrapped: bytes, info: bytes) -> bytes:
        if self._unwraps is not None:
            return self._unwraps(self._told[wrapped])
        return super().unwrap(key_id, wrapped, info)


@pytest.mark.parametrize(
    ("service", "name", "said"),
    [
        (Spoilt(wraps=lambda key: b"x" + key), "wrap", "as it was"),
        (Spoilt(key_id="memory:7"), "wrap", "wrapped with memory:7"),
        (Spoilt(unwraps=lambda key: bytes(32)), "unwrap", "another key"),
        (Spoilt(unwraps=lambda key: key), "refuse a wrong binding", "another use"),
    ],
)
def test_services_that_lie(service: KeyService, name: str, said: str) -> None:
    found = problems(service)
    assert said in found[name]


def test_a_wrong_binding_is_refused_for_the_right_reason() -> None:
    """A service that is away when it is asked refuses nothing."""

    class Away(InsecureMemoryKeys):
        def unwrap(self, key_id: str, wrapped: bytes, info: bytes) -> bytes:
            try:
                return super().unwrap(key_id, wrapped, info)
            except WrappedKeyError:
                raise KeyServiceError("away") from None

    assert problems(Away()) == {"refuse a wrong binding": "away"}
