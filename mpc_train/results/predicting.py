"""A recipient applies an opened model to raw records: the same steps as in training, in float64.

The model's folder contains everything needed: the job in the manifest says what the columns mean
and how they are prepared, and `preparation.safetensors` has the numbers that training computed over
shares and sealed with the model. Nothing is sent anywhere.

    from mpc_train.results.predicting import predict

    found = predict("runs/study", "new-patients.csv", ids=["patient"])

returns a polars data frame with the columns `patient`, `prediction` and, for a classifier, one for
each class's probability. `mpc-train predict` does the same for files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import polars
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from mpc_train.base.problem import JobProblem
from mpc_train.base.sizes import check_sizes
from mpc_train.errors import ArtifactError, ConfigError
from mpc_train.jobs.job import Job
from mpc_train.owners.applied import applied
from mpc_train.owners.local import local_terms
from mpc_train.results.artifact import commit
from mpc_train.results.kept import KeptModel
from mpc_train.results.opening import MANIFEST_FILE, MODEL_FILE
from mpc_train.results.plain_model import plain_module
from mpc_train.results.predictions import Predictions
from mpc_train.tables.source import Source, SourceProblem, check_source, label_of
from mpc_train.tables.spelling import name_of
from protocols.arrays import Reals

if TYPE_CHECKING:
    from mpc_train.tables.typed import TypedTable

MAX_MANIFEST_BYTES = 64 << 20


class _File(msgspec.Struct, frozen=True):
    file: str = ""
    hmac_sha256: str = ""


class _Header(msgspec.Struct, frozen=True):
    metadata: dict[str, str] = msgspec.field(default_factory=dict, name="__metadata__")


class _Manifest(msgspec.Struct, frozen=True):
    """The part of a manifest that is needed here."""

    job: msgspec.Raw
    model: _File
    preparation: _File = _File()


@dataclass(frozen=True, repr=False)
class Predictor(Predictions):
    """A model ready for raw records. parameters: those of `Pipeline.shapes`."""

    job: Job
    module: torch.nn.Module
    parameters: dict[str, Reals]

    def predicted(self, table: TypedTable) -> list[list[Any]]:
        """The predictions for a table with the job's features."""
        pipeline = self.job.pipeline
        return self.of_inputs(applied(pipeline, local_terms(pipeline, table), self.parameters))

    def of_inputs(self, inputs: Reals) -> list[list[Any]]:
        """The predictions for rows [rows, inputs] of the model's inputs."""
        with torch.no_grad():
            return self.of_outputs(self.module(torch.from_numpy(inputs)).numpy())


def predict(
    model: Path | str | Predictor,
    records: Path | str | Source | polars.DataFrame,
    *,
    ids: Sequence[str] = (),
) -> polars.DataFrame:
    """The predictions of an opened model for raw records, one row per record, in order.

    model: the folder that `mpc-train open` wrote, its model.safetensors, or the result of
    `load_predictor`, which is faster for many calls. records: a file (CSV, Parquet, Arrow or npz),
    a `Source` that says how it is written or names a query, or a data frame; with the columns of
    the job's schema in their own units; other columns are ignored, and the label may be missing.
    ids: columns to keep, as text.

    Returns the columns `ids`, then `prediction` (a number in the label's unit, or the class as
    written in tables) and, for classifiers, `p(class)` for each class. Raises ArtifactError for
    files that do not belong together, DataError that names file, line and column for a record that
    does not fit the schema, ConfigError for contradictory ids or sources.
    """
    predictor = model if isinstance(model, Predictor) else load_predictor(Path(model))
    ids = tuple(map(name_of, ids))
    if isinstance(records, (str, Path)):
        records = Source(str(records))
    if isinstance(records, Source):
        try:
            check_source(records)
        except SourceProblem as error:
            raise ConfigError(f"{label_of(records)}: {error.key}: {error}") from error
    rows = [record for chunk in predictor.records(records, ids) for record in chunk]
    number = polars.Float64
    kinds: dict[str, Any] = dict.fromkeys(ids, polars.String)
    kinds |= dict.fromkeys(predictor.columns, number)
    if predictor.classes:
        kinds["prediction"] = polars.String
    return polars.DataFrame(rows, schema=kinds, orient="row")


def load_predictor(model: Path | KeptModel) -> Predictor:
    """The model in a folder that `mpc-train open` wrote, or its model.safetensors, or in a vault.

    Raises ArtifactError if files are missing, malformed, or do not belong together.
    """
    folder, path, read = _places(model)
    manifest = read(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    try:
        said = msgspec.json.decode(manifest, type=_Manifest)
        # Not `job_from_bytes`: a manifest outlives the version that wrote it.
        job = msgspec.json.decode(said.job, type=Job)
        check_sizes(job)
        pipeline = job.pipeline
    except (msgspec.MsgspecError, JobProblem, ArithmeticError, ValueError) as error:
        raise ArtifactError(f"{folder / MANIFEST_FILE}: is not a manifest: {error}") from error
    blob = read(path, None)
    try:
        key = bytes.fromhex(_metadata(blob).get("manifest_key", ""))
    except (msgspec.MsgspecError, ValueError) as error:
        raise ArtifactError(f"{path}: is not a model that mpc-train opened") from error
    tensors = _tensors(path, blob, said.model, key)
    parameters: dict[str, Reals] = {}
    if said.preparation.file:
        where = folder / Path(said.preparation.file).name
        parameters = _tensors(where, read(where, None), said.preparation, key)
    shapes = {name: value.shape for name, value in parameters.items()}
    if shapes != pipeline.shapes:
        raise ArtifactError(f"{folder}: the preparation is not that of the job in the manifest")
    module = plain_module(job).double().eval()
    try:
        module.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    except (RuntimeError, TypeError) as error:
        raise ArtifactError(
            f"{path}: does not contain the tensors of the job in the manifest"
        ) from error
    return Predictor(job, module, parameters)


_Read = Callable[[Path, int | None], bytes]


def _places(model: Path | KeptModel) -> tuple[Path, Path, _Read]:
    """The folder of a model, its file, and what reads a file of the folder."""
    if isinstance(model, Path):
        folder = model if model.is_dir() else model.parent
        return folder, folder / MODEL_FILE if model.is_dir() else model, _read
    kept, folder = model, Path(model.title)

    def read(path: Path, most: int | None) -> bytes:
        data = kept.files.get(path.name)
        if data is None or (most is not None and len(data) > most):
            raise ArtifactError(f"{path}: is not there, or too long")
        return data

    return folder, folder / MODEL_FILE, read


def _metadata(blob: bytes) -> dict[str, str]:
    """What a safetensors file says of itself: u64 (little endian) length ‖ JSON ‖ tensors."""
    header = blob[8 : 8 + int.from_bytes(blob[:8], "little")]
    return msgspec.json.decode(header, type=_Header).metadata


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
        raise ArtifactError(f"{path}: the tensors cannot be read") from error
