"""A model in shares that may be asked, of chosen weights: for tests that need no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from mpc_train.admission.load import load_job
from mpc_train.checkpoints.state import Entry
from mpc_train.jobs.job import Job
from mpc_train.jobs.serve import Serve
from mpc_train.shared.share import About, ModelShare, Public, expected_shapes
from protocols.arrays import Words
from protocols.ring.fixed_point import encode
from tests.support.jobs import write_job

SID = bytes(range(32))
CLIENTS = ("clinic", "practice")


def served_job(folder: Path, **settings: object) -> Job:
    """The tests' usual job, whose model stays in shares. settings: of `[serve]`."""
    return kept_in_shares(load_job(write_job(folder)), **settings)


def kept_in_shares(job: Job, **settings: object) -> Job:
    """The same job, but with a model that stays in shares and may be asked."""
    reveal = msgspec.structs.replace(job.reveal, model="shares", threshold=1)
    roles = msgspec.structs.replace(job.job, recipients=())
    serve = Serve(**{"clients": CLIENTS, **settings})  # type: ignore[arg-type]
    return msgspec.structs.replace(job, reveal=reveal, job=roles, serve=serve)


def about_of(job: Job, sid: bytes = SID) -> About:
    """Its model, as everybody knows it."""
    entries = tuple(Entry(name, shape, False) for name, shape in expected_shapes(job).items())
    return About.of(Public(job.to_bytes().decode(), sid.hex(), entries))


def shares_of(job: Job, weights: dict[str, np.ndarray], seed: int = 1) -> list[ModelShare]:
    """One share for each evaluator of a model without secret statistics. `Insecure`: from NumPy's
    generator."""
    about, rng = about_of(job), np.random.default_rng(seed)
    left: dict[str, Words] = {
        f"tensor/{name}": encode(value, job.fraction_bits) for name, value in weights.items()
    }
    found = []
    for _ in job.evaluators[1:]:
        part = {name: rng.integers(-(2**62), 2**62, each.shape) for name, each in left.items()}
        with np.errstate(over="ignore"):
            left = {name: each - part[name] for name, each in left.items()}
        found.append(part)
    return [ModelShare(about, part, bytes(32)) for part in (*found, left)]


def counting(
    shares: Sequence[ModelShare], counts: Mapping[str, tuple[int, ...]]
) -> list[ModelShare]:
    """The same shares with these counts of training rows, unchecked."""
    found = []
    for share in shares:
        said = msgspec.structs.replace(share.about.public, training_counts=dict(counts))
        found.append(replace(share, about=About(share.about.job, said)))
    return found


def some_weights(job: Job, seed: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.5, shape) for name, shape in job.shapes.items()}
