"""Write audit.json: an audit log with its key, record by record, and the root of its tree.

Run from the project's root: .venv/bin/python tests/vectors/make_audit_vectors.py

Salts and the log's key are fixed here; a node draws them. The test reads the records with an
implementation of its own, on the plain interfaces of `hashlib` and of the cipher.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from parties.audit.entries import Entry, Kind
from parties.audit.merkle import root
from parties.audit.reading import Public
from parties.audit.record import first_chain, header, opening_key, sealer
from parties.keys.identity import IdentityKeys

KEY = bytes(range(32))
ORIGIN = "mpc-train-audit/hospital-a/0011223344556677"
ENTRIES = (
    (Entry("2026-01-01T00:00:00.000Z", Kind.LOG_BEGUN, fields={"origin": ORIGIN}), b""),
    (
        Entry("2026-01-01T00:00:00.001Z", Kind.LOG_KEY, fields={"key": "file:1"}),
        Public(key_file="ab" * 32).encoded(),
    ),
    (
        Entry(
            "2026-01-01T12:00:00.000Z",
            Kind.OPENING,
            "breast-cancer",
            "cd" * 32,
            {
                "output": "accuracy",
                "step": 260,
                "to": ("hospital-a", "hospital-b"),
                "clause": "reveal.metrics",
                "values": 1,
            },
        ),
        b"",
    ),
)


def vectors() -> dict[str, object]:
    data, chain, records, leaves = header(ORIGIN), first_chain(ORIGIN), [], []
    for number, (entry, public) in enumerate(ENTRIES):
        salt = bytes([number]) * 16
        record = sealer(KEY, salt)(ORIGIN, number, chain, public, entry.encoded())
        chain = record[-32:]
        leaves.append(chain)
        records.append({"entry": entry.encoded().decode(), "record": record.hex()})
        data += record
    identity = IdentityKeys(bytes(range(192)))
    return {
        "key": KEY.hex(),
        "opening_key": opening_key(KEY).hex(),
        "origin": ORIGIN,
        "header": header(ORIGIN).hex(),
        "records": records,
        "root": root(leaves).hex(),
        "verification_keys": identity.signing.public.hex(),
    }


if __name__ == "__main__":
    path = Path(__file__).with_name("audit.json")
    path.write_text(json.dumps(vectors(), indent=1) + "\n")
