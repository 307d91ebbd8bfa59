"""Sealed files after a run, as the nodes left them, into one file for each recipient."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from mpc_train.jobs.audience import learnt
from mpc_train.jobs.job import Job
from mpc_train.linkage.partners import linkage_warnings, without_partner


def bundle(
    root: Path,
    files: Iterable[Path],
    recipients: Collection[str],
    evaluators: Collection[str],
    target: str = "{}.sealed",
) -> dict[str, Path]:
    """Put the envelopes under `root`/sealed/<recipient>/ into one file per recipient.

    `files`: what the run wrote; `target`: the file's name in `root`, with {} for the recipient.
    Raises ArtifactError, before it writes anything, if one of `evaluators` sealed nothing to one
    of `recipients`: without all envelopes a model cannot be opened.
    """
    from mpc_train.errors import ArtifactError
    from parties.artifacts import SEALED
    from parties.files import write_atomic
    from protocols.bundle import pack_bundle

    found: dict[str, list[Path]] = {}
    for path in files:
        parts = path.relative_to(root).parts
        if len(parts) == 4 and parts[0] == SEALED:
            found.setdefault(parts[1], []).append(path)
    for recipient in recipients:
        senders = {path.parent.name for path in found.get(recipient, [])}
        missing = [name for name in evaluators if name not in senders]
        if missing:
            raise ArtifactError(
                f"nothing that {', '.join(missing)} sealed to {recipient} came; without it the "
                "model cannot be opened: run the job again"
            )
    bundles: dict[str, Path] = {}
    for recipient, paths in sorted(found.items()):
        bundles[recipient] = root / target.format(recipient)
        envelopes = [path.read_bytes() for path in sorted(paths)]
        write_atomic(bundles[recipient], pack_bundle(envelopes))
    return bundles


def summarise(job: Job, summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the run in the fields of `--format json`, from each node's own summary.

    Steps, rounds, metrics and losses are the first evaluator's; raises ArtifactError when another
    evaluator says otherwise.
    """
    from mpc_train.errors import ArtifactError

    first = summaries[job.evaluators[0]]
    for name in job.evaluators[1:]:
        for key in ("steps", "metrics", "losses", "revealed", "joined_rows"):
            if summaries[name].get(key) != first.get(key):
                raise ArtifactError(f"{name} and {job.evaluators[0]} report different {key}")
    evaluators = [summaries[name] for name in job.evaluators]
    return {
        "status": "ok",
        "job": job.name,
        "parties": len(job.owners),
        "owners": list(job.owners),
        "evaluators": list(job.evaluators),
        "dealer": job.dealer,
        "steps": first.get("steps", 0),
        "train_seconds": max(float(one.get("train_seconds", 0.0)) for one in evaluators),
        "step_seconds_median": float(first.get("step_seconds_median", 0.0)),
        "bytes_sent": {name: int(summaries[name].get("bytes_sent", 0)) for name in job.nodes},
        "rounds": first.get("rounds", 0),
        "peak_rss_mb": {
            name: summaries[name]["peak_rss_mb"]
            for name in job.nodes
            if "peak_rss_mb" in summaries[name]
        },
        "metrics": dict(first.get("metrics") or {}),
        "learnt": learnt(job, first.get("revealed") or ()),
        **({"losses": dict(first["losses"])} if first.get("losses") else {}),
        **_linkage(job, first.get("joined_rows")),
    }


def _linkage(job: Job, joined: int | None) -> dict[str, Any]:
    """What everybody knows of a linkage: how many records are joined, how many of each owner's are
    not, and what to make of that."""
    if not joined:
        return {"warnings": []}
    return {
        "joined_rows": joined,
        "unmatched_records": without_partner(job, joined),
        "warnings": [
            warning for owner in job.owners for warning in linkage_warnings(job, joined, owner)
        ],
    }
