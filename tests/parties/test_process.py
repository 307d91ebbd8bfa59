"""A process that holds secrets: no core dump, no debugger, and no swap where that is asked for."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from parties.keys.vault import FileVault

ROOT = Path(__file__).resolve().parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these")
PR_GET_DUMPABLE = 3


def child(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)


@LINUX
def test_an_opened_identity_leaves_no_core_dump(tmp_path: Path) -> None:
    FileVault.create(tmp_path, "ann", b"correct horse")
    (tmp_path / "secret").write_text("correct horse")
    (tmp_path / "secret").chmod(0o600)
    done = child(
        "import ctypes, os, resource, signal\n"
        "from pathlib import Path\n"
        "from mpc_train.commands.common import open_vault\n"
        "most = resource.getrlimit(resource.RLIMIT_CORE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (most, most))\n"
        f"home = Path({str(tmp_path)!r})\n"
        "open_vault(home, 'ann', home / 'secret', None)\n"
        f"print(ctypes.CDLL(None).prctl({PR_GET_DUMPABLE}, 0, 0, 0, 0),\n"
        "      resource.getrlimit(resource.RLIMIT_CORE), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    assert done.stdout == "0 (0, 0)\n", done.stderr
    assert done.returncode == -signal.SIGSEGV


@LINUX
def test_memory_is_locked_from_its_first_use_on() -> None:
    done = child(
        "import re\n"
        "from parties.process import lock_memory\n"
        "lock_memory()\n"
        "held = bytearray(64 << 20)\n"
        "print(re.search(r'VmLck:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
    )
    if "cannot be locked" in done.stderr:
        pytest.skip("this user may not lock memory")
    assert int(done.stdout) > 64 << 10, done.stderr


@LINUX
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_limit_that_is_too_small_is_said() -> None:
    done = child(
        "import os, resource\n"
        "from parties.process import lock_memory\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 4096))\n"
        "os.setuid(65534)  # no limit holds for root\n"
        "lock_memory()\n"
    )
    assert done.returncode == 1
    assert "ProcessError: lock_memory: the memory of this node cannot be locked" in done.stderr
    assert "LimitMEMLOCK" in done.stderr


@LINUX
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_guarded_process_can_still_look_at_itself() -> None:
    """The kernel gives its files under /proc to root: what a run reports must not need them."""
    done = child(
        "import os\n"
        "from mpc_train.run.memory import peak_rss_mb\n"
        "from parties.process import guard\n"
        "os.setuid(65534)\n"
        "guard()\n"
        "print(peak_rss_mb() > 0)\n"
    )
    assert done.stdout == "True\n", done.stderr
