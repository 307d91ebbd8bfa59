"""This machine: memory, processor, random numbers, open files, versions.

Everything is measured or read from the operating system; where that does not say, the finding is
skipped or goes by what was measured. Linux says all of it, other systems less.
"""

import importlib.metadata
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from parties.doctor.findings import Figures, Finding, Level, machine

MIB, GIB = 1 << 20, 1 << 30

MIN_MEMORY_BYTES = 1 * GIB
"""Less is a problem: a node that has loaded its libraries takes about 0.5 GiB."""

GOOD_MEMORY_BYTES = 2 * GIB

GOOD_SEALING_MB_S = 300.0
"""A processor with AES units seals 1,000 MB/s and more, one without about 100."""

MIN_OPEN_FILES = 256
"""A coordinator needs about four for each node, and everybody some for libraries and files."""

SEALED_BYTES = 4 * MIB
DRAWN_BYTES = MIB
SLOW_DRAW_S = 1.0

_UNITS = {
    "aes": ("aes",),
    "vaes": ("vaes",),
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "amx": ("amx_int8",),
    "neon": ("asimd",),
    "sve": ("sve",),
}
"""Names of units, and the flags by which Linux shows them, on x86-64 and on ARM."""

_CGROUP = Path("/sys/fs/cgroup")


def memory(
    free_bytes: Callable[[], int] | None = None, limit_bytes: Callable[[], int | None] | None = None
) -> Finding:
    """What a process may still take: of the machine's memory, and of the limits set to this one."""
    total, free = psutil.virtual_memory().total, (free_bytes or _free)()
    limit = (limit_bytes or _limit)()
    usable = free if limit is None else min(free, limit)
    text = f"{_gib(usable)} can be used, of {_gib(total)}"
    if limit is not None and limit < total:
        text += f"; a limit is set to {_gib(limit)}"
    figures: Figures = {"usable_bytes": usable, "total_bytes": total}
    if usable < GOOD_MEMORY_BYTES:
        few = usable < MIN_MEMORY_BYTES
        return machine(
            "memory",
            Level.problem if few else Level.warning,
            text,
            "end other programs, raise the limit (ulimit -v, MemoryMax) or use a larger machine; "
            "job check says how much a job needs",
            figures,
        )
    return machine("memory", Level.passed, text, figures=figures)


def usable_bytes() -> int:
    """How much memory this process may take beyond what it holds: of what the machine has free, and
    of the limits set to it (RLIMIT_AS, control groups)."""
    limit = _limit()
    return _free() if limit is None else min(_free(), limit)


def usable_together_bytes() -> int:
    """The same for this process and those that it starts, all together: RLIMIT_AS counts for each
    of them alone."""
    return max(0, min([_free(), *_group_limits()]))


def _free() -> int:
    return int(psutil.virtual_memory().available)


def _limit() -> int | None:
    """The smallest limit on this process's memory, less what it uses; None if there is none."""
    found = _group_limits()
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        found.append(soft - psutil.Process().memory_info().vms)
    return max(0, min(found)) if found else None


def _group_limits() -> list[int]:
    """What the control groups of this process still allow."""
    found = []
    for folder in _cgroups():
        for name in ("memory.max", "memory.high"):
            limit = _number(folder / name)
            if limit is not None:
                found.append(limit - (_number(folder / "memory.current") or 0) + _cache(folder))
    first = _number(_CGROUP / "memory/memory.limit_in_bytes")  # version 1
    if first is not None:
        found.append(first - (_number(_CGROUP / "memory/memory.usage_in_bytes") or 0))
    return found


def _cache(folder: Path) -> int:
    """Bytes of files that a group's memory holds, and that the system drops when it needs room."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def _cgroups() -> list[Path]:
    """The control groups (version 2) that this process is in, outermost last."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        if line.startswith("0::"):
            own = _CGROUP / line[3:].lstrip("/")
            return [own, *(each for each in own.parents if each.is_relative_to(_CGROUP))]
    return []


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def flags(text: str) -> frozenset[str]:
    """The flags of the first processor of /proc/cpuinfo."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    """Cores and units, and how fast AES-256-GCM runs here: it makes masks and seals all frames."""
    try:
        known = flags(cpuinfo.read_text(errors="replace"))
    except OSError:
        known = frozenset()
    units = [unit for unit, names in _UNITS.items() if known.intersection(names)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rate = sealing_mb_s()
    text = f"{cores} cores ({platform.machine()}), seals {rate:,.0f} MB/s"
    text += f", units: {' '.join(units)}" if units else ""
    figures: Figures = {
        "cores": cores or 1,
        "sealing_mb_s": round(rate, 1),
        "units": " ".join(units),
    }
    if rate < GOOD_SEALING_MB_S:
        return machine(
            "processor",
            Level.warning,
            text,
            "AES is slow here: use a processor with AES units, or let a virtual machine see them",
            figures,
        )
    if known and not {"avx2", "asimd"} & known:
        return machine(
            "processor",
            Level.warning,
            text,
            "without AVX2 a training takes several times as long: use another machine, or let a "
            "virtual machine see it",
            figures,
        )
    return machine("processor", Level.passed, text, figures=figures)


def sealing_mb_s() -> float:
    """The best of three: how many 10^6 bytes AES-256-GCM seals in a second, on one core."""
    cipher, block = AESGCM(bytes(32)), bytes(SEALED_BYTES)
    best = 0.0
    for number in range(3):
        started = time.perf_counter()
        cipher.encrypt(number.to_bytes(12, "big"), block, None)
        best = max(best, SEALED_BYTES / 1e6 / max(time.perf_counter() - started, 1e-9))
    return best


def entropy(draw: Callable[[int], bytes] | None = None) -> Finding:
    """The kernel's random source: ready, quick, and not the same twice."""
    started = time.perf_counter()
    try:
        first, second = ((draw or _draw)(DRAWN_BYTES) for _ in range(2))
    except BlockingIOError:
        return machine(
            "entropy",
            Level.problem,
            "the kernel's random source is not ready yet",
            "wait until the machine has run for a while; give a virtual machine a random device "
            "(virtio-rng)",
        )
    except OSError as error:
        return machine(
            "entropy",
            Level.problem,
            f"the kernel's random source cannot be read ({error.strerror})",
            "/dev/urandom has to exist where the node runs: in a container or a chroot, too",
        )
    seconds = time.perf_counter() - started
    if first == second or not any(first):
        return machine(
            "entropy",
            Level.problem,
            "the kernel's random source repeats itself",
            "do not use this machine: every key made on it can be guessed",
        )
    slow = seconds > SLOW_DRAW_S
    return machine(
        "entropy",
        Level.warning if slow else Level.passed,
        f"the kernel's random source gave {2 * DRAWN_BYTES // MIB} MiB in {seconds * 1000:.0f} ms",
        "keys take long to make here; nothing is wrong with them" if slow else "",
        {"seconds": round(seconds, 4)},
    )


def _draw(count: int) -> bytes:
    """Random bytes, without waiting for the source to be ready where the system can say so."""
    if not hasattr(os, "getrandom"):
        return os.urandom(count)
    found = b""
    while len(found) < count:
        found += os.getrandom(count - len(found), os.GRND_NONBLOCK)
    return found


def open_files(limit: Callable[[], int] | None = None) -> Finding:
    """How many files and connections this process may have open."""
    soft = (limit or (lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0]))()
    few = soft != resource.RLIM_INFINITY and soft < MIN_OPEN_FILES
    return machine(
        "open files",
        Level.warning if few else Level.passed,
        f"up to {soft}" if soft != resource.RLIM_INFINITY else "no limit",
        f"raise the limit to {MIN_OPEN_FILES} or more: ulimit -n, LimitNOFILE" if few else "",
        {"limit": soft},
    )


def versions(distributions: Iterable[str], version: Callable[[str], str] | None = None) -> Finding:
    """Python's release and those of the libraries that a node needs; none of them is imported."""
    found: dict[str, str] = {"python": platform.python_version()}
    missing = []
    for name in distributions:
        try:
            found[name] = (version or importlib.metadata.version)(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    text = ", ".join(f"{name} {each}" for name, each in found.items())
    if missing:
        return machine(
            "versions",
            Level.problem,
            f"not installed: {', '.join(missing)}",
            f"install the platform again into this Python ({sys.executable})",
            found,
        )
    return machine("versions", Level.passed, text, figures=found)


def _gib(count: int) -> str:
    return f"{count / GIB:,.1f} GiB"
