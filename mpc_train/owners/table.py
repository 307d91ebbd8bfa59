"""An owner's rows in the form that its job needs: from a typed table to the values of the model's
inputs.

What reads tables is imported when one is read: a process that only holds rows needs none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from mpc_train.errors import DataError
from mpc_train.jobs.data import Duplicates, Join
from mpc_train.jobs.job import Job
from mpc_train.jobs.pipeline import Pipeline
from mpc_train.jobs.schedule import group_parts
from mpc_train.owners.columns import columns_of, pipeline_over
from mpc_train.owners.grouping import GroupError, check_most_rows, grouped_order
from mpc_train.owners.local import check_cells, check_filled, local_terms
from mpc_train.owners.tokens import IdentifierError, Tokens, spelt, token_key, tokens_of
from mpc_train.tables.dates import DateForm
from mpc_train.tables.faults import Faults
from mpc_train.tables.normalise import normaliser
from mpc_train.tables.source import Source, label_of
from mpc_train.tables.typed import TypedTable
from protocols.arrays import Reals

if TYPE_CHECKING:
    from mpc_train.tables.loading.load import Report, Vault
    from mpc_train.tables.readers.arrays import Arrays


@dataclass(frozen=True, repr=False)
class Table:
    """One owner's rows, in the order of its source.

    features: float64[B, terms], what the owner computes from its columns alone (`owners.local`).
    labels: float64[B]; the class number for a classifier, the centred and scaled label for a linear
    model; empty where another owner has the label. present: float64[B, filled terms] of 0 and 1.
    tokens: uint8[B, 32], representing each row's identifiers; None: the job uses none. weights:
    float64[B], how many times each row's loss counts; empty if the job has none, or another owner
    has them. warnings: sentences for the owner only. raw: only for the plaintext twin, cells in the
    columns' own units, see `twin.preparation.raw_terms`. places: int64[B], the place of each row in
    its source; empty: the rows have the order of the source.
    """

    features: NDArray[np.float64]
    labels: NDArray[np.float64]
    present: NDArray[np.float64] = field(default_factory=lambda: np.ones((0, 0)))
    tokens: Tokens | None = None
    weights: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    warnings: tuple[str, ...] = ()
    raw: NDArray[np.float64] | None = None
    places: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def rows(self) -> int:
        return len(self.features)

    def ordered(self, order: NDArray[np.int64]) -> Table:
        """Its rows, or some of them, in the given order; without tokens."""
        labels, present, weights = (
            values[order] if len(values) else values
            for values in (self.labels, self.present, self.weights)
        )
        raw = None if self.raw is None else self.raw[order]
        return Table(self.features[order], labels, present, weights=weights, raw=raw, places=order)

    def __repr__(self) -> str:
        return f"Table(rows={self.rows}, features={self.features.shape[1]})"


def load_table(
    source: Source,
    job: Job,
    owner: str,
    progress: Report | None = None,
    raw: Callable[[Pipeline, TypedTable], Reals] | None = None,
    vault: Vault | None = None,
    any_rows: bool = False,
) -> Table:
    """Read `owner`'s table for `job`; raises DataError for anything that does not fit.

    raw: makes `Table.raw` of the table's terms. vault: opens a table of the node's vault. any_rows:
    it may have another number of rows than the job says.
    """
    from mpc_train.tables.loading.load import as_stored, load

    source, tokenised = as_stored(source, vault)
    _check_tokens(job, source, tokenised)
    link, group = job.data.link, job.data.split_by
    # Where rows only meet a model that others have trained, they need not vary.
    only = len(job.owners) == 1 and job.trains and job.has_own_statistics
    alone = job.data.partition == "columns" or only
    typed = load(
        source,
        job.schema,
        names=columns_of(job, owner),
        identifiers=(group,) if group else () if link is None else link.on,
        unique=not group,
        alone=alone,
        rows=None if any_rows else job.data.rows[owner],
        check=partial(check_cells, job),
        progress=progress,
        arrays=arrays_of(job, source),
        label=job.label.name,
        fillable=frozenset() if alone else _fillable(job),
        vault=vault,
    )
    try:
        tokens = None if link is None else _tokens(job, link, typed, source)
        order = _group_order(job, owner, typed, source) if group else None
    except IdentifierError as error:
        _refuse_identifiers(error, job, typed, source)
        raise
    except GroupError as error:
        raise DataError(f"{label_of(source)}: column {group!r}: {error}") from error
    cells = None if raw is None else raw(pipeline_over(job.pipeline, typed.names), typed)
    table = replace(table_of(job, typed), raw=cells)
    table = table if order is None else table.ordered(order)
    try:
        check_filled(job, owner, table.present)
    except DataError as error:
        raise DataError(f"{label_of(source)}: {error}") from error
    if typed.kept is not None:
        # If rows were left out, the others keep their places in the source.
        table = replace(table, places=typed.kept if order is None else typed.kept[order])
    return replace(table, tokens=tokens, warnings=typed.warnings)


def _check_tokens(job: Job, source: Source, tokenised: Collection[str]) -> None:
    """Raise DataError where the job needs identifiers of a column that has tokens in their place:
    it would take different spellings of one identifier for different ones, or join nobody."""
    link, group = job.data.link, job.data.split_by
    advice = "replaced by tokens when the table was imported; import it without --tokenise"
    if group in tokenised and job.data.split_normalise:
        raise DataError(
            f"{label_of(source)}: column {group!r}: the job makes its identifiers uniform "
            f"(split_normalise), but they were {advice}, or with uniform identifiers and agree on "
            "a job without split_normalise"
        )
    joined = [] if link is None else [name for name in link.on if name in tokenised]
    if joined:
        raise DataError(
            f"{label_of(source)}: column {joined[0]!r}: the job joins records by its identifiers, "
            f"but they were {advice}"
        )


def arrays_of(job: Job, source: Source) -> Arrays | None:
    """The job's column of arrays, in this table."""
    from mpc_train.tables.readers.arrays import Arrays

    array = job.data.array
    return None if array is UNSET else Arrays(array.name, array.shape, source.folder_of_arrays)


def _refuse_identifiers(
    error: IdentifierError, job: Job, typed: TypedTable, source: Source
) -> None:
    """Raise DataError with every identifier that cannot be normalised, or with one that appears
    twice."""
    link, group = job.data.link, job.data.split_by
    rules = {} if link is None else dict(link.normalise)
    if group:
        rules = {group: job.data.split_normalise}
    faults = Faults(label_of(source), source.titles)
    faults.place = typed.place
    places = np.arange(1, typed.rows + 1) if typed.places is None else typed.places
    for name, identifiers in typed.identifiers.items():
        function = normaliser(rules.get(name, ()), _form_of(typed, source, name))
        wrong: dict[str, list[int]] = {}
        for row, cell in enumerate(identifiers):
            try:
                function(cell)
            except ValueError as problem:
                wrong.setdefault(str(problem), []).append(row)
        for what, rows in wrong.items():
            faults.cells(name, places[rows], what)
    if not faults:
        what = str(error)
        if error.other is not None:
            what = f"identifies the same record as {typed.where(error.other)}"
        faults.cells(error.column, places[[error.row]], what)
    faults.check()


def _form_of(typed: TypedTable, source: Source, name: str) -> DateForm:
    return DateForm() if name in typed.dated else source.form_of(name)


def _fillable(job: Job) -> frozenset[str]:
    """The features whose missing cells the job fills: an owner that never measured one of them gets
    it from the others' rows."""
    terms: dict[str, bool] = {}
    for term in job.pipeline.terms:
        terms[term.column] = terms.get(term.column, True) and term.takes_missing
    return frozenset(name for name, takes in terms.items() if takes)


def table_of(job: Job, typed: TypedTable) -> Table:
    """The rows of a typed table, which has the job's features and its label, or some of them."""
    labels = np.empty(0)
    if job.label.name in typed.names:
        labels = np.array(typed.column(job.label.name))
    weights = np.array(typed.column(job.weight)) if job.weight in typed.names else np.empty(0)
    local = local_terms(pipeline_over(job.pipeline, typed.names), typed)
    labels = labels if job.classes else _scaled_label(job, labels)
    return Table(local.values, labels, local.present, weights=weights)


def _tokens(job: Job, link: Join | Duplicates, typed: TypedTable, source: Source) -> Tokens:
    key = token_key(job.digest())

    form_of = partial(_form_of, typed, source)
    return tokens_of(typed.identifiers, link.on, link.normalise, form_of, key)


def _group_order(job: Job, owner: str, typed: TypedTable, source: Source) -> NDArray[np.int64]:
    """The rows in the order of the parts of the split; groups are distinguished by their normalised
    spelling."""
    by, rules = job.data.split_by, job.data.split_normalise
    groups = list(spelt(by, typed.identifiers[by], rules, _form_of(typed, source, by)))
    if job.privacy and job.privacy.unit == by:
        check_most_rows(groups, job.privacy.rows_of_unit)
    return grouped_order(groups, group_parts(job, owner), job.data.split_seed)


def _scaled_label(job: Job, values: Reals) -> Reals:
    scaled: Reals = (values - float(job.label.center)) / float(job.label.scale)
    return scaled
