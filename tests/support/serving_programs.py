"""Answers of a service over one secret vector of outputs: for views and traffic.

As `training_programs`: `expected` is the same in NumPy, without its rounding.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from mpc_train.evaluation.drift import counts
from mpc_train.evaluation.histograms import OUTPUTS, Histogram
from mpc_train.jobs.job import Job
from mpc_train.jobs.serve import Serve
from mpc_train.serving.answer import answer
from protocols.arrays import Reals
from tests.support.jobs import job_toml, loaded
from tests.support.training_programs import Cut, Found, Numbers, TrainingProgram

CLASSES = 3
WORDS = 2.0**-20
"""The unit of what is opened here; an answer in whole numbers is so many of it."""


@cache
def _job(classes: int) -> Job:
    kind, model = ("softmax", f"classes = {classes}") if classes else ("logistic", "")
    with tempfile.TemporaryDirectory() as folder:
        return loaded(Path(folder), job_toml(["a", "b"], kind, model=model))


def _answer(classes: int, bound: float, **says: Any) -> TrainingProgram:
    job = msgspec.structs.replace(_job(classes), serve=Serve(("clinic",), **says))
    shape = (4, classes or 1)

    def run(cut: Cut) -> Found:
        return {"answers": answer(job, cut["outputs"].masked())}

    def expected(cut: Numbers) -> dict[str, Any]:
        z = cut["outputs"]
        if says["answer"] == "class":
            found = z.argmax(-1, keepdim=True) if classes else (z >= 0).to(torch.int64)
            return {"answers": found.numpy() * WORDS}
        chance = (z.softmax(-1) if classes else z.sigmoid()).numpy()
        return {"answers": np.floor(chance * 10 ** says["decimals"] + 0.5) * WORDS}

    return TrainingProgram({"outputs": shape}, run, expected, bound)


_EDGES = (-1 << 20, 0, 1 << 19)
_COUNTED = (
    Histogram("a", ("1", "2", "3", "4", "missing"), 0, _EDGES, present=0),
    Histogram("b", ("x", "none"), levels=(1,)),
    Histogram(OUTPUTS, ("1", "2", "3", "4"), edges=_EDGES),
)


def _drift() -> TrainingProgram:
    """Counts of rows, some of which are padding, and some of which have a cell less."""
    pieces = {"features": (4, 2), "present": (4, 1), "outputs": (4, 1), "real": (4,)}

    def run(cut: Cut) -> Found:
        x, z = cut["features"].masked(), cut["outputs"].masked()
        there, real = cut["present"].masked(), cut["real"].masked()
        return {"counts": counts(_job(0), _COUNTED, x, there, z, real)}

    def expected(cut: Numbers) -> dict[str, Any]:
        x, z, real = (cut[name].numpy() for name in ("features", "outputs", "real"))
        real, there = real / WORDS, cut["present"].numpy()[:, 0] / WORDS
        found = [
            *_in_bins(x[:, 0], real * there),
            (real * (1 - there)).sum(),
            (x[:, 1] * real).sum(),
            (real * (1 - x[:, 1])).sum(),
            *_in_bins(z[:, 0], real),
        ]
        return {"counts": np.array(found)}

    def draw(name: str, rng: np.random.Generator, shape: tuple[int, ...]) -> Reals | None:
        return (
            rng.integers(0, 2, shape).astype(np.float64) * WORDS
            if name in ("present", "real")
            else None
        )

    return TrainingProgram(pieces, run, expected, 0, draw)


def _in_bins(values: Reals, weights: Reals) -> list[float]:
    places = np.searchsorted([edge * WORDS for edge in _EDGES], values, side="right")
    return [float(weights[places == place].sum()) for place in range(len(_EDGES) + 1)]


SERVING = {
    "drift": _drift(),
    "class of two": _answer(0, 0, answer="class"),
    "class of several": _answer(CLASSES, 0, answer="class"),
    # A rounding may go the other way where the curve's error puts it beyond a half.
    "probability, rounded": _answer(0, WORDS, answer="probability", decimals=3),
    "probabilities, rounded": _answer(CLASSES, WORDS, answer="probability", decimals=3),
}
