"""Where the CPU time of a node goes, by kind of work: samples, at no cost that could be measured.

A timer of the kernel on the CPU clock of the thread that computes ends in a signal handler of a
few machine instructions, which notes the program counter; with ticks of 4 ms that is 250 samples
a CPU second. The standard error of a share of half is then 3 % after one CPU second. Which kind of
work an address belongs to follows from the library that it lies in:

* products: torch and BLAS. kernels: compiled here, by numba or LLVM, which products by tiles are
  too. numpy: NumPy's own loops, and what one of its calls costs. These three are the ring
  arithmetic.
* aes: the cryptography library, which seals records and makes the streams of masks.
* memory: copies and allocation in libc. A page fault counts for the code that touches the page.
* transport: ZeroMQ and the kernel under it. Its own threads are not sampled but counted as a whole.
* python: the interpreter, and whatever is none of the above.

A profiler of functions would not do: it sees no operators of NumPy, and what it adds to each call
falls on the interpreter. Linux on x86-64 with glibc.
"""

import bisect
import ctypes
import os
import platform
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

MEANING = {
    "products": "torch, BLAS",
    "kernels": "compiled by numba, products by tiles too",
    "numpy": "NumPy's loops and calls",
    "aes": "streams of masks and records",
    "memory": "copies and allocation in libc",
    "transport": "ZeroMQ, its threads, the kernel",
    "python": "the interpreter and the rest",
}
KINDS = tuple(MEANING)
RING = ("products", "kernels", "numpy")
"""The ring arithmetic among the kinds."""

INTERVAL_S = 0.001
"""Asked for; the kernel looks at CPU timers at its ticks, so samples are rarer."""
MAX_SAMPLES = 1 << 18

_LIBRARIES = (
    ("/torch/", "products"),
    ("openblas", "products"),
    ("libgomp", "products"),
    ("/numpy/", "numpy"),
    ("/cryptography/", "aes"),
    ("/zmq/", "transport"),
    ("pyzmq", "transport"),
    ("libzmq", "transport"),
    ("libsodium", "transport"),
)
"""The first one that a library's path contains tells its kind."""
_MEMORY_CALLS = ("mmap", "munmap", "madvise", "mremap", "brk", "sbrk", "mprotect")
_SYSCALL = b"\x0f\x05"

_COUNTER = 21
"""Where a signal's ucontext_t holds rip, in words of 8 bytes (Linux, x86-64)."""
_VALUE = 3
"""Where siginfo_t holds the timer's own value."""


class _Sigaction(ctypes.Structure):
    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_byte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


class _Sigevent(ctypes.Structure):
    _fields_ = [
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("thread", ctypes.c_int),
        ("padding", ctypes.c_byte * 44),
    ]


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _Itimerspec(ctypes.Structure):
    _fields_ = [("interval", _Timespec), ("first", _Timespec)]


class _Place(ctypes.Structure):
    _fields_ = [
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    ]


_SA_SIGINFO, _SA_RESTART, _SA_ONSTACK = 4, 0x1000_0000, 0x0800_0000
_CLOCK_THREAD_CPUTIME_ID, _SIGEV_THREAD_ID = 3, 4


def available() -> bool:
    """Whether this machine is one that addresses can be sampled on."""
    return (
        sys.platform == "linux"
        and platform.machine() == "x86_64"
        and platform.libc_ver()[0] == "glibc"
        and hasattr(ctypes.CDLL(None), "timer_create")  # in a library of its own before 2.34
    )


@cache
def _handler() -> Any:
    """The signal handler, compiled: no allocation, no lock, no call."""
    import numpy as np
    from numba import cfunc, types

    def note(_: int, info: Any, context: Any) -> None:
        out = info[_VALUE]
        filled = out[0]
        if filled < out[1]:
            out[filled + np.uint64(2)] = context[_COUNTER]
            out[0] = filled + np.uint64(1)

    words = types.CPointer(types.uint64)
    return cfunc(types.void(types.int32, types.CPointer(words), words))(note)


class KindProfile:
    """`with`: samples the thread that made it. Afterwards `seconds` of CPU time by kind.

    Both stay empty where sampling is not available. Made ahead, since that compiles the handler.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.samples = 0
        self._sampler = _Sampler() if available() else None
        self._before = (0.0, 0.0, 0.0)

    def __enter__(self) -> None:
        if self._sampler is not None:
            self._before = _clocks()
            self._sampler.start()

    def __exit__(self, *_: object) -> None:
        if self._sampler is None:
            return
        found = self._sampler.stop()
        whole, own, wire = (a - b for a, b in zip(_clocks(), self._before, strict=True))
        self.samples = found.total()
        if self.samples:
            self.seconds = {kind: own * found[kind] / self.samples for kind in KINDS}
            self.seconds["transport"] += wire
            # What is left are the threads that torch and BLAS compute with, if any.
            self.seconds["products"] += max(0.0, whole - own - wire)


def ring_share(seconds: Mapping[str, float]) -> float:
    """The ring arithmetic's part of the CPU time."""
    return sum(seconds[kind] for kind in RING) / sum(seconds.values())


def _clocks() -> tuple[float, float, float]:
    """CPU seconds so far: of the process, of this thread, of ZeroMQ's threads."""
    wire = 0
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().startswith("ZMQbg"):
            wire += int((task / "schedstat").read_text().split()[0])
    return time.process_time(), time.thread_time(), wire / 1e9


class _Sampler:
    """Samples the thread that makes it, between `start` and `stop`. One a process."""

    def __init__(self) -> None:
        import numpy as np

        self._out = np.zeros(MAX_SAMPLES + 2, np.uint64)
        self._out[1] = MAX_SAMPLES
        self._libc = ctypes.CDLL(None, use_errno=True)
        action = _Sigaction(
            handler=_handler().address, flags=_SA_SIGINFO | _SA_RESTART | _SA_ONSTACK
        )
        self._checked(self._libc.sigaction(int(signal.SIGPROF), ctypes.byref(action), None))
        event = _Sigevent(
            value=self._out.ctypes.data,
            signal=int(signal.SIGPROF),
            notify=_SIGEV_THREAD_ID,
            thread=threading.get_native_id(),
        )
        self._timer = ctypes.c_void_p()
        self._checked(
            self._libc.timer_create(
                _CLOCK_THREAD_CPUTIME_ID, ctypes.byref(event), ctypes.byref(self._timer)
            )
        )

    def _checked(self, status: int) -> None:
        if status:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def _set(self, nanoseconds: int) -> None:
        spec = _Itimerspec(_Timespec(0, nanoseconds), _Timespec(0, nanoseconds))
        self._checked(self._libc.timer_settime(self._timer, 0, ctypes.byref(spec), None))

    def start(self) -> None:
        self._out[0] = 0
        self._set(round(INTERVAL_S * 1e9))

    def stop(self) -> "Counter[str]":
        """How many samples fell to each kind."""
        self._set(0)
        found = self._out[2 : 2 + int(self._out[0])]
        places = _Places()
        return Counter(places.kind(int(address)) for address in found)


class _Places:
    """What lies where in this process's memory."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._areas: list[tuple[int, str]] = []
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, rights, *rest = line.split(maxsplit=5)
            if "x" in rights:
                start, end = (int(text, 16) for text in span.split("-"))
                self._starts.append(start)
                self._areas.append((end, rest[3] if len(rest) > 3 else ""))
        self._libc = ctypes.CDLL(None)

    def kind(self, address: int) -> str:
        index = bisect.bisect(self._starts, address) - 1
        if index < 0 or address >= self._areas[index][0]:
            return "python"
        path = self._areas[index][1]
        if not path:
            return "kernels"
        for part, kind in _LIBRARIES:
            if part in path:
                return kind
        if "libc.so" in path or "libc-" in path:
            return self._kind_in_libc(address)
        return "python"

    def _kind_in_libc(self, address: int) -> str:
        # The kernel works behind a system call: the counter stands right after it.
        if ctypes.string_at(address - 2, 2) != _SYSCALL:
            return "memory"
        place = _Place()
        found = self._libc.dladdr(ctypes.c_void_p(address), ctypes.byref(place))
        symbol = (place.symbol or b"").decode() if found else ""
        return "memory" if symbol.lstrip("_") in _MEMORY_CALLS else "transport"
