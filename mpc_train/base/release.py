"""Which version of the program this is."""

import importlib.metadata
import tomllib
from pathlib import Path

import mpc_train


def version() -> str:
    """As pyproject.toml has it: beside the package where it runs from a checkout, else as it was
    installed."""
    # What is installed may be another checkout than the one that runs.
    project = Path(mpc_train.__path__[0]).parent / "pyproject.toml"
    if project.exists():
        return str(tomllib.loads(project.read_text())["project"]["version"])
    return importlib.metadata.version("mpc-train")
