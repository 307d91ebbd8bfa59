"""`mpc-train data`: checks of a node's own table before a run."""

import contextlib
import dataclasses
from collections.abc import Iterator
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
    identity_at,
    reporting,
)
from mpc_train.errors import JobError

if TYPE_CHECKING:
    from mpc_train.run.node_config import NodeConfig
    from mpc_train.tables.loading.load import Vault
    from mpc_train.tables.source import Source

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
        if not job.data.rows.get(me):
            others = [name for name in job.owners if job.data.rows.get(name)]
            raise JobError(
                f"{path}: {me} provides no data for this job, so there is nothing to check; its "
                f"rows are of {', '.join(others) or 'nobody'}"
            )
        source = node.source(job.name)
        view = ProgressView(enabled=output is Format.text)
        with vault_of(node, source, passphrase_file, passphrase_fd) as vault, view.shown():
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


@contextlib.contextmanager
def vault_of(
    node: "NodeConfig", source: "Source", passphrase_file: Path | None, passphrase_fd: int | None
) -> "Iterator[Vault | None]":
    """What opens a table of the node's vault, which its audit log says; None for another table."""
    if not source.stored:
        yield None
        return
    from mpc_train.node.logbook import logbook
    from mpc_train.node.storage import NodeVault

    identity = identity_at(node.place, node.audit, passphrase_file, passphrase_fd)
    safe = NodeVault(node.vault, node.place.name, identity)
    with logbook(node.place, node.audit, identity, safe.keys(), "data check"):
        yield safe.tables([source.stored])
