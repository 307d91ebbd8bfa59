"""Models in shares that later runs use: made by a whole run in one process, and signed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpc_train.shared.library import Library, held_models, share_of
from mpc_train.shared.share import ModelShare
from protocols.arrays import Words
from tests.support.linear_rule import write_study
from tests.support.sessions import Rehearsal

SHARES = 'model = "shares"'
TRAIN_ON = "[serve]\ntrain_on = true"
RATE = "optimizer = { learning_rate = 0.3 }"
RANGED = tuple(f'{{ name = "{name}", range = [-6, 6] }}' for name in "abc")
SCALED = '[prepare]\nscale = "standard"'


def first_run(
    folder: Path, kind: str = "linear", more: str = TRAIN_ON, **settings: Any
) -> Rehearsal:
    """A run whose model stays in shares, ended and signed."""
    folder.mkdir()
    path = write_study(folder, kind, RATE, SHARES, epochs=2, recipients=(), more=more, **settings)
    run = Rehearsal(path)
    run.session()
    signed(run)
    return run


def signed(run: Rehearsal, names: Sequence[str] = ()) -> str:
    """Keep a record beside the newest share of each evaluator, as a real run does at its end.
    Returns the model's digest."""
    digest = shares(run)[0].about.digest
    for name in names or run.job.evaluators:
        Library(run.vault_of(name).opened).sign(run.job.name, digest, b"signed by all")
    return digest


def shares(run: Rehearsal) -> list[ModelShare]:
    """The newest share of each evaluator, of the models of this job."""
    found, digest = [], run.job.digest()
    for name in run.job.evaluators:
        with run.vault_of(name).opened() as store:
            mine = [held for held in held_models(store) if held.about.job.digest() == digest]
            found.append(share_of(store, max(mine, key=lambda held: held.version)))
    return found


def together(found: Sequence[ModelShare]) -> dict[str, Words]:
    """What the shares add up to, by name."""
    return {name: np.sum([share.parts[name] for share in found], axis=0) for name in found[0].parts}


def later_run(first: Rehearsal, path: Path) -> Rehearsal:
    """A run of another job by the same nodes, in sessions of its own."""
    vaults = first.vaults or first.folder / "vaults"
    return Rehearsal(path, number=first.number + 100, vaults=vaults, drawn=first.drawn)


def digest_of(run: Rehearsal) -> str:
    return shares(run)[0].about.digest


def going_on(
    folder: Path, first: Rehearsal, start: str = "", more: str = TRAIN_ON, **settings: Any
) -> Rehearsal:
    """A run of a job that goes on from the model of `first`. start: more keys of its warm start."""
    folder.mkdir()
    digest = digest_of(first)
    train = (
        f'warm_start = {{ source = "shares", sha256 = "{digest}"{start} }}\ncheckpoint_every = 4'
    )
    settings = {"kind": "linear", "train": f"{RATE}\n{train}", "reveal": SHARES} | settings
    path = write_study(folder, epochs=2, recipients=(), more=more, seed=9, **settings)
    return later_run(first, path)


def measuring(
    folder: Path,
    first: Rehearsal,
    metrics: Sequence[str],
    *,
    reveal: str = "",
    more: str = SCALED,
    statistics: str = "model",
    **settings: Any,
) -> Rehearsal:
    """A run in which dora, who took no part in training, measures the model of `first`."""
    folder.mkdir()
    digest = digest_of(first)
    start = f'source = "shares", sha256 = "{digest}", prepare = "{statistics}"'
    listed = ", ".join(f'"{name}"' for name in metrics)
    settings = {"kind": first.job.model.kind, "features": RANGED, "rows": {"dora": 60}} | settings
    path = write_study(
        folder,
        train=f"warm_start = {{ {start} }}",
        reveal=f'model = "none"\nmetrics = [{listed}]\n{reveal}',
        epochs=0,
        recipients=(),
        job='evaluators = ["ann", "bob"]',
        data="limit = 8",
        more=more,
        seed=10,
        **settings,
    )
    return later_run(first, path)


def bringing_job(folder: Path, owner: str = "ann", more: str = SCALED) -> Path:
    """A job in which `owner` brings an opened model, to be kept in shares."""
    folder.mkdir(exist_ok=True)
    return write_study(
        folder,
        "logistic",
        f'warm_start = {{ source = "{owner}", prepare = "model" }}',
        SHARES,
        epochs=0,
        recipients=(),
        rows={owner: 0} if owner != "registry" else {"ann": 0},
        job='evaluators = ["ann", "bob"]',
        data="limit = 8",
        features=RANGED,
        more=more,
    )
