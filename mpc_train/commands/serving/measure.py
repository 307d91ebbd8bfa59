"""`mpc-train evaluate`: the job in which this node measures a model in shares on its own table."""

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import (
    ConfigOption,
    Format,
    FormatOption,
    PassphraseFdOption,
    PassphraseFileOption,
    emit,
    reporting,
)
from mpc_train.commands.data import vault_of
from mpc_train.errors import JobError, RefusedError

if TYPE_CHECKING:
    from mpc_train.shared.description import Description


def _check_validator(described: "Description", me: str) -> None:
    """Raise RefusedError, before this node's table is looked for."""
    serve = described.job.serve
    named = () if serve is None else serve.validators
    if me not in named:
        raise RefusedError(
            f"the job of the model {described.job.name} does not allow {me} to measure it; its "
            f"[serve] validators are: {', '.join(named) or 'nobody'}"
        )


def evaluate_command(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL.json", help="From an evaluator: mpc-train model show NAME --out."
        ),
    ],
    config: ConfigOption,
    metrics: Annotated[str, typer.Option(help="Which metrics leave, like accuracy,auc.")],
    out: Annotated[Path, typer.Option(help="The job file to write.")],
    to: Annotated[
        str, typer.Option(help="Who reads the metrics, sealed to them; omitted: every node.")
    ] = "",
    name: Annotated[
        str, typer.Option(help="Of the job; [data] of this node's file names its table by it.")
    ] = "",
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Write the job in which this node measures a model in shares on its own labelled table.

    The table is read and checked, and nothing is sent. The job is run like any other: by a
    coordinator, the evaluators and the dealer of the model, and this node. Only metrics leave.
    """
    with reporting(output):
        import msgspec

        from mpc_train.jobs.reveal import METRICS
        from mpc_train.owners.table import load_table
        from mpc_train.run.node_config import load_node_config
        from mpc_train.run.progress import ProgressView
        from mpc_train.shared.description import read_description
        from mpc_train.shared.measuring import measuring_job, write_job
        from mpc_train.tables.source import label_of

        node, described = load_node_config(config), read_description(model)
        listed = tuple(one.strip() for one in metrics.split(",") if one.strip())
        unknown = [one for one in listed if one not in METRICS[described.job.model.kind]]
        if unknown or not listed:
            raise JobError(
                f"--metrics {metrics}: possible for a {described.job.model.kind} model: "
                f"{', '.join(METRICS[described.job.model.kind])}"
            )
        me, title = node.place.name, name or f"measure-{described.job.name}"[:63]
        readers = tuple(one.strip() for one in to.split(",") if one.strip())
        job = measuring_job(described, title, me, 1, listed, readers)  # type: ignore[arg-type]
        _check_validator(described, me)
        source = node.source(title)
        view = ProgressView(enabled=output is Format.text)
        with contextlib.ExitStack() as held:
            vault = held.enter_context(vault_of(node, source, passphrase_file, passphrase_fd))
            held.enter_context(view.shown())
            table = load_table(
                source,
                job,
                me,
                lambda news: view.event("reading", dataclasses.asdict(news)),
                vault=vault,
                any_rows=True,
            )
        data = msgspec.structs.replace(job.data, rows={me: table.rows})
        job = write_job(msgspec.structs.replace(job, data=data), out)
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "job": job.name,
                    "job_digest": job.digest().hex(),
                    "file": str(out),
                    "model": described.digest,
                    "rows": table.rows,
                    "warnings": list(table.warnings),
                }
            )
            return
        for warning in table.warnings:
            say(f"warning: {warning}", aside=True)
        say(f"{label_of(source)}: {table.rows} rows; nothing was sent")
        say(f"Job {job.name}, digest {job.digest().hex()}: {out}")
        say(f"Model {described.digest}")
        say(
            f"Give the job to a coordinator; {', '.join(job.evaluators)} and {job.dealer} take "
            "part in it as in its training (mpc-train coordinator, party, dealer)"
        )
