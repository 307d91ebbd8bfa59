"""The global model after the last round, as each owner keeps it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mpc_train.privacy.words import as_json
from parties.files import private_directory, write_atomic

if TYPE_CHECKING:
    from mpc_train.federated.local import Owner
    from mpc_train.federated.rules import Global
    from mpc_train.jobs.job import Job

MODEL_FILE = "model.safetensors"


def digest_of(model: Global) -> str:
    """Of the global weights, hexadecimal: every owner moves the model for itself, and no node sees
    all of them, so that owners can compare whether they hold the same one."""
    return hashlib.sha256(model.weights.astype("<f8").tobytes()).hexdigest()


def write_model(folder: Path, owner: Owner, model: Global, job: Job) -> Path:
    """Write the state_dict of the owner's module with the global weights; its path. The file's
    metadata name the job, the rounds, the digest of these weights, and what the job promises of
    privacy (JSON)."""
    from safetensors.torch import save

    private_directory(folder)
    tensors = {name: one.contiguous() for name, one in owner.tensors(model.weights).items()}
    said = {"job": job.name, "digest": job.digest().hex(), "rounds": str(model.round)}
    said["weights"] = digest_of(model)
    promised = as_json(job)
    if promised is not None:
        said["privacy"] = json.dumps(promised, ensure_ascii=False)
    path = folder / MODEL_FILE
    write_atomic(path, save(tensors, metadata=said))
    return path
