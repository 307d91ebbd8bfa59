"""Evidence about one run, for people who review it: what was agreed, revealed, signed and logged.

Everything is computed from what the run left at this node: the record that all nodes signed
(`parties.agreement.result`), the cards, and the node's audit log, which is verified first. What
cannot be verified stands under `faults`, and `verified` is false. No cell, value, share or key is
in it; metrics are not, either.

The articles and sections are those that a part of the evidence speaks to. That is help for a
review by people who know the law, not a claim that anything complies.
"""

from __future__ import annotations

import platform
import ssl
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import cryptography
import msgspec

from mpc_train.base.release import version
from mpc_train.node.provenance import Provenance
from mpc_train.privacy import words as privacy_words
from mpc_train.privacy.costs import costs
from parties.agreement.contract import CONTRACT_VERSION, describe_trust
from parties.audit.entries import Entry, Kind
from parties.audit.verify import Report as LogReport
from parties.keys import keyfile
from protocols.sealing import hpke, recipient_keys, record, signatures, stream
from protocols.sealing.session import SUITE

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from parties.keys.roster import Roster

EVIDENCE_VERSION = 3
AES, KEMS = "AES-256-GCM", "X25519 256, ML-KEM 768"


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Party(_Part, frozen=True):
    """One organisation of the job, and the card under which it signed."""

    name: str
    roles: str
    fingerprint: str
    issued: str
    expires: str
    recipient_key: str


class Data(_Part, frozen=True):
    """What was used, for what: as the signed job says."""

    purposes: tuple[str, ...]
    description: str
    categories: tuple[str, ...]
    by_column: dict[str, tuple[str, ...]]
    legal_basis: str
    valid_until: str
    columns: tuple[str, ...]
    rows: dict[str, int]
    preparation: str


class Revealed(_Part, frozen=True):
    """Outputs that left the masked domain together. first, last: training steps."""

    outputs: tuple[str, ...]
    numbers: int
    to: tuple[str, ...]
    clause: str
    times: int
    first: int
    last: int


class Drift(_Part, frozen=True):
    """How it is watched if the rows that are asked shift. every_rows: of a window whose counts
    leave. epsilon: of their noise, and of that of the training rows' counts. to: who keeps a
    record. baseline: what windows are compared with; counts of "training rows" left in the run."""

    every_rows: int
    epsilon: str
    to: tuple[str, ...]
    baseline: Literal["training rows", "first window"]


class Served(_Part, frozen=True):
    """Who may ask a model that stays in shares, as the signed job says (`[serve]`). drift: what is
    counted of the rows that are asked, and of the training rows; None: nothing."""

    clients: tuple[str, ...]
    rows_a_day: int
    answer: str
    decimals: int | None
    validators: tuple[str, ...]
    drift: Drift | None = None


class Cost(_Part, frozen=True):
    """What revealing something costs of the budget. paid_by: whose rows it is about."""

    what: str
    epsilon: float
    paid_by: str
    how: str


class Privacy(_Part, frozen=True):
    """The differential privacy that the signed job promises, in words and numbers."""

    epsilon: str
    small_delta: str = msgspec.field(name="delta")
    unit: str
    neighbours: str
    promise: str
    meaning: str
    against: str
    costs: tuple[Cost, ...]


class Signed(_Part, frozen=True):
    """A signature of the statement of results, by its SHA-256."""

    name: str
    sha256: str


class Sealed(_Part, frozen=True):
    """A sealed file that all nodes signed."""

    sender: str
    path: str
    sha256: str


class Algorithm(_Part, frozen=True):
    """What protects one stage. bits: of keys, as the algorithm counts them."""

    stage: str
    what: str
    algorithm: str
    bits: str


class Logged(_Part, frozen=True):
    """An entry of this node's log about the run. number: its place in the log."""

    number: int
    time: str
    kind: str
    fields: dict[str, str]


class LogResult(_Part, frozen=True):
    """Whether this node's audit log is what it signed, and agrees with what others hold."""

    verified: bool
    origin: str
    entries: int
    root: str
    checked: tuple[str, ...]
    faults: tuple[str, ...]
    counts: dict[str, int]
    of_run: tuple[Logged, ...]


class Speaks(_Part, frozen=True):
    """What a part of the evidence may help to review."""

    part: str
    gdpr: tuple[str, ...]
    hipaa: tuple[str, ...]
    how: str


class Evidence(_Part, frozen=True):
    """All of it; `evidence.json`."""

    made: str
    node: str
    verified: bool
    faults: tuple[str, ...]
    job: str
    job_digest: str
    contract: str
    contract_version: int
    session: str
    statement: str
    model: str
    first_weights: str
    trust: tuple[str, ...]
    parties: tuple[Party, ...]
    data: Data
    revealed: tuple[Revealed, ...]
    served: Served | None
    privacy: Privacy | None
    sealed: tuple[Sealed, ...]
    signatures: tuple[Signed, ...]
    algorithms: tuple[Algorithm, ...]
    versions: dict[str, str]
    log: LogResult
    speaks_to: tuple[Speaks, ...]
    limits: tuple[str, ...]
    version: int = EVIDENCE_VERSION


def evidence_of(
    found: Provenance,
    roster: Roster,
    *,
    node: str,
    made: str,
    log: LogReport,
    entries: Sequence[tuple[int, Entry]],
    faults: Iterable[str] = (),
) -> Evidence:
    """The evidence about a run whose record verified.

    entries: all that this node's log says about the job; empty if it cannot be trusted. faults:
    what went wrong besides the log.
    """
    from hashlib import sha256

    run, job = found.record, found.job
    roles, cards = run.contract.roles, run.signers(roster)
    sid = run.statement.sid.hex()
    suites = sorted({cards[name].recipient_key.suite for name in roles.recipients})
    logged = _of_run(entries, sid if node in roles.nodes else None)
    wrong = [*faults, *found.unchecked, *(f"audit log: {fault}" for fault in log.faults)]
    if log.ok and node in roles.nodes:
        wrong += _against_the_log(found, logged, node)
    return Evidence(
        made=made,
        node=node,
        verified=not wrong,
        faults=tuple(wrong),
        job=job.name,
        job_digest=job.digest().hex(),
        contract=run.contract.digest().hex(),
        contract_version=run.contract.version,
        session=sid,
        statement=run.digest().hex(),
        model=job.model.kind,
        first_weights=_first_weights(found),
        trust=tuple(describe_trust(roles).split("\n")),
        parties=tuple(
            Party(
                name=name,
                roles=roles.title(name),
                fingerprint=cards[name].fingerprint,
                issued=cards[name].issued,
                expires=cards[name].expires,
                recipient_key=cards[name].recipient_key.suite,
            )
            for name in roles.names
        ),
        data=_data(found),
        revealed=tuple(
            Revealed(
                outputs=tuple(name for name, _ in one.outputs),
                numbers=sum(values for _, values in one.outputs),
                to=one.to,
                clause=one.clause,
                times=one.times,
                first=one.steps[0][0],
                last=one.steps[-1][0] + one.steps[-1][1] * (one.steps[-1][2] - 1),
            )
            for one in found.outcome.openings
        ),
        served=_served(job),
        privacy=_privacy(job),
        sealed=tuple(Sealed(one.sender, one.path, one.digest) for one in run.statement.artifacts),
        signatures=tuple(
            Signed(name, sha256(signature).hexdigest())
            for name, signature in zip(roles.nodes, run.signatures, strict=True)
        ),
        algorithms=algorithms(suites),
        versions={
            "mpc-train": version(),
            "contract": str(CONTRACT_VERSION),
            "Python": platform.python_version(),
            "cryptography": cryptography.__version__,
            "OpenSSL of Python": ssl.OPENSSL_VERSION,
            "system": f"{platform.system()} {platform.machine()}",
        },
        log=LogResult(
            verified=log.ok,
            origin=log.origin,
            entries=log.size,
            root=log.root,
            checked=tuple(log.checked),
            faults=tuple(str(fault) for fault in log.faults),
            counts=dict(sorted(Counter(one.kind for one in logged).items())),
            of_run=tuple(one for one in logged if one.kind not in _IN_OTHER_PARTS),
        ),
        speaks_to=SPEAKS_TO,
        limits=LIMITS,
    )


_IN_OTHER_PARTS = (Kind.OPENING, Kind.OPENED, Kind.CHECKPOINT_RECEIVED)
"""Many entries, whose content is in the ledger."""


def _of_run(entries: Sequence[tuple[int, Entry]], sid: str | None) -> list[Logged]:
    """From the entries of a job, those of this run: from its proposal to its end.

    sid: None at a coordinator, which is not in the session; its newest run is taken.
    """
    starts = [
        at
        for at, (_, entry) in enumerate(entries)
        if entry.kind is Kind.RUN_STARTED and sid in (None, entry.fields.get("session"))
    ]
    if not starts:
        return []
    first = last = starts[-1]
    while first and entries[first - 1][1].kind not in (Kind.RUN_ENDED, Kind.RUN_ABORTED):
        first -= 1
    while last + 1 < len(entries) and entries[last][1].kind not in (
        Kind.RUN_ENDED,
        Kind.RUN_ABORTED,
    ):
        last += 1
    return [
        Logged(
            number,
            entry.time,
            str(entry.kind),
            {
                key: ", ".join(value) if isinstance(value, tuple) else str(value)
                for key, value in entry.fields.items()
            },
        )
        for number, entry in entries[first : last + 1]
    ]


def _against_the_log(found: Provenance, logged: Sequence[Logged], node: str) -> list[str]:
    """What this node's log and the record that all signed say differently."""
    if not logged:
        return ["audit log: has no entry of this run's session"]
    wrong = []
    run = found.record
    said = [one.fields.get("statement") for one in logged if one.kind == Kind.RESULTS_SIGNED]
    if said != [run.digest().hex()]:
        wrong.append("audit log: this node did not log that it signed this statement of results")
    contracts = [one.fields.get("contract") for one in logged if one.kind == Kind.RUN_SIGNED]
    if run.contract.digest().hex() not in contracts:
        wrong.append("audit log: this node did not log that it signed this contract")
    if node in (*run.contract.roles.evaluators, run.contract.roles.dealer):
        opened = Counter(one.fields.get("output") for one in logged if one.kind == Kind.OPENING)
        signed = Counter(
            {name: one.times for one in found.outcome.openings for name, _ in one.outputs}
        )
        if opened != signed:
            wrong.append("audit log: its openings are not those of the signed ledger")
    return wrong


_FACTS = (
    *("job", "job_digest", "contract", "contract_version", "session", "statement", "model"),
    *("revealed", "served", "privacy", "sealed", "signatures", "parties", "data"),
)
"""Parts that follow from the record and the cards, whichever release wrote them."""
_WORDS = ("first_weights", "trust", "algorithms", "speaks_to", "limits")
"""Parts that this release writes so, and another one may write differently."""


def differing(said: Evidence, found: Provenance, roster: Roster, *, words: bool) -> list[str]:
    """The parts of evidence that do not say what the record says that lies beside it.

    words: whether this release wrote it, so that its words are known, too.
    """
    ours = evidence_of(found, roster, node=said.node, made=said.made, log=LogReport(), entries=())
    if not words:
        replace = msgspec.structs.replace
        ours = replace(
            ours,
            data=replace(ours.data, preparation=said.data.preparation),
            privacy=_as_said(ours.privacy, said.privacy),
            parties=tuple(
                replace(one, roles=their.roles)
                for one, their in zip(ours.parties, said.parties, strict=False)
            ),
        )
    parts = (*_FACTS, *_WORDS) if words else _FACTS
    wrong = [part for part in parts if getattr(said, part) != getattr(ours, part)]
    if said.verified and (said.faults or said.log.faults or not said.log.verified):
        wrong.append("verified")
    return wrong


def _as_said(ours: Privacy | None, said: Privacy | None) -> Privacy | None:
    """The numbers of ours, with the words of another release."""
    if ours is None or said is None:
        return ours
    return msgspec.structs.replace(said, epsilon=ours.epsilon, small_delta=ours.small_delta)


def _first_weights(found: Provenance) -> str:
    initial = found.outcome.initial
    said = {
        "derived": "derived by every node from the signed job",
        "public-file": "a public file that the signed job names",
        "private-file": f"a private file of {initial.owner}; digest of names and shapes only",
    }[initial.kind]
    return f"{said}; SHA-256 {initial.digest}"


def _data(found: Provenance) -> Data:
    job = found.job
    purpose = job.purpose
    return Data(
        purposes=purpose.purposes,
        description=purpose.description,
        categories=job.categories,
        by_column=dict(purpose.columns),
        legal_basis=purpose.legal_basis,
        valid_until="" if purpose.valid_until is None else purpose.valid_until.isoformat(),
        columns=job.columns,
        rows=dict(job.data.rows),
        preparation="over shares; statistics of the pooled rows are opened to nobody"
        + ("" if job.stays_shared else " but the recipients, with the model"),
    )


def _served(job: Job) -> Served | None:
    serve = job.serve
    if serve is None:
        return None
    answer, validators, watched = serve.answer, serve.validators, None
    if (drift := serve.watched) is not None:
        baseline: Literal["training rows", "first window"]
        baseline = "training rows" if job.counts_training else "first window"
        watched = Drift(drift.every_rows, str(drift.epsilon), drift.to, baseline)
    return Served(serve.clients, serve.rows_a_day, answer, serve.decimals, validators, watched)


def _privacy(job: Job) -> Privacy | None:
    if not job.privacy:
        return None
    return Privacy(
        epsilon=str(job.privacy.epsilon),
        small_delta=str(job.privacy.small_delta),
        unit=privacy_words.unit_words(job),
        neighbours=privacy_words.neighbours_words(job),
        promise=privacy_words.promise(job),
        meaning=privacy_words.meaning(job),
        against=privacy_words.against(job),
        costs=tuple(
            Cost(one.name, one.epsilon, privacy_words.SIDES[one.side], one.how)
            for one in costs(job)
        ),
    )


def algorithms(recipients: Sequence[str]) -> tuple[Algorithm, ...]:
    """What protects the data at each stage. recipients: the suites of the job's recipients."""
    tag = f"{8 * stream.KEY_BYTES}"
    signing = f"{8 * signatures.ED25519_PUBLIC_BYTES} and {8 * signatures.MLDSA65_PUBLIC_BYTES}"
    by_passphrase = f"{keyfile.KDF_NAME.decode()}, {AES}"
    in_use, records = "preprocessing, training", f"{8 * record.KEY_BYTES}"
    return (
        Algorithm("collection, at rest", "tables of the vault, logs, keys of runs", AES, tag),
        Algorithm("collection, at rest", "private keys, by passphrase", by_passphrase, tag),
        Algorithm("agreement", "contract, session, results, cards", signatures.SUITE, signing),
        Algorithm("in transit", "handshake between each two nodes", SUITE, KEMS),
        Algorithm("in transit", "records between nodes, HKDF-SHA-256", AES, records),
        Algorithm("in transit", "connections to the coordinator", "CurveZMQ (Curve25519)", "256"),
        Algorithm(in_use, "values", "masked additive sharing modulo 2^64", "no key"),
        Algorithm(in_use, "masks, from keys of the handshakes", f"{AES} keystream", tag),
        Algorithm("evaluation", "metrics, under fresh masks", "reveal gate over shares", "no key"),
        *(
            Algorithm("delivery", "the model, to its recipients", suite, _bits_of(suite))
            for suite in recipients
        ),
        Algorithm("monitoring", "audit log: entries", AES, tag),
        Algorithm("monitoring", "audit log: checkpoints", signatures.SUITE, signing),
    )


def _bits_of(suite: str) -> str:
    if suite == hpke.SUITE:
        return KEMS
    return f"{recipient_keys.RSA_BITS}" if "RSA" in suite.upper() else "384"


SPEAKS_TO = (
    Speaks(
        "Trust statement and parties",
        ("Art. 24", "Art. 26", "Art. 28", "Art. 35(7)(d)"),
        ("§ 164.308(a)(2)", "§ 164.308(b)", "§ 164.314(a)"),
        "Who took part in which role, and who would have to collude to learn what.",
    ),
    Speaks(
        "Data and purposes",
        ("Art. 5(1)(b)", "Art. 5(1)(c)", "Art. 6", "Art. 9", "Art. 30(1)"),
        ("§ 164.308(a)(1)(ii)(A)", "§ 164.316(b)(1)"),
        "Purposes, categories of data and columns, as all nodes signed them.",
    ),
    Speaks(
        "What was revealed",
        ("Art. 5(1)(c)", "Art. 5(1)(f)", "Art. 25", "Art. 35(7)(a)"),
        ("§ 164.308(a)(4)", "§ 164.312(a)(1)"),
        "Each value that left the masked domain, to whom, and by which key of the signed job.",
    ),
    Speaks(
        "Contract and signatures",
        ("Art. 5(2)", "Art. 24(1)", "Art. 28(3)"),
        ("§ 164.312(c)(1)", "§ 164.312(d)", "§ 164.316(b)(1)"),
        "What all nodes agreed on before the run and signed after it.",
    ),
    Speaks(
        "Algorithms and key sizes",
        ("Art. 25(1)", "Art. 32(1)(a)", "Art. 34(3)(a)"),
        ("§ 164.312(a)(2)(iv)", "§ 164.312(e)(1)", "§ 164.312(e)(2)(ii)"),
        "How data are protected at rest, in transit, in use and on delivery.",
    ),
    Speaks(
        "Audit log",
        ("Art. 5(2)", "Art. 32(1)(d)", "Art. 33(5)"),
        ("§ 164.308(a)(1)(ii)(D)", "§ 164.308(a)(6)", "§ 164.312(b)"),
        "What this node did, and whether its log is intact.",
    ),
    Speaks(
        "Versions and bill of materials",
        ("Art. 32(1)(b)", "Art. 32(1)(d)"),
        ("§ 164.308(a)(1)(ii)(B)", "§ 164.308(a)(8)"),
        "Which software ran, for a check against published vulnerabilities.",
    ),
)
"""GDPR: Regulation (EU) 2016/679. HIPAA: 45 CFR Part 164, Subpart C."""

LIMITS = (
    "This is support for a review. It does not say that a law or a contract is complied with, and "
    "is no legal advice.",
    "Purposes, categories and the legal basis are statements of the parties. No program can tell "
    "whether they are true, nor whether an owner's table is.",
    "Nodes are assumed to run this software unmodified. A node that runs other software can log "
    "and sign what it likes about itself.",
    "The model itself, and the metrics, say something about the data they come from. How much they "
    "may say about one unit is bounded only where differential privacy is promised.",
    "Physical safeguards (45 CFR § 164.310) and the administration of the machines are outside of "
    "what this software can show.",
)


def read_evidence(data: bytes) -> Evidence:
    """Raises ValueError for anything else than `evidence.json` of this version."""
    try:
        found = msgspec.json.decode(data, type=Evidence)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if found.version != EVIDENCE_VERSION:
        raise ValueError(f"version {found.version}, expected {EVIDENCE_VERSION}")
    return found
