"""Write trust.json: a record of results, an envelope that two of three open, a contribution, an
approval, a signed policy, a staged table with a protected column, a kept model.

Run from the project's root: .venv/bin/python tests/vectors/make_trust_vectors.py

Keys are fixed; what draws randomness (HPKE, ML-DSA, the table's tie) is pinned as a transcript that
an implementation of the formats' descriptions reads (`tests/test_trust_vectors.py`).
"""

import io
import json
import sys
from datetime import UTC, date, datetime
from hashlib import sha256
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import polars

from mpc_train.admission.policy import PURPOSE as POLICY_PURPOSE
from mpc_train.admission.statements import sign
from mpc_train.results.kept import KeptModel
from mpc_train.run.approval import PURPOSE as APPROVAL_PURPOSE
from mpc_train.tables.readers.columnar import FrameTable
from mpc_train.tables.readers.staged import stage
from mpc_train.tables.source import Source
from parties.agreement.contract import Contract, Roles
from parties.agreement.result import Artifact, Record, Statement, sign_result
from parties.keys.identity import IdentityKeys
from parties.keys.roster import roster_digest
from parties.keys.vault import MemoryVault
from protocols.sealing.envelope import EnvelopeInfo, seal_envelope

NAMES = ("ann", "bob", "office", "registry")
MADE = datetime(2025, 1, 31, 12, tzinfo=UTC)
SID = bytes(range(32))
BODY = b'{"job":"invented"}'
POLICY = '[policy]\nnodes = ["ann"]\nnumber = 1\nvalid_until = "2027-01-31"\n'


def private(number: int) -> bytes:
    """The private keys of an identity of these vectors."""
    return bytes((number * 41 + byte) % 256 for byte in range(192))


def vaults() -> dict[str, MemoryVault]:
    made = {}
    for number, name in enumerate(NAMES):
        keys = IdentityKeys(private(number))
        made[name] = MemoryVault(keys, keys.card(name, MADE))
    return made


def record(identities: dict[str, MemoryVault]) -> str:
    roles = Roles(("ann", "bob"), ("ann", "bob"), "registry", ("ann", "bob", "office"), 2, ())
    cards = tuple(identities[name].card.digest for name in roles.names)
    contract = Contract.of("invented", roles, BODY, roster_digest(cards))
    sent = tuple(
        Artifact(name, "sealed/office/model.envelope", sha256(name.encode()).hexdigest())
        for name in roles.evaluators
    )
    statement = Statement(contract.digest(), SID, b"outcome", sent)
    text = statement.to_bytes()
    signatures = tuple(sign_result(name, text, identities[name]) for name in roles.nodes)
    return Record(contract, BODY, cards, statement, signatures).to_bytes().hex()


def envelope(identities: dict[str, MemoryVault]) -> dict[str, object]:
    group = ("ann", "bob", "office")
    payload = b"payload of a threshold"
    sealed = seal_envelope(
        payload,
        info=EnvelopeInfo("a study", SID, 40, ("weight",), "ann", group, 2),
        recipient_keys=[identities[name].card.recipient_key for name in group],
        signer=identities["ann"],
    )
    return {"recipients": list(group), "payload": payload.hex(), "envelope": sealed.hex()}


def statement(identities: dict[str, MemoryVault], purpose: str, document: bytes) -> dict[str, str]:
    day = date(2025, 2, 1)
    signed = sign(purpose, "office", sha256(document).digest(), day, identities["office"])
    return {
        "signer": signed.signer,
        "document": document.decode(),
        "digest": signed.digest,
        "day": signed.day.isoformat(),
        "signature": signed.signature,
    }


def table() -> dict[str, object]:
    frame = polars.DataFrame({"patient": ["p1", "p2"], "hiv": ["0", "1"], "age": ["41", "52"]})
    whole, part = io.BytesIO(), io.BytesIO()
    stage(
        FrameTable(frame.lazy(), "invented"),
        Source(decimal=","),
        whole,
        lambda done: None,
        parts={"lab": (("hiv",), part)},
        tokenised=("patient",),
    )
    return {"rows": frame.rows(), "table": whole.getvalue().hex(), "part": part.getvalue().hex()}


def vectors() -> dict[str, object]:
    identities = vaults()
    return {
        "cards": {name: vault.card.to_text() for name, vault in identities.items()},
        "private": {name: private(number).hex() for number, name in enumerate(NAMES)},
        "sid": SID.hex(),
        "body": BODY.decode(),
        "record": record(identities),
        "envelope": envelope(identities),
        "approval": statement(identities, APPROVAL_PURPOSE, b"a job"),
        "policy": statement(identities, POLICY_PURPOSE, POLICY.encode()),
        "table": table(),
        "model": KeptModel("", {"model.safetensors": b"weights", "manifest.json": b"{}"})
        .packed()
        .hex(),
    }


if __name__ == "__main__":
    target = Path(__file__).with_name("trust.json")
    target.write_text(json.dumps(vectors(), indent=1) + "\n")
