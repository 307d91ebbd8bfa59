"""Identifiers into tokens: equal for equal people, and every bad row has a name."""

import hashlib
import hmac

import numpy as np
import pytest

from mpc_train.owners.tokens import IdentifierError, token_key, tokens_of
from mpc_train.tables.dates import DateForm
from mpc_train.tables.normalise import Rule

KEY = token_key(bytes(32))


def iso(_: str) -> DateForm:
    return DateForm()


ON = ("name", "born")
RULES: dict[str, tuple[Rule, ...]] = {"name": ("case", "accents", "spaces"), "born": ("date",)}


def table(*rows: tuple[str, str]) -> dict[str, list[str]]:
    return {"name": [name for name, _ in rows], "born": [born for _, born in rows]}


def test_the_same_people_in_two_spellings() -> None:
    ours = tokens_of(
        table(("Zoë  Müller", "1984-03-07"), ("Ann", "2001-01-02")), ON, RULES, iso, KEY
    )
    theirs = tokens_of(
        table(("ann", "2.1.2001"), ("ZOE MULLER", "07.03.1984")),
        ON,
        RULES,
        lambda _: DateForm("%d.%m.%Y"),
        KEY,
    )
    np.testing.assert_array_equal(ours, theirs[::-1])
    assert ours.shape == (2, 32)


def test_the_token_is_an_hmac_of_length_and_text() -> None:
    found = tokens_of({"id": ["A7"]}, ("id",), {}, iso, KEY)
    expected = hmac.new(KEY, b"\0\0\0\2A7", hashlib.sha256).digest()
    assert found.tobytes() == expected
    assert tokens_of({"id": ["A7"]}, ("id",), {}, iso, token_key(b"other")).tobytes() != expected


def test_columns_do_not_run_into_each_other() -> None:
    one = tokens_of({"a": ["ab"], "b": ["c"]}, ("a", "b"), {}, iso, KEY)
    other = tokens_of({"a": ["a"], "b": ["bc"]}, ("a", "b"), {}, iso, KEY)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("rows", "row", "column", "other", "words"),
    [
        ([("Ann", "2001-01-02"), ("ANN ", "2001-01-02")], 1, "name", 0, "the same record as"),
        ([("Ann", "2001-01-02"), ("Bob", "2.1.2001")], 1, "born", None, "not a date"),
        ([("Ann", "2001-01-02"), (" \u200b ", "2001-01-02")], 1, "name", None, "empty"),
        ([("x" * 1001, "2001-01-02")], 0, "name", None, "longer"),
    ],
)
def test_bad_rows(
    rows: list[tuple[str, str]], row: int, column: str, other: int | None, words: str
) -> None:
    with pytest.raises(IdentifierError, match=words) as caught:
        tokens_of(table(*rows), ON, RULES, iso, KEY)
    assert (caught.value.row, caught.value.column, caught.value.other) == (row, column, other)
    for cell in rows[row]:
        assert not cell.strip() or cell not in str(caught.value)


def test_one_name_with_two_dates_is_two_people() -> None:
    rows = table(("Ann", "2001-01-02"), ("Ann", "2001-01-03"))
    assert len(np.unique(tokens_of(rows, ON, RULES, iso, KEY), axis=0)) == 2
