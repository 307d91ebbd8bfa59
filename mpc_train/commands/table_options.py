"""Options that describe how a table is written, the same for every command that reads one.

The most frequent have their own names; `--read` takes every key that a node's file has under
`[data]`.
"""

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpc_train.errors import ConfigError

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.tables.source import Source

DelimiterOption = Annotated[str, typer.Option(help="CSV: the delimiter between cells.")]
EncodingOption = Annotated[str, typer.Option(help="CSV: the encoding of the file.")]
DecimalOption = Annotated[str, typer.Option(help="CSV: point or comma in numbers.")]
DateFormatOption = Annotated[str, typer.Option(help="How dates are written.")]
DatePivotOption = Annotated[
    int, typer.Option(help="The first of the hundred years that %y may mean, like 1930.")
]
ReadOption = Annotated[
    list[str] | None,
    typer.Option(
        "--read",
        metavar="KEY=VALUE",
        help="Any other key of \\[data] in a node's file, like thousands=. or skip_lines=2; may be "
        "given several times.",
    ),
]


def given_source(file: Path, read: list[str] | None, **named: str | int) -> "Source":
    """Return the table `file` as the options describe it.

    named: values of options by their key; empty ones keep the table's defaults. read: `KEY=VALUE`,
    with the value in TOML or otherwise as text. Raises ConfigError with all faults.
    """
    import msgspec

    from mpc_train.tables.source import Source

    given: dict[str, object] = {key: value for key, value in named.items() if value}
    for pair in read or ():
        key, sign, value = pair.partition("=")
        if not sign or key == "file":
            raise ConfigError(f"--read {pair}: write KEY=VALUE, with a key of [data]")
        given[key] = _value(value)
    try:
        source = msgspec.convert({**given, "file": str(file)}, Source)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {error}") from error
    return _checked(source, str(file))


def source_like(config: Path, job: "Job", table: "Source") -> "Source":
    """Return `table`, a file, read as a node's own file describes its table for `job`.

    Only features are renamed and recoded: records to be predicted may lack the label and the
    identifiers. Only the description of the format is taken from the node's file. Raises
    ConfigError, or DataError if the node's file has no table for the job.
    """
    import msgspec

    from mpc_train.run.node_config import load_node_config
    from mpc_train.tables.spelling import name_of

    declared = load_node_config(config).source(job.name)
    if declared.stored:
        # Its decimal sign and dates are known to the vault only: a guess gives other numbers.
        raise ConfigError(
            f"{config}: the table of {job.name} is in the vault, which says how it was written, "
            "not how this file is; say that with options (--decimal, --read) in place of --config"
        )
    features = {name_of(feature.name) for feature in job.features}
    taken = {
        ours
        for ours in (*declared.rename, *declared.recode)
        if name_of(declared.rename.get(ours, ours)) in features
    }
    source = msgspec.structs.replace(
        declared,
        file=table.file,
        array_folder=table.array_folder,
        format="auto",
        rename={ours: theirs for ours, theirs in declared.rename.items() if ours in taken},
        recode={ours: codes for ours, codes in declared.recode.items() if ours in taken},
        ignore=(),
        drop_rows=(),
        url="",
        query="",
        password_file="",
    )
    return _checked(source, f"{table.file}, as {config} says")


def _checked(source: "Source", place: str) -> "Source":
    """Return `source`; raise ConfigError with all its contradictions."""
    from mpc_train.tables.source import SourceProblem, check_source

    try:
        check_source(source)
    except SourceProblem as problem:
        said = "\n  ".join(f"{key}: {message}" for key, message in problem.faults)
        raise ConfigError(f"{place}: {said}") from problem
    return source


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
