"""`[data]` of a job: which columns, each owner's number of rows, and which rows are held out.

Columns are declared either by a schema (`schema = "schema.toml"`, see `mpc_train.tables.schema`;
the job carries the file's content, so that all nodes check the same) or by the short form, which
lists `features` and `label` and makes each feature a number that is never missing. Names are
normalised to Unicode's composed form (NFC), here as in the schema and in tables.

`weight` names a column of row weights: a number that is never missing, with a declared range within
0 to 64, at each row's owner or at the one whose `columns` list it. It is as private as other cells,
and not an input: it says how many times a row's loss counts. Training minimises the sum of weight ·
loss over a batch, divided by the number of its rows and not by the sum of their weights, which
nobody learns; for Newton steps the batch is all training rows, so that without a penalty the result
is the weighted maximum likelihood. Statistics of `[prepare]` and metrics count every row once. `job
check` multiplies `fixed_point.gradient_limit` by the largest weight. Weights cannot be combined
with `early_stopping`, `balanced`, `training_loss_every` and `statistics`.

`join` and `check_duplicates` say which records are the same, and who learns it:

    partition = "columns"
    columns = { bank = ["income", "default"], insurer = ["claims"] }
    join.on = ["name", "born"]
    join.normalise = { name = ["case", "accents", "spaces"], born = ["date"] }
    join.membership = "nobody"
    join.least_rows = 500

An identifier is a column that all owners have; it is never a feature and never shared.
`mpc_train.tables.normalise` defines when two spellings are the same, `audience.linkage_disclosures`
what each node learns.
"""

from decimal import Decimal
from typing import Literal

import msgspec

from mpc_train.jobs.train import Strict
from mpc_train.tables.array_names import element_names
from mpc_train.tables.normalise import Rule
from mpc_train.tables.schema import Column, Schema
from mpc_train.tables.spelling import compose

Membership = Literal["holders", "nobody"]
TEST_FRACTION = Decimal("0.2")
"""The part of the rows that is held out, if a job does not say."""


class Feature(Strict, frozen=True):
    """One column of the owners' tables; the model sees `(value - center) / scale`."""

    name: str
    center: Decimal = Decimal(0)
    scale: Decimal = Decimal(1)
    range: tuple[Decimal, Decimal] | None = None
    """Smallest and largest value in the table's own units; a value outside is an error at the
    owner. With a schema, the range is in the schema."""

    def __post_init__(self) -> None:
        compose(self, "name")


class Label(Strict, frozen=True):
    """The column to be predicted.

    For a classifier `classes` lists the entries of the table in the order of the classes 0, 1, …;
    without it, the table contains the class numbers themselves. For a linear model the label is a
    number and is centred and scaled like a feature. With a schema the classes are the column's
    levels, or false and true.
    """

    name: str
    classes: tuple[str, ...] = ()
    center: Decimal = Decimal(0)
    scale: Decimal = Decimal(1)
    range: tuple[Decimal, Decimal] | None = None

    def __post_init__(self) -> None:
        compose(self, "name", "classes")


class Weight(Strict, frozen=True):
    """The column of row weights. With a schema, the schema has the range."""

    name: str
    range: tuple[Decimal, Decimal] | None = None

    def __post_init__(self) -> None:
        compose(self, "name")


class Array(Strict, frozen=True):
    """One column of arrays (images, signals) instead of `features`; the model sees (value - center)
    / scale of each number, in C order and in this shape.

    At the owners it is an array of an npz file, a list column of Parquet or Arrow, or a column with
    paths of images and .npy files: see `mpc_train.tables.readers.arrays`.
    """

    name: str
    shape: tuple[int, ...]
    """Shape of each row's array: [channels, height, width] for an image."""
    range: tuple[Decimal, Decimal]
    """Smallest and largest number that it may contain."""
    center: Decimal = Decimal(0)
    scale: Decimal = Decimal(1)

    def __post_init__(self) -> None:
        compose(self, "name")

    @property
    def features(self) -> "tuple[Feature, ...]":
        """A feature for each of its numbers."""
        names = element_names(self.name, self.shape)
        return tuple(Feature(name, self.center, self.scale, self.range) for name in names)


class Join(Strict, frozen=True):
    """`[data] join`: rows of all owners with the same identifiers become one row."""

    on: tuple[str, ...]
    """Columns that together identify a record; each owner has each record once."""
    membership: Membership
    """Who learns which records all owners have: the owners (fast), or nobody."""
    least_rows: int
    """With fewer records in common nothing is shared and the run ends."""
    least_share: Decimal | None = None
    """The same as a share of the shortest table's rows, above 0 and at most 1: with 0.9 a run ends
    if more than a tenth of them found no partner."""
    normalise: dict[str, tuple[Rule, ...]] = msgspec.field(default_factory=dict)
    """Rules by column of `on`; a column that is not listed is compared unchanged."""

    def __post_init__(self) -> None:
        compose(self, "on", "normalise")


class Duplicates(Strict, frozen=True):
    """`[data] check_duplicates`, for owners of rows with the same columns: every evaluator learns
    how many records two of them have, and nobody learns which."""

    on: tuple[str, ...]
    normalise: dict[str, tuple[Rule, ...]] = msgspec.field(default_factory=dict)
    most: int = 0
    """With more records in several tables nothing is shared and the run ends."""

    def __post_init__(self) -> None:
        compose(self, "on", "normalise")


class Data(Strict, frozen=True):
    """`[data]`: the columns, each owner's number of rows, and the rows held out for testing."""

    label: Label | str
    rows: dict[str, int]
    features: tuple[Feature | str, ...] = ()
    """If omitted with a schema: all its columns except label, weight and identifiers."""
    array: Array | msgspec.UnsetType = msgspec.UNSET
    """One column of arrays instead of features. Unset instead of null in a job's bytes, so that
    jobs without one keep the digests that organisations have agreed to."""
    weight: Weight | str = ""
    """A column that says how many times each row's loss counts; not a feature."""
    schema: str = ""
    """A schema file beside the job; the job carries its content."""
    table: Schema | None = None
    """The content of the `schema` file; filled in when the job file is read."""
    partition: Literal["rows", "columns"] = "rows"
    """rows: each owner has different records, with all columns. columns: each has different columns
    of records that they `join`; `rows` then counts each owner's own table."""
    columns: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """partition = "columns": the columns that each owner provides: features, label and weight."""
    join: Join | None = None
    check_duplicates: Duplicates | None = None
    """partition = "rows": first look for records that are in several tables."""
    joined: int = 0
    """The number of records that all owners have; filled in during a run by `Job.resolved`."""
    fold: int = 0
    """The fold that is left out, from 1; filled in during a run by `Job.at_fold`."""
    standardize: bool = True
    """Apply the declared centers and scales; false: the tables contain scaled values."""
    limit: Decimal = Decimal(16)
    """Largest absolute value of a feature as the model sees it; the ring is sized for it."""
    test_fraction: Decimal = TEST_FRACTION
    split_seed: int = 0
    split_by: str = ""
    """partition = "rows": an identifier of the schema (a patient, a household). Rows with the same
    identifier stay in the same part; only their owner sees it, and each owner holds out its
    share."""
    split_normalise: tuple[Rule, ...] = ()
    """When two spellings of `split_by` count as the same, as in `join.normalise`."""

    @property
    def link(self) -> Join | Duplicates | None:
        """What the job says about identifiers; None: it does not link records."""
        return self.join or self.check_duplicates

    def __post_init__(self) -> None:
        compose(self, "label", "features", "weight", "columns", "split_by")


def features_of(data: Data) -> tuple[Feature, ...]:
    """The features in the order of the model's inputs."""
    if data.array is not msgspec.UNSET:
        return data.array.features
    listed: tuple[Feature | str, ...] = data.features
    if not listed and data.table is not None:
        label = data.label if isinstance(data.label, str) else data.label.name
        listed = tuple(
            column.name
            for column in data.table.columns
            if column.kind != "identifier" and column.name not in (label, weight_of(data).name)
        )
    return tuple(Feature(item) if isinstance(item, str) else item for item in listed)


def label_of(data: Data) -> Label:
    """The label; with a schema, a category's levels are its classes."""
    label = Label(data.label) if isinstance(data.label, str) else data.label
    if data.table is not None and label.name in data.table and not label.classes:
        label = msgspec.structs.replace(label, classes=data.table[label.name].levels)
    return label


def weight_of(data: Data) -> Weight:
    """The column of row weights; its name is empty if there is none."""
    return Weight(data.weight) if isinstance(data.weight, str) else data.weight


def schema_of(data: Data, classes: int) -> Schema:
    """The schema that the job carries, or that of the short form: numbers, and a label.

    classes: of the model; 0 if the label is a number.
    """
    weight = weight_of(data)
    if data.table is not None:
        if weight.name not in data.table:
            return data.table
        # All rows of an owner may have the same weight, although a feature may not be constant.
        kept = [
            msgspec.structs.replace(column, constant=True) if column.name == weight.name else column
            for column in data.table.columns
        ]
        return Schema(tuple(kept), data.table.version)
    label = label_of(data)
    columns = [
        Column(feature.name, "number", range=feature.range, constant=True)
        for feature in features_of(data)
    ]
    if classes:
        levels = label.classes or tuple(str(number) for number in range(classes))
        columns.append(Column(label.name, "category", levels=levels, constant=True))
    else:
        columns.append(Column(label.name, "number", range=label.range, constant=True))
    if weight.name:
        columns.append(Column(weight.name, "number", range=weight.range, constant=True))
    link = data.join or data.check_duplicates
    columns += [Column(name, "identifier") for name in (link.on if link is not None else ())]
    return Schema(tuple(columns))
