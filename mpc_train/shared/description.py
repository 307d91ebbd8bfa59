"""What others have to know of a model in shares to measure it: the job that trained it, and in
which session. Both are public to the nodes of that job; an evaluator hands the file out.

The digest follows from the two (`share.model_digest`), so that whoever has a digest from elsewhere
can tell a file about another model. Nothing else in the file is authenticated: evaluators compare
with what they keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from mpc_train.admission.load import job_from_bytes
from mpc_train.errors import ArtifactError, JobError
from mpc_train.shared.share import SID_BYTES, model_digest

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

MAX_FILE_BYTES = 4 << 20


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: Literal["mpc-train model in shares 1"]
    sid: str
    job: str


@dataclass(frozen=True, slots=True)
class Description:
    """A model in shares. sid: of the session that trained it, in hexadecimal."""

    job: Job
    sid: str

    @property
    def digest(self) -> str:
        """As `share.model_digest`."""
        return model_digest(self.job, bytes.fromhex(self.sid))

    def to_bytes(self) -> bytes:
        file = _File("mpc-train model in shares 1", self.sid, self.job.to_bytes().decode())
        return msgspec.json.encode(file) + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Description:
        """Raises ArtifactError for anything that is not the description of a model in shares."""
        try:
            said = msgspec.json.decode(data, type=_File)
            sid = bytes.fromhex(said.sid)
            job = job_from_bytes(said.job.encode())
        except (ValueError, RecursionError, msgspec.MsgspecError, JobError) as error:
            raise ArtifactError(f"not the description of a model in shares: {error}") from error
        if len(sid) != SID_BYTES or not job.stays_shared:
            raise ArtifactError("not the description of a model that stays in shares")
        return cls(job, sid.hex())


def read_description(path: Path) -> Description:
    """Raises ArtifactError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > MAX_FILE_BYTES:
        raise ArtifactError(f"{path}: longer than {MAX_FILE_BYTES >> 20} MiB")
    try:
        return Description.from_bytes(data)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}; write it with mpc-train model show --out") from error
