"""The pinned files of `vectors/trust.json`, read by an implementation of their descriptions.

It uses only `hashlib`, `hmac`, `struct`, `json`, `tomllib`, the plain interfaces of `cryptography`,
and polars for Arrow; msgpack is read by hand as far as the format needs it.
"""

import base64
import hashlib
import hmac
import io
import json
import struct
import tomllib
from itertools import combinations
from pathlib import Path
from typing import Any

import polars
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mpc_train.results.kept import KeptModel
from mpc_train.tables.readers.staged import StagedTable
from parties.agreement.result import Record
from parties.keys.roster import Roster
from tests.mpc_train.tables.test_staged import staged
from tests.protocols.sealing.test_recipient_keys import expand, open_hybrid

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "trust.json").read_text())
PRIME = 2**256 + 297


def fields(data: bytes) -> list[bytes]:
    """A list in the canonical form: each field after its length."""
    found = []
    while data:
        (length,) = struct.unpack(">I", data[:4])
        assert len(data) >= 4 + length
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return found


def joined(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def card(name: str) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads(VECTORS["cards"][name])
    return found


def verify(name: str, purpose: str, message: bytes, signature: bytes) -> None:
    """Both signatures of a card; raises InvalidSignature."""
    signed = joined(b"mpc-train/signature/1/Ed25519+ML-DSA-65", purpose.encode(), message)
    keys = [base64.b64decode(card(name)[key]) for key in ("ed25519", "mldsa65")]
    Ed25519PublicKey.from_public_bytes(keys[0]).verify(signature[:64], signed)
    MLDSA65PublicKey.from_public_bytes(keys[1]).verify(signature[64:], signed)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_the_record_of_a_run() -> None:
    data = bytes.fromhex(VECTORS["record"])
    tag, contract, body, cards, statement, signatures = fields(data)
    assert (tag, body) == (b"mpc-train/record/1", VECTORS["body"].encode())
    roles = fields(contract)
    assert roles[:2] == [b"mpc-train/contract/3", (7).to_bytes(4, "big")]
    assert (roles[2], roles[5], roles[7]) == (b"invented", b"registry", (2).to_bytes(4, "big"))
    owners, evaluators, recipients, readers, clients = map(
        fields, (roles[3], roles[4], roles[6], roles[8], roles[9])
    )
    assert owners == evaluators == [b"ann", b"bob"]
    assert (recipients, readers, clients) == ([b"ann", b"bob", b"office"], [], [])
    assert roles[10] == sha256(body) and len(roles[11]) == 32
    said = fields(statement)
    assert said[:4] == [
        b"mpc-train/result/1",
        sha256(contract),
        bytes.fromhex(VECTORS["sid"]),
        b"outcome",
    ]
    assert fields(said[4]) == [
        part
        for name in (b"ann", b"bob")
        for part in (name, b"sealed/office/model.envelope", sha256(name).hex().encode())
    ]
    assert len(fields(cards)) == 4
    for name, signature in zip(("ann", "bob", "registry"), fields(signatures), strict=True):
        verify(name, "contract/result", joined(name.encode(), statement), signature)
        with pytest.raises(InvalidSignature):
            verify(name, "contract/result", joined(b"office", statement), signature)
    # Ours reads the same.
    ours = Record.from_bytes(data)
    ours.verify(Roster.of(map(_card, VECTORS["cards"].values())))
    assert ours.to_bytes() == data


def _card(text: str) -> Any:
    from parties.keys.identity import Card

    return Card.from_table(tomllib.loads(text), "vectors")


def lagrange(shares: dict[int, int]) -> int:
    """f(0) of the polynomial through these points."""
    total = 0
    for place, value in shares.items():
        top = bottom = 1
        for other in shares:
            if other != place:
                top, bottom = top * -other % PRIME, bottom * (place - other) % PRIME
        total += value * top * pow(bottom, -1, PRIME)
    return total % PRIME


def test_an_envelope_that_two_of_three_open() -> None:
    vector = VECTORS["envelope"]
    blob, magic = bytes.fromhex(vector["envelope"]), b"mpc-train envelope 2\n"
    (length,) = struct.unpack(">I", blob[len(magic) : len(magic) + 4])
    start = len(magic) + 4
    header, chunks, signature = (
        blob[start : start + length],
        blob[start + length : -3373],
        blob[-3373:],
    )
    kind, context, key_id, wrapped = fields(header)
    assert (kind, key_id) == (b"result", b"2 of 3")
    said = fields(context)
    assert fields(said[6]) == [name.encode() for name in vector["recipients"]]
    assert said[7] == (2).to_bytes(4, "big")
    verify("ann", "envelope/3", joined(sha256(header), sha256(chunks)), signature)
    commitments = [said[9][place : place + 32] for place in range(0, 128, 32)]
    shares = {}
    for place, (name, sealed) in enumerate(
        zip(vector["recipients"], fields(wrapped), strict=True), 1
    ):
        info = joined(joined(magic, b"result", context), place.to_bytes(4, "big"))
        private = bytes.fromhex(VECTORS["private"][name])[64:160]
        share = open_hybrid(private, info, sealed)
        label = b"mpc-train/envelope/3/share" + place.to_bytes(4, "big")
        assert hmac.new(share, label, "sha256").digest() == commitments[place]
        shares[place] = int.from_bytes(share, "big")
    payloads = set()
    for pair in combinations(shares, 2):
        file_key = lagrange({place: shares[place] for place in pair}).to_bytes(32, "big")
        made = hmac.new(file_key, b"mpc-train/envelope/3/key", "sha256").digest()
        assert made == commitments[0]
        label = joined(b"mpc-train/envelope/2/payload", b"result", sha256(context))
        key = expand("sha256", file_key, label, 32)
        payloads.add(AESGCM(key).decrypt(bytes(11) + b"\1", chunks, None).hex())
    assert payloads == {vector["payload"]}
    assert all(share != lagrange(shares) for share in shares.values())


@pytest.mark.parametrize(
    ("what", "purpose"),
    [("approval", "mpc-train/job-approval/2"), ("policy", "mpc-train/policy/1")],
)
def test_what_a_person_signed(what: str, purpose: str) -> None:
    vector = VECTORS[what]
    digest = sha256(vector["document"].encode())
    assert vector["digest"] == digest.hex()
    message = joined(vector["signer"].encode(), digest, vector["day"].encode())
    signature = base64.b64decode(vector["signature"])
    verify(vector["signer"], purpose, message, signature)
    with pytest.raises(InvalidSignature):
        verify(vector["signer"], "mpc-train/manifest/1", message, signature)


def staged_by_hand(data: bytes) -> tuple[dict[str, Any], polars.DataFrame]:
    magic = b"mpc-train table 2\n"
    assert data.startswith(magic)
    (length,) = struct.unpack(">I", data[len(magic) : len(magic) + 4])
    start = len(magic) + 4
    head = json.loads(data[start : start + length])
    rest, frames = data[start + length :], []
    while rest:
        (size,) = struct.unpack(">Q", rest[:8])
        frames.append(polars.read_ipc(io.BytesIO(rest[8 : 8 + size])))
        rest = rest[8 + size :]
    return head, polars.concat(frames)


def test_a_staged_table_and_its_protected_column() -> None:
    vector = VECTORS["table"]
    whole, part = bytes.fromhex(vector["table"]), bytes.fromhex(vector["part"])
    head, rows = staged_by_hand(whole)
    assert head["names"] == ["patient", "hiv", "age"] and head["written"]["decimal"] == ","
    assert (head["protected"], head["tokenised"]) == ({"lab": ["hiv"]}, ["patient"])
    assert rows.columns == ["places", "0", "2"]
    other, cells = staged_by_hand(part)
    assert other["names"] == ["hiv"] and other["tie"] == head["tie"] and len(head["tie"]) == 32
    assert cells["places"].to_list() == rows["places"].to_list() == [1, 2]
    read = list(zip(rows["0"], cells["0"], rows["2"], strict=True))
    assert read == [tuple(row) for row in vector["rows"]]
    ours: StagedTable = staged(whole, lab=part)
    (chunk,) = ours.chunks(ours.names)
    assert chunk.frame.rows() == read


def test_a_kept_model() -> None:
    data = bytes.fromhex(VECTORS["model"])
    magic = b"mpc-train model 1\n"
    assert data.startswith(magic)
    rest, found = data[len(magic) :], {}
    assert rest[0] == 0x82  # a map of two
    rest = rest[1:]
    for _ in range(2):
        assert 0xA0 <= rest[0] < 0xC0  # a short text
        name, rest = rest[1 : 1 + rest[0] - 0xA0], rest[1 + rest[0] - 0xA0 :]
        assert rest[0] == 0xC4  # bytes, their number in one byte
        found[name.decode()], rest = rest[2 : 2 + rest[1]], rest[2 + rest[1] :]
    assert found == {"model.safetensors": b"weights", "manifest.json": b"{}"} and not rest
    assert KeptModel.of("m", data).files == found
