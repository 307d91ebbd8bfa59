"""What a node keeps, encrypted: one folder of objects, each with a header and its chunks.

    vault/table/admissions.3.header     `protocols.sealing.stored`: what it is, its wrapped file key
    vault/table/admissions.3.chunks     the content
    vault/table/admissions.2.shredded   nothing: this version was destroyed
    vault/column-lab/admissions.3.…     a part of it, under the key that the node calls lab

An object exists once its header exists. The chunks are durable before that, so a crash, a full disk
or Ctrl-C leaves either no object or a complete one. Wrapping a file key anew replaces one small
file. Shredding an object destroys its header: without the file key the chunks say nothing, wherever
copies of them are. A copy of the *header* in a backup can be opened as long as the key service has
the key: rotate and retire the key as well.

A part is an object of its own beside the object to which it belongs, with the same name and
version, under another key: whoever may open one need not be able to open the other.
"""

import contextlib
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

from parties.errors import VaultError, WrappedKeyError
from parties.files import atomic_file, locked, private_directory, write_atomic
from parties.keys.identity import reason
from parties.keys.services.service import KeyService
from protocols.errors import EnvelopeError
from protocols.names import OBJECT_NAME
from protocols.sealing import container, stored
from protocols.sealing.stored import ObjectInfo
from protocols.sealing.stream import CHUNK_BYTES, SealingWriter, plain_bytes

HEADER, CHUNKS, SHREDDED = ".header", ".chunks", ".shredded"
PART = "column-"
"""With this begins the kind of a part; the name of its key follows."""
MAX_HEADER_BYTES = container.MAX_HEADER_BYTES + len(container.MAGIC) + 4
_VERSION = re.compile(r"[1-9][0-9]{0,18}")
"""In the name of a file: in its one spelling, so that no two files are one version."""


@dataclass(frozen=True)
class Entry:
    """One object: what it is, the id of the key that wraps its file key, bytes of its content."""

    info: ObjectInfo
    key_id: str
    size: int


@dataclass(frozen=True)
class Writing:
    """An object that is being written. info: what it will be."""

    info: ObjectInfo
    _content: SealingWriter

    def write(self, data: bytes) -> None:
        self._content.write(data)


class Store:
    """The vault of one node, or with `part` the parts that the key of this name wraps.

    keys: wraps the objects, or those parts. Raises VaultError and KeyServiceError, which name the
    object.
    """

    def __init__(self, folder: Path, node: str, keys: KeyService, part: str = "") -> None:
        self.folder, self._node, self._part = folder, node, part
        self.keys = keys

    @contextlib.contextmanager
    def writing(self, kind: str, name: str, job: str = "") -> Iterator[Writing]:
        """Keep what is written as the newest version of `name`, once the block has ended well."""
        _check(kind, "a kind")
        _check(name, "a name")
        with self._changing(kind, name) as folder:
            version = 1 + max(_versions(folder, name), default=0)
            with self._written(folder, self._info(kind, name, version, job), new=True) as out:
                yield out

    @contextlib.contextmanager
    def writing_part(self, whole: ObjectInfo) -> Iterator[Writing]:
        """Keep what is written as the part of `whole`, which is being written, under these keys.

        A part that is there already was left behind: the vault broke off before `whole` was there.
        """
        kind = PART + self._part
        with self._changing(kind, whole.name) as folder:
            info = self._info(kind, whole.name, whole.version, whole.job)
            with self._written(folder, info, new=False) as out:
                yield out

    def _info(self, kind: str, name: str, version: int, job: str) -> ObjectInfo:
        created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return ObjectInfo(self._node, kind, name, version, job, created)

    @contextlib.contextmanager
    def _written(self, folder: Path, info: ObjectInfo, *, new: bool) -> Iterator[Writing]:
        path = folder / f"{info.name}.{info.version}"
        if not new:
            _destroy(path)
            path.with_name(path.name + SHREDDED).unlink(missing_ok=True)
        with atomic_file(path.with_name(path.name + CHUNKS)) as stream:
            out = cast("BinaryIO", _Chunks(stream, self.folder))
            with _named(path):
                header, content = stored.seal_object(out, info, self.keys)
            yield Writing(info, content)
            content.finish()
        # From here on it is there.
        write_atomic(path.with_name(path.name + HEADER), header.framed(), replace=False)

    def under(self, keys: KeyService, part: str) -> "Store":
        """The parts in this vault that the key of the name `part`, which is `keys`, wraps."""
        return Store(self.folder, self._node, keys, part)

    def entries(self, damaged: list[VaultError] | None = None) -> list[Entry]:
        """The objects that these keys wrap, as `entries_of` lists them."""
        return _entries(self._own_paths(), damaged)

    def versions(self, kind: str, name: str) -> list[int]:
        """The versions that are there, in order."""
        folder = self.folder / kind
        there = set(_versions(folder, name, HEADER)) - set(_versions(folder, name, SHREDDED))
        return sorted(there)

    def open(self, kind: str, name: str, version: int = 0) -> "Content":
        """The content of a version, 0 for the newest; close it after use."""
        path = self._path(kind, name, version)
        with _named(path):
            header, info = self._own(path)
            stream = _regular(path.with_name(path.name + CHUNKS))
            try:
                size = os.fstat(stream.fileno()).st_size
                reader = stored.open_object(header, stream, size, self.keys)
            except BaseException:
                stream.close()
                raise
            return Content(info, BufferedReader(reader, CHUNK_BYTES), reader.size, stream)

    def newest(self, kind: str, name: str, version: int = 0) -> ObjectInfo:
        """What the newest version of an object is, or that version; not verified."""
        path = self._path(kind, name, version)
        with _named(path):
            return _header(path)[1]

    def shred(self, kind: str, name: str, version: int = 0) -> ObjectInfo:
        """Destroy a version, 0 for the newest, so that no key opens it any more."""
        path = self._path(kind, name, version)
        with self._changing(kind, name), _named(path):
            _, info = self._own(path)
            write_atomic(path.with_name(path.name + SHREDDED), b"", replace=True)
            _destroy(path)
        return info

    def keep_only(self, kind: str, name: str, kept: Collection[int]) -> None:
        """`destroy` all versions but these."""
        for version in set(self.versions(kind, name)).difference(kept):
            self.destroy(kind, name, version)

    def destroy(self, kind: str, name: str, version: int) -> None:
        """As `shred`, for versions that come and go by themselves: no mark of it stays, and the
        number may come again."""
        with self._changing(kind, name) as folder:
            path = folder / f"{name}.{version}"
            with _named(path):
                _destroy(path)

    def shred_parts(self, whole: ObjectInfo) -> None:
        """Destroy all parts of an object, whatever key they are under; no key is used."""
        for path in _paths(self.folder):
            kind = path.parent.name
            if kind.startswith(PART) and _parted(path) == (whole.name, whole.version):
                self.shred(kind, whole.name, whole.version)

    def rewrap(
        self,
        new: KeyService,
        told: Callable[[Entry], None] | None = None,
        damaged: list[VaultError] | None = None,
    ) -> int:
        """Wrap every file key under the current key of `new`; return how many there were.

        Objects that are so already are passed over: what was interrupted goes on. Contents stay as
        they are. damaged: as for `entries_of`; a file key that was altered is damage as well. What
        is wrong with the key service, or with the disk, ends it in any case.
        """
        count = 0
        for path in self._own_paths():
            try:
                with _named(path):
                    header, _ = self._own(path)
            except VaultError as error:
                _pass_over(error, damaged)
                continue
            with self._changing(path.parent.name, _parted(path)[0]), _named(path):
                header, _ = self._own(path)
                if header.key_id == new.current:
                    continue
                try:
                    file_key = self.keys.unwrap(header.key_id, header.wrapped_key, header.wrap_info)
                except WrappedKeyError as error:
                    if damaged is None:
                        raise
                    damaged.append(VaultError(f"{path}: {error}"))
                    continue
                changed = stored.wrapped_anew(header, file_key, new)
                write_atomic(path.with_name(path.name + HEADER), changed.framed())
            count += 1
            if told is not None:
                told(_entry(path))
        return count

    def _own_paths(self) -> list[Path]:
        """The paths of the objects that these keys wrap."""
        return [path for path in _paths(self.folder) if _part_of(path.parent.name) == self._part]

    def _own(self, path: Path) -> tuple[container.Header, ObjectInfo]:
        """The header of an object of this node's; raises EnvelopeError for another's."""
        header, info = _header(path)
        if info.node != self._node:
            raise EnvelopeError(f"is an object of {info.node}, not of {self._node}")
        return header, info

    def _path(self, kind: str, name: str, version: int) -> Path:
        _check(kind, "a kind")
        _check(name, "a name")
        folder, there = self.folder / kind, self.versions(kind, name)
        if not there or (version and version not in there):
            which = f"version {version} of " if version and there else ""
            shredded = version and version in _versions(folder, name, SHREDDED)
            why = "it was shredded" if shredded else "see mpc-train vault ls"
            raise VaultError(f"the vault {self.folder} has no {which}{kind} {name}; {why}")
        return folder / f"{name}.{version or max(there)}"

    @contextlib.contextmanager
    def _changing(self, kind: str, name: str) -> Iterator[Path]:
        """The folder of a kind; one process at a time changes the objects of one name."""
        folder = self.folder / kind
        try:
            private_directory(folder)
            with locked(folder / f".{name}.lock"):
                for version in set(_versions(folder, name, SHREDDED)):
                    # To shred begins with this mark: what is behind it goes, whenever that broke
                    # off.
                    _destroy(folder / f"{name}.{version}")
                whole = set(_versions(folder, name, HEADER))
                for version in set(_versions(folder, name, CHUNKS)) - whole:
                    # A crash came between the two, when this was written or shredded.
                    (folder / f"{name}.{version}{CHUNKS}").unlink()
                for left in folder.glob(f".{name}.*.tmp"):
                    left.unlink()  # of a writer that was killed
                yield folder
        except OSError as error:
            raise VaultError(f"the vault {self.folder}: {reason(error)}") from error


@contextlib.contextmanager
def using(folder: Path, *, alone: bool = False) -> Iterator[None]:
    """Hold the vault while its key service is open to write, or `alone`, to rotate.

    Rotation destroys keys that no object needs: an import that opened the old ones must end before.
    Others wait; the lock ends with the process.
    """
    with contextlib.ExitStack() as held:
        try:
            private_directory(folder)
            held.enter_context(locked(folder / ".lock", shared=not alone))
        except OSError as error:
            raise VaultError(f"the vault {folder}: {reason(error)}") from error
        yield


def _part_of(kind: str) -> str:
    """The name of the key of parts of this kind; nothing where it is no kind of parts."""
    return kind.removeprefix(PART) if kind.startswith(PART) else ""


def entries_of(folder: Path, damaged: list[VaultError] | None = None) -> list[Entry]:
    """All objects of a vault by kind, name and version; no key is used, and nothing is verified.

    damaged: gets an error for each object that cannot be read; None: the first one is raised.
    """
    return _entries(_paths(folder), damaged)


def _entries(paths: list[Path], damaged: list[VaultError] | None) -> list[Entry]:
    found = []
    for path in paths:
        try:
            found.append(_entry(path))
        except VaultError as error:
            _pass_over(error, damaged)
    return found


def _pass_over(error: VaultError, damaged: list[VaultError] | None) -> None:
    """Keep an error about one object, so that the others can be dealt with; raise it if nobody
    keeps it."""
    if damaged is None:
        raise error
    damaged.append(error)


def _destroy(path: Path) -> None:
    """Overwrite and delete the header of an object, then its chunks; what is gone already is."""
    header = path.with_name(path.name + HEADER)
    with contextlib.suppress(FileNotFoundError):
        with header.open("r+b") as stream:
            stream.write(bytes(os.fstat(stream.fileno()).st_size))
            stream.flush()
            os.fsync(stream.fileno())
        header.unlink()
    path.with_name(path.name + CHUNKS).unlink(missing_ok=True)


def _paths(folder: Path) -> list[Path]:
    """Every object's path without its end; not of what is half shredded."""
    headers = [
        path.with_name(path.name.removesuffix(HEADER)) for path in folder.glob(f"*/*{HEADER}")
    ]
    found = [path for path in headers if not path.with_name(path.name + SHREDDED).exists()]
    return sorted(found, key=lambda path: (path.parent.name, *_parted(path), path.name))


def _entry(path: Path) -> Entry:
    with _named(path):
        header, info = _header(path)
        size = path.with_name(path.name + CHUNKS).stat().st_size
        return Entry(info, header.key_id, plain_bytes(size))


def _header(path: Path) -> tuple[container.Header, ObjectInfo]:
    """The header of an object, which is what its place says; raises EnvelopeError."""
    with _regular(path.with_name(path.name + HEADER)) as stream:
        data = stream.read(MAX_HEADER_BYTES + 1)
    header, info = stored.read_header(data)
    if (info.kind, info.name, info.version) != (path.parent.name, *_parted(path)):
        raise EnvelopeError(f"is another object: {info.title}")
    return header, info


def _regular(path: Path) -> BinaryIO:
    """Open a file; raises EnvelopeError for a pipe or a device in its place, without waiting."""
    stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise EnvelopeError(f"{path.suffix} is not a file")
    return stream


class _Chunks:
    """Where chunks go; a full disk is the vault's fault, not one of what the caller reads from."""

    def __init__(self, stream: BinaryIO, folder: Path) -> None:
        self._stream, self._folder = stream, folder

    def write(self, data: bytes) -> int:
        try:
            return self._stream.write(data)
        except OSError as error:
            raise VaultError(f"the vault {self._folder}: {reason(error)}") from error


@dataclass
class Content:
    """An opened object. reader: its content, from any position. size: bytes of it."""

    info: ObjectInfo
    reader: BufferedReader
    size: int
    _stream: BinaryIO

    def __enter__(self) -> "Content":
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()
        self._stream.close()


def _check(text: str, what: str) -> None:
    if not OBJECT_NAME.fullmatch(text):
        raise VaultError(f"{text!r} is not {what}: letters, digits, - and _, at most 100")


def _parted(path: Path) -> tuple[str, int]:
    """Name and version of an object's file, with its end or without; -1 where it is none."""
    plain = path.name
    for end in (HEADER, CHUNKS, SHREDDED):
        plain = plain.removesuffix(end)
    name, _, version = plain.rpartition(".")
    return name, int(version) if _VERSION.fullmatch(version) else -1


def _versions(folder: Path, name: str, *ends: str) -> list[int]:
    found = []
    for end in ends or (HEADER, SHREDDED):
        parted = map(_parted, folder.glob(f"{name}.*{end}"))
        found += [version for known, version in parted if known == name and version > 0]
    return found


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the format and of files say which object they are about."""
    try:
        yield
    except (EnvelopeError, ValueError) as error:
        raise VaultError(f"{path}: {error}") from error
    except OSError as error:
        raise VaultError(f"{path}: {reason(error)}") from error
