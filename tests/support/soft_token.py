"""A PKCS #11 token in software: SoftHSM, from a system's packages."""

import atexit
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PIN, LABEL = b"token-pin-4711", "vault of a test"
LIBRARIES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)


@dataclass
class SoftToken:
    library: str

    def uri(self, name: str, token: str = LABEL) -> str:
        label = token.replace(" ", "%20")
        return f"pkcs11:token={label};object={name}?module-path={self.library}"


@cache
def soft_token() -> SoftToken:
    """The one token of this process: the library reads its settings once.

    SOFTHSM2_CONF stays set, for child processes as well.
    """
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed")
    library = next((each for each in LIBRARIES if Path(each).exists()), None)
    if library is None or shutil.which("softhsm2-util") is None:
        pytest.skip("no token: SoftHSM is not installed")
    folder = Path(tempfile.mkdtemp(prefix="softhsm"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "tokens").mkdir()
    settings = folder / "softhsm2.conf"
    settings.write_text(
        f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\n"
        "log.level = ERROR\n"
    )
    os.environ["SOFTHSM2_CONF"] = str(settings)
    words = ["softhsm2-util", "--init-token", "--free", "--label", LABEL]
    words += ["--so-pin", "security-officer", "--pin", PIN.decode()]
    subprocess.run(words, check=True, capture_output=True)
    return SoftToken(library)
