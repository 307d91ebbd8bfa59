"""Keys, cards and sealed files must not wait for torch: their commands start fast."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "parties.keys.vault",
        "parties.keys.roster",
        "parties.keys.passphrase",
        "parties.audit.log",
        "parties.audit.verify",
        "protocols.sealing.handshake",
        "protocols.sealing.record",
        "protocols.sealing.envelope",
        "protocols.sealing.bundle",
    ],
)
def test_module_starts_without_torch(module: str) -> None:
    heavy = "{'torch', 'crypten', 'numpy', 'zmq', 'numba'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
