"""Identities and cards: what is signed, what is refused, what is never shown."""

import base64
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parties.errors import CardError, IdentityError
from parties.keys.identity import PRIVATE_BYTES, Card, IdentityKeys, check_name

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "channel.json").read_text())
KEYS = IdentityKeys(bytes(range(192)))
OTHER = IdentityKeys(bytes(reversed(range(192))))
WHEN = datetime(2025, 1, 31, 12, tzinfo=UTC)
CARD = KEYS.card("hospital-a", WHEN)
FIELDS = [
    *("name", "sequence", "issued", "expires", "origin"),
    *("ed25519", "mldsa65", "recipient", "curve", "signature"),
]


def test_a_card_survives_its_text() -> None:
    assert Card.from_text(CARD.to_text()) == CARD
    assert KEYS.matches(CARD) and not OTHER.matches(CARD)


def test_reformatting_does_no_harm() -> None:
    text = CARD.to_text().replace("\n", "\r\n\r\n").replace(" = ", "=")
    assert Card.from_text(text).digest == CARD.digest


def test_the_pinned_card_verifies_and_keeps_its_digest() -> None:
    vector = VECTORS["card"]
    card = Card.from_text(vector["text"])
    assert card.digest.hex() == vector["digest"] == CARD.digest.hex()
    assert card.signing_public == KEYS.signing.public and card.recipient == KEYS.recipient.public
    card.verifier().verify("p", b"m", KEYS.signing.sign("p", b"m"))


def test_fingerprints_are_for_people() -> None:
    assert re.fullmatch(r"([0-9a-f]{4}-){15}[0-9a-f]{4}", CARD.fingerprint)
    assert f"# fingerprint {CARD.fingerprint}" in CARD.to_text()
    assert CARD.fingerprint != OTHER.card("hospital-a", WHEN).fingerprint
    assert CARD.fingerprint != KEYS.card("hospital-b", WHEN).fingerprint


def test_curve_keys_are_those_of_zmq() -> None:
    zmq, z85 = pytest.importorskip("zmq"), pytest.importorskip("zmq.utils.z85")
    assert z85.decode(zmq.curve_public(z85.encode(KEYS.curve_secret))) == KEYS.curve_public


@pytest.mark.parametrize("field", FIELDS)
def test_every_altered_field_is_refused(field: str) -> None:
    value = getattr(CARD, field)
    if field == "name":
        changed = replace(CARD, name="hospital-b")
    elif field == "sequence":
        changed = replace(CARD, sequence=1)
    elif field == "issued":
        changed = replace(CARD, issued="2025-01-31T12:00:01Z")
    elif field == "expires":
        changed = replace(CARD, expires="2027-02-01T12:00:00Z")
    else:
        for position in (0, len(value) // 2, len(value) - 1):
            data = bytearray(value)
            data[position] ^= 1
            changed = replace(CARD, **{field: bytes(data)})  # type: ignore[arg-type]
            with pytest.raises(CardError, match="somewhere"):
                Card.from_text(changed.to_text(), "somewhere")
        changed = replace(CARD, **{field: getattr(OTHER.card("hospital-a", WHEN), field)})
    with pytest.raises(CardError, match="somewhere"):
        Card.from_text(changed.to_text(), "somewhere")


def test_a_file_that_is_no_card_is_called_that() -> None:
    with pytest.raises(CardError, match=r"party\.toml: not a card; .*identity card"):
        Card.from_text('[node]\nname = "ann"\n', "party.toml")


@pytest.mark.parametrize("field", ["version", *FIELDS])
def test_missing_repeated_and_mistyped_keys_are_named(field: str) -> None:
    lines = CARD.to_text().splitlines()
    index = next(i for i, line in enumerate(lines) if line.startswith(f"{field} ="))
    without = "\n".join(lines[:index] + lines[index + 1 :])
    with pytest.raises(CardError, match=f"{field} is missing"):
        Card.from_text(without)
    with pytest.raises(CardError, match="not a card"):
        Card.from_text("\n".join([*lines, lines[index]]))
    for value in ("1.0", "true", "[]", "2025-01-31"):
        with pytest.raises(CardError):
            Card.from_text(f"{without}\n{field} = {value}")
    with pytest.raises(CardError, match="'extra' is unknown"):
        Card.from_text(CARD.to_text() + "extra = 1\n")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", "1"),
        ("version", "2"),
        ("recipient_kind", '"rot13"'),
        ("recipient_kind", '"p384"'),
        ("name", '"../x"'),
        ("sequence", "-1"),
        ("sequence", "true"),
        ("sequence", "4294967296"),
        ("issued", '"yesterday"'),
        ("issued", '"2025-02-30T12:00:00Z"'),
        ("expires", '"2025-01-31T12:00:00Z"'),
        ("expires", '"2031-01-31T12:00:00Z"'),
        ("ed25519", '"!!!!"'),
        ("ed25519", f'"{base64.b64encode(bytes(31)).decode()}"'),
    ],
)
def test_bad_values_are_named(field: str, value: str) -> None:
    text = re.sub(rf"(?m)^{field} = .*$", f"{field} = {value}", CARD.to_text())
    with pytest.raises(CardError):
        Card.from_text(text)


def test_base64_has_one_spelling() -> None:
    text = base64.b64encode(CARD.curve).decode()
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = text[:-2] + digits[digits.index(text[-2]) ^ 1] + "="
    assert base64.b64decode(other) == CARD.curve
    with pytest.raises(CardError, match="curve is not canonical base64"):
        Card.from_text(CARD.to_text().replace(text, other))


def test_a_card_with_an_unusable_recipient_key_is_refused() -> None:
    unsigned = replace(CARD, recipient=CARD.recipient[:-32] + bytes(32))
    signed = replace(unsigned, signature=KEYS.signing.sign("card/3", unsigned.canonical))
    with pytest.raises(CardError, match="hybrid public key"):
        Card.from_text(signed.to_text())


def test_a_card_signed_for_another_purpose_is_refused() -> None:
    signature = KEYS.signing.sign("contract", CARD.canonical)
    with pytest.raises(CardError, match="does not verify"):
        Card.from_text(replace(CARD, signature=signature).to_text())


@given(st.text(max_size=200))
@settings(max_examples=80)
def test_arbitrary_text_causes_only_our_error(text: str) -> None:
    with pytest.raises(CardError):
        Card.from_text(text)


@pytest.mark.parametrize(
    "text",
    ["x = " + "[" * 20000, "version = " + "1" * 10000, "x = 2025-99-99", "\0", "a" * 70000],
)
def test_hostile_text_causes_only_our_error(text: str) -> None:
    with pytest.raises(CardError):
        Card.from_text(text)


def test_card_files_are_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.card"
    with pytest.raises(CardError, match=r"a\.card: cannot be read as a card: No such file"):
        Card.load(path)
    for content in (b"\xff\xfe", bytes(70000), b"", b"version = 3"):
        path.write_bytes(content)
        with pytest.raises(CardError, match=r"a\.card"):
            Card.load(path)
    path.write_text(CARD.to_text())
    assert Card.load(path) == CARD


@pytest.mark.parametrize("name", ["a", "hospital-a", "0", "a" * 63])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "a/b", "..", "a\n", "a" * 64, "ä", "a b"])
def test_bad_names(name: str) -> None:
    with pytest.raises(IdentityError):
        check_name(name)
    with pytest.raises(IdentityError):
        KEYS.card(name)


def test_nothing_secret_is_shown() -> None:
    shown = repr(KEYS) + repr(CARD) + repr(KEYS.signing) + repr(KEYS.recipient) + CARD.to_text()
    private = KEYS.private_bytes()
    for secret in (private, private[:32], private[32:64], private[64:160], KEYS.curve_secret):
        assert secret.hex() not in shown and repr(secret) not in shown
        assert base64.b64encode(secret).decode() not in shown
    with pytest.raises(IdentityError, match="not the private bytes of an identity"):
        IdentityKeys(private[:-1])
    assert len(private) == PRIVATE_BYTES
