"""What a model's outputs say about raw records: rows read, the columns of predictions, and files of
them.

Shared by all that predict: an opened model on this machine (`predicting`), encrypted questions
(`homomorphic.asking`) and questions over shares (`serving.predictions`). Each of them computes the
outputs in its own way; what is here is the same for all: reading, naming, the link function.
"""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TextIO

import numpy as np
import polars
from numpy.typing import NDArray

from mpc_train.errors import ConfigError
from mpc_train.jobs.job import Job
from mpc_train.jobs.kinds import LOGARITHMIC
from mpc_train.owners.local import check_cells
from mpc_train.owners.table import arrays_of
from mpc_train.regression.settings import family_of
from mpc_train.results.plain_model import means
from mpc_train.tables.loading.load import stream
from mpc_train.tables.readers.columnar import FrameTable
from mpc_train.tables.source import Source
from protocols.arrays import Reals

if TYPE_CHECKING:
    from mpc_train.tables.typed import TypedTable

ROW = "row"
"""The first field of each written prediction: its record's number."""

Form = Literal["csv", "json"]
ENDINGS: dict[str, Form] = {".csv": "csv", ".json": "json", ".jsonl": "json"}
"""The output formats, by the end of the file's name."""

Records = Source | polars.DataFrame | FrameTable
"""Where records come from."""


class Predictions(ABC):
    """Predictions of one model. job: what its columns mean and how they are prepared."""

    job: Job

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.job.name})"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the predicted columns: the label, and for a classifier each class's
        probability."""
        return ("prediction", *(f"p({name})" for name in self.classes))

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes as written in the label's column; none if it is a number."""
        if not self.job.classes:
            return ()
        if self.job.schema[self.job.label.name].kind == "boolean":
            return ("false", "true")
        return self.job.label.classes or tuple(str(k) for k in range(self.job.classes))

    def records(self, source: Records, ids: Sequence[str] = ()) -> Iterator[list[list[Any]]]:
        """For each chunk of the table one list per row: the text of `ids`, then `columns`.

        Memory does not grow with the table. Raises DataError with file, line and column, and
        ConfigError for an id with the name of a prediction.
        """
        self.check_ids(ids)
        for table in self.tables(source, ids):
            yield with_ids(kept_ids(table, ids), self.predicted(table))

    def tables(self, source: Records, ids: Sequence[str] = ()) -> Iterator[TypedTable]:
        """The chunks of the table that `source` names, checked: the job's features, and `ids` as
        text. Raises DataError with file, line and column."""
        job = self.job
        names = [feature.name for feature in job.features]

        def check(name: str, values: Reals, missing: NDArray[np.bool_]) -> None:
            check_cells(job, name, values, missing)

        arrays = arrays_of(job, source if isinstance(source, Source) else Source())
        return stream(source, job.schema, names=names, keep=ids, check=check, arrays=arrays)

    def check_ids(self, ids: Sequence[str]) -> None:
        """Raise ConfigError if two columns of the output would have the same name."""
        taken = {ROW, *self.columns}
        for name in ids:
            if name in taken:
                raise ConfigError(
                    f"the column {name!r} cannot be kept: the predictions or another id have a "
                    "column of this name; rename it in the table"
                )
            taken.add(name)

    @abstractmethod
    def predicted(self, table: TypedTable) -> list[list[Any]]:
        """The predictions for a table with the job's features."""

    def of_outputs(self, outputs: Reals) -> list[list[Any]]:
        """The predictions for the outputs [rows, outputs] of the model's last layer."""
        job = self.job
        if not self.classes:
            if job.model.kind in LOGARITHMIC:
                outputs = means(family_of(job), outputs)
            scale, center = float(job.label.scale), float(job.label.center)
            return [[float(value)] for value in outputs[:, 0] * scale + center]
        if outputs.shape[1] == 1:
            # One logit; 0 and more mean class 1.
            outputs = np.concatenate([np.zeros_like(outputs), outputs], axis=1)
            best = (outputs[:, 1] >= 0).astype(np.int64)
        else:
            best = outputs.argmax(axis=1)
        odds = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        return self.labelled(best, odds)

    def labelled(self, best: NDArray[np.int64], odds: Reals) -> list[list[Any]]:
        """The predictions of a classifier. best: int64[rows]; odds: float64[rows, classes], each
        class's probability."""
        return [
            [self.classes[place], *(float(value) for value in row)]
            for place, row in zip(best, odds, strict=True)
        ]


def kept_ids(table: TypedTable, ids: Sequence[str]) -> list[tuple[str, ...]]:
    """The texts of `ids` for each row; of no ids, an empty tuple for each row."""
    if not ids:
        return [()] * table.rows
    return list(zip(*(table.identifiers[name] for name in ids), strict=True))


def with_ids(kept: Sequence[Sequence[str]], found: list[list[Any]]) -> list[list[Any]]:
    """The predictions of some rows, each after the texts that are kept of its row."""
    return [[*texts, *prediction] for texts, prediction in zip(kept, found, strict=True)]


def write_records(
    predictor: Predictions,
    source: Source,
    file: TextIO,
    form: Form,
    ids: Sequence[str] = (),
    first: int = 1,
    report: Callable[[int], None] | None = None,
) -> int:
    """Write all predictions as "csv" (with a header) or "json" (one object per line); return their
    number.

    Each begins with its number, `row`, and the text of its `ids`. first: the number of the first.
    report: called after each chunk with the number of rows that are written.
    """
    rows = 0
    columns = (ROW, *ids, *predictor.columns)
    writer = csv.writer(file, lineterminator="\n")
    if form == "csv":
        writer.writerow(columns)
    for chunk in predictor.records(source, ids):
        for record in chunk:
            numbered = [first + rows, *record]
            if form == "csv":
                writer.writerow(map(_spelled, numbered))
            else:
                file.write(json.dumps(dict(zip(columns, numbered, strict=True))) + "\n")
            rows += 1
        if report is not None:
            report(rows)
    return rows


def _spelled(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)
