"""The vault: objects that open as what they were kept as, survive crashes, and can be destroyed."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from parties import files
from parties.errors import KeyServiceError, VaultError
from parties.keys.services.file_service import FileService
from parties.keys.services.identity_service import IdentityService
from parties.keys.services.service import KeyService
from parties.keys.vault import MemoryVault
from parties.vault.rotation import rotate
from parties.vault.store import Store, entries_of, using
from protocols.errors import EnvelopeError

ANN, BOB = MemoryVault.generate("ann"), MemoryVault.generate("bob")
PASSPHRASE = b"correct horse"
CONTENT = b"blood pressure of everybody\n" * 100_000


@pytest.fixture(params=["identity", "file"])
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> KeyService:
    if request.param == "identity":
        return IdentityService(ANN)
    return FileService.create(tmp_path / "vault.keys", PASSPHRASE)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "vault", "ann", IdentityService(ANN))


def keep(store: Store, content: bytes = CONTENT, name: str = "adm", kind: str = "table") -> None:
    with store.writing(kind, name) as out:
        out.write(content)


def content(store: Store, name: str = "adm", version: int = 0, kind: str = "table") -> bytes:
    with store.open(kind, name, version) as opened:
        return opened.reader.read()


def versions(store_or_folder: Path) -> list[tuple[str, int]]:
    return [(entry.info.name, entry.info.version) for entry in entries_of(store_or_folder)]


def ends(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_what_is_kept_comes_back(tmp_path: Path, keys: KeyService) -> None:
    store = Store(tmp_path / "vault", "ann", keys)
    for text in (b"", b"one", CONTENT):
        keep(store, text)
        assert content(store) == text
    assert content(store, version=2) == b"one"
    found = entries_of(tmp_path / "vault")
    assert [(e.info.version, e.size) for e in found] == [(1, 0), (2, 3), (3, len(CONTENT))]
    assert {e.key_id for e in found} == {keys.current}
    info = store.newest("table", "adm")
    assert (info.node, info.kind, info.name, info.version) == ("ann", "table", "adm", 3)


def test_nothing_of_it_is_on_the_disk(tmp_path: Path, keys: KeyService) -> None:
    keep(Store(tmp_path / "vault", "ann", keys))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"blood pressure" not in path.read_bytes()
            assert path.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "vault").stat().st_mode & 0o077 == 0


def test_names_that_begin_alike_are_different_objects(tmp_path: Path, store: Store) -> None:
    keep(store, b"1", "a")
    keep(store, b"2", "a-1")
    keep(store, b"3", "a", kind="model")
    keep(store, b"4", "a")
    assert [content(store, "a"), content(store, "a-1"), content(store, "a", kind="model")] == [
        b"4",
        b"2",
        b"3",
    ]
    for name in ("", "../a", "a/b", "a.1", ".a", "a" * 101, "a\0"):
        with pytest.raises(VaultError, match="is not a name"):
            keep(store, b"", name)
        with pytest.raises(VaultError, match="is not a name"):
            store.open("table", name)
    with pytest.raises(VaultError, match="is not a kind"):
        keep(store, b"", kind="..")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_breaks_off_leaves_no_object(
    tmp_path: Path, store: Store, error: type[BaseException] | BaseException
) -> None:
    keep(store, b"first")
    expected = VaultError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), store.writing("table", "adm") as out:
        out.write(CONTENT)
        raise error
    assert versions(tmp_path / "vault") == [("adm", 1)]
    assert ends(tmp_path / "vault" / "table") == ["adm.1.chunks", "adm.1.header"]
    keep(store, b"second")
    assert content(store) == b"second"


def writes(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    """The process dies when it renames or links for the time after `allowed`."""
    left = iter(range(allowed))

    def dying(real: object) -> object:
        def call(*given: object) -> object:
            if next(left, None) is None:
                raise _Died
            return real(*given)  # type: ignore[operator]

        return call

    monkeypatch.setattr(files.os, "replace", dying(os.replace))
    monkeypatch.setattr(files.os, "link", dying(os.link))


class _Died(BaseException):
    pass


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_crash_between_chunks_and_header_leaves_no_object(
    tmp_path: Path, store: Store, allowed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        writes(patch, allowed)
        with pytest.raises(_Died):
            keep(store)
    assert versions(tmp_path / "vault") == []
    keep(store, b"afterwards")
    assert ends(tmp_path / "vault" / "table") == ["adm.1.chunks", "adm.1.header"]
    assert content(store) == b"afterwards"


def swap(folder: Path, one: str, two: str, end: str) -> None:
    first, second = folder / (one + end), folder / (two + end)
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)


@pytest.mark.parametrize("end", [".header", ".chunks"])
def test_objects_put_in_each_other_s_place_do_not_open(
    tmp_path: Path, store: Store, end: str
) -> None:
    keep(store, b"sick" * 9)
    keep(store, b"well" * 9)
    swap(tmp_path / "vault" / "table", "adm.1", "adm.2", end)
    with pytest.raises(VaultError, match=r"adm\.2"):
        content(store)


def test_an_old_version_cannot_pass_for_a_newer_one(tmp_path: Path, store: Store) -> None:
    keep(store, b"old")
    folder = tmp_path / "vault" / "table"
    for end in (".header", ".chunks"):
        shutil.copy(folder / f"adm.1{end}", folder / f"adm.2{end}")
    with pytest.raises(VaultError, match="is another object: table adm, version 1"):
        content(store)


def test_another_node_s_vault_does_not_open(tmp_path: Path, store: Store) -> None:
    keep(store)
    with pytest.raises(VaultError, match="is an object of ann, not of bob"):
        content(Store(tmp_path / "vault", "bob", IdentityService(BOB)))
    with pytest.raises(KeyServiceError, match="belongs to another identity"):
        content(Store(tmp_path / "vault", "ann", IdentityService(BOB)))


@pytest.mark.parametrize("end", [".header", ".chunks"])
def test_every_altered_byte_is_noticed(tmp_path: Path, end: str) -> None:
    store = Store(tmp_path / "vault", "ann", FileService.create(tmp_path / "k", PASSPHRASE))
    keep(store, b"the whole content")
    path = tmp_path / "vault" / "table" / f"adm.1{end}"
    whole = path.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises((VaultError, EnvelopeError)):
            content(store)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(VaultError, match=r"adm\.1"):
            content(store)
    path.write_bytes(whole + b"\0")
    with pytest.raises(VaultError):
        content(store)
    path.unlink()
    with pytest.raises(VaultError, match="adm"):
        content(store)


def test_what_is_shredded_is_gone_for_good(tmp_path: Path, store: Store) -> None:
    keep(store, b"1")
    keep(store, b"2")
    folder = tmp_path / "vault" / "table"
    # Another name of the same file, as a snapshot would hold it: its bytes are overwritten.
    os.link(folder / "adm.2.header", tmp_path / "snapshot")
    assert store.shred("table", "adm").version == 2
    assert not any((tmp_path / "snapshot").read_bytes())
    assert content(store) == b"1"
    with pytest.raises(VaultError, match="no version 2 of table adm; it was shredded"):
        content(store, version=2)
    keep(store, b"3")
    assert store.newest("table", "adm").version == 3
    assert ends(folder) == [
        "adm.1.chunks",
        "adm.1.header",
        "adm.2.shredded",
        "adm.3.chunks",
        "adm.3.header",
    ]
    with pytest.raises(VaultError, match="no table other"):
        store.shred("table", "other")


def test_keys_rotate_without_touching_contents(tmp_path: Path) -> None:
    service = FileService.create(tmp_path / "vault.keys", PASSPHRASE)
    store = Store(tmp_path / "vault", "ann", service)
    for name in ("a", "b"):
        keep(store, name.encode(), name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.chunks")}
    old = (tmp_path / "vault" / "table" / "a.1.header").read_bytes()
    (first,) = {entry.key_id for entry in entries_of(tmp_path / "vault")}
    assert service.rotate().startswith("file:2-")
    assert store.rewrap(service) == 2
    assert store.rewrap(service) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.chunks")} == before
    assert [content(store, name) for name in "ab"] == [b"a", b"b"]
    needed = frozenset(entry.key_id for entry in entries_of(tmp_path / "vault"))
    assert service.retire(needed) == (first,)
    again = FileService(tmp_path / "vault.keys", PASSPHRASE)
    assert content(Store(tmp_path / "vault", "ann", again), "a") == b"a"
    (tmp_path / "vault" / "table" / "a.1.header").write_bytes(old)
    with pytest.raises(KeyServiceError, match="does not have the key file:1"):
        content(store, "a")


@pytest.mark.parametrize("allowed", range(5))
def test_a_rotation_that_breaks_off_goes_on(tmp_path: Path, allowed: int) -> None:
    """To another key service, killed at each step: every object opens before and after."""
    identity = IdentityService(ANN)
    store = Store(tmp_path / "vault", "ann", identity)
    names = [f"t{number}" for number in range(4)]
    for name in names:
        keep(store, name.encode(), name)
    service = FileService.create(tmp_path / "vault.keys", PASSPHRASE)
    with pytest.MonkeyPatch.context() as patch:
        writes(patch, allowed)
        if allowed < len(names):
            with pytest.raises(_Died):
                store.rewrap(service)
        else:
            store.rewrap(service)
    moved = [
        entry.info.name
        for entry in entries_of(tmp_path / "vault")
        if entry.key_id == service.current
    ]
    assert moved == names[:allowed]
    for name in names:
        opening = Store(tmp_path / "vault", "ann", service if name in moved else identity)
        assert content(opening, name) == name.encode()
    assert store.rewrap(service) == len(names) - len(moved)
    assert [content(Store(tmp_path / "vault", "ann", service), name) for name in names] == [
        name.encode() for name in names
    ]


def test_two_writers_of_one_name_get_two_versions(tmp_path: Path, store: Store) -> None:
    """The second waits for the first."""
    child = os.fork()
    if not child:
        try:
            for _ in range(5):
                keep(store, b"child")
        finally:
            os._exit(0)
    for _ in range(5):
        keep(store, b"parent")
    os.waitpid(child, 0)
    assert versions(tmp_path / "vault") == [("adm", number) for number in range(1, 11)]
    texts = [content(store, version=number) for number in range(1, 11)]
    assert sorted(texts) == [b"child"] * 5 + [b"parent"] * 5


def chunks_of(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def test_contents_larger_than_a_chunk_stream(store: Store) -> None:
    data = os.urandom(3 << 20) + b"end"
    with store.writing("table", "adm") as out:
        for piece in chunks_of(data, 700_000):
            out.write(piece)
    with store.open("table", "adm") as opened:
        opened.reader.seek(-3, os.SEEK_END)
        assert opened.reader.read() == b"end"
        opened.reader.seek((1 << 20) - 5)
        assert opened.reader.read(10) == data[(1 << 20) - 5 : (1 << 20) + 5]


def test_a_vault_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "vault").write_text("a file stands in the way")
    with pytest.raises(VaultError, match="the vault"):
        keep(Store(tmp_path / "vault", "ann", IdentityService(ANN)))


def test_objects_move_from_one_file_of_keys_to_another(tmp_path: Path) -> None:
    old = FileService.create(tmp_path / "old.keys", PASSPHRASE)
    new = FileService.create(tmp_path / "new.keys", PASSPHRASE)
    assert old.current != new.current
    store = Store(tmp_path / "vault", "ann", old)
    keep(store, b"one", "a")
    keep(store, b"two", "b")
    assert store.rewrap(new) == 2
    assert store.rewrap(new) == 0
    moved = Store(tmp_path / "vault", "ann", new)
    assert [content(moved, name) for name in "ab"] == [b"one", b"two"]
    with pytest.raises(KeyServiceError):
        content(store, "a")


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path, store: Store) -> None:
    keep(store, b"first")
    folder = tmp_path / "vault" / "table"
    for left in (".adm.2.chunks.x.tmp", ".adm.2.header.x.tmp", ".other.1.chunks.x.tmp"):
        (folder / left).write_bytes(b"half")
    keep(store, b"second")
    assert [path.name for path in folder.glob("*.tmp")] == [".other.1.chunks.x.tmp"]


@pytest.mark.parametrize("header", ["whole", "zeros", "gone"])
def test_shredding_that_broke_off(tmp_path: Path, store: Store, header: str) -> None:
    keep(store, b"first")
    keep(store, b"second")
    folder = tmp_path / "vault" / "table"
    (folder / "adm.2.shredded").touch()
    path = folder / "adm.2.header"
    path.write_bytes(path.read_bytes() if header == "whole" else bytes(path.stat().st_size))
    if header == "gone":
        path.unlink()
    # A header that is half destroyed hides neither itself nor the others.
    assert versions(tmp_path / "vault") == [("adm", 1)]
    assert content(store) == b"first"
    with pytest.raises(VaultError, match="it was shredded"):
        content(store, version=2)
    keep(store, b"third")
    assert ends(folder) == [
        "adm.1.chunks",
        "adm.1.header",
        "adm.2.shredded",
        "adm.3.chunks",
        "adm.3.header",
    ]


@pytest.mark.parametrize("end", ["header", "chunks"])
def test_a_pipe_in_place_of_a_file_makes_nobody_wait(
    tmp_path: Path, store: Store, end: str
) -> None:
    keep(store, b"first")
    path = tmp_path / "vault" / "table" / f"adm.1.{end}"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(VaultError, match=f".{end} is not a file"):
        content(store)


def test_a_full_disk_is_the_faults_of_the_vault(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.writing("table", "adm") as out:
        with open("/dev/full", "wb", buffering=0) as full:
            monkeypatch.setattr(out._content._out, "_stream", full)
            with pytest.raises(VaultError, match=r"vault: No space left on device"):
                out.write(CONTENT)
        monkeypatch.undo()


def test_nobody_rotates_while_others_write(tmp_path: Path) -> None:
    folder = tmp_path / "vault"

    def free(how: int) -> bool:
        with open(folder / ".lock") as lock:
            try:
                fcntl.flock(lock, how | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    with using(folder):
        assert free(fcntl.LOCK_SH) and not free(fcntl.LOCK_EX)
    with using(folder, alone=True):
        assert not free(fcntl.LOCK_SH)
    assert free(fcntl.LOCK_EX)
    assert folder.stat().st_mode & 0o077 == 0


def test_an_object_in_the_place_of_another_kind(tmp_path: Path, store: Store) -> None:
    keep(store, b"a model", kind="model")
    shutil.copytree(tmp_path / "vault" / "model", tmp_path / "vault" / "table")
    with pytest.raises(VaultError, match="is another object: model adm, version 1"):
        content(store)


def test_parts_are_under_another_key(tmp_path: Path, store: Store) -> None:
    lab = store.under(FileService.create(tmp_path / "lab", PASSPHRASE), "lab")
    with store.writing("table", "adm") as out, lab.writing_part(out.info) as part:
        out.write(b"whole")
        part.write(b"part")
    keep(store)
    found = entries_of(tmp_path / "vault")
    assert [(e.info.kind, e.info.version) for e in found] == [
        ("column-lab", 1),
        ("table", 1),
        ("table", 2),
    ]
    assert [e.info.kind for e in lab.entries()] == ["column-lab"]
    assert [e.info.version for e in store.entries()] == [1, 2]
    with lab.open("column-lab", "adm", 1) as content:
        assert content.reader.read() == b"part"
    with pytest.raises(VaultError, match="belongs to another identity"):
        store.open("column-lab", "adm", 1)
    # Each key is rotated by itself: the objects of others stay as they are.
    assert store.rewrap(FileService.create(tmp_path / "new", PASSPHRASE)) == 2
    assert [e.key_id for e in lab.entries()] == [e.key_id for e in found if e.info.kind[0] == "c"]
    assert rotate(lab).rewrapped == 1
    store.shred_parts(store.newest("table", "adm", 2))
    assert lab.versions("column-lab", "adm") == [1]
    store.shred_parts(store.newest("table", "adm", 1))
    assert lab.versions("column-lab", "adm") == [] and store.versions("table", "adm") == [1, 2]


def test_a_part_that_was_left_behind_is_replaced(tmp_path: Path, store: Store) -> None:
    lab = store.under(FileService.create(tmp_path / "lab", PASSPHRASE), "lab")
    with pytest.raises(KeyboardInterrupt), store.writing("table", "adm") as out:
        with lab.writing_part(out.info) as part:
            part.write(b"of a table that never was")
        raise KeyboardInterrupt
    assert lab.versions("column-lab", "adm") == [1] and not store.versions("table", "adm")
    lab.shred("column-lab", "adm")
    with store.writing("table", "adm") as out, lab.writing_part(out.info) as part:
        part.write(b"the one")
    keep(store)
    with lab.open("column-lab", "adm", 1) as content:
        assert content.reader.read() == b"the one"
