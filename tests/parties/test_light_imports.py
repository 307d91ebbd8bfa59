"""Keys, cards and sealed files must not wait for torch: their commands start fast."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "parties.vault",
        "parties.roster",
        "parties.passphrase",
        "protocols.handshake",
        "protocols.record",
        "protocols.envelope",
        "protocols.bundle",
    ],
)
def test_module_starts_without_torch(module: str) -> None:
    heavy = "{'torch', 'crypten', 'numpy', 'zmq', 'numba'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
