"""What `[data]` must satisfy beyond the types of its fields; raises JobProblem."""

from math import prod

from msgspec import UNSET

from mpc_train.base.problem import JobProblem, Problems, interval, no_duplicates, number
from mpc_train.checks.check_link import check_link, check_spelling
from mpc_train.checks.check_train import MAX_SEED
from mpc_train.jobs.data import Array, Feature, Label, weight_of
from mpc_train.jobs.job import Job
from mpc_train.jobs.kinds import NUMBERS
from mpc_train.tables.schema import Schema, check_schema

MAX_FEATURES = 100_000
MAX_AXES = 4
MAX_ROWS = 100_000_000
MAX_WEIGHT = 64
"""The largest weight of a row, as of a class."""


def check_data(job: Job) -> None:
    """Raise JobProblem with the contradictions in `[data]`."""
    found = Problems()
    with found.noting():
        _check_columns(job)
    if job.data.table is not None:
        with found.noting():
            _check_table(job)
    with found.noting():
        _check_rows(job)
    found.check()
    # The checks below rely on valid columns and rows.
    if job.data.weight:
        with found.noting():
            _check_weight(job)
    with found.noting():
        check_link(job)
    found.check()


def _check_array(job: Job) -> None:
    """Check an array of features, before its numbers are used."""
    data, array = job.data, job.data.array
    if array is UNSET:
        return
    if not array.shape or len(array.shape) > MAX_AXES or min(array.shape) < 1:
        raise JobProblem(
            "data.array.shape", f"1 to {MAX_AXES} lengths of at least 1: [channels, height, width]"
        )
    _check_column(job, "data.array", array)
    if prod(array.shape) > MAX_FEATURES:
        raise JobProblem("data.array.shape", f"at most {MAX_FEATURES} numbers for each row")
    for key, other in (("features", data.features), ("schema", data.schema or data.table)):
        if other:
            raise JobProblem(f"data.{key}", "an array replaces these; remove one of them")
    if array.name in (job.label.name, job.weight, data.split_by):
        raise JobProblem("data.array.name", f"{array.name!r} is also another column of the job")
    if data.partition != "rows":
        raise JobProblem("data.array", 'owners of an array hold rows: partition = "rows"')
    shape = job.model.input_shape
    if shape and job.model.network is not None and prod(shape) != prod(array.shape):
        raise JobProblem(
            "data.array.shape",
            f"has {prod(array.shape)} numbers, the network takes {list(shape)}",
        )


def _check_columns(job: Job) -> None:
    _check_array(job)
    features = job.features
    if not features:
        raise JobProblem("data.features", "at least one feature is needed")
    if len(features) > MAX_FEATURES:
        raise JobProblem("data.features", f"at most {MAX_FEATURES} features")
    found = Problems()
    for index, feature in enumerate(features):
        with found.noting():
            _check_column(job, f"data.features[{index}]", feature)
    label = job.label
    with found.noting():
        _check_column(job, "data.label", label)
    with found.noting():
        _check_features(job, features, label)
    found.check()


def _check_features(job: Job, features: tuple[Feature, ...], label: Label) -> None:
    no_duplicates("data.features", (feature.name for feature in features))
    if any(feature.name == label.name for feature in features):
        raise JobProblem(
            "data.label",
            f"{label.name!r} is also a feature; a model that gets the answer learns nothing else",
        )
    if number("data.limit", job.data.limit) <= 0:
        raise JobProblem("data.limit", "must be above 0")
    if job.data.limit > 1024:
        raise JobProblem(
            "data.limit",
            "at most 1024: declare a center and a scale per feature, "
            "so that values are of the order of 1",
        )


def _check_column(job: Job, key: str, column: Feature | Label | Array) -> None:
    if not column.name or column.name != column.name.strip():
        raise JobProblem(f"{key}.name", "a column name is not empty and has no space at its ends")
    center = number(f"{key}.center", column.center)
    scale = number(f"{key}.scale", column.scale)
    if scale <= 0:
        raise JobProblem(f"{key}.scale", "must be above 0")
    if not job.data.standardize and (center != 0 or scale != 1):
        raise JobProblem(f"{key}.scale", "is declared, but data.standardize is false; drop one")
    if column.range is not None:
        interval(f"{key}.range", column.range)


def _check_table(job: Job) -> None:
    """Check the schema, and what the job takes from it."""
    data, table = job.data, job.schema
    if data.schema:
        raise JobProblem("data.schema", "the schema file that it names is missing")
    check_schema(table, "data.table.columns")
    found = Problems()
    for index, feature in enumerate(job.features):
        key = f"data.features[{index}]" if data.features else "data.schema"
        with found.noting():
            _check_of_schema(key, feature, table)
    with found.noting():
        _check_label(job)
    found.check()


def _check_of_schema(key: str, feature: Feature, table: Schema) -> None:
    if feature.name not in table:
        raise JobProblem(key, f"{feature.name!r} is not a column of the schema")
    if table[feature.name].kind == "identifier":
        raise JobProblem(key, f"{feature.name!r} is an identifier, which is never a feature")
    if feature.range is not None:
        raise JobProblem(f"{key}.range", "is in the schema; remove it here")


def _check_label(job: Job) -> None:
    label, table = job.label, job.schema
    if label.name not in table:
        raise JobProblem("data.label", f"{label.name!r} is not a column of the schema")
    column = table[label.name]
    kinds = ("boolean", "category") if job.model.kind not in NUMBERS else ("number",)
    if column.kind not in kinds:
        raise JobProblem(
            "data.label",
            f"is of kind {column.kind}; a {job.model.kind} model predicts a column of kind "
            f"{' or '.join(kinds)}",
        )
    if label.range is not None:
        raise JobProblem("data.label.range", "is in the schema; remove it here")
    if column.other:
        raise JobProblem("data.label", 'classes must be listed; remove "other" from the levels')
    if column.kind == "category" and label.classes != column.levels:
        raise JobProblem("data.label.classes", "the schema's levels are the classes; remove them")
    if column.kind == "boolean" and (label.classes or job.classes != 2):
        raise JobProblem("data.label", "false and true are two classes, 0 and 1")


def _check_weight(job: Job) -> None:
    """Check row weights: the column, its range, and that the job has no options that exclude
    them."""
    key, data, weight = "data.weight", job.data, weight_of(job.data)
    if not weight.name or weight.name != weight.name.strip():
        raise JobProblem(f"{key}.name", "a column name is not empty and has no space at its ends")
    if weight.name == job.label.name or any(f.name == weight.name for f in job.features):
        raise JobProblem(key, f"{weight.name!r} is also a feature or the label")
    if data.table is not None:
        if weight.range is not None:
            raise JobProblem(f"{key}.range", "is in the schema; remove it here")
        if weight.name not in data.table:
            raise JobProblem(key, f"{weight.name!r} is not a column of the schema")
    column = job.schema[weight.name]
    if column.kind != "number":
        raise JobProblem(key, f"{weight.name!r} is of kind {column.kind}; a weight is a number")
    if column.missing:
        raise JobProblem(
            key,
            f"{weight.name!r} may be missing by the schema, but a weight may not; remove the codes",
        )
    if column.range is None:
        raise JobProblem(f"{key}.range", f"declare it: weights lie within 0 to {MAX_WEIGHT}")
    least, most = (number(f"{key}.range", end) for end in column.range)
    if not 0 <= least < most <= MAX_WEIGHT:
        raise JobProblem(f"{key}.range", f"[least, largest] within 0 to {MAX_WEIGHT}")
    train, reveal = job.train, job.reveal
    for where, asked in {
        "train.early_stopping": train.early_stopping is not None,
        "train.loss.balanced": train.loss.balanced,
        "reveal.training_loss_every": bool(reveal.training_loss_every),
        "reveal.statistics": reveal.statistics,
    }.items():
        if asked:
            raise JobProblem(where, "cannot be combined with data.weight; remove one of them")


def _check_rows(job: Job) -> None:
    rows = job.data.rows
    found = Problems()
    least = 1 if job.trains or job.reveal.metrics or job.reveal.per_party else 0
    without = [owner for owner in job.owners if owner not in rows]
    if without:
        with found.noting():
            raise JobProblem("data.rows", _wanted_rows(without))
    for name, count in rows.items():
        with found.noting():
            if name not in job.owners:
                raise JobProblem(f"data.rows.{name}", "is not one of job.owners")
            if not least <= count <= MAX_ROWS:
                raise JobProblem(f"data.rows.{name}", f"between {least} and {MAX_ROWS} rows")
    with found.noting():
        _check_parts(job)
    found.check()


def _wanted_rows(owners: list[str]) -> str:
    if len(owners) == 1:
        return f"say how many rows {owners[0]} has: {owners[0]} = …"
    listed = ", ".join(f"{owner} = …" for owner in owners)
    return f"say how many rows these have: {listed}"


def _check_parts(job: Job) -> None:
    """Check how rows are divided into parts."""
    rows = job.data.rows
    if sum(rows.values()) > MAX_ROWS:
        raise JobProblem("data.rows", f"{sum(rows.values())} rows, at most {MAX_ROWS} together")
    if not 0 <= number("data.test_fraction", job.data.test_fraction) < 1:
        raise JobProblem("data.test_fraction", "at least 0 and below 1")
    if not 0 <= job.data.split_seed <= MAX_SEED:
        raise JobProblem("data.split_seed", "at least 0 and below 2^63")
    if job.data.split_by:
        _check_split_by(job)
    elif job.data.split_normalise:
        raise JobProblem(
            "data.split_normalise", "is only for split_by; remove it, or write split_by"
        )


def _check_split_by(job: Job) -> None:
    name, schema = job.data.split_by, job.schema
    if job.data.partition == "columns" or job.data.check_duplicates is not None:
        raise JobProblem("data.split_by", "is only for rows of single owners, not for linked rows")
    if name not in schema or schema[name].kind != "identifier":
        raise JobProblem("data.split_by", f"{name!r} is not an identifier of the schema")
    check_spelling("data.split_normalise", job.data.split_normalise)
