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

from mpc_train.jobs.job import Job
from mpc_train.jobs.serve import Serve
from mpc_train.serving.answer import answer
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


SERVING = {
    "class of two": _answer(0, 0, answer="class"),
    "class of several": _answer(CLASSES, 0, answer="class"),
    # A rounding may go the other way where the curve's error puts it beyond a half.
    "probability, rounded": _answer(0, WORDS, answer="probability", decimals=3),
    "probabilities, rounded": _answer(CLASSES, WORDS, answer="probability", decimals=3),
}
