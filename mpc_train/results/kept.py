"""An opened model as one object of a vault: the files that `mpc-train open` writes, in one.

    "mpc-train model 1\\n" ‖ MessagePack map: name of the file → its bytes

Nothing here encrypts: the vault does, below (`parties.vault.store`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mpc_train.errors import ArtifactError

MAGIC = b"mpc-train model 1\n"


@dataclass(frozen=True, repr=False)
class KeptModel:
    """title: for people. files: by name, as `mpc-train open` writes them."""

    title: str
    files: Mapping[str, bytes]

    def packed(self) -> bytes:
        return MAGIC + msgspec.msgpack.encode(self.files)

    @classmethod
    def of(cls, title: str, data: bytes) -> "KeptModel":
        """Undo `packed`; raises ArtifactError."""
        if not data.startswith(MAGIC):
            raise ArtifactError(f"{title}: is not a model of this version")
        try:
            files = msgspec.msgpack.decode(memoryview(data)[len(MAGIC) :], type=dict[str, bytes])
        except (msgspec.MsgspecError, ValueError) as error:
            raise ArtifactError(f"{title}: its files cannot be read") from error
        if any(Path(name).name != name or name in ("", "..") for name in files):
            raise ArtifactError(f"{title}: a name in it is not that of a file")
        return cls(title, files)
