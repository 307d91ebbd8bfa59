"""Keys in a PKCS #11 token: SoftHSM, where it is installed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from parties.keys.services.client import binding
from parties.keys.services.pkcs11_service import Pkcs11Service, parse
from tests.support.key_contract import (
    FILE_KEY,
    INFO,
    check_doctor,
    check_rotation,
    check_wrapping,
    refused,
)
from tests.support.soft_token import LABEL, PIN, SoftToken, soft_token


@pytest.fixture(scope="module")
def token() -> SoftToken:
    return soft_token()


def opened(token: SoftToken, name: str, pin: bytes = PIN) -> Pkcs11Service:
    return Pkcs11Service(token.uri(name).removeprefix("pkcs11:"), pin)


def created(token: SoftToken, name: str) -> Pkcs11Service:
    return Pkcs11Service.create(token.uri(name).removeprefix("pkcs11:"), PIN)


def test_a_key_of_a_token(token: SoftToken) -> None:
    created(token, "study")
    check_wrapping(lambda: opened(token, "study"))
    check_doctor(lambda: opened(token, "study"))
    check_rotation(lambda: opened(token, "study"))
    assert PIN.decode() not in repr(opened(token, "study"))


def test_keys_are_made_in_the_token_and_stay_there(token: SoftToken) -> None:
    import pkcs11

    service = created(token, "stays")
    service.rotate()
    with service._session(False) as session:
        keys = list(session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY}))
        mine = [key for key in keys if key.label.startswith("stays.")]
        assert sorted(key.label for key in mine) == ["stays.1", "stays.2"]
        for key in mine:
            assert key[pkcs11.Attribute.SENSITIVE] and not key[pkcs11.Attribute.EXTRACTABLE]
            assert key[pkcs11.Attribute.NEVER_EXTRACTABLE] and key[pkcs11.Attribute.LOCAL]
            with pytest.raises(pkcs11.exceptions.AttributeSensitive):
                key[pkcs11.Attribute.VALUE]


def test_what_the_token_does_is_aes_gcm(token: SoftToken) -> None:
    """A key of known value in the token opens by another implementation what it wrapped; and for
    new objects it is refused, as it can leave the token."""
    import pkcs11
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    service, value = opened(token, "known"), bytes(range(100, 132))
    names = pkcs11.Attribute
    with service._session(True) as session:
        session.create_object(
            {
                names.CLASS: pkcs11.ObjectClass.SECRET_KEY,
                names.KEY_TYPE: pkcs11.KeyType.AES,
                names.VALUE: value,
                names.LABEL: "known.1",
                names.ID: b"12345678",
                names.TOKEN: True,
                names.ENCRYPT: True,
                names.DECRYPT: True,
                names.EXTRACTABLE: True,
                names.SENSITIVE: False,
            }
        )
    nonce = bytes(12)
    wrapped = nonce + AESGCM(value).encrypt(nonce, FILE_KEY, binding(INFO))
    assert service.unwrap(service.current, wrapped, INFO) == FILE_KEY
    assert "can leave the token" in refused(lambda: service.wrap(FILE_KEY, INFO))


def test_names_that_begin_alike_are_different_keys(token: SoftToken) -> None:
    first, second = created(token, "alike"), created(token, "alike.2")
    kept = first.wrap(FILE_KEY, INFO)
    second.rotate()
    assert second.retire(frozenset()) != ()
    assert first.unwrap(*kept, INFO) == FILE_KEY
    assert "does not have the key" in refused(lambda: second.unwrap(*kept, INFO))


def test_a_key_made_anew_is_another(token: SoftToken) -> None:
    service = created(token, "anew")
    kept = service.wrap(FILE_KEY, INFO)
    with service._session(True) as session:
        for found in service._keys(session):
            found.key.destroy()
    assert "makes it" in refused(lambda: service.current)
    created(token, "anew")
    assert "it was destroyed" in refused(lambda: service.unwrap(*kept, INFO))


def test_a_wrong_pin_is_tried_once(token: SoftToken, monkeypatch: pytest.MonkeyPatch) -> None:
    created(token, "pin")
    service = opened(token, "pin", b"wrong-pin-0815")
    tried: list[bool] = []
    session = service._session

    def counted(rw: bool) -> Any:
        tried.append(rw)
        return session(rw)

    monkeypatch.setattr(service, "_session", counted)
    said = refused(lambda: service.wrap(FILE_KEY, INFO), secrets=("wrong-pin-0815", PIN.decode()))
    assert "refuses the PIN" in said and len(tried) == 1
    for pin in (b"", b"\xff\xfe"):
        assert "holds no PIN" in refused(lambda pin=pin: opened(token, "pin", pin))  # type: ignore


def test_tokens_and_libraries_that_are_not_there(token: SoftToken) -> None:
    def service(uri: str) -> Pkcs11Service:
        return Pkcs11Service(uri.removeprefix("pkcs11:"), PIN)

    assert "there is no token" in refused(lambda: service(token.uri("a", "unknown")).current)
    missing = token.uri("a").replace(token.library, "/none.so")
    assert "no library /none.so" in refused(lambda: service(missing).current)
    wrong = token.uri("a").replace(token.library, __file__)
    assert "fails" in refused(lambda: service(wrong).current)
    assert "makes it" in refused(lambda: service(token.uri("never")).current)
    created(token, "made")
    assert "never overwritten" in refused(lambda: created(token, "made"))


class _Stub:
    """Stands for a key of the token that fails in a way of its own."""

    def __init__(self, key: Any, error: type[Exception], always: bool) -> None:
        self._key, self._error, self._always, self._failed = key, error, always, False

    def encrypt(self, *given: Any, **named: Any) -> bytes:
        return bytes(self._key.encrypt(*given, **named))

    def decrypt(self, *given: Any, **named: Any) -> bytes:
        if self._always or not self._failed:
            self._failed = True
            raise self._error
        return bytes(self._key.decrypt(*given, **named))


@pytest.mark.parametrize(
    ("kind", "always", "said"),
    [
        ("EncryptedDataInvalid", False, "does not open"),
        ("GeneralError", False, "does not open"),
        ("GeneralError", True, "the token fails"),
        ("DeviceRemoved", True, "there is no token"),
        ("MechanismInvalid", True, "does not offer AES-GCM"),
        ("PinLocked", True, "cannot be used"),
    ],
)
def test_a_token_that_fails_is_told_from_an_altered_key(
    token: SoftToken, monkeypatch: pytest.MonkeyPatch, kind: str, always: bool, said: str
) -> None:
    import pkcs11

    name = f"fails-{kind}-{always}"
    service = created(token, name)
    kept = service.wrap(FILE_KEY, INFO)
    real = service._opened
    error = getattr(pkcs11.exceptions, kind)
    monkeypatch.setattr(
        service,
        "_opened",
        lambda key, wrapped, info: real(_Stub(key, error, always), wrapped, info),
    )
    assert said in refused(lambda: service.unwrap(*kept, INFO), secrets=(PIN.decode(),))


def test_two_processes_use_one_token(token: SoftToken) -> None:
    service = created(token, "two")
    key_id, wrapped = service.wrap(FILE_KEY, INFO)
    program = (
        "import sys; from parties.keys.services.pkcs11_service import Pkcs11Service as S; "
        f"s = S({token.uri('two').removeprefix('pkcs11:')!r}, sys.stdin.buffer.read()); "
        f"print(s.unwrap({key_id!r}, {wrapped!r}, {INFO!r}).hex(), s.rotate())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=PIN, capture_output=True, check=True, cwd=_ROOT
    )
    file_key, made = done.stdout.decode().split(maxsplit=1)
    assert bytes.fromhex(file_key) == FILE_KEY
    assert service.current == made.strip()


_ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "token=a?module-path=/l.so",
        "object=a?module-path=/l.so",
        "token=a;object=b",
        "token=a;object=b?module-path=l.so",
        "token=;object=b?module-path=/l.so",
        "token=a;token=b;object=c?module-path=/l.so",
        "token=a;object=b;serial=1?module-path=/l.so",
        "token=a;object=b?module-path=/l.so&pin-value=1234",
        "token=a;object=b?module-path=/l.so&pin-source=/etc/pin",
    ],
)
def test_uris_that_are_wrong(rest: str) -> None:
    with pytest.raises(ValueError):
        parse(rest)


def test_uris() -> None:
    place = parse("object=a%3Bb;token=my%20token?module-path=/l.so")
    assert (place.token, place.object, place.module) == ("my token", "a;b", "/l.so")
    assert parse(SoftToken("/l.so").uri("x").removeprefix("pkcs11:")).token == LABEL
