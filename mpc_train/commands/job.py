"""`mpc-train job`: what a job would do, before anybody runs it, and an approval of it."""

from pathlib import Path
from typing import Annotated

import typer

from mpc_train.commands.common import (
    Format,
    FormatOption,
    HomeOption,
    PassphraseFdOption,
    PassphraseFileOption,
    emit,
    find_name,
    home_of,
    open_vault,
    reporting,
)
from mpc_train.printing import say

job = typer.Typer(no_args_is_help=True, help="Job files.")


@job.command("check")
def job_check(
    path: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")],
    output: FormatOption = Format.text,
) -> None:
    """Validate a job and say what is computed, what is revealed, and to whom."""
    with reporting(output):
        from mpc_train.jobs.cautions import cautions
        from mpc_train.jobs.footprint import memory_needs
        from mpc_train.jobs.job import load_job
        from mpc_train.jobs.outputs import disclosed_on_the_way
        from mpc_train.jobs.schedule import total_steps
        from mpc_train.report import beware, describe
        from parties.contract import Roles, describe_trust

        checked = load_job(path)
        trust = describe_trust(
            Roles(checked.owners, checked.evaluators, checked.dealer, checked.recipients)
        )
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "job": checked.name,
                    "digest": checked.digest().hex(),
                    "schema": checked.schema.digest().hex(),
                    "steps": total_steps(checked),
                    "recipients": list(checked.recipients),
                    "memory_bytes": memory_needs(checked),
                    "inputs": list(checked.pipeline.names),
                    "metrics": list(checked.reveal.metrics),
                    "disclosures": list(disclosed_on_the_way(checked)),
                    "cautions": cautions(checked),
                    "trust": trust,
                }
            )
            return
        say("\n".join([describe(checked), *beware(checked), "", trust]))


@job.command("approve")
def job_approve(
    path: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")],
    name: Annotated[
        str | None, typer.Option(help="Who approves; may be left out if there is one identity.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for the approval; default: beside the job.")
    ] = None,
    home: HomeOption = None,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Sign a job's digest: nodes that list you under approvers run it without asking a person."""
    with reporting(output):
        from mpc_train.approval import SUFFIX, approve
        from mpc_train.errors import ConfigError
        from mpc_train.jobs.job import load_job
        from mpc_train.report import beware, describe
        from parties.files import write_atomic

        checked = load_job(path)
        folder = home_of(home)
        vault = open_vault(folder, find_name(folder, name), passphrase_file, passphrase_fd)
        me, digest = vault.card.name, checked.digest().hex()
        target = (out or path.parent) / f"{checked.name}-{digest[:16]}-{me}{SUFFIX}"
        try:
            write_atomic(target, approve(checked, me, vault), 0o644)
        except OSError as error:
            raise ConfigError(f"{target}: cannot be written ({error.strerror})") from error
        if output is Format.json:
            emit({"status": "ok", "digest": digest, "approver": me, "approval": str(target)})
            return
        said = [describe(checked), *beware(checked), "", f"Approved by {me}: {target}"]
        say("\n".join(said))
        say("Each node that lists you under approvers puts it into its approvals directory.")
