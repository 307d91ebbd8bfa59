"""`mpc-train job check`: what a job would do, before anybody runs it."""

from pathlib import Path
from typing import Annotated

import typer

from mpc_train.commands.common import Format, FormatOption, emit, reporting
from mpc_train.printing import say

job = typer.Typer(no_args_is_help=True, help="Job files.")


@job.command("check")
def job_check(
    path: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")],
    output: FormatOption = Format.text,
) -> None:
    """Validate a job and say what is computed, what is revealed, and to whom."""
    with reporting(output):
        from mpc_train.jobs.footprint import memory_needs
        from mpc_train.jobs.job import load_job
        from mpc_train.jobs.rules import disclosed_on_the_way
        from mpc_train.jobs.schedule import total_steps
        from mpc_train.report import describe
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
                    "trust": trust,
                }
            )
            return
        say(f"{describe(checked)}\n\n{trust}")
