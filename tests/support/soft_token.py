"""A PKCS #11 token in software: SoftHSM, from a system's packages."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@contextmanager
def soft_token(folder: Path) -> Iterator[SoftToken]:
    """One token, whose files are in `folder`. The library reads its settings once a process."""
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed")
    library = next((each for each in LIBRARIES if Path(each).exists()), None)
    if library is None or shutil.which("softhsm2-util") is None:
        pytest.skip("no token: SoftHSM is not installed")
    (folder / "tokens").mkdir()
    settings = folder / "softhsm2.conf"
    settings.write_text(
        f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\n"
        "log.level = ERROR\n"
    )
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(settings)
    try:
        words = ["softhsm2-util", "--init-token", "--free", "--label", LABEL]
        words += ["--so-pin", "security-officer", "--pin", PIN.decode()]
        subprocess.run(words, check=True, capture_output=True)
        yield SoftToken(library)
    finally:
        if before is None:
            del os.environ["SOFTHSM2_CONF"]
        else:
            os.environ["SOFTHSM2_CONF"] = before
