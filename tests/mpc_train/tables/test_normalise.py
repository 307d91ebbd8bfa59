"""One spelling for what is meant to be the same, and another for what is not."""

import random
import unicodedata
from itertools import combinations
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpc_train.tables import normalise
from mpc_train.tables.dates import DateForm
from mpc_train.tables.normalise import MAX_CHARACTERS, Rule, normalised, normaliser, said

ALL: tuple[Rule, ...] = ("case", "accents", "spaces")
MORE: tuple[Rule, ...] = (*ALL, "punctuation", "transcription", "digits", "leading_zeros")
CHOICES = [rules for count in range(len(MORE) + 1) for rules in combinations(MORE, count)]
SOME = st.sampled_from(CHOICES)
BLANKS = (
    " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2000\u2009\u2028\u2029\u202f\u205f\u3000\u200b\ufeff\x00"
    "\u115f\u1160\u2800\u3164\uffa0"
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ISO = DateForm()


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
        (("spaces",), "A\u3164B\u2800C", "ABC"),
        (("spaces",), "12 34 56", "123456"),
        (("case", "accents", "spaces"), "DE LA CRUZ, María José", "dela cruz,mariajose"),
        ((), " 1026", "1026"),
        ((), "\ufeff1026\u3000", "1026"),
        (("case",), "\xa0MÜLLER\t", "müller"),
        (("spaces",), " A  B ", "AB"),
        (("punctuation",), "O'Brien", "O’Brien"),
        (("punctuation",), "O´Brien", "OBrien"),
        (("punctuation", "accents"), "O´Brien", "Oʼ`Brien"),
        (("punctuation",), "12-34/56.7", "1234567"),
        (("transcription",), "Müller", "Mueller"),
        (("transcription",), "Mu\u0308ller", "Mueller"),
        (("transcription",), "MÜLLER", "MUELLER"),
        (("transcription",), "Ährenfeld Ö", "Aehrenfeld Oe"),
        (("transcription",), "TRÜ", "TRUE"),
        (("transcription",), "Weißgerber STRAẞE", "Weissgerber STRASSE"),
        (("transcription",), "Åse Sørensen Æbelø", "Aase Soerensen Aebeloe"),
        (("transcription",), "Þor Œuvre Ĳssel", "Thor Oeuvre Ijssel"),
        (("transcription", "case"), "GRÖẞE", "groesse"),
        (("transcription", "accents"), "Jürgen Désirée", "Juergen Desiree"),
        (("digits",), "A 12-34 5", "12345"),
        (("digits",), "١٢٣", "123"),
        (("leading_zeros",), " 000712", "712"),
        (("leading_zeros",), "000", "0"),
        (("digits", "leading_zeros"), "Nr. 00-0712", "712"),
        (("leading_zeros", "spaces"), "00 12", "12"),
    ],
)
def test_meant_to_be_the_same(rules: tuple[Rule, ...], one: str, other: str) -> None:
    assert normalised(one, rules) == normalised(other, rules)


@pytest.mark.parametrize("text", ["0", "000", " 00 ", "\u200b0\u200b0"])
def test_a_number_of_zeros_alone_is_not_empty(text: str) -> None:
    """Where nothing is left, "0" and "000" would be the same as well, and identify nobody."""
    assert normalised(text, ("leading_zeros",)) == "0"


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
        ((), "A  B", "A B"),
        (("transcription",), "Müller", "Muller"),
        (("accents",), "Müller", "Mueller"),
        (("transcription",), "André", "Andre"),
        (("punctuation",), "A B", "AB"),
        (("punctuation", "leading_zeros"), "A1", "1"),
        (("leading_zeros",), "1000", "1"),
        (("leading_zeros",), "A007", "A7"),
        (("digits",), "0123", "123"),
    ],
)
def test_meant_to_differ(rules: tuple[Rule, ...], one: str, other: str) -> None:
    assert normalised(one, rules) != normalised(other, rules)


@given(text=TEXT, rules=SOME)
@settings(max_examples=1500, deadline=None)
def test_twice_is_once(text: str, rules: tuple[Rule, ...]) -> None:
    once = normalised(text, rules)
    assert normalised(once, rules) == once


@given(text=TEXT, rules=SOME, order=st.randoms())
@settings(max_examples=500, deadline=None)
def test_encoding_ends_and_the_order_of_rules_say_nothing(
    text: str, rules: tuple[Rule, ...], order: random.Random
) -> None:
    found = normalised(text, rules)
    for variant in (unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)):
        assert normalised(variant, rules) == found
    ends = ["".join(order.choices(BLANKS, k=3)) for _ in range(2)]
    assert normalised(f"{ends[0]}{text.strip(BLANKS)}{ends[1]}", rules) == normalised(
        text.strip(BLANKS), rules
    )
    assert normalised(text, order.sample(rules, len(rules))) == found


@given(text=TEXT)
@settings(max_examples=200, deadline=None)
def test_what_each_rule_promises(text: str) -> None:
    for variant in (unicodedata.normalize("NFKC", text), unicodedata.normalize("NFKD", text)):
        assert normalised(variant, ALL) == normalised(text, ALL)
    assert not any(letter.isspace() for letter in normalised(text, ("spaces",)))
    marks = unicodedata.normalize("NFKD", normalised(text, ("accents",)))
    assert not any(unicodedata.category(letter) == "Mn" for letter in marks)
    assert normalised(text.casefold(), ("case",)) == normalised(text, ("case",))
    assert not any(
        unicodedata.category(letter)[0] in "PS" for letter in normalised(text, ("punctuation",))
    )
    assert set(normalised(text, ("digits",))) <= set("0123456789")
    assert not set(normalised(text, ("transcription",))) & set("äöüåæøœßþĳÄÖÜÅÆØŒẞÞĲ")
    bare = normalised(text, ("leading_zeros",))
    assert bare == "0" or not bare.startswith("0")


@given(text=st.text(st.characters(max_codepoint=127), max_size=12), rules=SOME)
@settings(max_examples=500, deadline=None)
def test_the_way_of_ascii_is_the_same(text: str, rules: tuple[Rule, ...]) -> None:
    """With a letter that no rule touches behind it, text takes the long way."""
    if "digits" in rules:
        assert normalised(text + "字", rules) == normalised(text, rules)
    else:
        spelt = normalised(f"x{text}x", rules)
        assert normalised(f"x{text}x字", rules) == f"{spelt}字"


def test_rules_in_words() -> None:
    assert said(("case", "accents", "spaces")) == "case, accents, spaces ignored"
    assert said(("date",)) == "a date"
    assert said(("transcription", "digits")) == "ü as ue, digits only"
    assert said(("punctuation", "leading_zeros")) == "punctuation, leading zeros ignored"
    assert all(said((rule,)) for rule in get_args(normalise.Rule))


def test_dates_in_each_node_s_own_form() -> None:
    iso, german = (normaliser(("date",), form) for form in (ISO, DateForm("%d.%m.%Y")))
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


@pytest.mark.parametrize(
    ("cell", "rules", "words"),
    [
        (" \u200b ", (), "the cell is empty"),
        ("\u3164\u2800", (), "the cell is empty"),
        ("\ufeff", ("digits",), "the cell is empty"),
        ("unknown", ("digits",), "nothing is left of it after the rules digits"),
        ("-/-", ("case", "punctuation"), "after the rules case, punctuation"),
    ],
)
def test_what_identifies_nobody_is_refused(cell: str, rules: tuple[Rule, ...], words: str) -> None:
    """Otherwise all of them would be one person."""
    with pytest.raises(ValueError, match=words) as caught:
        normaliser(rules, ISO)(cell)
    assert not cell.strip() or cell not in str(caught.value)
