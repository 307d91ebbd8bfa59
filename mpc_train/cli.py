"""`mpc-train`, the one command-line program of the platform.

Verbs live in `mpc_train.commands`; exit statuses in `mpc_train.errors`. Arguments never contain
secrets: passphrases come from a file, a descriptor or the terminal.
"""

from typing import Annotated

import typer

from mpc_train.base.printing import say
from mpc_train.base.release import version
from mpc_train.commands import (
    audit,
    data,
    evidence,
    job,
    keys,
    model,
    nodes,
    open,
    owner,
    policy,
    predict,
    schema,
)
from mpc_train.commands.local import run, script
from mpc_train.commands.operating import doctor, estimate, watch
from mpc_train.commands.serving import gateway, measure, query
from mpc_train.commands.serving.he import he
from mpc_train.commands.serving.shares import serve_command
from mpc_train.commands.vault.verbs import vault

app = typer.Typer(
    name="mpc-train",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train a PyTorch model together, over secret shares.",
    epilog=(
        "Exit status: 0 done, 1 internal, 2 usage, 3 job or configuration, 4 data, 5 identity, "
        "roster, vault or audit log, 6 refused, 7 network, 8 a node was lost or stopped the run, "
        "9 authentication or protocol, 10 out of range, 130 interrupted; of doctor: "
        "11 this machine, 12 the network, 13 the two sides do not fit."
    ),
)
app.add_typer(keys.identity, name="identity")
app.add_typer(keys.roster, name="roster")
app.add_typer(keys.keys, name="keys")
app.add_typer(job.job, name="job")
app.add_typer(policy.policy, name="policy")
app.add_typer(model.model, name="model")
app.add_typer(schema.schema, name="schema")
app.add_typer(data.data, name="data")
app.add_typer(vault, name="vault")
app.add_typer(audit.audit, name="audit")
app.add_typer(evidence.evidence, name="evidence")
app.add_typer(he, name="he")
app.command("party")(nodes.party)
app.command("dealer")(nodes.dealer)
app.command("coordinator")(nodes.coordinator)
app.command("owner")(owner.owner_command)
app.command("serve")(serve_command)
app.command("watch")(watch.watch)
app.command("doctor")(doctor.doctor_command)
app.command("open")(open.open_command)
app.command("predict")(predict.predict_command)
app.command("query")(query.query_command)
app.command("gateway")(gateway.gateway_command)
app.command("evaluate")(measure.evaluate_command)
app.command("estimate")(estimate.estimate_command)
app.command("run")(run.run_command)
app.command("script")(script.script_command)


def _version(asked: bool) -> None:
    if asked:
        say(f"mpc-train {version()}")
        raise typer.Exit


@app.callback()
def options(
    asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train a PyTorch model together, over secret shares."""


def main() -> None:
    """Run the program with the process's arguments."""
    app()


if __name__ == "__main__":
    main()
