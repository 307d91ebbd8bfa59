"""A job's digest with a dated signature: an approval, which nodes accept as a person's consent.

An approver reads the job (`mpc-train job check`) and signs its digest; a node whose rules list the
approver, and whose roster has the approver's card, counts the approval. The node's other rules
still apply. An approval contains no secret and may be sent in any way.
"""

from dataclasses import dataclass, field
from datetime import date, timedelta

import msgspec

from mpc_train.admission.rules import Rules, separates
from mpc_train.admission.statements import Cards, Statement, StatementError, sign
from mpc_train.base.printing import escaped
from mpc_train.base.strict_toml import clipped
from mpc_train.jobs.job import Job
from protocols.sealing.signatures import Signer

PURPOSE = "mpc-train/job-approval/2"
SUFFIX = ".approval"
MAX_APPROVAL_BYTES = 1 << 14
MAX_REMARKS = 10
"""Whoever can put files there could otherwise make an error of any length."""
FAST_CLOCK = timedelta(days=1)
"""An approver's day may be one ahead of a node's: their clocks differ."""


class ApprovalError(ValueError):
    """A fault of an approval, without the file's name."""


class Approval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of the file. job: for people, the name of the job."""

    job: str
    statement: Statement
    version: int = 2


@dataclass
class Approvals:
    """What the approvals that a node has say about one job."""

    rules: Rules
    me: str
    """The node, whose own identity is the operator's."""
    digest: bytes
    """Of the job."""
    day: date
    valid: dict[str, date] = field(default_factory=dict)
    """By approver, the day of the approval: each counts once, however many files there are."""
    not_counted: list[str] = field(default_factory=list)
    """Why other files do not count as approvals of this job; without those that are of other
    jobs."""

    def add(self, name: str, body: bytes, cards: Cards) -> None:
        """Count the approval in the file `name`, if it is of this job; otherwise remark why not.

        A file that is no approval, or is forged, is a remark as well: whoever may put files there
        must not be able to keep the node from counting those of others.
        """
        try:
            found = _read(body)
        except ApprovalError as error:
            self.pass_over(name, str(error))
            return
        signer, day = found.signer, found.day
        if found.digest != self.digest.hex():
            return
        days = self.rules.approvals_valid_days
        if signer not in self.rules.approvers:
            why = f"{clipped(signer)} is not an approver of this node"
        elif separates(self.rules) and signer in (self.me, *self.rules.operators):
            why = f"{signer} runs this node, and somebody else must approve (separate)"
        elif signer not in cards:
            why = f"the roster has no valid card of {signer}"
        elif day - self.day > FAST_CLOCK:
            why = f"it bears the day {day}, and today is {self.day}"
        elif (self.day - day).days > days:
            why = f"it is of {day} and counts for {days} days (approvals_valid_days)"
        else:
            try:
                found.check(PURPOSE, cards[signer])
                self.valid[signer] = max(day, self.valid.get(signer, day))
                return
            except StatementError as error:
                why = str(error)
        self.pass_over(name, why)

    def pass_over(self, name: str, why: str) -> None:
        """Remark that the file `name`, whoever named it, does not count."""
        self.not_counted.append(f"{escaped(clipped(name))} does not count: {why}")

    @property
    def remarks(self) -> list[str]:
        """The first few of `not_counted`, and how many there are besides."""
        more = len(self.not_counted) - MAX_REMARKS
        return self.not_counted[:MAX_REMARKS] + [f"{more} more files do not count"] * (more > 0)

    @property
    def able(self) -> tuple[str, ...]:
        """The approvers who have not approved yet and may."""
        mine = (self.me, *self.rules.operators) if separates(self.rules) else ()
        return tuple(
            name for name in self.rules.approvers if name not in self.valid and name not in mine
        )


def approve(job: Job, approver: str, day: date, signer: Signer) -> bytes:
    """The approval of `job` by `approver`, whose keys `signer` holds, given on this day (UTC)."""
    statement = sign(PURPOSE, approver, job.digest(), day, signer)
    return msgspec.json.encode(Approval(job.name, statement)) + b"\n"


def _read(body: bytes) -> Statement:
    try:
        found = msgspec.json.decode(body, type=Approval)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ApprovalError("is not an approval; make one with mpc-train job approve") from error
    if found.version != 2:
        raise ApprovalError(
            f"is an approval of version {found.version}; this program reads version 2"
        )
    return found.statement
