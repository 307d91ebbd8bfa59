"""Training goes on while a party's keys are rotated, and comes out as without that."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from parties.keys.roster import Roster
from parties.keys.vault import FileVault
from tests.support.commands import mpc_train
from tests.support.study import NODES, PASSPHRASE, Study


def trained(folder: Path, homes: Path, *, rotate: bool) -> dict[str, np.ndarray]:
    """The weights that the recipient opens after a run, in which ann's keys were rotated."""
    folder.mkdir()
    shutil.copytree(homes, folder / "homes")
    study = Study(folder, epochs=60)
    try:
        study.coordinator()
        for name in NODES:
            study.node(name, network="" if name == "ann" else 'listen = "tcp://127.0.0.1:*"')
        study.wait_for_steps()
        before = FileVault.open(study.homes / "ann" / "ann.identity", PASSPHRASE.encode())
        after = before.rotate() if rotate else before
        ended = study.ended()
    finally:
        study.close()
    assert {name: end.status for name, end in ended.items()} == dict.fromkeys(ended, 0), ended
    for name in (*NODES, "desk"):
        roster = Roster.load(study.homes / name / "roster")
        assert roster.card("ann") == after.card, name
    (sealed,) = study.left.glob("desk/*/office.sealed")
    home = study.homes / "office"
    words = ("open", sealed, "--home", home, "--passphrase-file", study.passphrase)
    if rotate:
        # The recipient runs no node: it has to be told of ann's new keys.
        refused = mpc_train(*words, "--out", folder / "refused")
        assert refused.exit_code == 9 and "ann did not sign" in refused.stderr
        file = folder / "ann.succession"
        file.write_text(after.successions[-1].to_text())
        assert mpc_train("roster", "add", file, "--home", home).exit_code == 0
    opened = mpc_train(*words, "--out", folder / "opened")
    assert opened.exit_code == 0, opened.stderr
    return dict(safetensors.numpy.load_file(folder / "opened" / "model.safetensors"))


@pytest.mark.slow
def test_a_model_is_the_same_when_keys_are_rotated_in_the_middle(
    tmp_path: Path, homes: Path
) -> None:
    """But for the stochastic rounding, which differs from run to run: 24 bits after the point."""
    plain = trained(tmp_path / "plain", homes, rotate=False)
    rotated = trained(tmp_path / "rotated", homes, rotate=True)
    assert plain.keys() == rotated.keys()
    for name, value in plain.items():
        np.testing.assert_allclose(rotated[name], value, atol=1e-3)
