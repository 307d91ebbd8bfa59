"""A researcher's own modules: as code that a job names, and as a file of their graph."""

import sys
from pathlib import Path

import pytest

from mpc_train.networks import carried
from tests.support.commands import mpc_train


def write_modules(folder: Path, monkeypatch: pytest.MonkeyPatch, **sources: str) -> None:
    """Files in `folder` that can be imported; those of an earlier test are forgotten."""
    monkeypatch.syspath_prepend(str(folder))
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    carried._made.cache_clear()


def export(folder: Path, factory: str, shape: str) -> str:
    """What `mpc-train model export` says of FACTORY, also in `model.json`."""
    shown = mpc_train("model", "export", factory, "--input-shape", shape)
    assert shown.exit_code == 0, shown.stderr
    (folder / "model.json").write_text(shown.stdout)
    return shown.stdout
