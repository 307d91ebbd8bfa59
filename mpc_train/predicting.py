"""A recipient applies an opened model to raw records: the same steps as in training, in float64.

The model's folder has what it takes: the job in the manifest says what the columns mean and what is
done with them, `preparation.safetensors` has the numbers that training found over shares and sealed
with the model. Nothing is sent anywhere.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as load_tensors

from mpc_train.artifact import commit
from mpc_train.errors import ArtifactError
from mpc_train.jobs.job import Job
from mpc_train.jobs.job_problem import JobProblem
from mpc_train.jobs.job_regression import LOGARITHMIC, family_of
from mpc_train.jobs.job_sizes import check_sizes
from mpc_train.opening import MANIFEST_FILE, MODEL_FILE
from mpc_train.preparation.applied import applied
from mpc_train.preparation.local import check_cells, local_terms
from mpc_train.tables.load import stream
from mpc_train.twin.reference import plain_module
from mpc_train.twin.reference_regression import means

if TYPE_CHECKING:
    from mpc_train.tables.source import Source
    from mpc_train.tables.typed import TypedTable

Reals = NDArray[np.float64]
MAX_MANIFEST_BYTES = 64 << 20


class _File(msgspec.Struct, frozen=True):
    file: str = ""
    hmac_sha256: str = ""


class _Manifest(msgspec.Struct, frozen=True):
    """As much of a manifest as is needed here."""

    job: msgspec.Raw
    model: _File
    preparation: _File = _File()


@dataclass(frozen=True, repr=False)
class Predictor:
    """A model that is ready for raw records. parameters: those of `Pipeline.shapes`."""

    job: Job
    module: torch.nn.Module
    parameters: dict[str, Reals]

    def __repr__(self) -> str:
        return f"Predictor({self.job.name})"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what is predicted: the label, and for a classifier each class's probability."""
        return ("prediction", *(f"p({name})" for name in self.classes))

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes as the label's column has them; none where it is a number."""
        if not self.job.classes:
            return ()
        if self.job.schema[self.job.label.name].kind == "boolean":
            return ("false", "true")
        return self.job.label.classes or tuple(str(k) for k in range(self.job.classes))

    def records(self, source: Source) -> Iterator[list[list[Any]]]:
        """For each chunk of the table one list a row, in the order of `columns`.

        Memory does not grow with the table. Raises DataError with file, line and column.
        """
        job = self.job
        names = [feature.name for feature in job.features]

        def check(name: str, values: Reals, missing: NDArray[np.bool_]) -> None:
            check_cells(job, name, values, missing)

        for table in stream(source, job.schema, names=names, check=check):
            yield self.predicted(table)

    def predicted(self, table: TypedTable) -> list[list[Any]]:
        """The predictions for a table with the job's features."""
        pipeline = self.job.pipeline
        return self.of_inputs(applied(pipeline, local_terms(pipeline, table), self.parameters))

    def of_inputs(self, inputs: Reals) -> list[list[Any]]:
        """The predictions for rows [rows, inputs] as the model takes them."""
        job = self.job
        with torch.no_grad():
            outputs = self.module(torch.from_numpy(inputs)).numpy()
        if not self.classes:
            if job.model.kind in LOGARITHMIC:
                outputs = means(family_of(job), outputs)
            scale, center = float(job.label.scale), float(job.label.center)
            return [[float(value)] for value in outputs[:, 0] * scale + center]
        if outputs.shape[1] == 1:
            # One logit, of which 0 and more mean class 1.
            outputs = np.concatenate([np.zeros_like(outputs), outputs], axis=1)
            best = (outputs[:, 1] >= 0).astype(np.int64)
        else:
            best = outputs.argmax(axis=1)
        odds = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        return [
            [self.classes[place], *(float(value) for value in row)]
            for place, row in zip(best, odds, strict=True)
        ]


def load_predictor(model: Path) -> Predictor:
    """The model in a folder that `mpc-train open` wrote, or its model.safetensors.

    Raises ArtifactError where files are missing, malformed, or not of one another.
    """
    folder = model if model.is_dir() else model.parent
    path = folder / MODEL_FILE if model.is_dir() else model
    manifest = _read(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    try:
        said = msgspec.json.decode(manifest, type=_Manifest)
        # Not `job_from_bytes`: a manifest outlives the version that wrote it.
        job = msgspec.json.decode(said.job, type=Job)
        check_sizes(job)
        pipeline = job.pipeline
    except (msgspec.MsgspecError, JobProblem, ArithmeticError, ValueError) as error:
        raise ArtifactError(f"{folder / MANIFEST_FILE}: is not a manifest: {error}") from error
    blob = _read(path, None)
    try:
        with safe_open(path, "np") as opened:
            key = bytes.fromhex((opened.metadata() or {}).get("manifest_key", ""))
    except (SafetensorError, ValueError, OSError) as error:
        raise ArtifactError(f"{path}: is not a model that mpc-train opened") from error
    tensors = _tensors(path, blob, said.model, key)
    parameters: dict[str, Reals] = {}
    if said.preparation.file:
        where = folder / Path(said.preparation.file).name
        parameters = _tensors(where, _read(where, None), said.preparation, key)
    shapes = {name: value.shape for name, value in parameters.items()}
    if shapes != pipeline.shapes:
        raise ArtifactError(f"{folder}: the preparation is not that of the job in the manifest")
    module = plain_module(job).double().eval()
    try:
        module.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    except (RuntimeError, TypeError) as error:
        raise ArtifactError(f"{path}: has not the tensors of the job in the manifest") from error
    return Predictor(job, module, parameters)


def _read(path: Path, most: int | None) -> bytes:
    try:
        if most is not None and path.stat().st_size > most:
            raise ArtifactError(f"{path}: longer than {most >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error.strerror}); name the folder that mpc-train open wrote"
        ) from error


def _tensors(path: Path, blob: bytes, said: _File, key: bytes) -> dict[str, Any]:
    if commit(key, blob) != said.hmac_sha256:
        raise ArtifactError(f"{path}: is not the file that the manifest beside it describes")
    try:
        return load_tensors(blob)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: tensors that cannot be read") from error


def write_records(
    predictor: Predictor,
    source: Source,
    file: TextIO,
    form: str,
    done: Callable[[int], None] = lambda rows: None,
) -> int:
    """Write all predictions as "csv" (with a header) or "json" (an object a line); how many."""
    rows = 0
    writer = csv.writer(file, lineterminator="\n")
    if form == "csv":
        writer.writerow(["row", *predictor.columns])
    for chunk in predictor.records(source):
        for record in chunk:
            rows += 1
            if form == "csv":
                writer.writerow([rows, *map(_spelled, record)])
            else:
                file.write(json.dumps(_named(predictor.columns, rows, record)) + "\n")
        done(rows)
    return rows


def _named(columns: Sequence[str], row: int, record: list[Any]) -> dict[str, Any]:
    return {"row": row, **dict(zip(columns, record, strict=True))}


def _spelled(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)
