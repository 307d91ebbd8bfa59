"""Numbers and words in files: exactly what is written, or refused by name."""

import tomllib
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpc_train.base.strict_toml import MAX_DIGITS, canonical_decimal, quoted
from mpc_train.errors import JobError
from mpc_train.tables.schema import load_schema

LONG = "12345678901234567890123456789.12345678901234567890"


@given(st.from_regex(r"[+-]?[0-9]{1,21}(\.[0-9]{1,21})?(e[+-]?[0-9])?", fullmatch=True))
def test_a_number_stays_exactly_what_is_written(text: str) -> None:
    found = canonical_decimal(Decimal(text))
    assert Fraction(found) == Fraction(Decimal(text))
    assert canonical_decimal(Decimal(text + ("0" if "." in text and "e" not in text else ""))) == (
        found
    )


def test_more_digits_than_can_be_meant_are_refused() -> None:
    assert str(canonical_decimal(Decimal("1" * 30 + "." + "1" * 30))).count("1") == MAX_DIGITS
    with pytest.raises(ValueError, match="at most 60 digits"):
        canonical_decimal(Decimal("1." + "1" * 60))
    for text in ("nan", "inf", "1e31", "1e-31"):
        with pytest.raises(ValueError, match=r"finite|lie between"):
            canonical_decimal(Decimal(text))


def test_a_range_of_fifty_digits(tmp_path: Path) -> None:
    path = tmp_path / "schema.toml"
    text = '[[columns]]\nname = "x"\nkind = "number"\nrange = [0, {end}]\n'
    ends = []
    for last in "01":
        path.write_text(text.format(end=LONG + last))
        ends.append(load_schema(path))
    assert ends[0]["x"].range == (Decimal(0), Decimal(LONG))
    assert ends[0].digest() != ends[1].digest()
    path.write_text(text.format(end=LONG * 2))
    with pytest.raises(JobError, match=r"schema\.toml"):
        load_schema(path)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(codec="utf-8")))
def test_words_are_read_back(one: str, other: str) -> None:
    text = f"a = {quoted([one, other])}\nb.{quoted(one)} = {quoted(other)}\n"
    assert tomllib.loads(text) == {"a": [one, other], "b": {one: other}}
