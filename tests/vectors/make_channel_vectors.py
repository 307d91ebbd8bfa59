"""Write channel.json: records, key schedule, session id, card, key file, envelope,
stored object.

Run from the project's root: .venv/bin/python tests/vectors/make_channel_vectors.py

What is deterministic is compared byte for byte; what draws randomness while sealing (HPKE, ML-DSA,
Argon2id's salt) is pinned as a transcript that must still open. The tests confirm the first kind
with implementations of their own, on hmac and the plain block cipher interface.
"""

import io
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

sys.path.insert(0, str(Path(__file__).parents[2]))

from parties.keys.identity import IdentityKeys
from parties.keys.keyfile import KdfCost, seal_secret
from parties.keys.statements import Revocation
from parties.keys.vault import MemoryVault
from protocols.sealing import record
from protocols.sealing.envelope import EnvelopeInfo, seal_envelope
from protocols.sealing.key_schedule import Keys, Schedule
from protocols.sealing.recipient_keys import HYBRID, P384, RSA, RecipientKey, private_key
from protocols.sealing.session import identity_digest, session_id
from protocols.sealing.stored import ObjectInfo, seal_object

SENDER_PRIVATE = bytes(range(192))
RECIPIENT_PRIVATE = bytes(reversed(range(192)))
RSA_KEY_FILE = Path(__file__).with_name("rsa-4096.hex")
"""A private key in PKCS #8, for tests only: generating one takes seconds."""


def records() -> dict[str, object]:
    key, context = bytes(range(32)), record.record_context(b"\x07" * 32, "hospital-a", "bank-b")
    payloads = [b"", b"one", bytes(range(64)), b"after the first rekey", b"5", b"6", b"7"]
    with patch.object(record, "REKEY_RECORDS", 3):
        sealer = record.RecordSealer(key, context)
        sealed = [sealer.seal(b"label-%d" % n, text) for n, text in enumerate(payloads)]
    return {
        "key": key.hex(),
        "context": context.hex(),
        "rekey_records": 3,
        "records": [
            {"label": f"label-{n}", "payload": text.hex(), "sealed": cipher.hex()}
            for n, (text, cipher) in enumerate(zip(payloads, sealed, strict=True))
        ],
    }


def key_schedule() -> dict[str, object]:
    s_a, s_b, th = b"\x0a" * 32, b"\x0b" * 32, b"\x0c" * 32
    schedule = Schedule.derive(s_a, s_b, th)
    keys = Keys(schedule.to_responder, schedule.to_initiator, th, schedule.export)
    return {
        "initiator_secret": s_a.hex(),
        "responder_secret": s_b.hex(),
        "th": th.hex(),
        **{name: value.hex() for name, value in vars(schedule).items()},
        "export_label": "stream",
        "exported": keys.export("stream").hex(),
    }


def session() -> dict[str, object]:
    members = [
        ("evaluator", identity_digest("hospital-a", b"\x01" * 1984), b"\x11" * 32),
        ("dealer", identity_digest("registry", b"\x02" * 1984), b"\x22" * 32),
    ]
    return {
        "version": 1,
        "job": "03" * 32,
        "roster": "04" * 32,
        "members": [[role, identity.hex(), nonce.hex()] for role, identity, nonce in members],
        "sid": session_id(1, b"\x03" * 32, b"\x04" * 32, members).hex(),
    }


def card() -> dict[str, object]:
    keys = IdentityKeys(SENDER_PRIVATE)
    made = keys.card("hospital-a", datetime(2025, 1, 31, 12, tzinfo=UTC))
    return {"private": SENDER_PRIVATE.hex(), "text": made.to_text(), "digest": made.digest.hex()}


def statements() -> dict[str, object]:
    """An identity, its successor, and the word of each about it."""
    when = datetime(2025, 1, 31, 12, tzinfo=UTC)
    keys = IdentityKeys(SENDER_PRIVATE)
    old = MemoryVault(keys, keys.card("hospital-a", when))
    new = old.successor(365, issued=when + timedelta(days=300))
    return {
        "old": old.card.digest.hex(),
        "new": new.card.digest.hex(),
        "succession": new.successions[0].to_text(),
        "revocation": Revocation.sign(old, when + timedelta(days=1)).to_text(),
    }


def key_file() -> dict[str, object]:
    cost = KdfCost(memory_kib=8, passes=1, lanes=1)
    sealed = seal_secret(b"secret bytes", b"correct horse", b"public header", cost)
    return {
        "passphrase": "correct horse",
        "header": b"public header".hex(),
        "secret": b"secret bytes".hex(),
        "file": sealed.hex(),
    }


def envelopes() -> dict[str, object]:
    """One to each kind of recipient key."""
    sender = IdentityKeys(SENDER_PRIVATE)
    privates = {
        HYBRID: RECIPIENT_PRIVATE[64:160],
        P384: bytes(range(1, 49)),
        RSA: bytes.fromhex(RSA_KEY_FILE.read_text()),
    }
    names = ("weight", "bias")
    info = EnvelopeInfo("a study", b"\x07" * 32, 40, names, "hospital-a", ("study-office",))
    payload = b"payload of the envelope"
    return {
        "sender_private": SENDER_PRIVATE[:64].hex(),
        "subject": "a study",
        "sid": "07" * 32,
        "step": 40,
        "names": list(names),
        "sender": "hospital-a",
        "recipients": ["study-office"],
        "payload": payload.hex(),
        "by_kind": {
            kind: {
                "recipient_private": private.hex(),
                "recipient_public": (public := private_key(kind, private).public).hex(),
                "envelope": seal_envelope(
                    payload,
                    info=info,
                    recipient_keys=[RecipientKey(kind, public)],
                    signer=sender.signing,
                ).hex(),
            }
            for kind, private in privates.items()
        },
    }


def stored_object() -> dict[str, object]:
    """Under a key in the form of `parties.keys.services.file_service`."""
    key = bytes(range(32))

    class Keys:
        def wrap(self, file_key: bytes, info: bytes) -> tuple[str, bytes]:
            nonce = os.urandom(12)
            return "file:1", nonce + AESGCM(key).encrypt(nonce, file_key, info)

        def unwrap(self, key_id: str, wrapped: bytes, info: bytes) -> bytes:
            return AESGCM(key).decrypt(wrapped[:12], wrapped[12:], info)

    info = ObjectInfo("hospital-a", "table", "admissions", 3, "study", "2026-01-31T12:00:00Z")
    content, out = b"content of the object", io.BytesIO()
    header, writer = seal_object(out, info, Keys())
    writer.write(content)
    writer.finish()
    return {
        "key": key.hex(),
        **vars(info),
        "content": content.decode(),
        "header": header.framed().hex(),
        "chunks": out.getvalue().hex(),
    }


if __name__ == "__main__":
    makers = (records, key_schedule, session, card, statements, key_file, envelopes)
    vectors = {maker.__name__: maker() for maker in makers} | {"object": stored_object()}
    target = Path(__file__).with_name("channel.json")
    target.write_text(json.dumps(vectors, indent=1) + "\n")
