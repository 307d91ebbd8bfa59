"""Cells into numbers: exactly what is written, in every spelling that counts, and nothing else."""

import datetime
from decimal import Decimal

import numpy as np
import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpc_train.tables.cells import decode
from mpc_train.tables.faults import CellError
from mpc_train.tables.schema import Column, days
from mpc_train.tables.source import Source

NUMBER = Column("x", "number")
PLAIN = Source("t.csv")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_numbers_are_read_to_the_last_bit(numbers: list[float]) -> None:
    cells = polars.Series([repr(number) for number in numbers])
    values, missing = decode(cells, NUMBER, PLAIN)
    assert np.array_equal(values, np.array(numbers))
    assert not missing.any()
    comma = polars.Series([repr(number).replace(".", ",") for number in numbers])
    values, _ = decode(comma, NUMBER, Source("t.csv", decimal=",", delimiter=";"))
    assert np.array_equal(values, np.array(numbers))


@given(st.lists(st.dates(datetime.date(1, 1, 1)), min_size=1, max_size=20))
def test_dates_are_days(dates: list[datetime.date]) -> None:
    column = Column("x", "date")
    text = polars.Series([f"{day:%d.%m.}{day.year:04}" for day in dates])
    for cells, source in (
        (polars.Series(dates), PLAIN),
        (text, Source("t.csv", date_format="%d.%m.%Y")),
    ):
        values, _ = decode(cells, column, source)
        assert values.tolist() == [days(day) for day in dates]


@pytest.mark.parametrize(
    "cell",
    [
        "1,5",
        "1 000",
        "1_000",
        "0x10",
        "1e",
        "--1",
        "1.2.3",
        "½",
        "١",
        "1d5",
        "",
        "-",
        "NaN",
        "inf",
        "-infinity",
        "1e999",
        "12 years",
        "£5",
    ],
)
def test_what_is_no_number(cell: str) -> None:
    with pytest.raises(CellError) as caught:
        decode(polars.Series(["1", cell]), NUMBER, PLAIN)
    assert caught.value.row == 1


def test_a_point_does_not_group_thousands() -> None:
    with pytest.raises(CellError):
        decode(polars.Series(["1.234"]), NUMBER, Source("t.csv", decimal=",", delimiter=";"))


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["yes", "NO", " y ", "n"], [1, 0, 1, 0]),
        (["true", "False", "T", "f"], [1, 0, 1, 0]),
        (["1", "0", "1", "0"], [1, 0, 1, 0]),
        ([1, 0, 1, 0], [1, 0, 1, 0]),
        ([1.0, 0.0, 1.0, -0.0], [1, 0, 1, 0]),
        (["1.0", "0.0", "1e0", "-0"], [1, 0, 1, 0]),
        ([True, False, True, False], [1, 0, 1, 0]),
    ],
)
def test_booleans(cells: list[object], expected: list[float]) -> None:
    values, _ = decode(polars.Series(cells), Column("x", "boolean"), PLAIN)
    assert values.tolist() == expected


@pytest.mark.parametrize("cell", ["2", "ja", "on", "-1", "1.5", "01", "1.0.0", ""])
def test_what_is_neither_true_nor_false(cell: str) -> None:
    with pytest.raises(CellError, match=r"neither true nor false|empty"):
        decode(polars.Series(["yes", cell]), Column("x", "boolean"), PLAIN)


def test_levels_and_other() -> None:
    levels = ("b", "a", "1")
    cells = polars.Series(["a", " b", "1", "zebra", "NA"])
    column = Column("x", "category", levels=levels, other=True, missing=("NA",))
    values, missing = decode(cells, column, PLAIN)
    assert values.tolist() == [1, 0, 2, 3, 0]
    assert missing.tolist() == [False] * 4 + [True]
    with pytest.raises(CellError) as caught:
        decode(cells, Column("x", "category", levels=levels, missing=("NA",)), PLAIN)
    assert caught.value.row == 3
    assert "zebra" not in str(caught.value)
    # An empty cell is no entry, so that it is not "other" either.
    with pytest.raises(CellError, match="empty"):
        decode(polars.Series(["a", ""]), column, PLAIN)


def test_ranges_leave_missing_cells_alone() -> None:
    column = Column("x", "number", range=(Decimal(1), Decimal(10)), missing=("-9",))
    values, missing = decode(polars.Series(["5", "-9"]), column, PLAIN)
    assert (values.tolist(), missing.tolist()) == ([5, 0], [False, True])
    day = datetime.date
    dated = Column("x", "date", dates=(day(1970, 1, 2), day(1970, 1, 5)), missing=("",))
    values, _ = decode(polars.Series(["1970-01-02", "", "1970-01-05"]), dated, PLAIN)
    assert values.tolist() == [1, 0, 4]
    with pytest.raises(CellError, match=r"outside the declared range \[1970-01-02, 1970-01-05\]"):
        decode(polars.Series(["1970-01-06"]), dated, PLAIN)
