"""Modules that federated jobs of tests name."""

import torch


def network() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.GELU(), torch.nn.Linear(5, 1)
    )


def wide() -> torch.nn.Module:
    """More numbers than are checked one by one."""
    return torch.nn.Sequential(torch.nn.Linear(3, 1500), torch.nn.ReLU(), torch.nn.Linear(1500, 1))
