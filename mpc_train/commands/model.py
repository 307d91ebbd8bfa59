"""`mpc-train model`: a torch module as data that a job can carry; where a trained model comes
from."""

from pathlib import Path
from typing import Annotated

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import (
    Format,
    FormatOption,
    HomeOption,
    check_there,
    emit,
    home_of,
    reporting,
)
from mpc_train.errors import ModelError

model = typer.Typer(no_args_is_help=True, help="Networks of your own, and trained models.")


@model.callback()
def _model() -> None:
    """Networks of your own, and trained models."""


@model.command("export")
def model_export(
    factory: Annotated[
        str,
        typer.Argument(
            metavar="PACKAGE.MODULE:FACTORY", help="The function that makes the network."
        ),
    ],
    input_shape: Annotated[str, typer.Option(help="Shape of a row, channels first, like 1,28,28.")],
    seed: Annotated[int, typer.Option(help="Seed of the initial weights.")] = 0,
    output: FormatOption = Format.text,
) -> None:
    """Print a network and its initial weights as one line of JSON, for `[model] graph` of a job."""
    with reporting(output):
        import msgspec

        from mpc_train.networks.carried import made_by

        try:
            shape = tuple(int(size) for size in input_shape.split(","))
        except ValueError:
            raise ModelError(f"--input-shape {input_shape}: write sizes like 1,28,28") from None
        found = msgspec.structs.replace(made_by(factory, shape, seed), source="")
        say(msgspec.json.encode(found).decode())


@model.command("verify")
def model_verify(
    path: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A sealed file, or the folder of an opened one.")
    ],
    cards: Annotated[
        Path | None,
        typer.Option(help="Cards of all whom the job names: a folder or a roster file."),
    ] = None,
    home: HomeOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Check that all nodes of a run signed this model, and say what they signed. Needs no key.

    The cards default to the roster in the home. Exit status 9 if anything does not fit.
    """
    with reporting(output):
        import msgspec

        from mpc_train.commands.open import MAX_SEALED_BYTES
        from mpc_train.node.provenance import read_result, verify_opened, verify_sealed
        from parties.keys.roster import Roster

        check_there(path, "a sealed file, or the folder of an opened one")
        roster = Roster.load(cards if cards is not None else home_of(home) / "roster")
        if path.is_dir():
            found = verify_opened(path, roster)
        else:
            found = verify_sealed(read_result(path, MAX_SEALED_BYTES), roster)
        record, outcome = found.record, found.outcome
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "job": found.job.name,
                    "job_digest": found.job.digest().hex(),
                    "contract": record.contract.digest().hex(),
                    "session": record.statement.sid.hex(),
                    "statement": record.digest().hex(),
                    "signed_by": found.nodes,
                    "recipient": found.recipient,
                    "files": found.files,
                    "unchecked": found.unchecked,
                    **msgspec.to_builtins(outcome),
                }
            )
            return
        say(f"Job {found.job.name}, digest {found.job.digest().hex()}")
        say(f"Contract {record.contract.digest().hex()}")
        say(f"Statement {record.digest().hex()}, signed by {', '.join(found.nodes)}")
        what = f"opened by {found.recipient}: {', '.join(found.files)}"
        say(f"Model {what if found.files else f'sealed to {found.recipient}'}")
        of = f", of {outcome.initial.owner}" if outcome.initial.owner else ""
        say(f"First weights: {outcome.initial.kind}{of}, {outcome.initial.digest}")
        for one in outcome.openings:
            names = ", ".join(name for name, _ in one.outputs)
            times = "" if one.times == 1 else f", {one.times} times"
            say(f"Opened to {', '.join(one.to)} by {one.clause}{times}: {names}")
        for line in found.unchecked:
            say(f"Warning {line}")
