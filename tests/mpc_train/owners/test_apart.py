"""A table that a child process reads: the same rows and errors, and no reader in this process."""

from __future__ import annotations

import os

import numpy as np
import pytest

from mpc_train.errors import DataError
from mpc_train.owners.apart import read_apart
from mpc_train.owners.table import Table


def _table() -> Table:
    rng = np.random.default_rng(1)
    return Table(
        rng.normal(size=(5, 3)),
        np.arange(5.0),
        present=np.ones((5, 1)),
        weights=np.full(5, 2.0),
        warnings=("one", "zwei Tür"),
        places=np.array([4, 3, 2, 1, 0]),
    )


def test_it_is_the_same_table() -> None:
    mine = os.getpid()

    def read() -> Table:
        assert os.getpid() != mine
        return _table()

    found, expected = read_apart(read), _table()
    for name in ("features", "labels", "present", "weights", "places"):
        got, there = getattr(found, name), getattr(expected, name)
        assert np.array_equal(got, there) and got.dtype == there.dtype
    assert found.warnings == expected.warnings and found.tokens is None and found.raw is None


def test_its_error_is_raised_here(capfd: pytest.CaptureFixture[str]) -> None:
    def read() -> Table:
        raise DataError(f"row 3 in {os.getpid()}")

    with pytest.raises(DataError, match=f"^row 3 in {os.getpid()}$"):
        read_apart(read)
    assert capfd.readouterr() == ("", "")


def test_a_child_that_dies_changes_nothing() -> None:
    mine = os.getpid()

    def read() -> Table:
        if os.getpid() != mine:
            os._exit(3)
        return _table()

    assert read_apart(read).rows == 5
