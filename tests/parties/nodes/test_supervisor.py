"""Children are watched, reaped, and told secrets where nobody else can read them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from parties.errors import TransportError
from parties.nodes.supervisor import ChildSpec, Supervisor
from tests.support.patience import PATIENCE_S, wait_until

ROOT = str(Path(__file__).resolve().parents[3])
PYTHONPATH = {"PYTHONPATH": ROOT}


def spec(code: str, *words: str, name: str = "child", secret: bytes | None = None) -> ChildSpec:
    return ChildSpec(name, [sys.executable, "-c", code, *words], secret, PYTHONPATH)


def test_a_secret_travels_neither_in_arguments_nor_environment() -> None:
    code = (
        "import os, sys; s = os.read(int(sys.argv[1]), 100).decode();"
        "seen = open('/proc/self/cmdline').read() + open('/proc/self/environ').read();"
        "print(len(s), s in seen)"
    )
    lines: list[tuple[str, str, str]] = []
    with Supervisor(lambda *line: lines.append(line)) as supervisor:
        described = spec(code, "{secret_fd}", secret=b"correct horse")
        assert "horse" not in repr(described)
        child = supervisor.start(described)
        assert "horse" not in repr(child)
        assert supervisor.wait(PATIENCE_S) == {"child": 0}
        assert supervisor.first_failure is None
    assert lines == [("child", "stdout", "13 False")]


def test_a_report_arrives_and_a_missing_one_is_an_error() -> None:
    code = (
        "import sys; from parties.nodes.supervisor import report; report(int(sys.argv[1]), 'here')"
    )
    with Supervisor() as supervisor:
        child = supervisor.start(spec(code, "{report_fd}"))
        assert supervisor.wait_report(child, PATIENCE_S) == "here"
        other = supervisor.start(spec("raise SystemExit('no such file')", name="other"))
        with pytest.raises(TransportError, match=r"other ended .*: no such file"):
            supervisor.wait_report(other, PATIENCE_S)
        late = supervisor.start(spec("import time; time.sleep(600)", name="late"))
        with pytest.raises(TransportError, match=r"late was not ready within 0 s"):
            supervisor.wait_report(late, 0.1)


def test_the_others_end_after_one_fails_even_a_stubborn_one() -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('up', flush=True); time.sleep(600)"
    )
    with Supervisor(settle_s=0.2, grace_s=0.3) as supervisor:
        child = supervisor.start(spec(stubborn, name="stubborn"))
        wait_until(lambda: bool(child.stdout), "the stubborn child")
        supervisor.start(spec("raise SystemExit(4)", name="failing"))
        statuses = supervisor.wait(PATIENCE_S)
        assert statuses == {"stubborn": -signal.SIGKILL, "failing": 4}
        assert supervisor.first_failure is not None
        assert supervisor.first_failure.name == "failing"


def test_leaving_ends_all_children() -> None:
    with Supervisor(grace_s=0.5) as supervisor:
        children = [supervisor.start(spec("input()", name=f"c{n}")) for n in range(2)]
        sleeper = supervisor.start(spec("import time; time.sleep(600)", name="sleeper"))
    assert all(child.returncode is not None for child in (*children, sleeper))


def test_children_end_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    inner = (
        "import os, time; from parties.nodes.supervisor import end_with_parent;"
        "end_with_parent(); print(os.getpid(), flush=True); time.sleep(600)"
    )
    outer = (
        "import sys, time; from parties.nodes.supervisor import ChildSpec, Supervisor;"
        "s = Supervisor(lambda *line: print(line[2], flush=True));"
        "s.start(ChildSpec('c', [sys.executable, '-c', sys.argv[1]])); time.sleep(600)"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", outer, inner],
        stdout=subprocess.PIPE,
        env={**os.environ, **PYTHONPATH},
    )
    assert supervisor.stdout is not None
    child = int(supervisor.stdout.readline())
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    wait_until(lambda: gone(child), "the child to end with its supervisor")


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
