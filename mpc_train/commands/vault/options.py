"""Options that several verbs of the vault have."""

from collections.abc import Sequence
from typing import Annotated

import typer

from mpc_train.base.printing import say

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Under which it is kept.")]
VersionOption = Annotated[int, typer.Option(min=0, help="0: the newest.")]

DAMAGED = 5
"""Exit status where an object of the vault cannot be read."""


def status_of(damaged: Sequence[object]) -> dict[str, object]:
    """`status` for machines and, if there are any, what is wrong with which objects."""
    if not damaged:
        return {"status": "ok"}
    return {"status": "VaultError", "damaged": [str(one) for one in damaged]}


def exit_if(damaged: Sequence[object]) -> None:
    """Name damaged objects, and end with an exit status that says so; if there are any."""
    for one in damaged:
        say(
            f"error: {one}; restore its files from a backup, or remove them if nobody needs the "
            "object",
            aside=True,
        )
    if damaged:
        raise typer.Exit(DAMAGED)
