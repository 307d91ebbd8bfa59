"""CSV in a gzip or zip file, unpacked block by block: memory does not grow with its content."""

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from mpc_train.errors import DataError

_NOT_PACKED: tuple[type[Exception], ...] = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError),
    *(zlib.error, zipfile.BadZipFile, LookupError),
)
"""What gzip, zipfile and the decompressors raise on damaged, encrypted or unsupported files."""


def blocks(file: BinaryIO, packing: str, label: str, size: int) -> Iterator[bytes]:
    """The content of the compressed `file`, in blocks of at most `size` bytes.

    packing: ".gz" or ".zip", which holds one file. Raises DataError.
    """
    try:
        if packing == ".gz":
            with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                yield from iter(lambda: unpacked.read(size), b"")
            return
        with zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if _is_table(info)]
            if len(members) != 1:
                raise DataError(f"{label}: contains {len(members)} files; pack only one table")
            if members[0].flag_bits & 1:
                raise DataError(f"{label}: is locked with a password; unpack it first")
            with archive.open(members[0]) as member:
                yield from iter(lambda: member.read(size), b"")
    except _NOT_PACKED as error:
        raise DataError(
            f"{label}: cannot be unpacked ({type(error).__name__}); is it complete, and is it "
            f"end in {packing} rightly?"
        ) from error


def _is_table(info: zipfile.ZipInfo) -> bool:
    """Not a folder, and not a file that some systems add to every archive."""
    name = info.filename.rpartition("/")[2]
    return not info.is_dir() and not info.filename.startswith("__MACOSX/") and name[:1] != "."
