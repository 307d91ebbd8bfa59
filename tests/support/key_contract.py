"""What every key service has to do, whatever keeps its keys."""

from collections.abc import Callable

import pytest

from parties.errors import KeyServiceError, RetiredKeyError, WrappedKeyError
from parties.keys.services.doctor import examine
from parties.keys.services.service import KeyService
from protocols.sealing import container

FILE_KEY, INFO = bytes(range(32)), b"ann, table admissions, version 3"
FOREIGN = (
    "file:1-0123456789abcdef",
    "identity:00",
    "keyring:a/b#1-0123456789abcdef",
    "vault:other/key#1@1",
    "aws-kms:arn:aws:kms:eu-central-1:111122223333:key/other#0",
    "gcp-kms:projects/p/locations/l/keyRings/r/cryptoKeys/other/cryptoKeyVersions/1",
    "pkcs11:token=other;object=other#1-0123456789abcdef",
    "",
)


def check_wrapping(opened: Callable[[], KeyService]) -> None:
    """What was wrapped opens with a service opened anew, for the same use, unaltered, only."""
    service = opened()
    key_id, wrapped = service.wrap(FILE_KEY, INFO)
    assert key_id == service.current == opened().current
    assert FILE_KEY not in wrapped
    assert len(wrapped) <= container.MAX_WRAPPED_BYTES
    assert len(key_id.encode()) <= container.MAX_KEY_ID_BYTES
    assert opened().unwrap(key_id, wrapped, INFO) == FILE_KEY
    assert service.wrap(FILE_KEY, INFO)[1] != wrapped
    with pytest.raises(WrappedKeyError, match="does not open"):
        service.unwrap(key_id, wrapped, INFO + b".")
    middle = len(wrapped) // 2
    altered = wrapped[:middle] + bytes([wrapped[middle] ^ 1]) + wrapped[middle + 1 :]
    begun = bytes([wrapped[0] ^ 1]) + wrapped[1:]
    for changed in (b"", wrapped[:1], wrapped[:32], wrapped[:-1], altered, begun):
        with pytest.raises(KeyServiceError):
            service.unwrap(key_id, changed, INFO)
    for foreign in FOREIGN:
        if foreign.partition(":")[0] != key_id.partition(":")[0] or "other" in foreign:
            with pytest.raises(RetiredKeyError, match="does not have the key") as told:
                service.unwrap(foreign, wrapped, INFO)
            assert service.uri in str(told.value)


def check_rotation(opened: Callable[[], KeyService], *, retires: bool = True) -> None:
    """Old versions open until they are retired; the current one, and what is needed, stay."""
    service, other = opened(), opened()
    assert other.current == service.current
    first = service.wrap(FILE_KEY, INFO)
    service.check_rotation()
    assert service.current == first[0], "to ask whether a key rotates rotates nothing"
    made = service.rotate()
    assert made == service.current != first[0]
    assert opened().current == made
    second = service.wrap(FILE_KEY, INFO)
    assert second[0] == made
    assert opened().unwrap(*first, INFO) == FILE_KEY
    assert service.retire(frozenset([first[0], second[0]])) == ()
    assert opened().unwrap(*first, INFO) == FILE_KEY
    gone = service.retire(frozenset([second[0]]))
    assert first[0] in gone if retires else gone == ()
    assert made not in gone
    assert service.retire(frozenset()) == ()
    assert opened().unwrap(*second, INFO) == FILE_KEY
    if retires:
        # It has to be an alert of its own in the audit log.
        with pytest.raises(RetiredKeyError):
            opened().unwrap(*first, INFO)


def check_doctor(opened: Callable[[], KeyService]) -> None:
    """All is well, and nothing was changed."""
    before = opened().current
    findings = examine(opened)
    assert [finding.name for finding in findings if not finding.ok] == []
    assert [finding.name for finding in findings] == [
        "open",
        "wrap",
        "unwrap",
        "refuse a wrong binding",
        "can be rotated",
    ]
    assert opened().current == before


def refused(call: Callable[[], object], *, secrets: tuple[str, ...] = ()) -> str:
    """The message of the one KeyServiceError that `call` raises; it holds no secret, and no
    exception of a library is kept behind it."""
    with pytest.raises(KeyServiceError) as told:
        call()
    error = told.value
    assert error.__cause__ is None or isinstance(error.__cause__, KeyServiceError)
    assert error.__context__ is None or isinstance(error.__context__, KeyServiceError)
    message = str(error)
    for secret in (*secrets, FILE_KEY.hex()):
        assert secret not in message
    assert "\n" not in message
    return message
