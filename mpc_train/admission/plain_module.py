"""A researcher's module as federated owners train it: what of it is shared, and whether it is the
same at every owner.

Only the floating-point tensors of its state_dict are shared, running statistics included; counters
stay where they are. Nothing is converted, so that a module may be anything that PyTorch trains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mpc_train.errors import ModelError
from mpc_train.jobs.job import Job, Plain
from mpc_train.networks.carried import module_of, source_digest

if TYPE_CHECKING:
    import torch


def plainly(reference: str, seed: int) -> tuple[torch.nn.Module, Plain]:
    """The module of `package.module:factory`, and what the job says of it. Raises ModelError."""
    module = module_of(reference, seed)
    shared = shared_tensors(module)
    if not shared:
        raise ModelError(f"model.module: {reference}() has no floating-point tensors to train")
    digest = hashlib.sha256()
    for name, tensor in shared.items():
        values = tensor.detach().cpu().float().contiguous().numpy()
        digest.update(f"{len(name)} {name} {values.shape} ".encode() + values.tobytes())
    tensors = tuple((name, tuple(tensor.shape)) for name, tensor in shared.items())
    source = source_digest(reference.partition(":")[0])
    return module, Plain(source, tensors, digest.hexdigest())


def shared_tensors(module: torch.nn.Module) -> Mapping[str, torch.Tensor]:
    """The tensors that updates consist of, each once, in the order of the state_dict."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def own_module(job: Job) -> torch.nn.Module:
    """The job's module as it is made here. Raises ModelError if it is another than the job's."""
    reference, agreed = job.model.module, job.plain
    module, found = plainly(reference, job.train.seed)
    if found.source != agreed.source:
        raise ModelError(
            f"model.module: the source of {reference} here differs from the job's; install the "
            "same version everywhere"
        )
    if found.tensors != agreed.tensors:
        differing = [one[0] for one in set(found.tensors) ^ set(agreed.tensors)]
        raise ModelError(
            f"model.module: {reference} makes a different module here: "
            f"{', '.join(sorted(set(differing))[:5])}"
        )
    if found.initial != agreed.initial:
        raise ModelError(
            f"model.module: {reference} begins with other weights here under the same seed; "
            "install the same version of PyTorch everywhere, or make the factory set its weights"
        )
    return module
