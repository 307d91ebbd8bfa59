"""`mpc-train data`: checks of a node's own table before a run."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import (
    ConfigOption,
    Format,
    FormatOption,
    PassphraseFdOption,
    PassphraseFileOption,
    emit,
    identity_at,
    reporting,
)
from mpc_train.errors import JobError

data = typer.Typer(no_args_is_help=True, help="This node's own tables.")


@data.command("check")
def data_check(
    path: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")],
    config: ConfigOption,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Read this node's table as the job would, and report all its faults. Nothing is sent, and no
    other node is needed. The node's identity opens a table of the vault."""
    with reporting(output):
        from mpc_train.admission.load import load_job
        from mpc_train.owners.columns import columns_of
        from mpc_train.owners.table import load_table
        from mpc_train.run.node_config import load_node_config
        from mpc_train.run.progress import ProgressView
        from mpc_train.tables.source import label_of

        node, job = load_node_config(config), load_job(path)
        me = node.place.name
        if me not in job.owners:
            raise JobError(
                f"{path}: {me} provides no data for this job; its owners are "
                f"{', '.join(job.owners)}"
            )
        source = node.source(job.name)
        vault = None
        if source.stored:
            from mpc_train.node.storage import tables_at

            vault = tables_at(node, identity_at(node.place, passphrase_file, passphrase_fd))
        view = ProgressView(enabled=output is Format.text)
        with view.shown():
            table = load_table(
                source,
                job,
                me,
                lambda news: view.event("reading", dataclasses.asdict(news)),
                vault=vault,
            )
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "job": job.name,
                    "table": label_of(source),
                    "rows": table.rows,
                    "columns": list(columns_of(job, me)),
                    "warnings": list(table.warnings),
                }
            )
            return
        for warning in table.warnings:
            say(f"warning: {warning}", aside=True)
        say(
            f"{label_of(source)}: fits the job {job.name}: {table.rows} rows, "
            f"{len(columns_of(job, me))} columns; nothing was sent"
        )
