"""Key files, vaults, passphrases and atomic writes."""

import json
import os
import pty
import stat
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parties.errors import CardError, IdentityError, PassphraseError
from parties.files import read_bounded, write_atomic
from parties.keys import keyfile
from parties.keys.identity import Card, IdentityKeys
from parties.keys.keyfile import KdfCost, open_secret, read_header, seal_secret
from parties.keys.passphrase import read_passphrase
from parties.keys.vault import FileVault, MemoryVault, Vault, card_path, identity_path, read_card
from protocols.canonical import pack, pack_texts, unpack
from protocols.errors import AuthenticationError

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "channel.json").read_text())
InsecureTestCost = KdfCost(memory_kib=8, passes=1, lanes=1)
PASSPHRASE = b"correct horse battery staple"
SECRET = b"secret bytes of a key file"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("home") / "nested" / "home"
    FileVault.create(root, "hospital-a", PASSPHRASE)
    yield root


def insecure_seal(header: bytes = b"header") -> bytes:
    return seal_secret(SECRET, PASSPHRASE, header, InsecureTestCost)


def insecure_open(data: bytes, passphrase: bytes = PASSPHRASE) -> tuple[bytes, bytes]:
    return open_secret(data, passphrase, InsecureTestCost)


def rewrite(data: bytes, index: int, value: bytes) -> bytes:
    """One field replaced and the checksum made to fit: a deliberate change, not an accident."""
    fields = unpack(data[len(keyfile.MAGIC) : -32], [1 << 20] * 9)
    fields[index] = value
    body = keyfile.MAGIC + pack(*fields)
    return body + sha256(body).digest()


def test_a_secret_survives_and_its_header_is_readable() -> None:
    data = insecure_seal()
    assert insecure_open(data) == (b"header", SECRET)
    assert read_header(data) == b"header"
    assert SECRET not in data and PASSPHRASE not in data
    assert data != insecure_seal()


def test_the_pinned_key_file_opens() -> None:
    vector = VECTORS["key_file"]
    data, passphrase = bytes.fromhex(vector["file"]), vector["passphrase"].encode()
    header, secret = insecure_open(data, passphrase)
    assert (header.hex(), secret.hex()) == (vector["header"], vector["secret"])


@pytest.mark.parametrize("wrong", [b"", b"x", PASSPHRASE + b" ", PASSPHRASE[:-1], b"x" * 5000])
def test_a_wrong_passphrase_is_told(wrong: bytes) -> None:
    with pytest.raises(PassphraseError):
        insecure_open(insecure_seal(), wrong)


@given(st.integers(0, 1 << 16), st.integers(1, 255))
@settings(max_examples=100, deadline=None)
def test_every_altered_byte_is_an_identity_error(position: int, mask: int) -> None:
    data = bytearray(insecure_seal())
    data[position % len(data)] ^= mask
    with pytest.raises(IdentityError) as caught:
        insecure_open(bytes(data))
    assert not isinstance(caught.value, PassphraseError)


@pytest.mark.parametrize("index", range(9))
def test_deliberate_changes_are_refused(index: int) -> None:
    data = insecure_seal()
    field = unpack(data[len(keyfile.MAGIC) : -32], [1 << 20] * 9)[index]
    for value in (field[:-1] + bytes([field[-1] ^ 1]), field[:-1], b"", field + b"\0"):
        with pytest.raises(IdentityError):
            insecure_open(rewrite(data, index, value))


def test_an_altered_header_or_ciphertext_is_not_taken_for_a_wrong_passphrase() -> None:
    for index, value in ((5, b"another header"), (8, bytes(len(SECRET) + 16))):
        with pytest.raises(IdentityError, match="was altered") as caught:
            insecure_open(rewrite(insecure_seal(), index, value))
        assert not isinstance(caught.value, PassphraseError)


@pytest.mark.parametrize(
    ("index", "value", "said"),
    [
        (1, (1 << 32) - 1, "memory_kib"),
        (1, (1 << 20) + 1, "memory_kib"),
        (2, 17, "passes"),
        (2, (1 << 32) - 1, "passes"),
        (3, 17, "lanes"),
        (2, 0, "passes"),
        (3, 0, "lanes"),
        (1, 0, "memory_kib"),
        (3, 2, "too little memory"),
    ],
)
def test_a_hostile_cost_is_refused_before_it_is_paid(
    monkeypatch: pytest.MonkeyPatch, index: int, value: int, said: str
) -> None:
    data = rewrite(insecure_seal(), index, value.to_bytes(4, "big"))

    def unreachable(*_: object) -> None:
        raise AssertionError("the key derivation ran")

    monkeypatch.setattr(keyfile, "_derive", unreachable)
    with pytest.raises(IdentityError, match=said):
        insecure_open(data)


def test_a_cheap_file_is_refused_by_every_vault(tmp_path: Path) -> None:
    keys = IdentityKeys.generate()
    header = pack_texts([keys.card("cheap").to_text()])
    path = identity_path(tmp_path, "cheap")
    write_atomic(path, seal_secret(keys.private_bytes(), PASSPHRASE, header, InsecureTestCost))
    with pytest.raises(IdentityError, match=r"cheap\.identity.*memory_kib is 8, not"):
        FileVault.open(path, PASSPHRASE)


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=80)
def test_arbitrary_files_cause_only_our_error(data: bytes, dressed: bool) -> None:
    if dressed:
        data = keyfile.MAGIC + data
        data += sha256(data).digest()
    for attempt in (read_header, insecure_open):
        with pytest.raises(IdentityError):
            attempt(data)


def test_an_identity_opens_signs_and_unseals(home: Path) -> None:
    opened: Vault = FileVault.open(identity_path(home, "hospital-a"), PASSPHRASE)
    assert Card.load(card_path(home, "hospital-a")) == opened.card
    assert read_card(identity_path(home, "hospital-a")) == opened.card
    opened.card.verifier().verify("purpose", b"message", opened.sign("purpose", b"message"))
    sealed = opened.card.recipient_key.seal(b"info", b"file key")
    assert opened.unseal(b"info", sealed) == b"file key"
    with pytest.raises(AuthenticationError):
        opened.unseal(b"other", sealed)
    assert len(opened.curve_secret()) == 32


def test_identity_files_are_private_and_never_overwritten(home: Path) -> None:
    path = identity_path(home, "hospital-a")
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE(card_path(home, "hospital-a").stat().st_mode) == 0o644
    with pytest.raises(IdentityError, match="never overwritten"):
        FileVault.create(home, "hospital-a", b"another")
    assert path.read_bytes() == before
    assert sorted(file.name for file in home.iterdir()) == [
        "hospital-a.card",
        "hospital-a.identity",
    ]


def test_a_wrong_passphrase_names_the_file_and_not_itself(home: Path) -> None:
    with pytest.raises(PassphraseError) as caught:
        FileVault.open(identity_path(home, "hospital-a"), b"a wrong guess")
    assert "hospital-a.identity: the passphrase is wrong" in str(caught.value)
    assert "guess" not in str(caught.value)


def test_a_tampered_missing_or_foreign_file_is_named(home: Path, tmp_path: Path) -> None:
    data = bytearray(identity_path(home, "hospital-a").read_bytes())
    data[len(data) // 2] ^= 1
    for content in (bytes(data), b"", b"#!/bin/sh", bytes(1 << 19)):
        path = tmp_path / "x.identity"
        path.write_bytes(content)
        with pytest.raises(IdentityError, match=r"x\.identity"):
            FileVault.open(path, PASSPHRASE)
        with pytest.raises(IdentityError, match=r"x\.identity"):
            read_card(path)
    with pytest.raises(IdentityError, match="No such file"):
        FileVault.open(tmp_path / "none.identity", PASSPHRASE)
    with pytest.raises(IdentityError, match="directory"):
        FileVault.open(tmp_path, PASSPHRASE)


def test_a_card_of_other_keys_in_the_file_is_refused(
    tmp_path: Path,
) -> None:
    ours, theirs = IdentityKeys.generate(), IdentityKeys.generate()
    with pytest.raises(IdentityError, match="not those of the card"):
        MemoryVault(ours, theirs.card("eve"))
    header = pack_texts([theirs.card("eve").to_text()])
    path = tmp_path / "eve.identity"
    write_atomic(path, seal_secret(pack(ours.private_bytes()), PASSPHRASE, header))
    with pytest.raises(IdentityError, match=r"eve\.identity: the keys are not those"):
        FileVault.open(path, PASSPHRASE)


def test_names_cannot_leave_the_directory(tmp_path: Path) -> None:
    for name in ("../x", "a/b", "", ".", "-rf"):
        with pytest.raises(IdentityError):
            FileVault.create(tmp_path, name, PASSPHRASE)
    assert not list(tmp_path.iterdir())


def test_unwritable_places_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError, match="cannot be written"):
        FileVault.create(tmp_path / "file" / "home", "a", PASSPHRASE)
    with pytest.raises(PassphraseError):
        FileVault.create(tmp_path / "new", "a", b"")
    assert not (tmp_path / "new").exists()


def test_vaults_show_no_secret() -> None:
    keys = IdentityKeys(bytes(range(192)))
    shown = repr(MemoryVault(keys, keys.card("hospital-a")))
    assert shown.startswith("MemoryVault(hospital-a, ")
    for secret in (keys.private_bytes(), keys.curve_secret):
        assert secret.hex() not in shown and repr(secret) not in shown


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"pass\n", b"pass"), (b"pass\r\n", b"pass"), (b"pass", b"pass"), (b" p\n\n", b" p\n")],
)
def test_passphrases_come_from_files_and_descriptors(
    tmp_path: Path, content: bytes, expected: bytes
) -> None:
    path = tmp_path / "passphrase"
    write_atomic(path, content)
    assert read_passphrase(file=path) == expected
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    assert read_passphrase(fd=reader) == expected
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)


def test_bad_passphrase_sources_are_named(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    for content in (b"", b"\n", b"x" * 4097, b"x" * 10000):
        path.write_bytes(content)
        with pytest.raises(PassphraseError, match=f"passphrase file {path}"):
            read_passphrase(file=path)
    with pytest.raises(PassphraseError, match="No such file"):
        read_passphrase(file=tmp_path / "none")
    for fd in (-1, 987654, 1 << 80):
        with pytest.raises(PassphraseError, match=f"passphrase descriptor {fd}"):
            read_passphrase(fd=fd)
    with pytest.raises(PassphraseError, match="not both"):
        read_passphrase(file=path, fd=0)


def test_without_a_terminal_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.open", _no_terminal)
    reader, writer = os.pipe()
    os.write(writer, b"typed in the clear\n")
    os.close(writer)
    with os.fdopen(reader) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        with pytest.raises(PassphraseError, match="no terminal"):
            read_passphrase(prompt="Passphrase: ")


def _no_terminal(*_: object, **__: object) -> int:
    raise OSError("no /dev/tty")


@pytest.mark.parametrize("again", [b"secret one\n", b"secret two\n"])
def test_a_terminal_asks_twice_for_a_new_passphrase(
    monkeypatch: pytest.MonkeyPatch, again: bytes
) -> None:
    answers = iter(["secret one", again.decode().strip()])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(answers))
    if again == b"secret one\n":
        assert read_passphrase(confirm=True) == b"secret one"
    else:
        with pytest.raises(PassphraseError, match="differ"):
            read_passphrase(confirm=True)


def test_the_terminal_does_not_echo() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if read_passphrase(prompt="Ask: ") == b"hidden words" else 2
        finally:
            os._exit(status)
    shown = b""
    while b"Ask: " not in shown:
        shown += os.read(terminal, 100)
    os.write(terminal, b"hidden words\n")
    _, status = os.waitpid(pid, 0)
    shown += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0 and b"hidden" not in shown


def test_atomic_writes_replace_or_refuse(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"one", 0o640)
    write_atomic(str(path), memoryview(b"two"))
    assert path.read_bytes() == b"two" and stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        write_atomic(path, b"three", replace=False)
    assert path.read_bytes() == b"two"
    write_atomic(tmp_path / "new", b"new", replace=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "new"]


@pytest.mark.parametrize("call", ["os.replace", "os.fsync", "os.fchmod"])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(call, interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(ValueError, match="longer than 4 bytes"):
        read_bounded(path, 4)
    with pytest.raises(ValueError, match="longer"):
        read_bounded("/dev/zero", 1000)


def test_the_error_tree() -> None:
    assert issubclass(PassphraseError, IdentityError)
    assert not issubclass(CardError, IdentityError)
