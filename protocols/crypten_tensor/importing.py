"""The one place that imports CrypTen: `from protocols.crypten_tensor.importing import crypten`.

CrypTen 0.4.1, its last release, imports a private module of PyTorch that has moved since
(`torch.onnx._internal.registration`), so that a plain `import crypten` fails. It never uses its
import; it is enough to give the moved module its old name. Nothing else is patched
here: `crypten.nn.from_pytorch` stays broken and is not used.

CrypTen's metadata names a package that no longer exists, so pip cannot resolve it as our
dependency, and it may be missing although everything else is present.

Use submodules as attributes (`crypten.nn`, `crypten.gradients`): a separate `import crypten.nn` may
be sorted before this module and then fails.
"""

import importlib.util
import sys

CRYPTEN_VERSION = "0.4.1"
INSTALL_COMMAND = f"python -m pip install --no-deps crypten=={CRYPTEN_VERSION}"

_NAME_IN_CRYPTEN = "torch.onnx._internal.registration"

if importlib.util.find_spec("crypten") is None:
    raise ImportError(f"CrypTen is not installed. Run: {INSTALL_COMMAND}", name="crypten")

if importlib.util.find_spec(_NAME_IN_CRYPTEN) is None:
    from torch.onnx._internal.torchscript_exporter import registration

    sys.modules.setdefault(_NAME_IN_CRYPTEN, registration)

import crypten  # noqa: E402  only importable now

# The tensor type overrides functions of exactly this release; another release needs a new review.
if crypten.__version__ != CRYPTEN_VERSION:
    raise ImportError(
        f"CrypTen {CRYPTEN_VERSION} is needed, {crypten.__version__} is installed."
        f" Run: {INSTALL_COMMAND}",
        name="crypten",
    )

__all__ = ["CRYPTEN_VERSION", "INSTALL_COMMAND", "crypten"]
