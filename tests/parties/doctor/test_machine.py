"""This machine and its disks: each limit is noticed, and nothing is left behind."""

import errno
import os
import shutil
import sys
from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from parties.doctor import disk as disk_module
from parties.doctor import machine
from parties.doctor.disk import directory
from parties.doctor.findings import Level

GIB = 1 << 30
Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("free", "limit", "level"),
    [
        (8 * GIB, None, "passed"),
        (8 * GIB, 3 * GIB, "passed"),
        (8 * GIB, GIB + 1, "warning"),
        (8 * GIB, GIB - 1, "problem"),
        (GIB // 2, None, "problem"),
    ],
)
def test_memory_and_its_limits(free: int, limit: int | None, level: str) -> None:
    found = machine.memory(lambda: free, lambda: limit)
    assert found.level.value == level
    assert found.figures["usable_bytes"] == min(free, limit or free)
    assert bool(found.remedy) == (level != "passed")


def test_the_real_memory_is_read() -> None:
    assert 0 < int(machine.memory().figures["usable_bytes"]) < 1 << 50


def test_limits_of_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "a" / "b"
    own.mkdir(parents=True)
    (tmp_path / "a" / "memory.max").write_text("1000000\n")
    (tmp_path / "a" / "memory.current").write_text("400000\n")
    (own / "memory.max").write_text("max\n")
    monkeypatch.setattr(machine, "_cgroups", lambda: [own, own.parent, tmp_path])
    assert machine._limit() == 600000


CPUINFO = "processor : 0\nflags\t\t: fpu {}\n"


@pytest.mark.parametrize(
    ("flags", "rate", "level", "says"),
    [
        ("aes avx2 vaes avx512f amx_int8", 2000.0, "passed", "units: aes vaes avx2 avx512 amx"),
        ("aes", 2000.0, "warning", "AVX2"),
        ("avx2", 90.0, "warning", "AES is slow"),
    ],
)
def test_units_of_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, rate: float, level: str, says: str
) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(flags))
    monkeypatch.setattr(machine, "sealing_mb_s", lambda: rate)
    found = machine.processor(tmp_path / "cpuinfo")
    assert found.level.value == level and says in found.text + found.remedy


def test_a_processor_whose_units_are_not_said_goes_by_what_is_measured(tmp_path: Path) -> None:
    found = machine.processor(tmp_path / "missing")
    assert float(found.figures["sealing_mb_s"]) > 1 and found.figures["units"] == ""


def test_a_random_source_that_is_not_ready_away_or_broken() -> None:
    def not_ready(count: int) -> bytes:
        raise BlockingIOError

    def away(count: int) -> bytes:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    for draw, says in ((not_ready, "not ready"), (away, "cannot be read"), (bytes, "repeats")):
        found = machine.entropy(draw)
        assert found.level is Level.problem and says in found.text and found.remedy
    assert machine.entropy().level is not Level.problem


def test_few_open_files() -> None:
    assert machine.open_files(lambda: 64).level is Level.warning
    assert machine.open_files(lambda: 4096).level is Level.passed


def test_a_library_that_is_missing() -> None:
    def version(name: str) -> str:
        if name == "torch":
            raise PackageNotFoundError(name)
        return "1.2"

    found = machine.versions(["numpy", "torch"], version)
    assert found.level is Level.problem and found.text == "not installed: torch"
    assert sys.executable in found.remedy
    assert machine.versions(["numpy"], version).figures["numpy"] == "1.2"


def private(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path


def test_a_good_directory_and_one_that_will_be_made(tmp_path: Path) -> None:
    folder = private(tmp_path / "runs")
    there, later = directory("run_dir", folder), directory("run_dir", folder / "a" / "b")
    for finding in (there, later):
        assert finding.level is not Level.problem and "sync_median_ms" in finding.figures
    assert "it will be made" in later.text
    assert not list(folder.iterdir())


def test_a_directory_that_others_may_enter(tmp_path: Path) -> None:
    folder = private(tmp_path / "runs")
    folder.chmod(0o750)
    found = directory("run_dir", folder)
    assert found.level is Level.problem and "others may enter" in found.text
    assert "chmod 700" in found.remedy
    assert directory("run_dir", folder, private=False).level is not Level.problem


def test_a_file_in_place_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    assert "is not a directory" in directory("run_dir", tmp_path / "runs").text


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_a_directory_that_cannot_be_written() -> None:
    found = directory("run_dir", Path("/proc/self"), private=False)
    assert found.level is Level.problem and "cannot be written" in found.text and found.remedy


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.ENOSPC, "full"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only file system")],
)
def test_a_full_disk_and_a_read_only_one(tmp_path: Path, number: int, says: str) -> None:
    def sync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    folder = private(tmp_path / "runs")
    found = directory("run_dir", folder, sync=sync)
    assert found.level is Level.problem and says in found.text and found.remedy
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("free", "level"), [(50 << 20, "problem"), (GIB, "warning"), (9 * GIB, "passed")]
)
def test_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))
    monkeypatch.setattr(disk_module, "SLOW_SYNC_S", 100.0)
    assert directory("run_dir", private(tmp_path / "runs")).level.value == level


def test_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9 * GIB, 0, 9 * GIB))
    monkeypatch.setattr(disk_module, "SLOW_SYNC_S", 0.0)
    found = directory("run_dir", private(tmp_path / "runs"))
    assert found.level is Level.warning and "local disk" in found.remedy
