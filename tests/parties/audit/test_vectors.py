"""The format of a log as parties/README.md states it, read by an implementation of its own."""

import hmac
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from parties.audit.checkpoint import origin_of
from parties.audit.reading import parse, read_log
from parties.audit.record import first_chain
from parties.keys.identity import IdentityKeys
from tests.vectors.make_audit_vectors import vectors

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "audit.json").read_text()
)


def packed(*fields: bytes) -> bytes:
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def expand(key: bytes, info: bytes) -> bytes:
    """HKDF-Expand with SHA-256 (RFC 5869) for 32 bytes."""
    return hmac.digest(key, info + b"\x01", "sha256")


def test_the_vectors_are_what_is_written() -> None:
    assert vectors() == VECTORS


def test_records_are_read_as_the_readme_says() -> None:
    key, origin = bytes.fromhex(VECTORS["key"]), VECTORS["origin"].encode()
    header = bytes.fromhex(VECTORS["header"])
    assert header == b"mpc-train audit log 1\n" + len(origin).to_bytes(4, "big") + origin
    chain, leaves = sha256(header).digest(), []
    for number, each in enumerate(VECTORS["records"]):
        raw = bytes.fromhex(each["record"])
        head, leaf = raw[:-32], raw[-32:]
        assert int.from_bytes(head[:4], "big") == len(head) - 4
        assert int.from_bytes(head[4:12], "big") == number
        assert head[12:44] == chain
        salt, public = head[44:60], int.from_bytes(head[60:64], "big")
        start = 64 + public
        record_key = expand(key, packed(b"mpc-train/audit/1/record", salt))
        nonce, sealed, tag = number.to_bytes(12, "big"), head[start:-16], head[-16:]
        opener = Cipher(algorithms.AES256(record_key), modes.GCM(nonce, tag)).decryptor()
        opener.authenticate_additional_data(packed(origin, head[:start]))
        assert (opener.update(sealed) + opener.finalize()).decode() == each["entry"]
        assert leaf == sha256(b"\x00" + head).digest()
        chain = leaf
        leaves.append(leaf)
    left = sha256(b"\x01" + leaves[0] + leaves[1]).digest()
    assert sha256(b"\x01" + left + leaves[2]).hexdigest() == VECTORS["root"]
    expected = expand(key, packed(b"mpc-train/audit/1/opening"))
    assert expected.hex() == VECTORS["opening_key"]


def test_our_reader_reads_them(tmp_path: Path) -> None:
    data = VECTORS["header"] + "".join(each["record"] for each in VECTORS["records"])
    (tmp_path / "records").write_bytes(bytes.fromhex(data))
    log = read_log(tmp_path)
    assert log.faults == [] and log.torn is None and log.origin == VECTORS["origin"]
    key = bytes.fromhex(VECTORS["key"])
    found = [record.opened(key, log.origin).decode() for record in log.records]
    assert found == [each["entry"] for each in VECTORS["records"]]
    assert parse(b"", 0, first_chain(log.origin), 0) == ([], [], None)


def test_an_origin_stands_for_name_and_verification_keys() -> None:
    card = IdentityKeys(bytes(range(192))).card("hospital-a")
    keys = bytes.fromhex(VECTORS["verification_keys"])
    digest = sha256(packed(b"mpc-train/identity/1", b"hospital-a", keys)).hexdigest()
    assert origin_of(card) == f"mpc-train-audit/hospital-a/{digest[:16]}"
