"""What all nodes of a training sign about it besides the sealed files: the weights that training
began with, and the ledger of what left the masked domain.

Every computing node makes these bytes from what it saw itself, so they are the same everywhere; a
node that only provided data, and anybody later, checks them against the signed job (`check`). They
contain no opened value.

    joined      how many records were joined; 0 where the job joins none
    initial     where the first weights come from, and a digest of what is public about them
    openings    sorted; outputs (name, numbers) that left at the same steps, to the same names, by
                the same key of the job. steps: progressions (first, difference, count)

Encoded as JSON with its keys in the order of the fields; `read_outcome` accepts this spelling only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from math import prod
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from mpc_train.admission.load import resolved
from mpc_train.errors import ArtifactError, JobError
from mpc_train.jobs.audience import audience, linkage_disclosures
from mpc_train.jobs.outputs import clause, leaving
from mpc_train.jobs.schedule import total_steps
from mpc_train.jobs.sealed import sealed_tensors
from protocols.canonical import pack

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

Progressions = tuple[tuple[int, int, int], ...]
LINKAGE_CLAUSES = ("data.join", "data.check_duplicates")


class Opening(NamedTuple):
    """One entry of the ledger. values: how many numbers left; 0 where linkage discloses a fact."""

    output: str
    step: int
    to: tuple[str, ...]
    clause: str
    values: int = 0


class Initial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The weights that training began with.

    derived: by every node from the job; digest over names and words. public-file: digest of the
    file, which the job names. private-file: `owner` shared it in, nobody else knows more than the
    names and shapes, and the digest is over these. shared-model: digest of the model in shares.
    """

    kind: Literal["derived", "public-file", "private-file", "shared-model"]
    digest: str
    owner: str = ""


class Opened(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Outputs that left together, see the head of this file."""

    clause: str
    to: tuple[str, ...]
    steps: Progressions
    outputs: tuple[tuple[str, int], ...]

    @property
    def times(self) -> int:
        """How often each of them left."""
        return sum(count for _, _, count in self.steps)


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all nodes sign."""

    initial: Initial
    openings: tuple[Opened, ...]
    joined: int = 0
    version: Literal[1] = 1

    def to_bytes(self) -> bytes:
        return msgspec.json.encode(self)


def outcome_of(job: Job, ledger: Iterable[Opening]) -> Outcome:
    """The outcome of a run of `job` in which these values left."""
    steps: dict[tuple[str, tuple[str, ...], str, int], list[int]] = {}
    for one in ledger:
        steps.setdefault((one.clause, one.to, one.output, one.values), []).append(one.step)
    groups: dict[tuple[str, tuple[str, ...], Progressions], list[tuple[str, int]]] = {}
    for (key, to, output, values), when in steps.items():
        groups.setdefault((key, to, progressions(when)), []).append((output, values))
    openings = [
        Opened(key, to, when, tuple(sorted(outputs)))
        for (key, to, when), outputs in sorted(groups.items())
    ]
    return Outcome(initial_of(job), tuple(openings), job.data.joined or 0)


def progressions(steps: Sequence[int]) -> Progressions:
    """Steps as few progressions (first, difference, count), from the smallest on."""
    ordered, found, at = sorted(steps), list[tuple[int, int, int]](), 0
    while at < len(ordered):
        end = at + 1
        apart = ordered[end] - ordered[at] if end < len(ordered) else 1
        while end < len(ordered) and ordered[end] - ordered[end - 1] == apart:
            end += 1
        found.append((ordered[at], apart, end - at))
        at = end
    return tuple(found)


def initial_of(job: Job) -> Initial:
    """What is public about the first weights. Raises ModelError if the job's own code is not here,
    or is another version."""
    if job.federates:
        return Initial("derived", job.plain.initial)
    start = job.train.warm_start
    if start is None:
        from mpc_train.training.first_weights import initial_weights

        words = initial_weights(job).items()
        parts = [pack(name.encode(), value.astype("<i8").tobytes()) for name, value in words]
        return Initial("derived", sha256(pack(*parts)).hexdigest())
    if start.sha256:
        kind: Literal["shared-model", "public-file"]
        kind = "shared-model" if job.starts_from_shares else "public-file"
        return Initial(kind, start.sha256)
    parts = [pack(name.encode(), repr(shape).encode()) for name, shape in job.shapes.items()]
    return Initial("private-file", sha256(pack(*parts)).hexdigest(), start.source)


def read_outcome(data: bytes) -> Outcome:
    """Raises ArtifactError for anything that `Outcome.to_bytes` did not write."""
    try:
        found = msgspec.json.decode(data, type=Outcome)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ArtifactError(f"the outcome of the run is malformed: {error}") from error
    if found.to_bytes() != data:
        raise ArtifactError("the outcome of the run is not in its only spelling")
    return found


def check(job: Job, outcome: Outcome) -> None:
    """Raise ArtifactError unless the job allows every opening, and its first weights are these.

    1. Each output is listed by the key of the job that is stated, and went to whom it may go.
    2. It left at a step that the job has, and not twice at one.
    3. Everything that is sealed was opened to the recipients, once and whole.

    Raises ModelError where the first weights cannot be derived because the job's code is missing.
    """
    if (job.data.join is not None) != (outcome.joined > 0):
        raise ArtifactError(f"the outcome states {outcome.joined} joined records")
    if outcome.joined:
        try:
            job = resolved(job, outcome.joined)
        except JobError as error:
            raise ArtifactError(
                f"the outcome states {outcome.joined} joined records: {error}"
            ) from error
    allowed, linkage = {*leaving(job)}, linkage_disclosures(job)
    sealed, last = sealed_tensors(job), total_steps(job)
    left: set[tuple[str, int]] = set()
    for one in outcome.openings:
        for output, values in one.outputs:
            if one.clause in LINKAGE_CLAUSES:
                fits = (one.to, output) in linkage and not values
            else:
                fits = output in allowed and (one.clause, one.to) == (
                    clause(job, output),
                    audience(job, output),
                )
            if not fits:  # 1
                raise ArtifactError(
                    f"the ledger says that {output!r} was opened to {', '.join(one.to)} by "
                    f"{one.clause}, which the signed job does not allow"
                )
            for first, apart, count in one.steps:  # 2
                if not (
                    first >= 0 and apart >= 1 and count >= 1 and first + apart * (count - 1) <= last
                ):
                    raise ArtifactError(f"the ledger has steps of {output!r} that the job has not")
                steps = {(output, first + apart * number) for number in range(count)}
                if left & steps:
                    raise ArtifactError(f"the ledger says that {output!r} was opened twice")
                left |= steps
            if output in sealed and ((output, last) not in left or values != prod(sealed[output])):
                raise ArtifactError(f"the ledger has another {output!r} than the job seals")
    missing = [name for name in sealed if (name, last) not in left]
    if missing:  # 3
        raise ArtifactError(f"the ledger lacks what was sealed: {', '.join(missing[:5])}")
    expected = initial_of(job)
    if outcome.initial != expected:
        raise ArtifactError(
            f"training began with other weights than the job's: {outcome.initial.digest}, expected "
            f"{expected.digest}"
        )
