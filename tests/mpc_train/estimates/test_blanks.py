"""Arrays without memory have the shapes and types that NumPy gives real ones, and are counted."""

import threading
from collections.abc import Callable

import numpy as np
import pytest

from mpc_train.errors import JobError
from mpc_train.estimates import blanks
from mpc_train.estimates.blanks import Blank, Meter, installed, made, measured

SHAPE = 40, 50
OPERATIONS: dict[str, Callable[[np.ndarray], object]] = {
    "sum": lambda x: x + x[:1],
    "product with a number": lambda x: x * 3,
    "comparison": lambda x: x < 5,
    "in place": lambda x: np.add(x, 1, out=x),
    "floats": lambda x: np.ldexp(x.astype(np.float64), -20),
    "two results": lambda x: np.frexp(x.astype(np.float64)),
    "sum over an axis": lambda x: np.sum(np.concatenate([x] * 40, 1), axis=0),
    "whole sum": lambda x: np.sum(x),
    "any": lambda x: (x > 3).any(),
    "slice": lambda x: x[3:, ::2],
    "chosen rows": lambda x: x[np.arange(30)],
    "chosen by flags": lambda x: x[np.arange(40) < 30],
    "transposed and flat": lambda x: x.T.reshape(-1),
    "reshaped": lambda x: x.reshape(4, 10, -1),
    "joined": lambda x: np.concatenate([x, x], axis=1),
    "stacked": lambda x: np.stack([x, x]),
    "where": lambda x: np.where(x > 0, x, 0),
    "broadcast": lambda x: np.broadcast_to(x, (3, 40, 50)),
    "bits": lambda x: np.packbits(x.astype(np.uint8), axis=-1),
    "matrix product": lambda x: np.matmul(x, x.T),
    "contraction": lambda x: np.einsum("...i,...i->...", x[None].repeat(20, 0), x[None]),
    "bytes": lambda x: x.reshape(-1).view(np.uint8),
    "from a frame": lambda x: np.frombuffer(x.reshape(-1).view(np.uint8).data[:8192], np.int64),
    "contiguous": lambda x: np.ascontiguousarray(x.T),
    "zeros like it": lambda x: np.zeros_like(x),
    "split": lambda x: np.split(x, 2),
    "moved axis": lambda x: np.moveaxis(x, 0, 1),
    "outer": lambda x: np.multiply.outer(x, np.arange(3)),
}


def described(found: object) -> object:
    if isinstance(found, (tuple, list)):
        return [described(one) for one in found]
    assert isinstance(found, (np.ndarray, np.generic))
    return found.shape, found.dtype


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_blank_behaves_like_an_array(name: str) -> None:
    expected = OPERATIONS[name](np.zeros(SHAPE, np.int64))
    with installed(), measured(Meter()):
        blank = made(SHAPE, np.int64)
        assert isinstance(blank, Blank)
        assert described(OPERATIONS[name](blank)) == described(expected)


def test_the_meter_counts_what_lives() -> None:
    meter = Meter()
    with installed(), measured(meter):
        first = np.empty((1000, 1000), np.int64)
        assert meter.live == 8_000_000
        view = first[10:20]
        del first
        assert meter.live == 8_000_000  # its view still needs it
        other = view + 1
        assert meter.live == meter.peak == 8_080_000
        del view
        assert (meter.live, meter.peak) == (80_000, 8_080_000)
        del other
    assert meter.live == 0


def test_more_than_any_machine_has_takes_nothing() -> None:
    with installed(), measured(Meter()):
        huge = np.zeros((10**5, 10**6), np.int64)
        assert (huge + 1).nbytes == 8 * 10**11
        with pytest.raises(JobError, match="no machine holds"):
            np.zeros((10**7, 10**8))


def test_other_threads_have_ordinary_arrays() -> None:
    found = []
    with installed(), measured(Meter()):
        thread = threading.Thread(target=lambda: found.append(np.ones(10_000)))
        thread.start()
        thread.join()
    assert type(found[0]) is np.ndarray and found[0].sum() == 10_000


def test_nothing_stays_replaced() -> None:
    before = {name: getattr(np, name) for name in ("empty", "zeros", "asarray", "frombuffer")}
    with pytest.raises(RuntimeError), installed():
        assert np.empty is not before["empty"]
        raise RuntimeError
    assert all(getattr(np, name) is function for name, function in before.items())
    assert blanks.meter_here() is None
