"""The global model after the last round, as each owner keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from parties.files import private_directory, write_atomic

if TYPE_CHECKING:
    from mpc_train.federated.local import Owner
    from mpc_train.federated.rules import Global

MODEL_FILE = "model.safetensors"


def write_model(folder: Path, owner: Owner, model: Global) -> Path:
    """Write the state_dict of the owner's module with the global weights; its path."""
    from safetensors.torch import save

    private_directory(folder)
    tensors = {name: one.contiguous() for name, one in owner.tensors(model.weights).items()}
    path = folder / MODEL_FILE
    write_atomic(path, save(tensors))
    return path
