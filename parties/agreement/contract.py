"""What every node signs before a share leaves it: who does what in which computation.

A contract names the version, the roles, the roster's digest and the job body's digest. Each node
signs its digest together with a fresh nonce and the digest of the constants table it computed
(`Acceptance`), and verifies all other acceptances itself: the coordinator only carries them and is
not trusted. The session id follows from the nonces, and everybody signs it as well.

The program decides what the body means and which jobs a node's own rules allow.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

from parties.errors import ContractError, ResumeError
from protocols.canonical import pack, pack_texts, unpack, unpack_texts
from protocols.errors import AuthenticationError, FrameError
from protocols.names import MAX_NAME_BYTES, MAX_NAMES, MAX_ROLE_NAMES, NAME
from protocols.sealing.session import VERSION as SESSION_VERSION
from protocols.sealing.session import identity_digest, session_id
from protocols.sealing.signatures import Signer, VerifyKeys

CONTRACT_VERSION = 7
"""Raised with every change to the protocol: nodes of different versions refuse each other."""

DIGEST_BYTES = 32
MAX_JOB_NAME_BYTES = 128
MAX_BODY_BYTES = 1 << 20

_TAG = b"mpc-train/contract/3"
_NAMES_BYTES = MAX_NAMES * (MAX_NAME_BYTES + 4)
_BOUNDS = (
    *(len(_TAG), 4, MAX_JOB_NAME_BYTES, _NAMES_BYTES, _NAMES_BYTES, MAX_NAME_BYTES, _NAMES_BYTES),
    *(4, _NAMES_BYTES, _NAMES_BYTES, DIGEST_BYTES, DIGEST_BYTES),
)
MAX_CONTRACT_BYTES = sum(_BOUNDS) + 4 * len(_BOUNDS)

ACCEPT_PURPOSE = "contract/accept"
SESSION_PURPOSE = "contract/session"
ROTATION_PURPOSE = "contract/rotation"


@dataclass(frozen=True, slots=True)
class Roles:
    """Who does what in one job. The order of the evaluators matters: it gives their indices."""

    owners: tuple[str, ...]
    evaluators: tuple[str, ...]
    dealer: str
    recipients: tuple[str, ...]
    """Who opens the model; empty: nobody, it stays in shares at the evaluators."""
    threshold: int = 1
    """How many recipients together can open what is sealed to them."""
    readers: tuple[str, ...] = ()
    """To whom metrics are sealed; empty: they are not sealed, the nodes learn them."""
    clients: tuple[str, ...] = ()
    """Who may ask the evaluators of a service; with recipients, who provides data for rounds of
    training without running a node. They come and go, and sign nothing."""

    def check(self) -> None:
        """Raise ContractError for roles under which the protocol would not be private."""
        for title, names in (
            ("owners", self.owners),
            ("evaluators", self.evaluators),
            ("recipients", self.recipients),
            ("readers", self.readers),
            ("clients", self.clients),
        ):
            if not names and (title == "evaluators" or (title == "owners" and not self.clients)):
                raise ContractError(f"a job needs {title}")
            if len(names) > MAX_ROLE_NAMES:
                raise ContractError(f"a job has at most {MAX_ROLE_NAMES} {title}")
            if len(set(names)) != len(names):
                raise ContractError(f"{title} contain a name twice: {', '.join(names)}")
        for name in self.names:
            if not NAME.match(name):
                raise ContractError(f"not a name: {name[:80]!r}")
        if not 1 <= self.threshold <= max(1, len(self.recipients)):
            raise ContractError(
                f"{self.threshold} of {len(self.recipients)} recipients cannot be required"
            )
        if len(self.evaluators) < 2:
            raise ContractError("a job needs at least two evaluators")
        if both := sorted({*self.clients} & {*self.nodes}):
            raise ContractError(
                f"{', '.join(both)} cannot both ask a service and run it: one name, one process"
            )
        if self.dealer in self.evaluators:
            raise ContractError(
                f"{self.dealer} cannot both deal and evaluate: it would know every mask and see "
                "every masked value, that is, all data"
            )

    @property
    def nodes(self) -> tuple[str, ...]:
        """Who runs a node, in roster order: owners, evaluators and the dealer."""
        return tuple(sorted({*self.owners, *self.evaluators, self.dealer}))

    @property
    def names(self) -> tuple[str, ...]:
        """Everybody the job names, recipients, readers and clients included, in roster order."""
        return tuple(sorted({*self.nodes, *self.recipients, *self.readers, *self.clients}))

    @property
    def guests(self) -> frozenset[str]:
        """Clients who only ask: a session does without one whose card is not accepted. A client who
        provides data gets the model, too, and is no guest."""
        return frozenset(self.clients).difference(self.receivers)

    def without(self, guests: Collection[str]) -> "Roles":
        """The same without these guests."""
        return replace(self, clients=tuple(each for each in self.clients if each not in guests))

    @property
    def receivers(self) -> frozenset[str]:
        """To whom evaluators may seal results."""
        return frozenset((*self.recipients, *self.readers))

    def neighbours(self, name: str) -> tuple[str, ...]:
        """The nodes that share a channel with `name`: an evaluator has all others, others have the
        evaluators."""
        others = self.nodes if name in self.evaluators else self.evaluators
        return tuple(sorted(peer for peer in others if peer != name))

    def title(self, name: str) -> str:
        """The roles of `name` as text, as it enters the session id: 'evaluator 0, owner'."""
        titles = []
        if name in self.evaluators:
            titles.append(f"evaluator {self.evaluators.index(name)}")
        if name == self.dealer:
            titles.append("dealer")
        if name in self.owners:
            titles.append("owner")
        if name in self.recipients:
            titles.append("recipient")
        if name in self.readers:
            titles.append("reader of metrics")
        if name in self.clients:
            titles.append("client")
        return ", ".join(titles)


def describe_trust(roles: Roles) -> str:
    """Sentences that say what stays secret, and who would have to collude to learn it."""
    evaluators = ", ".join(roles.evaluators)
    count = len(roles.evaluators)
    rounds = bool(roles.clients and roles.recipients)
    whose = (
        f"What the training of {', '.join((*roles.owners, *roles.clients))} changes in a round is"
        if rounds
        else f"Data of {', '.join(roles.owners)} is"
        if roles.owners
        else f"What {', '.join(roles.clients)} ask is"
    )
    lines = [
        f"{whose} shared among {evaluators}; "
        f"{roles.dealer} deals correlated randomness and gets no share of the data"
        + (" (except its own data, which it knows)." if roles.dealer in roles.owners else "."),
        f"All data would be open to the {count} evaluators together, and to {roles.dealer} "
        "together with any one of them. "
        + (
            "Neither evaluator alone learns anything"
            if count == 2
            else f"Up to {count - 1} evaluators together learn nothing"
        )
        + ", nor does the dealer, the coordinator or anybody on the network.",
        _opening(roles),
        *(
            [f"Metrics are sealed to {', '.join(roles.readers)}; nobody else learns one."]
            if roles.readers
            else []
        ),
        "Everybody is assumed to follow the protocol; a node that cheats can falsify the result.",
    ]
    return "\n".join(lines)


def _opening(roles: Roles) -> str:
    names, threshold = ", ".join(roles.recipients), roles.threshold
    if roles.clients and roles.recipients:
        return (
            f"The sum of a round's changes, and with it the model, is sealed to {names} after "
            "every round, who learn what it says about the others' data."
        )
    learn = (
        "what it says about the data"
        if roles.readers
        else "what it and the revealed metrics say about the data"
    )
    if not roles.owners:
        return (
            "Each client learns the answers to its own questions, and what many answers together "
            "say about the model. Nobody else learns an answer."
        )
    if not roles.recipients:
        return (
            "The model is sealed to nobody. Each evaluator keeps its share of it, and would know "
            "it together with all other evaluators, or with the dealer."
        )
    if threshold == 1:
        return f"The model is sealed to {names}, who learn {learn}."
    return (
        f"The model is sealed to {names} so that {threshold} of them together can open it: whoever "
        f"they open it for learns {learn}. Fewer than {threshold} of them learn nothing of it."
    )


@dataclass(frozen=True, slots=True)
class Contract:
    """The statement that all nodes sign."""

    version: int
    name: str
    roles: Roles
    body_digest: bytes
    roster_digest: bytes

    @classmethod
    def of(cls, name: str, roles: Roles, body: bytes, roster_digest: bytes) -> "Contract":
        """The contract over `body`. Raises ContractError as `check` does."""
        contract = cls(CONTRACT_VERSION, name, roles, sha256(body).digest(), roster_digest)
        contract.check(body)
        return contract

    def to_bytes(self) -> bytes:
        """The canonical encoding: each contract has exactly one."""
        return pack(
            _TAG,
            self.version.to_bytes(4, "big"),
            self.name.encode(),
            pack_texts(self.roles.owners),
            pack_texts(self.roles.evaluators),
            self.roles.dealer.encode(),
            pack_texts(self.roles.recipients),
            self.roles.threshold.to_bytes(4, "big"),
            pack_texts(self.roles.readers),
            pack_texts(self.roles.clients),
            self.body_digest,
            self.roster_digest,
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Contract":
        """Parse what `to_bytes` wrote. Raises ContractError."""
        try:
            tag, version, name, *parts, body, roster = unpack(data, _BOUNDS)
            owners, evaluators, dealer, recipients, threshold, readers, clients = parts
            if tag != _TAG:
                raise ContractError("not a contract")
            groups = [
                unpack_texts(group, MAX_NAMES, MAX_NAME_BYTES)
                for group in (owners, evaluators, recipients, readers, clients)
            ]
            return cls(
                int.from_bytes(version, "big"),
                name.decode(),
                Roles(
                    groups[0],
                    groups[1],
                    dealer.decode(),
                    groups[2],
                    int.from_bytes(threshold, "big"),
                    groups[3],
                    groups[4],
                ),
                body,
                roster,
            )
        except (FrameError, UnicodeDecodeError) as error:
            raise ContractError(f"a malformed contract: {error}") from error

    def digest(self) -> bytes:
        """The digest that represents the job wherever it is signed or hashed."""
        return sha256(self.to_bytes()).digest()

    def check(self, body: bytes) -> None:
        """Raise ContractError unless this release can run it and `body` has the digest in it."""
        if self.version != CONTRACT_VERSION:
            raise ContractError(
                f"the contract has version {self.version}, this node {CONTRACT_VERSION}: run the "
                "same release everywhere"
            )
        if not 1 <= len(self.name.encode()) <= MAX_JOB_NAME_BYTES or not self.name.isprintable():
            raise ContractError("the job's name is empty, too long or not printable")
        if len(body) > MAX_BODY_BYTES:
            raise ContractError(f"the job has {len(body)} bytes, at most {MAX_BODY_BYTES}")
        if sha256(body).digest() != self.body_digest:
            raise ContractError("the received job is not the one in the contract")
        if len(self.roster_digest) != DIGEST_BYTES:
            raise ContractError("the roster digest has the wrong length")
        self.roles.check()


@dataclass(frozen=True, slots=True)
class Acceptance:
    """One node's signed agreement, with its nonce for the session and its constants' digest."""

    name: str
    nonce: bytes
    constants: bytes
    signature: bytes
    held: tuple[bytes, ...] = ()
    """The names of the checkpoints from which this node could go on."""
    insists: bool = False
    """Whether this node does not begin the run anew: results may have left already."""

    def statement(self, contract: Contract) -> bytes:
        """What is signed."""
        return pack(
            contract.digest(),
            self.name.encode(),
            self.nonce,
            self.constants,
            pack(*self.held),
            bytes([self.insists]),
        )

    @classmethod
    def sign(
        cls,
        contract: Contract,
        name: str,
        nonce: bytes,
        constants: bytes,
        signer: Signer,
        held: tuple[bytes, ...] = (),
        insists: bool = False,
    ) -> "Acceptance":
        unsigned = cls(name, nonce, constants, b"", held, insists)
        return replace(
            unsigned, signature=signer.sign(ACCEPT_PURPOSE, unsigned.statement(contract))
        )


def verify_acceptances(
    contract: Contract,
    mine: Acceptance,
    all_of_them: Mapping[str, Acceptance],
    keys: Mapping[str, bytes],
) -> bytes:
    """The session id, after a check of every node's acceptance; `keys`: names to verification keys.

    1. Exactly the nodes of the contract accepted, and our own acceptance is among them, unaltered.
    2. Each signature holds over this contract, that node's nonce and its constants.
    3. All constants tables are equal; otherwise machines would compute different things.

    Raises ContractError with the node's name, and with both digests if constants differ.
    """
    nodes = contract.roles.nodes
    if set(all_of_them) != set(nodes) or all_of_them.get(mine.name) != mine:  # 1
        raise ContractError("the received acceptances are not those of the job's nodes")
    for name in nodes:
        one = all_of_them[name]
        if one.name != name:
            raise ContractError(f"received an acceptance of {one.name[:63]!r} in place of {name}'s")
        try:
            VerifyKeys(keys[name]).verify(  # 2
                ACCEPT_PURPOSE, one.statement(contract), one.signature
            )
        except AuthenticationError as error:
            raise ContractError(
                f"{name} did not sign this contract ({contract.digest().hex()[:16]}): {error}"
            ) from error
        if one.constants != mine.constants:  # 3
            raise ContractError(
                f"constants differ: {name} has {one.constants.hex()[:16]}, {mine.name} "
                f"{mine.constants.hex()[:16]}; run the same release everywhere"
            )
    nonces = {name: all_of_them[name].nonce for name in nodes}
    return session_of(contract, nonces, keys)


def session_of(contract: Contract, nonces: Mapping[str, bytes], keys: Mapping[str, bytes]) -> bytes:
    """The id of the session that these nonces make; `keys`: names to verification keys."""
    return session_id(
        SESSION_VERSION,
        contract.digest(),
        contract.roster_digest,
        [
            (contract.roles.title(name), identity_digest(name, keys[name]), nonces[name])
            for name in contract.roles.nodes
        ],
    )


def newest_of_all(held: Mapping[str, Collection[bytes]]) -> bytes:
    """The newest checkpoint that every evaluator holds, by name; empty: there is none."""
    return max(set.intersection(*map(set, held.values())), default=b"")


def resumed_from(contract: Contract, acceptances: Mapping[str, Acceptance]) -> bytes:
    """The name of the newest checkpoint that all evaluators hold; empty: there is none, and the run
    begins.

    Raises ResumeError if it may not, because a node insists on a checkpoint.
    """
    held = {name: acceptances[name].held for name in contract.roles.evaluators}
    newest = newest_of_all(held)
    insisting = [name for name, one in acceptances.items() if one.insists]
    if newest or not insisting:
        return newest
    counts = ", ".join(f"{name} holds {len(names) or 'none'}" for name, names in held.items())
    raise ResumeError(
        f"no checkpoint of this run is held by all evaluators ({counts}), and "
        f"{', '.join(sorted(insisting))} will not begin it anew: much would be lost, or a second "
        "result would leave. Start each node where its checkpoints are, or all with --fresh: "
        "that is another run, and counts once more against budgets"
    )


def session_statement(
    contract: Contract, sid: bytes, name: str, checkpoint: bytes, resumed: bytes = b""
) -> bytes:
    """What each node signs once it has computed the session id from all nonces.

    checkpoint: of its audit log at this moment, so that nobody can put an older one in its place.
    resumed: the state from which all go on, as `resumed_from` says.
    """
    return pack(contract.digest(), sid, name.encode(), sha256(checkpoint).digest(), resumed)


def verify_session(
    contract: Contract,
    sid: bytes,
    signatures: Mapping[str, bytes],
    checkpoints: Mapping[str, bytes],
    keys: Mapping[str, bytes],
    resumed: bytes = b"",
) -> None:
    """Every node signed the same session id, the state from which all go on, and the checkpoint of
    its audit log that came.

    Raises ContractError naming the one that did not.
    """
    for name in contract.roles.nodes:
        statement = session_statement(contract, sid, name, checkpoints.get(name, b""), resumed)
        try:
            VerifyKeys(keys[name]).verify(SESSION_PURPOSE, statement, signatures.get(name, b""))
        except AuthenticationError as error:
            raise ContractError(f"{name} did not sign this session: {error}") from error


def rotation_statement(
    contract: Contract, sid: bytes, name: str, card: bytes, roster: bytes, by: str
) -> bytes:
    """What each node signs when the identity of `name` is succeeded during the session.

    card, roster: digests of the new card, and of all cards of the contract with it.
    """
    return pack(contract.digest(), sid, name.encode(), card, roster, by.encode())


def verify_rotation(
    contract: Contract,
    sid: bytes,
    succeeded: tuple[str, bytes, bytes],
    signatures: Mapping[str, bytes],
    keys: Mapping[str, bytes],
) -> None:
    """Every node holds the same cards after a rotation.

    succeeded: name, digest of the new card, digest of the roster. keys: names to verification keys,
    the new ones of that name. Raises ContractError naming the one that did not sign.
    """
    for name in contract.roles.nodes:
        statement = rotation_statement(contract, sid, *succeeded, name)
        try:
            VerifyKeys(keys[name]).verify(ROTATION_PURPOSE, statement, signatures.get(name, b""))
        except AuthenticationError as error:
            raise ContractError(
                f"{name} did not sign the new card of {succeeded[0]}: {error}"
            ) from error
