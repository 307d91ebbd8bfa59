"""Sealed and public results on their way to a directory: assembles parts into whole files.

A file appears under its name only when its last part has arrived. Layout under the run directory:

    sealed/<recipient>/<sender>/<file>      envelopes, one directory per recipient
    <kind>/<sender>/<path>                  anything else, public by the job
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from parties.agreement.control import (
    MAX_ARTIFACT_BYTES,
    MAX_ARTIFACTS,
    MAX_ARTIFACTS_BYTES,
    MAX_PENDING_BYTES,
    PART_BYTES,
    ArtifactPart,
    check_path,
)
from parties.errors import ControlError
from parties.files import private_directory, write_atomic

SEALED = "sealed"


def split(kind: str, path: str, blob: bytes) -> Iterator[ArtifactPart]:
    """The parts of one artifact. Raises ControlError for a forbidden name or size."""
    check_path(kind, "this node")
    check_path(path, "this node")
    if kind == SEALED and path.count("/") != 1:
        raise ControlError(f"a sealed artifact is named '<recipient>/<file>', not {path!r}")
    if len(blob) > MAX_ARTIFACT_BYTES:
        raise ControlError(f"artifact {path} has {len(blob)} bytes, at most {MAX_ARTIFACT_BYTES}")
    count = max(1, -(-len(blob) // PART_BYTES))
    for index in range(count):
        data = bytes(blob[index * PART_BYTES : (index + 1) * PART_BYTES])
        yield ArtifactPart(kind, path, index, index == count - 1, data)


class Collector:
    """Assembles the parts of any number of senders, and writes complete artifacts as files that
    only this user can read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: list[Path] = []
        self.sealed: dict[str, list[tuple[str, str, Path]]] = {}
        """By recipient: sender, path under the artifact's kind, file."""
        self._pending: dict[str, tuple[ArtifactPart, list[bytes]]] = {}
        self._pending_bytes = self._written_bytes = 0

    def add(self, sender: str, part: ArtifactPart) -> Path | None:
        """Accept the next part of `sender`; return the file's path when it is complete.

        Raises ControlError for parts out of order, or for more than a run may have.
        """
        first, data = self._pending.pop(sender, (part, []))
        if part.index != len(data) or (part.kind, part.path) != (first.kind, first.path):
            raise ControlError(f"{sender} sent parts of artifacts out of order")
        if part.index * PART_BYTES + len(part.data) > MAX_ARTIFACT_BYTES:
            raise ControlError(f"{sender} sent an artifact that is too large")
        data.append(part.data)
        self._pending_bytes += len(part.data)
        if self._pending_bytes > MAX_PENDING_BYTES:
            raise ControlError(f"{sender} and others sent too many parts of incomplete artifacts")
        if not part.last:
            self._pending[sender] = first, data
            return None
        blob = b"".join(data)
        self._pending_bytes -= len(blob)
        self._written_bytes += len(blob)
        if len(self.files) >= MAX_ARTIFACTS or self._written_bytes > MAX_ARTIFACTS_BYTES:
            raise ControlError(f"{sender} sent too many artifacts")
        return self._write(sender, part, blob)

    def discard(self) -> None:
        """Remove all files: they are of a session that broke off."""
        for path in self.files:
            with contextlib.suppress(OSError):
                path.unlink()

    def _write(self, sender: str, part: ArtifactPart, blob: bytes) -> Path:
        words = part.path.split("/")
        if part.kind == SEALED:
            if len(words) != 2:
                raise ControlError(f"{sender} sealed something to nobody")
            target = self.root / SEALED / words[0] / sender / words[1]
            self.sealed.setdefault(words[0], []).append((sender, part.path, target))
        else:
            target = self.root.joinpath(part.kind, sender, *words)
        if target in self.files:
            raise ControlError(f"{sender} sent an artifact twice")
        private_directory(target.parent)
        write_atomic(target, blob, 0o600)
        self.files.append(target)
        return target
