"""Options that several verbs of the vault have."""

from typing import Annotated

import typer

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Under which it is kept.")]
VersionOption = Annotated[int, typer.Option(min=0, help="0: the newest.")]
