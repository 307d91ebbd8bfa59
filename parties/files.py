"""Files, also secret ones, that are either the old version or the new one, never half of each.

A crash, a full disk or Ctrl-C during a write leaves the old file unchanged, and no temporary file
that could be mistaken for it. The new file is durable when `write_atomic` or `atomic_file` returns.
A file with a secret is read only if no other user of the machine could have read it.
"""

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def write_atomic(
    path: Path | str,
    data: bytes | bytearray | memoryview,
    mode: int = 0o600,
    *,
    replace: bool = True,
) -> None:
    """Write `data` to `path`, as `atomic_file` does."""
    with atomic_file(path, mode, replace=replace) as stream:
        stream.write(data)


@contextlib.contextmanager
def atomic_file(path: Path | str, mode: int = 0o600, *, replace: bool = True) -> Iterator[BinaryIO]:
    """A file to write to. When the block ends, `path` holds all of it, with permission bits `mode`;
    after an error it is unchanged.

    1. Create a temporary file in the same directory (rename is atomic only within one file system)
       with mode 0600, so that nobody else can read it while it is being filled.
    2. Bring its bytes and its mode to the disk before the rename: after a power cut the name never
       points to an empty file.
    3. Rename it, then sync the directory, so that the new name survives as well. Without `replace`
       make a hard link instead, which fails where a rename would overwrite.

    Raises OSError (FileExistsError without `replace`); the temporary file is then gone and `path`
    unchanged, as after any error in the block.
    """
    target = Path(path)
    descriptor, temporary = tempfile.mkstemp(  # 1
        prefix=f".{target.name}.", suffix=".tmp", dir=target.parent
    )
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())  # 2
        if replace:
            os.replace(temporary, target)  # 3
        else:
            os.link(temporary, target)
            os.unlink(temporary)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_directory(target.parent)


def move(old: Path | str, new: Path | str) -> None:
    """Give a file another name in its directory, over a file that has it; durable when this
    returns. Raises OSError."""
    os.replace(old, new)
    _sync_directory(Path(new).parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_directory(path: Path | str) -> None:
    """Make a directory and its missing parents, which only their owner may enter; durable when this
    returns, so that what is synced inside does not vanish with its directory.

    Existing directories are not changed. Raises OSError.
    """
    missing, target = [], Path(path)
    while not target.exists():
        missing.append(target)
        target = target.parent
    for directory in reversed(missing):
        directory.mkdir(mode=0o700, exist_ok=True)
        _sync_directory(directory.parent)
    Path(path).mkdir(exist_ok=True)  # FileExistsError if a file has this name


@contextlib.contextmanager
def locked(path: Path | str, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, which is made if need be: one process at a time, or several that
    are `shared`. Others wait; the lock ends with the process. Raises OSError."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def exposed(path: Path | str, info: os.stat_result) -> str | None:
    """Why other users could read a file that holds a secret, and what to do; None if they cannot.

    Checks POSIX permissions and the owner; root may own files that a service is given.
    """
    name = Path(path).name
    if stat.S_IMODE(info.st_mode) & 0o077:
        return f"others may read it; chmod 600 {name}"
    if info.st_uid not in (os.geteuid(), 0):
        return f"another user owns it; chown it to the user of this node, then chmod 600 {name}"
    return None


def open_to_others(directory: Path | str) -> str | None:
    """Why other users could enter a directory of results, and what to do; None if they cannot."""
    info = os.stat(directory)
    if stat.S_IMODE(info.st_mode) & 0o077:
        return (
            "others may enter or read it; chmod 700 it, or name a directory that does not exist yet"
        )
    if info.st_uid not in (os.geteuid(), 0):
        return "another user owns it; name a directory that does not exist yet"
    return None


def read_private(path: Path | str, max_bytes: int) -> bytes:
    """`read_bounded` for a file with a secret; ValueError if others could read it."""
    with open(path, "rb") as stream:
        problem = exposed(path, os.fstat(stream.fileno()))
        if problem is not None:
            raise ValueError(problem)
        return _bounded(stream, max_bytes)


def read_bounded(path: Path | str, max_bytes: int) -> bytes:
    """Read at most `max_bytes`; ValueError if the file is longer.

    A file of somebody else's can neither exhaust memory nor block us: a device in its place is read
    up to the bound and refused, and a named pipe, which nobody may ever write to, is refused at
    once. Pipes that a shell has made for us (`/dev/fd/…`) are read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode) and not str(path).startswith("/dev/"):
            raise ValueError("is a pipe, not a file")
        os.set_blocking(descriptor, True)
        return _bounded(stream, max_bytes)


def _bounded(stream: BinaryIO, max_bytes: int) -> bytes:
    data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"longer than {max_bytes} bytes")
    return data
