"""One strict parser of dates, for columns and for identifiers: no guess, no century of its own."""

import datetime
from pathlib import Path

import numpy as np
import polars
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpc_train.tables.cells import decode
from mpc_train.tables.dates import DateForm, FormError
from mpc_train.tables.faults import CellError
from mpc_train.tables.loading.load import load
from mpc_train.tables.normalise import normaliser
from mpc_train.tables.schema import Column, Schema, days
from mpc_train.tables.source import Source, check_source

DAY = datetime.date
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def read(cell: str, form: str, pivot: int = 0) -> DAY:
    """The same from the column's reader and from the join's, or neither."""
    source = Source("t.csv", date_format=form, date_pivot=pivot)
    check_source(source)
    key = normaliser(("date",), source.form_of("x"))
    try:
        (value,), _ = decode(polars.Series([cell]), Column("x", "date"), source)
    except CellError as error:
        with pytest.raises(ValueError, match=r"not a date|time of day") as caught:
            key(cell)
        assert not cell or str(caught.value) == str(error)
        raise
    day = DAY.fromordinal(int(value) + DAY(1970, 1, 1).toordinal())
    assert key(cell) == day.isoformat()
    return day


@pytest.mark.parametrize(
    ("cell", "form", "expected"),
    [
        ("12.03.1949", "%d.%m.%Y", DAY(1949, 3, 12)),
        (" 2.3.1949 ", "%d.%m.%Y", DAY(1949, 3, 2)),
        ("19490312", "%Y%m%d", DAY(1949, 3, 12)),
        ("12MAR1949", "%d%b%Y", DAY(1949, 3, 12)),
        ("12 march 1949", "%d %B %Y", DAY(1949, 3, 12)),
        (" 2-May-1949", "%e-%b-%Y", DAY(1949, 5, 2)),
        ("1948-366", "%Y-%j", DAY(1948, 12, 31)),
        ("1949/3/12", "%Y/%-m/%-d", DAY(1949, 3, 12)),
        ("1949-03-12", "%F", DAY(1949, 3, 12)),
        ("100%1949-03-12", "100%%%F", DAY(1949, 3, 12)),
        ("1949-03-12 00:00:00", "%Y-%m-%d %H:%M:%S", DAY(1949, 3, 12)),
        ("1949-03-12T00:00:00.000", "%FT%T.%f", DAY(1949, 3, 12)),
        ("3/12/1949 12:00:00 AM", "%m/%d/%Y %I:%M:%S %p", DAY(1949, 3, 12)),
    ],
)
def test_forms(cell: str, form: str, expected: DAY) -> None:
    assert read(cell, form) == expected


@pytest.mark.parametrize(
    ("cell", "form"),
    [
        ("12.03.49", "%d.%m.%Y"),
        ("12.03.049", "%d.%m.%Y"),
        ("12.03.19490", "%d.%m.%Y"),
        ("12.03.+194", "%d.%m.%Y"),
        ("00.03.1949", "%d.%m.%Y"),
        ("29.02.1949", "%d.%m.%Y"),
        ("01.01.0000", "%d.%m.%Y"),
        ("12.03.1949 x", "%d.%m.%Y"),
        ("12.03.1949 00:00", "%d.%m.%Y"),
        ("12. 03.1949", "%d.%m.%Y"),
        ("１２.03.1949", "%d.%m.%Y"),
        ("1949312", "%Y%m%d"),
        ("1949-366", "%Y-%j"),
        ("1949-000", "%Y-%j"),
        ("12-Mär-1949", "%d-%b-%Y"),
        ("12-March-1949", "%d-%b-%Y"),
        ("1949-03-12", "%Y-%m-%d %H:%M"),
        ("", "%Y-%m-%d"),
    ],
)
def test_what_is_not_of_the_form(cell: str, form: str) -> None:
    with pytest.raises(CellError, match=r"not a date in the form|the cell is empty"):
        read(cell, form)


@pytest.mark.parametrize(
    ("cell", "form"),
    [
        ("1949-03-12 00:00:01", "%Y-%m-%d %H:%M:%S"),
        ("1949-03-12 23:00", "%Y-%m-%d %H:%M"),
        ("1949-03-12 12:00 PM", "%Y-%m-%d %I:%M %p"),
        ("1949-03-12 01:00 am", "%Y-%m-%d %I:%M %p"),
        ("1949-03-12 00:00:00.001", "%Y-%m-%d %H:%M:%S.%f"),
    ],
)
def test_a_time_is_not_dropped(cell: str, form: str) -> None:
    with pytest.raises(CellError, match="a time of day beside the date"):
        read(cell, form)


@pytest.mark.parametrize(
    "form",
    [
        "%d.%m",
        "%Y",
        "%m/%Y",
        "%Y-%m-%d %Z",
        "%G-W%V-%u",
        "%Y-%m-%d-%Y",
        "%Y-%y-%m-%d",
        "%Y-%j-%d",
        "%b %m %d %Y",
        "%Y %m %d %H %I %p",
        "%Y-%m-%d %I:%M",
        "%x",
        "%c",
        "%s",
        "%",
        "YYYY",
    ],
)
def test_a_form_that_does_not_say_which_day(form: str) -> None:
    with pytest.raises(FormError):
        DateForm(form, 1930).check()


@given(st.dates(DAY(1, 1, 1)), st.integers(1, 9900))
@example(DAY(2000, 2, 29), 1930)
@settings(max_examples=300, deadline=None)
def test_the_hundred_years_from_the_pivot_come_back(day: DAY, pivot: int) -> None:
    written = f"{day.day:02}.{day.month:02}.{day.year % 100:02}"
    year = next(year for year in range(pivot, pivot + 100) if year % 100 == day.year % 100)
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if (day.month, day.day) == (2, 29) and not leap:
        with pytest.raises(CellError):
            read(written, "%d.%m.%y", pivot)
        return
    assert read(written, "%d.%m.%y", pivot) == day.replace(year=year)


@given(st.dates(DAY(1, 1, 1)), st.sampled_from(["%d.%m.%Y", "%Y%m%d", "%b %d, %Y", "%Y-%j"]))
@settings(max_examples=200, deadline=None)
def test_every_date_comes_back(day: DAY, form: str) -> None:
    written = form
    for sign, part in {
        "%d": f"{day.day:02}",
        "%m": f"{day.month:02}",
        "%Y": f"{day.year:04}",
        "%b": MONTHS[day.month - 1],
        "%j": f"{day.timetuple().tm_yday:03}",
    }.items():
        written = written.replace(sign, part)
    assert read(written, form) == day


def test_two_columns_may_need_two_pivots() -> None:
    source = Source("t.csv", date_format="%y%m%d", date_pivot=1990, date_pivots={"born": 1915})
    check_source(source)
    found = [
        decode(polars.Series(["150401"]), Column(name, "date"), source)[0][0]
        for name in ("seen", "born")
    ]
    assert found == [days(DAY(2015, 4, 1)), days(DAY(1915, 4, 1))]


def test_a_code_that_is_a_date_is_that_day_in_every_form_and_format(tmp_path: Path) -> None:
    column = Column("x", "date", missing=("", "9999-12-31", "unknown"))
    rows = [DAY(1949, 3, 12), DAY(9999, 12, 31), None, DAY(1950, 1, 1)]
    frame = polars.DataFrame({"x": rows})
    path = tmp_path / "t.parquet"
    german = tmp_path / "t.csv"
    german.write_text("x\n12.03.1949\n31.12.9999\nunknown\n01.01.1950\n")
    frame.with_columns(polars.col("x").cast(polars.Datetime("ms"))).write_parquet(path)
    for source in (Source(str(path)), Source(str(german), date_format="%d.%m.%Y")):
        table = load(source, Schema((column,)), names=("x",))
        assert table.missing[:, 0].tolist() == [False, True, True, False]
        assert table.values[:, 0].tolist() == [days(DAY(1949, 3, 12)), 0, 0, days(DAY(1950, 1, 1))]


def test_dates_that_a_format_knows_are_keys_whatever_form_the_node_writes(tmp_path: Path) -> None:
    rows = [DAY(1949, 3, 12), DAY(1950, 1, 1)]
    frame = polars.DataFrame({"born": rows, "x": [1, 2]})
    schema = Schema((Column("born", "identifier"), Column("x", "number")))
    typed, timed, text = (tmp_path / name for name in ("a.parquet", "b.arrow", "c.npz"))
    frame.write_parquet(typed)
    frame.with_columns(polars.col("born").cast(polars.Datetime)).write_ipc(timed)
    np.savez(text, born=np.array(["12.03.49", "01.01.50"]), x=np.array([1, 2]))
    for path in (typed, timed, text):
        source = Source(str(path), date_format="%d.%m.%y", date_pivot=1930)
        table = load(source, schema, names=("x",), identifiers=("born",))
        form = DateForm() if "born" in table.dated else source.form_of("born")
        keys = [normaliser(("date",), form)(cell) for cell in table.identifiers["born"]]
        assert keys == ["1949-03-12", "1950-01-01"]


def test_whole_numbers_are_dates_where_their_digits_are(tmp_path: Path) -> None:
    column, form = Column("x", "date"), Source("t.parquet", date_format="%Y%m%d")
    values, _ = decode(polars.Series([19490312, 20200229]), column, form)
    assert values.tolist() == [days(DAY(1949, 3, 12)), days(DAY(2020, 2, 29))]
    with pytest.raises(CellError, match="not a date in the form"):
        decode(polars.Series([1031949]), column, Source("t.parquet", date_format="%d%m%Y"))
