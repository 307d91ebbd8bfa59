"""Checkpoints: read by a small reader of its own, as C2SP describes them; forged ones are none."""

import base64
from dataclasses import replace
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from parties.audit.checkpoint import (
    MAX_CHECKPOINT_BYTES,
    cosign,
    origin_of,
    read_checkpoint,
    sign_checkpoint,
    verify_checkpoint,
    verify_cosignature,
)
from parties.audit.note import read_note
from parties.errors import AuditTamperedError
from parties.keys.identity import Card
from parties.keys.vault import MemoryVault

ANN, BOB, WITNESS = (MemoryVault.generate(name) for name in ("ann", "bob", "witness"))
ROOT = sha256(b"root").digest()
NOTE = sign_checkpoint(ANN, 20852163, ROOT)


def independent(note: bytes, name: str, ed25519: bytes) -> tuple[str, int, bytes]:
    """signed-note.md and tlog-checkpoint.md, sections Format, Signatures and Note text: origin,
    size and root of a note with a valid Ed25519 signature of this key."""
    text, _, signatures = note.decode("utf-8").rpartition("\n\n")
    text += "\n"
    key_id = sha256(name.encode() + b"\x0a" + b"\x01" + ed25519).digest()[:4]
    valid = 0
    for line in signatures.splitlines():
        dash, signer, encoded = line.split(" ")
        assert dash == "\u2014"
        raw = base64.b64decode(encoded)
        if signer == name and raw[:4] == key_id:
            Ed25519PublicKey.from_public_bytes(ed25519).verify(raw[4:], text.encode())
            valid += 1
    assert valid == 1
    origin, size, root = text.split("\n")[:3]
    assert str(int(size)) == size
    return origin, int(size), base64.b64decode(root)


def test_another_reader_reads_it() -> None:
    card = ANN.card
    origin = origin_of(card)
    assert independent(NOTE, origin, card.ed25519) == (origin, 20852163, ROOT)
    assert " " not in origin and "+" not in origin


def test_the_published_example_of_a_note_is_read() -> None:
    """From signed-note.md; its key is not there."""
    text = (
        "Ognuno sta solo sul cuor della terra\ntrafitto da un raggio di sole:\n\n"
        "ed è subito sera.\n\n— quasimodo.example/salvatore NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ"
        "2i5ddnGITLlC+EhfLW9oJKONrMouFSQU0xMcXxj99ihAQwaqP3ZekRwNtIc=\n"
    )
    note = read_note(text.encode())
    assert note.text.endswith("è subito sera.\n") and note.to_bytes() == text.encode()
    assert [(line.name, len(line.signature)) for line in note.lines] == [
        ("quasimodo.example/salvatore", 64)
    ]


def test_the_published_example_of_a_checkpoint_has_the_form() -> None:
    """From tlog-cosignature.md, but for the origin, which is not one of a log of ours."""
    text = (
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
        "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u"
        "5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    )
    assert read_note(text.encode()).to_bytes() == text.encode()
    with pytest.raises(AuditTamperedError, match="the origin of a log is malformed"):
        read_checkpoint(text.encode())


def test_it_verifies_against_the_card_and_no_other() -> None:
    found = verify_checkpoint(NOTE, ANN.card)
    assert (found.node, found.size, found.root) == ("ann", 20852163, ROOT)
    assert len(NOTE) < MAX_CHECKPOINT_BYTES
    with pytest.raises(AuditTamperedError, match="is the card the right one"):
        verify_checkpoint(NOTE, BOB.card)


def test_both_signatures_are_needed() -> None:
    note = read_note(NOTE)
    for kept in (0, 1):
        half = replace(note, lines=(note.lines[kept],)).to_bytes()
        with pytest.raises(AuditTamperedError, match="0 signatures of one kind"):
            verify_checkpoint(half, ANN.card)
    twice = replace(note, lines=note.lines + note.lines).to_bytes()
    with pytest.raises(AuditTamperedError, match="2 signatures of one kind"):
        verify_checkpoint(twice, ANN.card)


def test_no_bit_can_be_changed() -> None:
    """Text and Ed25519 line: each bit; the ML-DSA-65 line: some bytes of it."""
    first = NOTE.index(b"\n\xe2\x80\x94", NOTE.index(b"\n\xe2\x80\x94") + 1)
    places = [*range(first), *range(first, len(NOTE), 97), len(NOTE) - 2, len(NOTE) - 1]
    for place in places:
        for bit in (0, 1, 5):
            raw = bytearray(NOTE)
            raw[place] ^= 1 << bit
            with pytest.raises(AuditTamperedError):
                verify_checkpoint(bytes(raw), ANN.card)


def test_a_forged_checkpoint_is_none() -> None:
    forged = sign_checkpoint(BOB, 20852163, ROOT).decode()
    forged = forged.replace(origin_of(BOB.card), origin_of(ANN.card))
    with pytest.raises(AuditTamperedError, match="0 signatures of one kind"):
        verify_checkpoint(forged.encode(), ANN.card)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text",
        "text\n\n",
        "a\n1\n\n— x y\n",
        "a\n\n— x AAAA\n",
        "a\n\n— x+y AAAAAAAA\n",
        "a\n\n— x\u2003y AAAAAAAA\n",
        "a\x01\n\n— x AAAAAAAA\n",
        "a\r\n\n— x AAAAAAAA\n",
        "a\n\n- x AAAAAAAA\n",
        "a\n\n— x AAAAAAB=\n",
        "a\n\n— x AAAAAAAA",
        "a\n\n" + "— x AAAAAAAA\n" * 65,
    ],
)
def test_what_is_not_a_note_is_refused(text: str) -> None:
    with pytest.raises(AuditTamperedError):
        read_note(text.encode())


def test_sixteen_signatures_are_accepted() -> None:
    note = read_note(("a\n\n" + "— x AAAAAAAA\n" * 16).encode())
    assert len(note.lines) == 16


@pytest.mark.parametrize("size", ["", "01", "-1", "1 ", "1.0", "²", str(1 << 62), "9" * 5000])
def test_a_size_has_one_spelling(size: str) -> None:
    origin = origin_of(ANN.card)
    root = base64.b64encode(ROOT).decode()
    text = f"{origin}\n{size}\n{root}\n\n— x AAAAAAAA\n"
    with pytest.raises(AuditTamperedError):
        read_checkpoint(text.encode())


def test_a_witness_adds_its_signatures() -> None:
    moment = 1_700_000_000
    note = cosign(NOTE, WITNESS, moment)
    found = verify_checkpoint(note, ANN.card)
    assert verify_cosignature(found, WITNESS.card) == moment
    with pytest.raises(AuditTamperedError, match="the witness bob: 0 signatures"):
        verify_cosignature(found, BOB.card)
    # As tlog-cosignature.md has it.
    card = WITNESS.card
    key_id = sha256(b"witness\n\x04" + card.ed25519).digest()[:4]
    (line,) = [each for each in read_note(note).lines if each.key_id == key_id]
    assert int.from_bytes(line.signature[:8], "big") == moment
    message = f"cosignature/v1\ntime {moment}\n{found.note.text}".encode()
    Ed25519PublicKey.from_public_bytes(card.ed25519).verify(line.signature[8:], message)
    again = cosign(note, WITNESS, moment + 9)
    assert verify_cosignature(read_checkpoint(again), card) == moment + 9
    assert len(read_note(again).lines) == len(read_note(note).lines) == 4


def test_the_time_of_a_cosignature_is_signed() -> None:
    note = read_note(cosign(NOTE, WITNESS, 1_700_000_000))
    lines = tuple(
        replace(line, signature=bytes(8) + line.signature[8:]) if line.name == "witness" else line
        for line in note.lines
    )
    with pytest.raises(AuditTamperedError, match="the witness witness"):
        verify_cosignature(read_checkpoint(replace(note, lines=lines).to_bytes()), WITNESS.card)


def test_the_line_of_ml_dsa_signs_the_text_as_it_is() -> None:
    card: Card = ANN.card
    origin = origin_of(card)
    kind = b"\xffmpc-train/ML-DSA-65"
    key_id = sha256(origin.encode() + b"\n" + kind + card.mldsa65).digest()[:4]
    note = read_note(NOTE)
    (line,) = [each for each in note.lines if each.key_id == key_id]
    MLDSA65PublicKey.from_public_bytes(card.mldsa65).verify(line.signature, note.text.encode())


def test_no_text_passes_for_what_an_identity_signs_elsewhere() -> None:
    """All else begins with the length of a field, whose first byte is 0."""
    with pytest.raises(ValueError, match="printable"):
        ANN.sign_text(b"\x00\x00\x00\x27mpc-train/signature/1")
    with pytest.raises(ValueError, match="printable"):
        ANN.sign_text(b"")
