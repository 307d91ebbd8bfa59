"""A private training in the clear: rows clipped to the same norm, noise of the same law.

The noise is fresh in every run, so a run over shares and its twin agree in distribution and not in
numbers. `Curator` is whoever would hold all rows in one place: with the noise of all nodes, as a
run over shares has it, or with what a single trusted curator would need at the same ε and δ.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch.func import functional_call, grad, vmap

from mpc_train.jobs.job import Job
from mpc_train.privacy.accounting import privacy_of, row_clip
from mpc_train.privacy.clip_plan import clipped_by_owners, deviation, grid_bits, unit_of
from mpc_train.twin.setup import Loss
from protocols.arrays import Octets, Reals
from protocols.noise import gaussian
from protocols.noise.banded import PRECISION, bands

Draw = Callable[[int], Octets]
Pasts = dict[str, list[torch.Tensor]]
"""By parameter, the noise of the steps before, latest first."""


def fresh(count: int) -> Octets:
    """Octets of the operating system."""
    return np.frombuffer(os.urandom(count), np.uint8)


@dataclass(frozen=True)
class Curator:
    """Whose noise a twin has. central: what a trusted curator adds, variance σ². Otherwise what all
    nodes of a run add together: σ² by the dealer and σ² / N by each of N evaluators."""

    central: bool = False
    draw: Draw = fresh

    def noise(self, job: Job, count: int, bits: int) -> torch.Tensor:
        """float64[count] in the units of the sum of gradients; bits: of the grid."""
        return torch.from_numpy(self.drawn(job, deviation(job), count, bits)) * float(unit_of(job))

    def drawn(self, job: Job, sigma: Fraction, count: int, bits: int) -> Reals:
        """float64[count] for the dealer's deviation `sigma`, in its units."""
        found: Reals = np.ldexp(self.words(job, count, (sigma * (1 << bits)) ** 2), -bits)
        return found

    def words(self, job: Job, count: int, variance: Fraction) -> Reals:
        """float64[count] whole numbers, for σ² in words."""
        words = gaussian.numbers(variance, count, self.draw).astype(np.float64)
        if not self.central:
            for _ in job.evaluators:
                part: Fraction = variance / len(job.evaluators)
                words += gaussian.numbers(part, count, self.draw)
        return words


def private_gradients(
    job: Job,
    module: torch.nn.Module,
    loss: Loss,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    curator: Curator,
    pasts: Pasts,
    weights: torch.Tensor | None = None,
) -> None:
    """Set the gradients of a batch's mean loss: clipped by rows, summed, with noise. pasts: of this
    training; its step's noise is added to them. weights: how many times each row counts; None:
    once."""
    sums = _sums if clipped_by_owners(job) else _clipped_sums
    counts = torch.ones(len(inputs), dtype=inputs.dtype) if weights is None else weights
    totals = sums(job, module, loss, inputs, labels, counts)
    grid, f = grid_bits(job), job.fraction_bits
    for name, parameter in module.named_parameters():
        if name in totals:
            total = totals[name]
            bits = grid if total.dim() == 2 else grid - f  # that of linear layers' weights is finer
            fresh = curator.noise(job, total.numel(), bits).reshape(total.shape)
            noise = _following(job, fresh, pasts.setdefault(name, []))
            parameter.grad = (total + noise) / len(inputs)


def _following(job: Job, fresh: torch.Tensor, past: list[torch.Tensor]) -> torch.Tensor:
    """The noise of a step, from what is drawn for it and that of the steps before."""
    count = privacy_of(job).bands
    factors = [part / PRECISION for part in bands(count)[1:]]
    found = fresh.clone()
    for factor, before in zip(factors, past, strict=False):
        found -= factor * before
    past.insert(0, found)
    del past[count - 1 :]
    return found


Sums = dict[str, torch.Tensor]


def _sums(
    job: Job,
    module: torch.nn.Module,
    loss: Loss,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    counts: torch.Tensor,
) -> Sums:
    """Of the gradients of rows that are clipped already."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    outputs = module(inputs)
    outputs.register_hook(lambda gradient: gradient * counts[:, None])
    total = loss(outputs, labels) * len(inputs)
    return dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))


def _clipped_sums(
    job: Job,
    module: torch.nn.Module,
    loss: Loss,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    counts: torch.Tensor,
) -> Sums:
    """Of rows' gradients, each clipped."""
    named = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    outputs = module(inputs).detach().requires_grad_()
    loss(outputs, labels).backward()
    assert outputs.grad is not None
    # A row's own loss has the gradient of the mean times the number of rows.
    slopes = outputs.grad * len(inputs) * counts[:, None]

    def of_row(values: Sums, row: torch.Tensor, slope: torch.Tensor) -> object:
        return (functional_call(module, values, row[None])[0] * slope).sum()

    rows = vmap(grad(of_row), in_dims=(None, 0, 0))(named, inputs, slopes)
    square = sum(part.flatten(1).square().sum(1) for part in rows.values())
    norms = torch.as_tensor(square).sqrt().clamp_min(1e-30)
    factors = (float(row_clip(job)) / norms).clamp_max(1)
    return {name: torch.tensordot(factors, part, 1) for name, part in rows.items()}
