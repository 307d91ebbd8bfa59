"""A service that holds a model in the clear, as a stand-in for evaluators who hold it in shares."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from mpc_train.errors import QueryRefusedError
from mpc_train.jobs.job import Job
from mpc_train.jobs.serve import Serve
from mpc_train.owners.applied import applied
from mpc_train.owners.local import Local
from mpc_train.results.predicting import Predictor, load_predictor
from mpc_train.serving.lanes import bucket_of
from mpc_train.serving.offered import MOST_ROWS, REFUSALS, Offered
from protocols.arrays import Reals
from tests.mpc_train.results.test_artifact import Run, opened


def served_job(job: Job, **says: Any) -> Job:
    """The job, whose model stays in shares and is served as `says` of [serve]."""
    return msgspec.structs.replace(
        job,
        job=msgspec.structs.replace(job.job, recipients=()),
        reveal=msgspec.structs.replace(job.reveal, model="shares"),
        serve=Serve(**{"clients": ("ann",), **says}),
    )


def opened_model(folder: Path, job: Job) -> Predictor:
    """An opened model of the job in a folder, with random weights."""
    folder.mkdir(exist_ok=True)
    for name, content in opened(Run(job).envelopes()).files.items():
        (folder / name).write_bytes(content)
    return load_predictor(folder)


class ClearService:
    """Answers as `[serve]` says, rounded as it says, and refuses as a service does.

    refuse: asked before each question, with its number from 0; a word of REFUSALS refuses it.
    """

    def __init__(
        self,
        *models: tuple[Predictor, dict[str, Any]],
        refuse: Callable[[int], str | None] = lambda number: None,
    ) -> None:
        self._clear: dict[tuple[str, int], Predictor] = {}
        self.refuse = refuse
        self.asked: list[int] = []
        """The rows of each question that was answered."""
        self.questions = 0
        self.spent: int | None = 0
        """Rows of today; None: nobody says."""
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        offered: dict[str, tuple[Offered, ...]] = {}
        for predictor, says in models:
            job = served_job(predictor.job, **says)
            before = offered.get(job.name, ())
            version = len(before) + 1
            offered[job.name] = (*before, Offered(version, job, f"{version:064x}"))
            self._clear[job.name, version] = predictor
        self._models = offered
        self.hold = threading.Event()
        """Cleared, questions wait until it is set."""
        self.hold.set()

    @property
    def models(self) -> Mapping[str, tuple[Offered, ...]]:
        return self._models

    def left(self, model: Offered) -> int:
        if self.spent is None:
            raise QueryRefusedError("nobody says", "unavailable")
        assert model.job.serve is not None
        return max(0, model.job.serve.rows_a_day - self.spent)

    def ask(self, model: Offered, rows: Local, name: bytes = b"") -> Reals:
        assert 0 < len(rows.values) <= MOST_ROWS
        with self._lock:
            number, self.questions = self.questions, self.questions + 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            assert self.hold.wait(60)
            code = self.refuse(number)
            if code is None and model not in self._models.get(model.name, ()):
                code = "unknown-model"
            if code is not None:
                raise QueryRefusedError(f"the service refuses: {REFUSALS[code]}", code)
            with self._lock:
                self.asked.append(len(rows.values))
                if self.spent is not None:
                    self.spent += bucket_of(len(rows.values))
            return self._answered(model, rows)
        finally:
            with self._lock:
                self.at_once -= 1

    def _answered(self, model: Offered, rows: Local) -> Reals:
        predictor, serve = self._clear[model.name, model.version], model.job.serve
        assert serve is not None
        inputs = applied(model.job.pipeline, rows, predictor.parameters)
        with torch.no_grad():
            found: Reals = predictor.module(torch.from_numpy(inputs)).numpy()
        if serve.answer == "class":
            if found.shape[1] == 1:
                return (found >= 0).astype(np.float64)
            return found.argmax(axis=1).astype(np.float64)[:, None]
        if serve.answer == "probability":
            odds = np.exp(found - found.max(axis=1, keepdims=True))
            one = found.shape[1] == 1
            found = 1 / (1 + np.exp(-found)) if one else odds / odds.sum(axis=1, keepdims=True)
        return found if serve.decimals is None else np.round(found, serve.decimals)
