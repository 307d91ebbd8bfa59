"""A job's model in ordinary PyTorch and NumPy."""

import numpy as np
import torch

from mpc_train.jobs.job import Job
from mpc_train.networks.plain import PlainGraph
from mpc_train.regression.family import Family
from protocols.arrays import Reals


def plain_module(job: Job) -> torch.nn.Module:
    """Return the ordinary PyTorch module whose state_dict has the names and shapes of the job.

    A classifier outputs logits, even if the researcher's own module ends in their sigmoid.
    """
    if job.model.network is not None:
        return PlainGraph(job.graph, job.train.seed)
    pairs = list(zip(job.widths[:-1], job.widths[1:], strict=True))
    if job.model.kind != "mlp":
        return torch.nn.Linear(*pairs[0])
    layers: list[torch.nn.Module] = []
    for inputs, outputs in pairs:
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def means(family: Family, predictor: Reals) -> Reals:
    """Means of rows with a logarithmic link."""
    return np.exp(np.clip(predictor, float(family.least), float(family.most)))
