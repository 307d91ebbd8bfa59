"""CrypTen is importable through one module, and that module is still needed."""

import subprocess
import sys

from protocols.crypten_tensor.importing import INSTALL_COMMAND, crypten
from tests.support.patience import PATIENCE_S


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter: what an import does can be seen only once in a process."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_crypten_has_the_parts_that_the_tensor_type_extends() -> None:
    assert crypten.CrypTensor is crypten.cryptensor.__globals__["CrypTensor"]
    assert crypten.nn.Linear is not None
    assert crypten.gradients.get_grad_fn("matmul") is not None


def test_the_alias_is_still_needed() -> None:
    """When this fails, CrypTen imports unaided: delete the alias from `importing`."""
    result = run_python("import crypten")
    assert result.returncode != 0
    assert "No module named 'torch.onnx._internal.registration'" in result.stderr


def test_a_missing_crypten_names_the_command_that_installs_it() -> None:
    result = run_python(
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'crypten' else real(name)\n"
        "import protocols.crypten_tensor.importing\n"
    )
    assert result.returncode != 0
    last_line = result.stderr.strip().splitlines()[-1]
    assert last_line == f"ImportError: CrypTen is not installed. Run: {INSTALL_COMMAND}"


def test_another_release_of_crypten_is_refused() -> None:
    result = run_python(
        "import importlib\n"
        "import protocols.crypten_tensor.importing as module\n"
        "module.crypten.__version__ = '0.5.0'\n"
        "importlib.reload(module)\n"
    )
    assert result.returncode != 0
    assert "ImportError: CrypTen 0.4.1 is needed, 0.5.0 is installed." in result.stderr
