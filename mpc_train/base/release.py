"""The version of this program."""

import importlib.metadata
import tomllib
from pathlib import Path

import mpc_train


def version() -> str:
    """The version in pyproject.toml: beside the package if it runs from a checkout, otherwise that
    of the installation."""
    # The installed version may be that of another checkout than the running one.
    project = Path(mpc_train.__path__[0]).parent / "pyproject.toml"
    if project.exists():
        return str(tomllib.loads(project.read_text())["project"]["version"])
    return importlib.metadata.version("mpc-train")
