"""A disk that loses, when the power fails, whatever was not synced.

Inside `PowerLoss` every `os.fsync` below a folder is followed: of a file its bytes become durable,
of a directory the names in it. `fail` then puts the folder into the state that a machine would find
after a power cut in the worst case: files that were not synced are gone, names that were not synced
are the ones of before, and directories that their parents do not know durably do not exist.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from types import TracebackType

from protocols.errors import PeerLostError


class PowerFailed(PeerLostError):
    """The power fails here; what was to be synced is not."""


class PowerLoss:
    """folder: what is followed; it exists. at: the number of the sync, from 0, at which the power
    fails; −1: it does not."""

    def __init__(self, folder: Path, at: int = -1) -> None:
        self.folder, self._at = folder, at
        self.syncs = 0
        self._durable: dict[int, bytes] = {}
        self._names: dict[Path, dict[str, int]] = {}
        self._directories: set[Path] = {folder}
        # A second name keeps an inode from being given to another file.
        self._kept = folder.with_name(f"{folder.name}.inodes")
        self._fsync = os.fsync

    def __enter__(self) -> PowerLoss:
        self._kept.mkdir(exist_ok=True)
        os.fsync = self._followed  # type: ignore[assignment]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.fsync = self._fsync
        if kind is not None and issubclass(kind, PeerLostError):
            self.fail()
        shutil.rmtree(self._kept)

    def begin(self) -> None:
        """Take what is there as durable."""
        for directory, folders, files in os.walk(self.folder):
            path = Path(directory)
            self._directories.update(path / one for one in folders)
            self._names[path] = {}
            for name in files:
                inode = (path / name).stat().st_ino
                self._keep(path / name, inode)
                self._durable[inode] = (path / name).read_bytes()
                self._names[path][name] = inode

    def _keep(self, path: Path, inode: int) -> None:
        link = self._kept / str(inode)
        if not link.exists():
            os.link(path, link)

    def _followed(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_relative_to(self.folder):
            if self.syncs == self._at:
                raise PowerFailed(f"the power fails at sync {self._at}")
            self.syncs += 1
            info = os.fstat(descriptor)
            if stat.S_ISDIR(info.st_mode):
                self._directories.update(one for one in path.iterdir() if one.is_dir())
                self._names[path] = {
                    one.name: one.stat().st_ino for one in path.iterdir() if one.is_file()
                }
            else:
                self._keep(path, info.st_ino)
                self._durable[info.st_ino] = path.read_bytes()
        # The machine's own disk need not be waited for.

    def fail(self) -> None:
        """What the machine finds when the power is back."""
        for directory, _, files in os.walk(self.folder, topdown=False):
            path = Path(directory)
            for name in files:
                (path / name).unlink()
            if path not in self._directories:
                shutil.rmtree(path)
        for path, names in self._names.items():
            if not path.is_dir():
                continue
            for name, inode in names.items():
                content = self._durable.get(inode, b"")  # a name without bytes: an empty file
                (path / name).write_bytes(content)
                (path / name).chmod(0o600)
