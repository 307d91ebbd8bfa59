"""What a node will write at the end is tried at its start."""

import shutil
import stat
from collections import namedtuple
from pathlib import Path

import pytest

from mpc_train.admission.load import load_job
from mpc_train.errors import ConfigError
from mpc_train.jobs.job import Job
from mpc_train.node import places
from mpc_train.node.places import (
    SHARED_BYTES,
    SPARE_BYTES,
    check_disk,
    check_memory,
    check_memory_together,
    check_room,
    run_directory,
)
from tests.support.jobs import write_job

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return load_job(write_job(tmp_path))


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))


def test_a_run_directory_is_private_and_left_clean(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run = run_directory(root, "study")
    assert run.parent == root and run.name.startswith("study-")
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o777])
def test_a_run_directory_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    root.chmod(mode)
    with pytest.raises(ConfigError, match=r"runs: others may enter or read it; chmod 700"):
        run_directory(root, "study")
    root.chmod(0o700)
    run_directory(root, "study")


def test_a_run_directory_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run_dir .*file: cannot be written"):
        run_directory(tmp_path / "file", "study")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mpc_train.node.places.write_atomic", full)
    with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\)"):
        run_directory(tmp_path / "runs", "study")


def test_room_is_needed_for_every_envelope(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_room(tmp_path, job, len(job.recipients))
    with_free(monkeypatch, 17 << 20)
    check_room(tmp_path, job, 1)
    with pytest.raises(ConfigError, match="17 MiB free, and the results of study need up to 2"):
        check_room(tmp_path, job, 20)
    with_free(monkeypatch, 1 << 20)
    with pytest.raises(ConfigError, match="1 MiB free"):
        check_room(tmp_path, job, 0)


def test_a_job_that_does_not_fit_is_refused(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "usable_bytes", lambda: 3 * 10**9)
    assert "about 2.0 GB" in check_memory(job, "ann", 2 * 10**9, 0)
    with pytest.raises(
        ConfigError, match=r"14\.0 GB .* may take \d+\.\d GB.*train\.batch_size = 16"
    ):
        check_memory(job, "ann", 14 * 10**9, 0)


def test_a_node_file_may_say_how_much_memory_there_is(job: Job) -> None:
    assert check_memory(job, "ann", 14 * 10**18, 15 * 10**18)
    with pytest.raises(ConfigError, match=r"node\.memory_gb allows 0\.1 GB"):
        check_memory(job, "ann", 2 * 10**9, 10**8)


def test_nodes_of_one_machine_have_to_fit_together(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = {"ann": 3 * 10**9, "bob": 3 * 10**9, "registry": 2 * 10**9}
    enough = 8 * 10**9 - 2 * SHARED_BYTES
    monkeypatch.setattr(places, "usable_together_bytes", lambda: enough)
    check_memory_together(job, needs)
    monkeypatch.setattr(places, "usable_together_bytes", lambda: enough - 1)
    with pytest.raises(ConfigError, match=r"need about 7\.8 GB .*ann 3\.0 GB.*Nothing was started"):
        check_memory_together(job, needs)


def test_what_a_run_keeps_on_one_disk_has_to_fit_together(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = {tmp_path / "vault": 10**9, tmp_path / "runs" / "new": 2 * 10**9}
    with_free(monkeypatch, 3 * 10**9 + SPARE_BYTES)
    check_disk(job, needed)
    with_free(monkeypatch, 3 * 10**9 + SPARE_BYTES - 1)
    with pytest.raises(ConfigError, match=r"vault, .*runs/new: .* need up to .*Nothing was shared"):
        check_disk(job, needed)
    check_disk(job, dict.fromkeys(needed, 0))  # a full disk does not matter to who keeps nothing
