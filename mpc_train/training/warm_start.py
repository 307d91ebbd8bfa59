"""Training from a given state_dict: a public file, or an owner's private file.

Every evaluator has a public file, which the signed job names by its SHA-256; its weights are
constants, and frozen ones need no masks at all. One owner has a private file, and secret-shares its
tensors like its rows: the others learn only their shapes, which the job contains anyway. Files are
safetensors with exactly the names and shapes of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from mpc_train.errors import DataError
from mpc_train.jobs.training import is_frozen
from mpc_train.training.optimizers.gradients import pieces
from protocols.arrays import Reals
from protocols.crypten_tensor.tensor import MaskedTensor, Source, crypten
from protocols.ring.fixed_point import encode
from protocols.roles.role import Role
from protocols.shares.masked import public

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

PUBLIC = "public"
MAX_FILE_BYTES = 8 << 30


def load_start(path: Path | str, job: Job) -> dict[str, Reals]:
    """Read and check the file: float64 by name, in the order of the model.

    Raises DataError, which names the file and the tensor, never a value.
    """
    start, path = job.train.warm_start, Path(path)
    assert start is not None
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path}: longer than {MAX_FILE_BYTES >> 30} GiB")
        blob = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if start.source == PUBLIC and hashlib.sha256(blob).hexdigest() != start.sha256:
        raise DataError(f"{path}: is not the file of train.warm_start.sha256 in the job")
    try:
        tensors = load_tensors(blob)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a safetensors file of floating-point tensors") from error
    wrong = sorted(set(tensors) ^ set(job.shapes))
    if wrong:
        raise DataError(
            f"{path}: {', '.join(wrong[:5])}: the file must have exactly the model's tensors: "
            f"{', '.join(job.shapes)}"
        )
    return {name: _checked(path, name, tensors[name], job) for name in job.shapes}


def _checked(path: Path, name: str, tensor: NDArray[Any], job: Job) -> Reals:
    if tensor.shape != job.shapes[name]:
        raise DataError(
            f"{path}: {name} has shape {list(tensor.shape)}, the model's {list(job.shapes[name])}"
        )
    values = tensor.astype(np.float64)
    limit = job.fixed_point.activation_limit
    if not (np.abs(values) <= limit).all():
        raise DataError(
            f"{path}: {name} has an entry that is not finite or beyond "
            f"fixed_point.activation_limit = {limit}"
        )
    return values


def flat(values: Mapping[str, Reals]) -> Reals:
    """All tensors, concatenated."""
    return np.concatenate([value.reshape(-1) for value in values.values()])


def started_with(
    job: Job, role: Role, source: Source | None, values: Mapping[str, Reals] | None
) -> dict[str, MaskedTensor]:
    """The initial tensors of training, at every computing node.

    source: the owner of a private file, None for a public one. values: the tensors, if this node
    has them.
    """
    count = sum(prod(shape) for shape in job.shapes.values())
    if source is None:
        words = np.zeros(count, np.int64)  # the dealer needs only the shapes of constants
        if values is not None:
            words = encode(flat(values), job.fraction_bits)
        together = MaskedTensor(public(role, words))
    else:
        mine = None if values is None else flat(values)
        together = crypten.cryptensor(mine, src=source, shape=(count,))
    vector = together.masked()
    return {
        name: MaskedTensor(
            vector.select(where).reshape(*job.shapes[name]), requires_grad=not is_frozen(job, name)
        )
        for name, where in pieces(job.shapes).items()
    }


def start_words(job: Job, values: Mapping[str, Reals]) -> dict[str, NDArray[np.int64]]:
    """The same for the plaintext twin: int64 at scale 2^f by name."""
    return {name: encode(value, job.fraction_bits) for name, value in values.items()}
