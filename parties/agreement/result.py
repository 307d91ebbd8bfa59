"""What all nodes of a run sign at its end: which results it had, and what it disclosed.

Guarantees that a result is what every node of the contract took part in: each node compares the
statement with what it saw itself, signs, and waits for everybody's signature before it says that
the run has ended. Whoever holds the record can verify this later with the cards alone. The program
decides what the outcome means, and refuses one that is not this run's; the coordinator puts the
statement together and is not trusted.

    statement   "mpc-train/result/1", SHA-256 of the contract, session id, outcome, artifacts
    artifacts   for each file that a node sent, sorted: sender, path, SHA-256 in hexadecimal
    signature   of each node: purpose "contract/result", over (name, statement); of a node that left
                when its program had ended, over the statement without artifacts
    record      "mpc-train/record/1", contract, body, cards, statement, signatures
    cards       of the contract, by their digests, in the order of `Roles.names`
    signatures  one for each node, in the order of `Roles.nodes`

All in the form of `canonical`. Nothing in it is secret: sealed files are named by their digests.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from hashlib import sha256

from parties.agreement.contract import (
    DIGEST_BYTES,
    MAX_BODY_BYTES,
    MAX_CONTRACT_BYTES,
    Contract,
)
from parties.errors import ContractError
from parties.keys.identity import Card
from parties.keys.roster import Roster, roster_digest
from protocols.canonical import pack, pack_texts, unpack, unpack_texts
from protocols.errors import AuthenticationError, FrameError
from protocols.names import MAX_NAMES
from protocols.sealing.signatures import SIGNATURE_BYTES, Signer

RESULT_PURPOSE = "contract/result"
MAX_OUTCOME_BYTES = 1 << 18
MAX_ARTIFACTS_BYTES = 1 << 20
MAX_PATH_BYTES = 512
_STATEMENT, _RECORD = b"mpc-train/result/1", b"mpc-train/record/1"
_BOUNDS = (len(_STATEMENT), DIGEST_BYTES, DIGEST_BYTES, MAX_OUTCOME_BYTES, MAX_ARTIFACTS_BYTES)
MAX_RESULT_BYTES = sum(_BOUNDS) + 4 * len(_BOUNDS)
_MAX_SIGNATURES_BYTES = MAX_NAMES * (SIGNATURE_BYTES + 4)
_PARTS = (
    *(len(_RECORD), MAX_CONTRACT_BYTES, MAX_BODY_BYTES, MAX_NAMES * (DIGEST_BYTES + 4)),
    *(MAX_RESULT_BYTES, _MAX_SIGNATURES_BYTES),
)
MAX_RECORD_BYTES = sum(_PARTS) + 4 * len(_PARTS)


@dataclass(frozen=True, order=True, slots=True)
class Artifact:
    """A file that a node sent: by whom, '<kind>/<path>', SHA-256 in hexadecimal."""

    sender: str
    path: str
    digest: str


@dataclass(frozen=True, slots=True)
class Statement:
    """What is signed. contract: the contract's digest. outcome: the program's own bytes."""

    contract: bytes
    sid: bytes
    outcome: bytes
    artifacts: tuple[Artifact, ...]

    def to_bytes(self) -> bytes:
        """The canonical encoding: each statement has exactly one."""
        texts = [
            text for one in sorted(self.artifacts) for text in (one.sender, one.path, one.digest)
        ]
        return pack(_STATEMENT, self.contract, self.sid, self.outcome, pack_texts(texts))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Statement":
        """Parse what `to_bytes` wrote. Raises ContractError."""
        try:
            tag, contract, sid, outcome, listed = unpack(data, _BOUNDS)
            texts = unpack_texts(listed, MAX_ARTIFACTS_BYTES, MAX_PATH_BYTES)
        except FrameError as error:
            raise ContractError(f"a malformed statement of results: {error}") from error
        triples = zip(texts[::3], texts[1::3], texts[2::3], strict=False)
        found = cls(contract, sid, outcome, tuple(Artifact(*triple) for triple in triples))
        if tag != _STATEMENT or len(sid) != DIGEST_BYTES or found.to_bytes() != data:
            raise ContractError("not a statement of results of this version")
        return found

    def parting(self) -> "Statement":
        """What a node signs that leaves before the others have results, and sent none itself."""
        return replace(self, artifacts=())

    def sent_by(self, name: str) -> dict[str, str]:
        """The digests of what `name` sent, by path."""
        return {one.path: one.digest for one in self.artifacts if one.sender == name}


def sign_result(name: str, statement: bytes, signer: Signer) -> bytes:
    return signer.sign(RESULT_PURPOSE, pack(name.encode(), statement))


def verify_result(name: str, statement: bytes, signature: bytes, card: Card) -> None:
    """Raises ContractError unless `name`, whose card is `card`, signed it."""
    try:
        card.verifier().verify(RESULT_PURPOSE, pack(name.encode(), statement), signature)
    except AuthenticationError as error:
        raise ContractError(f"{name} did not sign the statement of results: {error}") from error


@dataclass(frozen=True, slots=True, repr=False)
class Record:
    """A run's contract, its results, and the signatures of all its nodes. Not verified."""

    contract: Contract
    body: bytes
    cards: tuple[bytes, ...]
    statement: Statement
    signatures: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        return pack(
            _RECORD,
            self.contract.to_bytes(),
            self.body,
            pack(*self.cards),
            self.statement.to_bytes(),
            pack(*self.signatures),
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Record":
        """Parse what `to_bytes` wrote. Raises ContractError, also for missing signatures."""
        try:
            tag, contract, body, cards, statement, signatures = unpack(data, _PARTS)
        except FrameError as error:
            raise ContractError(f"a malformed record of a run: {error}") from error
        if tag != _RECORD:
            raise ContractError("not a record of a run of this version")
        agreed = Contract.from_bytes(contract)
        agreed.check(body)
        nodes = agreed.roles.nodes
        try:
            digests = unpack(cards, [DIGEST_BYTES] * len(agreed.roles.names))
        except FrameError as error:
            raise ContractError(f"a malformed record of a run: {error}") from error
        try:
            signed = unpack(signatures, [SIGNATURE_BYTES] * len(nodes))
        except FrameError as error:
            raise ContractError(
                f"the record does not hold one signature of each of {', '.join(nodes)}: {error}"
            ) from error
        said = Statement.from_bytes(statement)
        return cls(agreed, body, tuple(digests), said, tuple(signed))

    def signers(self, roster: Roster) -> dict[str, Card]:
        """The cards under which the contract was signed, by name. Their verifiers also accept what
        another card of the line signed: an identity may be rotated while a run computes.

        Raises ContractError, which names whose card is another, and RosterError for one that is
        missing or was revoked.
        """
        if roster_digest(self.cards) != self.contract.roster_digest:
            raise ContractError("the record names other cards than those of its contract")
        found: dict[str, Card] = {}
        for name, digest in zip(self.contract.roles.names, self.cards, strict=True):
            known = [card for card in roster.line(name) if card.digest == digest]
            if not known:
                card = roster.card(name)
                raise ContractError(
                    f"the contract was signed under another card of {name} than the one given "
                    f"({card.fingerprint}); compare fingerprints with {name}"
                )
            found[name] = roster.signer(known[0])
        return found

    def verify(self, roster: Roster, leaving: Collection[str] = ()) -> None:
        """1. The statement is about this contract. 2. Every node of it signed the statement.

        leaving: the nodes that left as soon as their programs had ended, as the job wants it; they
        signed without artifacts (`Statement.parting`).

        Raises ContractError, which names the node, and RosterError.
        """
        cards = self.signers(roster)
        if self.statement.contract != self.contract.digest():  # 1
            raise ContractError("the statement of results is about another contract")
        foreign = {one.sender for one in self.statement.artifacts} - {*self.contract.roles.nodes}
        if foreign:
            raise ContractError(f"results of {', '.join(sorted(foreign))}, who had no role")
        text, parting = self.statement.to_bytes(), self.statement.parting().to_bytes()
        for name, signature in zip(self.contract.roles.nodes, self.signatures, strict=True):  # 2
            verify_result(name, parting if name in leaving else text, signature, cards[name])

    def digest(self) -> bytes:
        """SHA-256 of the statement: what every signature is about."""
        return sha256(self.statement.to_bytes()).digest()
