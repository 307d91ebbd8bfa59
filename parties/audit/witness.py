"""Nodes of a run as witnesses of each other's audit logs.

With its signature under the session each node sends a checkpoint of its log, and to each other
node the proof that it goes on from the newest checkpoint that this one holds. What came is kept in
everybody's log. So none can take back an entry that a run has covered without the others seeing it
in their next run, and anybody can compare the logs at any time (`verify`).
"""

from collections.abc import Iterable, Mapping, Sequence

from parties.audit.checkpoint import origin_of, read_checkpoint, verify_checkpoint
from parties.audit.entries import Kind, Value
from parties.audit.log import AuditLog
from parties.audit.merkle import is_consistent
from parties.audit.reading import Public
from parties.errors import AuditTamperedError, ContractError
from parties.keys.identity import Card


def seen(audit: AuditLog, others: Iterable[Card]) -> dict[str, int]:
    """By node, how long its log was by the newest checkpoint that this log holds of it."""
    held = audit.held()
    found = {card.name: held.get(origin_of(card)) for card in others}
    return {name: known[1].size for name, known in found.items() if known is not None}


def proofs(
    audit: AuditLog, checkpoint: bytes, asked: Mapping[str, int]
) -> dict[str, tuple[bytes, ...]]:
    """By node, that `checkpoint`, this log's own, goes on from what that node has seen.

    A node that says it has seen more than there is gets none: there is nothing to show.
    """
    size = read_checkpoint(checkpoint).size
    return {
        name: tuple(audit.consistency(old, size)) for name, old in asked.items() if 0 < old <= size
    }


def keep(
    audit: AuditLog, card: Card, note: bytes, proof: Sequence[bytes], job: str, digest: str
) -> bool:
    """Keep the checkpoint of another node's log in this one; whether it goes on from the last one.

    Raises ContractError for one that is not signed by the node.
    """
    try:
        found = verify_checkpoint(note, card)
    except AuditTamperedError as error:
        raise ContractError(f"{card.name} sent no checkpoint of its audit log: {error}") from error
    known = audit.held().get(found.origin)
    fields: dict[str, Value] = {"node": card.name, "entries": found.size}
    goes_on = known is None or is_consistent(
        known[1].size, found.size, known[1].root, found.root, proof
    )
    if not goes_on and known is not None:
        contradicted = fields | {"held": known[1].size}
        audit.append(Kind.LOG_CONTRADICTED, contradicted, job=job, digest=digest)
    public = Public(checkpoint=note.decode())
    audit.append(Kind.CHECKPOINT_RECEIVED, fields, job=job, digest=digest, public=public)
    return goes_on
