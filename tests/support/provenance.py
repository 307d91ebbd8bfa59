"""Records of runs without processes: what all nodes of a job would have signed."""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path

from mpc_train.jobs.audience import audience, listed
from mpc_train.jobs.job import Job
from mpc_train.jobs.outputs import clause
from mpc_train.jobs.schedule import total_steps
from mpc_train.jobs.sealed import sealed_tensors
from mpc_train.results.outcome import Opening, Outcome, outcome_of
from parties.agreement.contract import Contract, Roles
from parties.agreement.result import Artifact, Record, Statement, sign_result
from parties.keys.roster import Roster, roster_digest
from protocols.sealing.signatures import SIGNATURE_BYTES, Signer


def roles_of(job: Job) -> Roles:
    return Roles(
        job.owners,
        job.evaluators,
        job.dealer,
        job.recipients,
        job.reveal.threshold,
        job.reveal.metrics_to,
    )


def ledger_of(job: Job) -> list[Opening]:
    """Everything that the job lists for its end."""
    last, sizes = total_steps(job), sealed_tensors(job)
    return [
        Opening(name, last, audience(job, name), clause(job, name), _size(sizes.get(name, ())))
        for name in listed(job)
    ]


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for one in shape:
        size *= one
    return size


def artifacts_of(files: Iterable[Path]) -> tuple[Artifact, ...]:
    """Files under …/sealed/<recipient>/<sender>/<file>."""
    found = []
    for path in files:
        *_, recipient, sender, name = path.parts
        digest = sha256(path.read_bytes()).hexdigest()
        found.append(Artifact(sender, f"sealed/{recipient}/{name}", digest))
    return tuple(found)


def insecure_record(job: Job, files: Iterable[Path]) -> bytes:
    """A record whose signatures are zeros, for what does not verify them."""
    roles = roles_of(job)
    cards = tuple(sha256(name.encode()).digest() for name in roles.names)
    contract = Contract.of(job.name, roles, job.to_bytes(), roster_digest(cards))
    statement = Statement(contract.digest(), bytes(32), b"", artifacts_of(files))
    none = (bytes(SIGNATURE_BYTES),) * len(roles.nodes)
    return Record(contract, job.to_bytes(), cards, statement, none).to_bytes()


def signed_record(
    job: Job,
    roster: Roster,
    signers: Mapping[str, Signer],
    sid: bytes,
    artifacts: tuple[Artifact, ...],
    outcome: Outcome | None = None,
) -> Record:
    """The record that these nodes would have signed."""
    roles = roles_of(job)
    cards = roster.subset(roles.names)
    contract = Contract.of(job.name, roles, job.to_bytes(), cards.digest())
    said = (outcome or outcome_of(job, ledger_of(job))).to_bytes()
    statement = Statement(contract.digest(), sid, said, artifacts)
    text = statement.to_bytes()
    signatures = tuple(sign_result(name, text, signers[name]) for name in roles.nodes)
    digests = tuple(card.digest for card in cards)
    return Record(contract, job.to_bytes(), digests, statement, signatures)
