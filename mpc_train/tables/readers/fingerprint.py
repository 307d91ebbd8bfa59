"""Whether a file changed while it was read."""

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from mpc_train.errors import DataError


@dataclass(frozen=True)
class Fingerprint:
    """The identity of the file at a path, and SHA-256 of its content.

    The content is included because a file that is mapped into memory can change without its times.
    """

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    digest: bytes

    @classmethod
    def of(cls, path: Path) -> "Fingerprint":
        """Read the file at `path` once; raises OSError, also for a pipe or a device, which may
        never end and cannot be read twice."""
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise OSError(errno.EINVAL, "a pipe or a device; write the table to a file")
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").digest()
        return cls(
            before.st_dev,
            before.st_ino,
            before.st_size,
            before.st_mtime_ns,
            before.st_ctime_ns,
            digest,
        )

    def check(self, path: Path) -> None:
        """Raise DataError unless the same file with the same content is still there."""
        try:
            same = Fingerprint.of(path) == self
        except OSError:
            same = False
        if not same:
            raise DataError(
                f"{path}: changed while it was read; nothing was shared. Wait until the program "
                "that writes it has finished, or point this node at a copy"
            )
