"""CSV in pieces: the same records and lines as Python's reader finds in the whole."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpc_train.errors import DataError
from mpc_train.tables.readers.csv_text import CsvText
from mpc_train.tables.source import Source

CELL = st.text(st.sampled_from(list("ab1 ,;\"'\r\nüß€😀")), max_size=6)


def read(raw: bytes, source: Source, size: int) -> tuple[list[tuple[str, ...]], list[int]]:
    blocks = [raw[at : at + size] for at in range(0, len(raw), size)]
    table = CsvText(blocks, source, "t", unit="bytes", total=len(raw))
    records, places = [], []
    for chunk in table.chunks(table.names):
        records += chunk.frame.rows()
        places += chunk.places.tolist()
    return records, places


@settings(max_examples=150, deadline=None)
@given(
    records=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=12),
    size=st.integers(1, 40),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "gb18030"]),
    delimiter=st.sampled_from([",", ";"]),
    last=st.booleans(),
)
def test_any_table_is_read_as_it_was_written(
    records: list[tuple[str, str, str]],
    size: int,
    end: str,
    encoding: str,
    delimiter: str,
    last: bool,
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    lines = []
    writer.writerow(("x", "y", "z"))
    for record in records:
        lines.append(text.getvalue().count("\n") + 1)
        writer.writerow(record)
    raw = text.getvalue() if last else text.getvalue().removesuffix(end)
    source = Source("t.csv", encoding=encoding, delimiter=delimiter)
    found, places = read(raw.encode(encoding), source, size)
    assert found == records
    assert places == lines


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=80), size=st.integers(1, 20))
def test_bytes_that_are_no_table_cause_only_our_error(raw: bytes, size: int) -> None:
    try:
        read(raw, Source("t.csv"), size)
    except DataError as error:
        assert str(error).startswith("t: ")


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_without_quotation_marks_they_are_ordinary(size: int) -> None:
    raw = b'a|b\n5" pipe|"x\n'
    found, places = read(raw, Source("t.csv", delimiter="|", quote=""), size)
    assert found == [('5" pipe', '"x')]
    assert places == [2]


@pytest.mark.parametrize("blank", ["\n", "\r\n", "\n\n\n", "\r\n\r\n"])
def test_blank_lines_at_the_end_are_nothing_and_elsewhere_an_error(blank: str) -> None:
    for size in (1, 2, 1000):
        assert read(f"a,b\n1,2\n{blank}".encode(), Source("t.csv"), size)[1] == [2]
        with pytest.raises(DataError, match="line 3: the line is blank"):
            read(f"a,b\n1,2\n{blank}3,4\n".encode(), Source("t.csv"), size)
