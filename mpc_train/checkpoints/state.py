"""The state of a training as one evaluator keeps it, and the same under fresh masks later.

Nothing masked survives a session: a checkpoint holds this evaluator's summand of each tensor,
(Δ at the first evaluator) − [λ]_i, of which all together give the secret and fewer give nothing. In
the later session they are opened under masks that nobody has used: W + λ' = Σ summands + Σ [λ']_i
(`live`).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from mpc_train.errors import ArtifactError
from protocols.arrays import Words
from protocols.canonical import pack

_PUBLIC = "public"
_Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
_Ratio = Annotated[str, Meta(pattern=r"^[0-9]{1,400}(/[1-9][0-9]{0,399})?\Z")]
"""Of 64 significant bits; without a bound, 1e999999999 would take all memory at the dealer."""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of the state. constant: every node knows its words; otherwise it is a secret."""

    name: str
    shape: tuple[int, ...]
    constant: bool = False


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is public about a state. finished: no step follows. numbers: of the optimizer, fractions
    as text; drawn: samples of the range guard; passes: of the network in training; losses: those
    revealed so far, by step, empty at the dealer. joined: the number of joined rows, 0 without."""

    step: _Count
    finished: bool
    entries: tuple[Entry, ...]
    numbers: dict[str, _Ratio]
    drawn: _Count
    passes: _Count
    losses: tuple[tuple[int, float], ...] = ()
    joined: int = 0

    def to_bytes(self) -> bytes:
        return msgspec.json.encode(self, order="deterministic")

    @classmethod
    def from_bytes(cls, data: bytes) -> Position:
        """Raises ArtifactError."""
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ArtifactError(f"a checkpoint's public part is malformed: {error}") from error


@dataclass(frozen=True, slots=True, repr=False)
class State:
    """A checkpoint's content. parts: this evaluator's summand of each secret, the words of each
    constant. rows: the digest of the joined rows (`joined`), empty without. agreed: a digest of
    that and all Δ, the same at every evaluator and at nobody else."""

    position: Position
    parts: dict[str, Words]
    agreed: bytes
    rows: bytes = b""

    def to_bytes(self) -> bytes:
        public_part = np.frombuffer(self.position.to_bytes(), np.uint8)
        agreed, rows = (np.frombuffer(digest, np.uint8) for digest in (self.agreed, self.rows))
        own = {_PUBLIC: public_part, "agreed": agreed, "rows": rows}
        return bytes(save_tensors({**own, **self.parts}))

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        """Raises ArtifactError for anything that `to_bytes` did not write."""
        try:
            found = load_tensors(data)
            position = Position.from_bytes(found.pop(_PUBLIC).tobytes())
            agreed, rows = (found.pop(name).tobytes() for name in ("agreed", "rows"))
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError("a checkpoint's content is malformed") from error
        shapes = {entry.name: entry.shape for entry in position.entries}
        if {name: words.shape for name, words in found.items()} != shapes or any(
            words.dtype != np.int64 for words in found.values()
        ):
            raise ArtifactError("a checkpoint holds other tensors than it says")
        return cls(position, found, agreed, rows)

    def proof(self, key: bytes, sender: str) -> bytes:
        """What `sender` shows another evaluator, who has the same key, of the Δ it resumes from."""
        return hmac.digest(key, pack(sender.encode(), self.agreed), "sha256")
