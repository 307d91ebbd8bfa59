"""CPU time is counted for the kind of work that used it."""

import time
from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocols.ring import kernels
from tests.bench.cpu_kinds import KINDS, KindProfile, available, ring_share

WORDS = np.arange(1 << 16, dtype=np.int64)
OCTETS = bytes(1 << 20)


def count_in_python() -> None:
    for _ in range(10_000):
        pass


def multiply_in_numpy() -> None:
    np.multiply(WORDS, WORDS)


def unpack_in_a_kernel() -> None:
    kernels.unpack(np.zeros(kernels.packed_size(len(WORDS), 20), np.uint8), 20, WORDS.copy())


def seal() -> None:
    AESGCM(bytes(32)).encrypt(bytes(12), OCTETS, None)


@pytest.mark.timed
@pytest.mark.skipif(not available(), reason="addresses are sampled on Linux on x86-64")
@pytest.mark.parametrize(
    ("kind", "work"),
    [
        ("python", count_in_python),
        ("numpy", multiply_in_numpy),
        ("kernels", unpack_in_a_kernel),
        ("aes", seal),
    ],
)
def test_work_is_counted_for_its_kind(kind: str, work: Callable[[], object]) -> None:
    profile = KindProfile()
    with profile:
        begin = time.thread_time()
        while time.thread_time() < begin + 0.3:
            work()
        used = time.thread_time() - begin
    assert set(profile.seconds) == set(KINDS)
    assert sum(profile.seconds.values()) == pytest.approx(used, abs=0.05)
    assert profile.samples > 20
    assert profile.seconds[kind] > 0.6 * used


def test_the_ring_share_is_that_of_its_kinds() -> None:
    seconds = {kind: float(place) for place, kind in enumerate(KINDS)}
    assert ring_share(seconds) == (0 + 1 + 2) / 21
