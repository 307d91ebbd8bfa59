"""A vault's key changes while its service comes and goes: no object is ever without its key."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from parties.errors import KeyServiceError, VaultError
from parties.keys.services.file_service import FileService
from parties.keys.services.identity_service import IdentityService
from parties.keys.services.service import KeyService
from parties.keys.vault import MemoryVault
from parties.vault.rotation import move, rotate, why_due
from parties.vault.store import Store, entries_of
from protocols.sealing.container import MAX_WRAPPED_BYTES
from tests.support.failing_keys import FailingKeys, InsecureMemoryKeys

NAMES = ("a", "b", "c")
ANN = MemoryVault.generate("ann")


class Case:
    """A vault with three objects."""

    def __init__(self, folder: Path, keys: KeyService | None = None) -> None:
        self.folder = folder / "vault"
        self.keys = keys or InsecureMemoryKeys()
        for name in NAMES:
            with self.store(self.keys).writing("table", name) as out:
                out.write(name.encode())

    def store(self, keys: KeyService) -> Store:
        return Store(self.folder, "ann", keys)

    def ids(self) -> set[str]:
        return {entry.key_id for entry in entries_of(self.folder)}

    def opens(self, *services: KeyService) -> bool:
        """Whether every object opens with one of the services."""
        by_id = {entry.info.name: entry.key_id for entry in entries_of(self.folder)}
        for name, key_id in by_id.items():
            (keys,) = [each for each in services if key_id.startswith(each.uri.split(":")[0])]
            with self.store(keys).open("table", name) as content:
                if content.reader.read() != name.encode():
                    return False
        return len(by_id) == len(NAMES)


def calls_of_a_rotation(folder: Path) -> int:
    case = Case(folder)
    counting = FailingKeys(case.keys)
    rotate(case.store(counting))
    return counting.calls


@pytest.mark.parametrize("lost", [False, True], ids=["not carried out", "answer lost"])
def test_a_service_that_is_gone_in_the_middle_of_a_rotation(tmp_path: Path, lost: bool) -> None:
    """At every call: each object opens afterwards, and a second rotation finishes."""
    calls = calls_of_a_rotation(tmp_path / "count")
    assert calls > 3 * len(NAMES)
    for fails_at in range(calls):
        case = Case(tmp_path / str(fails_at))
        first = case.ids()
        failing = FailingKeys(case.keys, fails_at, lost=lost)
        with pytest.raises(KeyServiceError, match="is away"):
            rotate(case.store(failing))
        assert isinstance(case.keys, InsecureMemoryKeys)
        fresh = InsecureMemoryKeys(case.keys.kept)
        assert case.opens(fresh), fails_at
        done = rotate(case.store(fresh))
        assert case.ids() == {done.key} != first, fails_at
        assert case.opens(InsecureMemoryKeys(case.keys.kept)), fails_at
        assert fresh.retire(frozenset()) == (), "every other key was destroyed"


@pytest.mark.parametrize("lost", [False, True], ids=["not carried out", "answer lost"])
@pytest.mark.parametrize("which", ["old", "new"])
def test_a_service_that_is_gone_in_the_middle_of_a_move(
    tmp_path: Path, which: str, lost: bool
) -> None:
    fails_at = 0
    while True:
        case = Case(tmp_path / str(fails_at), IdentityService(ANN))
        old, new = case.keys, InsecureMemoryKeys()
        failing = FailingKeys(old if which == "old" else new, fails_at, lost=lost)
        try:
            store = case.store(failing if which == "old" else old)
            move(store, failing if which == "new" else new)
            break
        except KeyServiceError:
            assert case.opens(old, new), fails_at
        assert move(case.store(old), new).key == new.current
        assert case.ids() == {new.current} and case.opens(new)
        fails_at += 1
    assert fails_at >= len(NAMES)


def test_a_rotation_that_somebody_began_is_finished_first(tmp_path: Path) -> None:
    case = Case(tmp_path)
    by_hand = case.keys.rotate()
    done = rotate(case.store(case.keys))
    assert (done.key, done.made, done.rewrapped, len(done.retired)) == (by_hand, False, 3, 1)
    again = rotate(case.store(case.keys))
    assert again.made and again.key != by_hand and again.retired == (by_hand,)


def test_keys_that_others_use_are_kept(tmp_path: Path) -> None:
    """Two vaults under one service."""
    one = Case(tmp_path / "one")
    two = Case(tmp_path / "two", one.keys)
    assert rotate(one.store(one.keys), keep_old=True).retired == ()
    assert one.opens(one.keys) and two.opens(one.keys)


def test_a_move_destroys_no_key(tmp_path: Path) -> None:
    case = Case(tmp_path)
    other = InsecureMemoryKeys()
    kept = other.wrap(bytes(32), b"of another vault")
    other.rotate()
    assert move(case.store(case.keys), other).retired == ()
    assert other.unwrap(*kept, b"of another vault") == bytes(32)


def test_a_move_between_two_sets_of_keys_moves_every_object(tmp_path: Path) -> None:
    """Both call their first key 1: the two are not taken for one."""
    case = Case(tmp_path)
    other = InsecureMemoryKeys()
    assert other.current != case.keys.current
    assert move(case.store(case.keys), other).rewrapped == len(NAMES)
    assert case.opens(other)
    with pytest.raises(KeyServiceError, match="does not have the key"):
        case.opens(case.keys)


class Lying:
    """Wraps with something that does not open, opens as another, or is too large."""

    uri = "memory:lying"

    def __init__(self, inner: KeyService, lie: str) -> None:
        self._inner, self._lie = inner, lie
        self.rotate, self.retire = inner.rotate, inner.retire
        self.check_rotation = inner.check_rotation

    @property
    def current(self) -> str:
        return self._inner.current + "-new"

    def wrap(self, file_key: bytes, info: bytes) -> tuple[str, bytes]:
        other = bytes(32) if self._lie == "another key" else file_key
        key_id, wrapped = self._inner.wrap(other, info)
        if self._lie == "too large":
            wrapped += bytes(MAX_WRAPPED_BYTES)
        return key_id, wrapped[:-1] if self._lie == "cut off" else wrapped

    def unwrap(self, key_id: str, wrapped: bytes, info: bytes) -> bytes:
        return self._inner.unwrap(key_id, wrapped, info)


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ("cut off", "does not open"),
        ("another key", "opens as another"),
        ("too large", "more than a header holds"),
    ],
)
def test_a_wrapping_is_tried_before_anything_depends_on_it(
    tmp_path: Path, lie: str, said: str
) -> None:
    case = Case(tmp_path)
    before = {path: path.read_bytes() for path in case.folder.rglob("*.header")}
    lying = Lying(case.keys, lie)
    with pytest.raises(VaultError, match=said):
        move(case.store(case.keys), lying)
    assert {path: path.read_bytes() for path in case.folder.rglob("*.header")} == before
    assert case.opens(case.keys)
    with pytest.raises(VaultError, match=said), case.store(lying).writing("table", "d") as out:
        out.write(b"d")
    assert len(entries_of(case.folder)) == len(NAMES)


def test_a_key_is_due_by_age_and_by_volume(tmp_path: Path) -> None:
    keys = FileService.create(tmp_path / "keys", b"correct horse")
    store = Store(tmp_path / "vault", "ann", keys)
    since = datetime(2026, 1, 31, tzinfo=UTC)

    def why(days: float, most_objects: int = 5) -> str:
        now = since + timedelta(days=days)
        return why_due(store, since, now, most_days=30, most_objects=most_objects)

    for name in ("a", "b"):
        with store.writing("table", name) as out:
            out.write(b"x")
    assert why(0) == why(30) == why(1, 2) == ""
    assert why(31) == "it is 31 days old, and may be 30"
    assert why(1, 1) == "it wraps 2 objects, and may wrap 1"
    assert "in the future" in why(-1)
    keys.rotate()
    assert "not finished" in why(0)


@pytest.mark.parametrize("how", ["zeroed", "swapped", "gone", "altered key", "stray name"])
def test_one_damaged_object_stops_neither_the_list_nor_the_rotation(
    tmp_path: Path, how: str
) -> None:
    case = Case(tmp_path)
    first, second, *_ = (case.folder / "table" / f"{name}.1.header" for name in sorted(NAMES))
    content = first.read_bytes()
    if how == "zeroed":
        first.write_bytes(bytes(len(content)))
    elif how == "swapped":
        first.write_bytes(second.read_bytes())
    elif how == "gone":
        first.with_suffix(".chunks").rename(tmp_path / "away")
    elif how == "altered key":
        first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        first = first.with_name("a.01.header")
        first.write_bytes(content)
    before = case.keys.current
    done = rotate(case.store(case.keys))
    (said,) = done.damaged
    assert str(first).removesuffix(".header") in said
    # Its header may come back from a backup: no key is destroyed meanwhile.
    assert done.made and done.retired == ()
    others = {e.key_id for e in entries_of(case.folder, []) if e.info.name != sorted(NAMES)[0]}
    assert others == {done.key} and done.key != before
    if how != "altered key":  # which shows only when it is used
        with pytest.raises(VaultError, match=re.escape(said)):
            entries_of(case.folder)
        found = list[VaultError]()
        assert len(entries_of(case.folder, found)) >= len(NAMES) - 1 and len(found) == 1
    if how == "stray name":
        first.unlink()
    else:
        first.write_bytes(content)
    if how == "gone":
        (tmp_path / "away").rename(first.with_suffix(".chunks"))
    mended = rotate(case.store(case.keys))
    assert mended.damaged == () and mended.retired and case.ids() == {mended.key}
