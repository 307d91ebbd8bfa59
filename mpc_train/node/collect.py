"""Combines the envelopes that a run left into one sealed file for each recipient."""

import contextlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpc_train.jobs.audience import learnt
from mpc_train.jobs.job import Job
from mpc_train.linkage.partners import all_linkage_warnings, without_partner

if TYPE_CHECKING:
    from mpc_train.results.opening import PublicCard

RECORD_FILE = "run.record"
"""The contract and the results of a run, signed by all its nodes: `parties.agreement.result`."""


def bundle(
    root: Path,
    files: Iterable[Path],
    recipients: Collection[str],
    evaluators: Collection[str],
    cards: Mapping[str, "PublicCard"],
    record: bytes,
    target: str = "{}.sealed",
    envelope_file: str = "model.envelope",
) -> dict[str, Path]:
    """Put the envelopes under `root`/sealed/<recipient>/ into one file per recipient, with the
    record of the run that all nodes signed.

    The envelopes are removed when that file is on the disk: nothing is kept twice.

    `files`: what the run wrote; `target`: the file's name in `root`, with {} for the recipient;
    `envelope_file`: which envelopes. Only those of `evaluators` to `recipients` are used; each must
    be signed by the card of its sender, all must be of one session, and the record must name them
    by their digests. Raises ArtifactError, before it writes anything, if an evaluator did not seal
    a valid envelope to each recipient: without all envelopes a result cannot be opened.
    """
    from mpc_train.errors import ArtifactError
    from parties.agreement.result import Record
    from parties.files import write_atomic
    from parties.nodes.artifacts import SEALED
    from protocols.sealing.bundle import pack_bundle

    signed = Record.from_bytes(record).statement if recipients else None
    parts: dict[str, list[Path]] = {}
    about: set[tuple[object, ...]] = set()
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(files):
        kind, *names = path.relative_to(root).parts
        if kind != SEALED or len(names) != 3 or names[2] != envelope_file:
            continue
        recipient, sender, _ = names
        if recipient in recipients and sender in evaluators:
            envelope = path.read_bytes()
            about.add(_about(envelope, sender, recipient, cards))
            assert signed is not None
            check_signed(signed.sent_by(sender), sender, recipient, envelope_file, envelope)
            found.setdefault(recipient, {})[sender] = envelope
            parts.setdefault(recipient, []).append(path)
    if len(about) > 1:
        raise ArtifactError(
            f"{', '.join(evaluators)} sealed results of different sessions or jobs; none is kept"
        )
    for recipient in recipients:
        missing = [name for name in evaluators if name not in found.get(recipient, {})]
        if missing:
            raise ArtifactError(
                f"no envelope of {', '.join(missing)} for {recipient} arrived; without it the "
                "result cannot be opened: run the job again"
            )
    bundles: dict[str, Path] = {}
    for recipient, envelopes in sorted(found.items()):
        bundles[recipient] = root / target.format(recipient)
        write_atomic(bundles[recipient], pack_bundle(record, [*envelopes.values()]))
        for path in parts[recipient]:
            _remove(path, root)
    return bundles


def check_signed(
    sent: Mapping[str, str], sender: str, recipient: str, file: str, envelope: bytes
) -> None:
    """Raise ArtifactError unless `envelope` is among what its sender signed, as this file.

    sent: by path, the digests that the signed statement of results names for `sender`.
    """
    from mpc_train.errors import ArtifactError
    from parties.nodes.artifacts import SEALED

    if sent.get(f"{SEALED}/{recipient}/{file}") != sha256(envelope).hexdigest():
        raise ArtifactError(
            f"the envelope of {sender} for {recipient} is not the one that all nodes signed"
        )


def keep_record(root: Path, record: bytes) -> None:
    """Write the record of a run beside its other files, for evidence."""
    from parties.files import private_directory, write_atomic

    private_directory(root)
    write_atomic(root / RECORD_FILE, record)


def _remove(path: Path, root: Path) -> None:
    """Remove a file, and the directories up to `root` that it leaves empty."""
    with contextlib.suppress(OSError):  # remaining files are sealed copies: no reason to fail
        path.unlink()
        for directory in path.parents:
            if directory == root:
                break
            directory.rmdir()


def _about(
    envelope: bytes, sender: str, recipient: str, cards: Mapping[str, "PublicCard"]
) -> tuple[object, ...]:
    """What an envelope says that it is, without who sent it and to whom; ArtifactError unless
    `sender` signed it, for `recipient` alone or among others."""
    from mpc_train.errors import ArtifactError
    from protocols.errors import EnvelopeError
    from protocols.sealing.envelope import check_envelope, named_keys, read_info

    try:
        said = read_info(envelope)
        group = said.recipients
        if recipient not in group or any(name not in cards for name in group):
            raise EnvelopeError(f"it is sealed to {', '.join(group)}")
        check_envelope(
            envelope,
            expected=replace(said, sender=sender),
            recipient_keys=named_keys(envelope, [cards[name].recipient_keys for name in group]),
            verifier=cards[sender].verifier(),
        )
    except EnvelopeError as error:
        raise ArtifactError(
            f"what {sender} sealed to {recipient} is not a result of this run: {error}"
        ) from error
    return said.subject, said.sid, said.step, said.names, said.threshold


def summarise(job: Job, sent: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a coordinator learns of a run: progress, sizes and times, from each node's own
    summary, in the fields of `--format json`.

    Steps and rounds are the first evaluator's; raises ArtifactError if another evaluator counts
    different steps, or a node sent something else.
    """
    from mpc_train.errors import ArtifactError
    from mpc_train.node.summary import read_summary

    summaries = {name: read_summary(job, name, sent[name]) for name in job.nodes}
    first, *others = [summaries[name] for name in job.evaluators]
    for name, other in zip(job.evaluators[1:], others, strict=True):
        if other.steps != first.steps:
            raise ArtifactError(f"{name} and {job.evaluators[0]} report different steps")
    return {
        "status": "ok",
        "job": job.name,
        "parties": len(job.owners),
        "owners": list(job.owners),
        "evaluators": list(job.evaluators),
        "dealer": job.dealer,
        **({"federated": True} if job.federates else {}),
        **({} if job.trains else {"instead": _instead_of_training(job)}),
        "steps": first.steps,
        **({"resumed_after": first.resumed_after} if first.resumed_after else {}),
        "train_seconds": max(one.train_seconds for one in (first, *others)),
        "step_seconds_median": first.step_seconds_median,
        "bytes_sent": {name: summaries[name].bytes_sent for name in job.nodes},
        "rounds": first.rounds,
        "peak_rss_mb": {
            name: peak for name in job.nodes if (peak := summaries[name].peak_rss_mb) is not None
        },
    }


def _instead_of_training(job: Job) -> str:
    """What a run does with a model that is there already."""
    if job.refreshes:
        return "refreshed"
    return "kept" if job.stays_shared else "measured"


def found_by(job: Job, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a run found, in the fields of `--format json`, from what each node printed.

    Metrics and losses are the first evaluator's; raises ArtifactError if another evaluator's
    differ.
    """
    from mpc_train.errors import ArtifactError

    first = records[job.evaluators[0]]
    for name in job.evaluators[1:]:
        for key in ("metrics", "unavailable", "losses", "revealed", "joined_rows"):
            if records[name].get(key) != first.get(key):
                raise ArtifactError(f"{name} and {job.evaluators[0]} report different {key}")
    return {
        "metrics": dict(first.get("metrics") or {}),
        "unavailable": dict(first.get("unavailable") or {}),
        "learnt": learnt(job, first.get("revealed") or ()),
        **({"losses": dict(first["losses"])} if first.get("losses") else {}),
        **_linkage(job, first.get("joined_rows")),
    }


def _linkage(job: Job, joined: int | None) -> dict[str, Any]:
    """What everybody knows of a linkage: how many records are joined, how many of each owner's are
    not, and warnings about that."""
    if not joined:
        return {"warnings": []}
    return {
        "joined_rows": joined,
        "unmatched_records": without_partner(job, joined),
        "warnings": all_linkage_warnings(job, joined),
    }
