"""`mpc-train model export`: a torch module as data that a job can carry."""

from typing import Annotated

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import Format, FormatOption, reporting
from mpc_train.errors import ModelError

model = typer.Typer(no_args_is_help=True, help="Networks of your own.")


@model.callback()
def _model() -> None:
    """Networks of your own."""


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
