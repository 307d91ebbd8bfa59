"""Successions and revocations: who may say what about an identity, and what of it is believed."""

import base64
import json
import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from parties.errors import CardError, ExpiredError, RevokedError, RosterError
from parties.keys import lifetime
from parties.keys.identity import IdentityKeys
from parties.keys.roster import Roster
from parties.keys.statements import Revocation, Succession, check_chain, usable_now
from parties.keys.vault import MemoryVault
from protocols.errors import AuthenticationError

WHEN = datetime(2025, 1, 31, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def vault(name: str, seed: int, days: int = 100) -> MemoryVault:
    keys = IdentityKeys(bytes([seed]) * 192)
    return MemoryVault(keys, keys.card(name, WHEN, days))


ANN, BOB = vault("ann", 1), vault("bob", 2)
SECOND = ANN.successor(100, issued=WHEN + DAY)
THIRD = SECOND.successor(100, issued=WHEN + 2 * DAY)
RIVAL = ANN.successor(100, issued=WHEN + DAY)
CHAIN = THIRD.successions
ROSTER = Roster.of([ANN.card, BOB.card])
NOW = WHEN + 3 * DAY


def test_a_succession_survives_its_text_and_names_both_cards() -> None:
    one = CHAIN[0]
    assert Succession.from_text(one.to_text()) == one
    assert (one.old, one.new) == (ANN.card, SECOND.card)
    assert (one.new.sequence, one.new.origin) == (1, ANN.card.origin)
    assert ANN.card.fingerprint in one.to_text() and SECOND.card.fingerprint in one.to_text()
    assert len(one.to_text()) < 40_000


def test_all_keys_change_but_that_of_the_connections() -> None:
    old, new = ANN.card, SECOND.card
    for key in ("ed25519", "mldsa65", "recipient"):
        assert getattr(old, key) != getattr(new, key)
    assert old.curve == new.curve
    other = ANN.successor(issued=WHEN + DAY, new_connection_key=True)
    assert other.card.curve != old.curve
    assert ROSTER.follow(other.successions, NOW).card("ann") == other.card


@pytest.mark.parametrize("field", ["old_signature", "new_signature"])
def test_both_holders_must_have_signed(field: str) -> None:
    one = CHAIN[0]
    signature = bytearray(getattr(one, field))
    for position in (0, 63, 64, len(signature) - 1):
        changed = bytearray(signature)
        changed[position] ^= 1
        forged = replace(one, **{field: bytes(changed)})  # type: ignore[arg-type]
        with pytest.raises(CardError, match="does not verify"):
            Succession.from_text(forged.to_text())


def test_nobody_else_makes_a_successor() -> None:
    """Cross-signed: by another organisation, by the new keys alone, by the old keys alone."""
    card = SECOND.card
    for old, new in ((BOB, SECOND), (SECOND, SECOND), (ANN, ANN), (ANN, BOB)):
        message_of = Succession(ANN.card, card, b"", b"")
        signatures = [signer.sign("succession/1", _message(message_of)) for signer in (old, new)]
        forged = Succession(ANN.card, card, *signatures)
        with pytest.raises(CardError, match="does not verify"):
            forged.verify("here")


def _message(one: Succession) -> bytes:
    from parties.keys.statements import _succession

    return _succession(one.old, one.new)


def test_a_successor_has_the_same_name_line_and_the_next_number() -> None:
    other = IdentityKeys(b"\x07" * 192)
    skipped = replace(ANN.card, sequence=1)
    wrong = [
        other.card("bob", WHEN + DAY, after=ANN.card),
        other.card("ann", WHEN + DAY),
        other.card("ann", WHEN + DAY, after=BOB.card),
        other.card("ann", WHEN + DAY, after=skipped),
    ]
    for card in wrong:
        with pytest.raises(CardError, match="does not follow card 0 of ann"):
            Succession.sign(ANN, card, other.signing)


def test_a_successor_shares_no_key_and_was_issued_in_its_predecessor_s_time() -> None:
    private = bytearray(IdentityKeys(b"\x07" * 192).private_bytes())
    private[64:160] = IdentityKeys(b"\x01" * 192).private_bytes()[64:160]
    keys = IdentityKeys(bytes(private))
    with pytest.raises(CardError, match="has a key of its predecessor"):
        Succession.sign(ANN, keys.card("ann", WHEN + DAY, after=ANN.card), keys.signing)
    for moment in (WHEN + 100 * DAY, WHEN - DAY):
        with pytest.raises(CardError, match="was not valid"):
            ANN.successor(issued=moment)


def test_a_roster_follows_one_succession_or_several() -> None:
    followed = ROSTER.follow(CHAIN, NOW)
    assert followed.card("ann") == THIRD.card
    assert followed.line("ann") == (THIRD.card, SECOND.card, ANN.card)
    assert ROSTER.follow(CHAIN[:1], NOW).follow(CHAIN, NOW) == followed
    assert ROSTER.follow(CHAIN[:1], NOW).follow(CHAIN[1:], NOW) == followed
    assert followed.digest() != ROSTER.digest()
    assert ROSTER.follow((), NOW) is ROSTER


def test_older_successions_change_nothing() -> None:
    followed = ROSTER.follow(CHAIN, NOW)
    for replayed in (CHAIN, CHAIN[:1]):
        assert followed.follow(replayed, NOW) is followed
    with pytest.raises(RevokedError, match="an old card of ann"):
        followed.add(ANN.card, replace=True)


def test_reordered_successions_are_refused() -> None:
    with pytest.raises(CardError, match="do not follow each other"):
        ROSTER.follow(CHAIN[::-1], NOW)
    with pytest.raises(CardError, match="do not follow each other"):
        check_chain((CHAIN[0], CHAIN[0]), "here")
    with pytest.raises(RosterError, match="do not contain"):
        ROSTER.follow(CHAIN[1:], NOW)


def test_of_two_successors_of_one_card_the_second_is_refused() -> None:
    followed = ROSTER.follow(CHAIN[:1], NOW)
    with pytest.raises(RosterError, match="compare fingerprints"):
        followed.follow(RIVAL.successions, NOW)
    assert followed.card("ann") == SECOND.card


def test_a_key_that_has_expired_signs_nothing_any_more() -> None:
    late = WHEN + 100 * DAY + lifetime.SKEW
    usable_now(CHAIN[0], late - timedelta(seconds=1))
    with pytest.raises(ExpiredError, match=r"card that is not valid.*--replace"):
        ROSTER.follow(CHAIN, late)
    assert ROSTER.card("ann") == ANN.card


def test_a_revoked_key_signs_no_successor() -> None:
    revoked = ROSTER.revoke(ANN.card, NOW)
    with pytest.raises(RevokedError, match=r"card of ann .* was revoked"):
        revoked.follow(CHAIN, NOW)
    for card in (SECOND.card, THIRD.card):
        with pytest.raises(RevokedError):
            ROSTER.revoke(card, NOW).follow(CHAIN, NOW)


def test_the_owner_revokes_and_nobody_else() -> None:
    statement = Revocation.sign(ANN, NOW)
    assert Revocation.from_text(statement.to_text()) == statement
    revoked = ROSTER.revoke_by(statement, NOW)
    assert "ann" not in revoked and "bob" in revoked
    assert [(gone.name, gone.by) for gone in revoked.revoked] == [("ann", "owner")]
    signature = BOB.sign("revocation/1", b"anything")
    for forged in (replace(statement, card=BOB.card), replace(statement, signature=signature)):
        with pytest.raises(CardError, match="did not sign it"):
            Revocation.from_text(forged.to_text())
        with pytest.raises(CardError):
            ROSTER.revoke_by(forged, NOW)
    with pytest.raises(CardError, match="did not sign it"):
        Revocation.from_text(replace(statement, made="2025-02-03T12:00:01Z").to_text())


def test_a_revoked_card_comes_back_by_no_way() -> None:
    revoked = ROSTER.revoke(ANN.card, NOW)
    with pytest.raises(RevokedError, match="was revoked on 2025-02-03T12:00:00Z"):
        revoked.add(ANN.card, replace=True)
    with pytest.raises(RevokedError):
        revoked.card("ann")
    with pytest.raises(RevokedError):
        revoked.subset(["ann", "bob"])
    again = vault("ann", 9).card
    assert revoked.add(again).card("ann") == again


def test_signatures_of_a_revoked_card_no_longer_count() -> None:
    followed = ROSTER.follow(CHAIN, NOW).revoke(SECOND.card, NOW)
    assert followed.card("ann") == THIRD.card
    assert followed.line("ann") == (THIRD.card, ANN.card)


def test_an_independent_reader_verifies_the_pinned_statements() -> None:
    """From the description in `parties/README.md`, with nothing of ours but that."""
    pinned = json.loads((Path(__file__).parents[2] / "vectors" / "channel.json").read_text())
    vector = pinned["statements"]
    succession = tomllib.loads(vector["succession"])
    old, new = succession["old"], succession["new"]
    for card, digest in ((old, vector["old"]), (new, vector["new"])):
        assert sha256(canonical_card(card)).hexdigest() == digest
        check(card, "card/3", canonical_card(card), card["signature"])
    assert old["origin"] == new["origin"] and new["sequence"] == 1
    message = fields(
        b"mpc-train/succession",
        (1).to_bytes(4, "big"),
        b"hospital-a",
        bytes.fromhex(vector["old"]),
        bytes.fromhex(vector["new"]),
        (1).to_bytes(4, "big"),
    )
    check(old, "succession/1", message, succession["old_signature"])
    check(new, "succession/1", message, succession["new_signature"])
    assert Succession.from_text(vector["succession"]).new.sequence == 1

    revocation = tomllib.loads(vector["revocation"])
    message = fields(
        b"mpc-train/revocation",
        (1).to_bytes(4, "big"),
        b"hospital-a",
        bytes.fromhex(vector["old"]),
        revocation["made"].encode(),
    )
    check(revocation["card"], "revocation/1", message, revocation["signature"])
    assert Revocation.from_text(vector["revocation"]).made == revocation["made"]


def fields(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def canonical_card(card: dict[str, Any]) -> bytes:
    keys = ("ed25519", "mldsa65", "recipient", "curve")
    ed25519, mldsa65, recipient, curve = (base64.b64decode(card[key]) for key in keys)
    return fields(
        b"mpc-train/card",
        (3).to_bytes(4, "big"),
        card["name"].encode(),
        card["sequence"].to_bytes(4, "big"),
        card["issued"].encode(),
        card["expires"].encode(),
        base64.b64decode(card["origin"]),
        ed25519,
        mldsa65,
        card["recipient_kind"].encode(),
        recipient,
        curve,
    )


def check(card: dict[str, Any], purpose: str, message: bytes, signature: str) -> None:
    """Raises unless both signatures hold."""
    prefix = b"mpc-train/signature/1/Ed25519+ML-DSA-65"
    signed = fields(prefix, purpose.encode(), message)
    pair = base64.b64decode(signature)
    ed25519 = Ed25519PublicKey.from_public_bytes(base64.b64decode(card["ed25519"]))
    ed25519.verify(pair[:64], signed)
    mldsa65 = MLDSA65PublicKey.from_public_bytes(base64.b64decode(card["mldsa65"]))
    mldsa65.verify(pair[64:], signed)


@given(st.text(max_size=200))
@settings(max_examples=40)
def test_arbitrary_text_causes_only_our_error(text: str) -> None:
    for kind in (Succession, Revocation):
        with pytest.raises(CardError):
            kind.from_text(text)


@pytest.mark.parametrize("kind", ["succession", "revocation"])
def test_missing_unknown_and_mistyped_keys_are_named(kind: str) -> None:
    parse = Succession.from_text if kind == "succession" else Revocation.from_text
    text = (CHAIN[0] if kind == "succession" else Revocation.sign(ANN, NOW)).to_text()
    with pytest.raises(CardError, match="'extra' is unknown"):
        parse("extra = 1\n" + text)
    with pytest.raises(CardError, match="version is missing"):
        parse(text.replace("version = 1\n", "", 1))
    with pytest.raises(CardError, match="version 2"):
        parse(text.replace("version = 1\n", "version = 2\n", 1))
    with pytest.raises(CardError, match="another type"):
        parse(text.replace("version = 1\n", 'version = "1"\n', 1))
    for short in ("signature", "new_signature"):
        if f"\n{short} = " in text:
            start = text.index(f"\n{short} = ")
            end = text.index("\n", start + 1)
            with pytest.raises(CardError, match="has 3 bytes"):
                parse(f'{text[:start]}\n{short} = "AAAA"{text[end:]}')


def test_results_are_verified_with_any_card_of_the_line_that_was_not_revoked() -> None:
    followed = ROSTER.follow(CHAIN, NOW)
    signers = followed.signers()
    assert signers["ann"].recipient_key == THIRD.card.recipient_key and signers["ann"].name == "ann"
    for one in (ANN, SECOND, THIRD):
        signers["ann"].verifier().verify("result", b"m", one.sign("result", b"m"))
    for stranger in (BOB, RIVAL):
        with pytest.raises(AuthenticationError):
            signers["ann"].verifier().verify("result", b"m", stranger.sign("result", b"m"))
    with pytest.raises(AuthenticationError):
        signers["ann"].verifier().verify("other", b"m", SECOND.sign("result", b"m"))
    revoked = followed.revoke(SECOND.card, NOW).signers()["ann"].verifier()
    revoked.verify("result", b"m", ANN.sign("result", b"m"))
    with pytest.raises(AuthenticationError):
        revoked.verify("result", b"m", SECOND.sign("result", b"m"))
    # A signature for now is checked with the present card alone.
    with pytest.raises(AuthenticationError):
        followed.card("ann").verifier().verify("result", b"m", ANN.sign("result", b"m"))


def test_a_card_of_the_past_opens_with_its_own_key() -> None:
    followed = ROSTER.follow(CHAIN, NOW)
    past = followed.signer(followed.line("ann")[2])
    assert past.recipient_key == ANN.card.recipient_key
    past.verifier().verify("result", b"m", THIRD.sign("result", b"m"))
