"""One spelling for what is meant to be the same, and another for what is not."""

import unicodedata
from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpc_train.linkage.normalise import MAX_CHARACTERS, Rule, normalised, normaliser

ALL: tuple[Rule, ...] = ("case", "accents", "spaces")
CHOICES = list(chain.from_iterable(combinations(ALL, count) for count in range(4)))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ISO = "%Y-%m-%d"


@pytest.mark.parametrize(
    ("rules", "one", "other"),
    [
        ((), "José", "Jose\u0301"),
        (("case",), "MÜLLER", "müller"),
        (("case",), "Straße", "STRASSE"),
        (("case",), "ΣΊΣΥΦΟΣ", "σίσυφος"),
        (("accents",), "Ångström", "Angstrom"),
        (("accents",), "Søren Łukasz", "Soren Lukasz"),
        (("accents",), "ﬁne", "fine"),
        (("spaces",), " A\u00a0B\tC\u200b ", "ABC"),
        (("spaces",), "12 34 56", "123456"),
        (("case", "accents", "spaces"), "DE LA CRUZ, María José", "dela cruz,mariajose"),
    ],
)
def test_meant_to_be_the_same(rules: tuple[Rule, ...], one: str, other: str) -> None:
    assert normalised(one, rules) == normalised(other, rules)


@pytest.mark.parametrize(
    ("rules", "one", "other"),
    [
        ((), "Anna", "anna"),
        ((), "A B", "AB"),
        (("spaces", "accents"), "Anna", "anna"),
        (("case", "spaces"), "Müller", "Muller"),
        (("case", "accents"), "de la", "dela"),
        (ALL, "0123", "123"),
        (ALL, "anna-maria", "annamaria"),
    ],
)
def test_meant_to_differ(rules: tuple[Rule, ...], one: str, other: str) -> None:
    assert normalised(one, rules) != normalised(other, rules)


@pytest.mark.parametrize("rules", CHOICES)
@given(text=TEXT)
@settings(max_examples=60, deadline=None)
def test_twice_is_once(rules: tuple[Rule, ...], text: str) -> None:
    once = normalised(text, rules)
    assert normalised(once, rules) == once


@given(text=TEXT)
@settings(max_examples=200, deadline=None)
def test_what_each_rule_promises(text: str) -> None:
    assert normalised(text, ()) == unicodedata.normalize("NFC", text)
    for variant in (unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)):
        for rules in CHOICES:
            assert normalised(variant, rules) == normalised(text, rules)
    for variant in (unicodedata.normalize("NFKC", text), unicodedata.normalize("NFKD", text)):
        assert normalised(variant, ALL) == normalised(text, ALL)
    assert not any(letter.isspace() for letter in normalised(text, ("spaces",)))
    marks = unicodedata.normalize("NFKD", normalised(text, ("accents",)))
    assert not any(unicodedata.category(letter) == "Mn" for letter in marks)
    assert normalised(text.casefold(), ("case",)) == normalised(text, ("case",))


@given(text=st.text(st.characters(max_codepoint=127), max_size=12))
@settings(max_examples=200, deadline=None)
def test_the_way_of_ascii_is_the_same(text: str) -> None:
    """Beside a letter that no rule touches, text takes the long way."""
    for rules in CHOICES:
        assert normalised(text, rules) + "字" == normalised(text + "字", rules)


def test_dates_in_each_node_s_own_form() -> None:
    iso, german = (normaliser(("date",), form) for form in (ISO, "%d.%m.%Y"))
    assert iso("1984-03-07") == german(" 07.03.1984 ") == german("7.3.1984") == "1984-03-07"


@given(st.dates())
@settings(max_examples=100, deadline=None)
def test_dates_come_back(day: object) -> None:
    assert normaliser(("date",), ISO)(str(day)) == str(day)


@pytest.mark.parametrize("cell", ["", "07.03.1984", "1984-13-01", "1984-02-30", "1984-03-07 12:00"])
def test_other_forms_are_refused_without_the_cell(cell: str) -> None:
    with pytest.raises(ValueError, match="not a date in the form %Y-%m-%d") as caught:
        normaliser(("date",), ISO)(cell)
    assert not cell or cell not in str(caught.value)


def test_what_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than"):
        normaliser((), ISO)("x" * (MAX_CHARACTERS + 1))
