"""Whether this organisation agrees to a job: by its digest, by approvers, or by a person.

Rules cannot detect everything that a job may reveal about a row (`admission.cautions`). So a node
signs a job only if its digest is listed under `[rules] jobs`, an approval by one of `approvers` is
in the node's `approvals`, or a person at the terminal, who was shown the job, answers yes. Without
a terminal, and for machines (`--format json`), nobody is asked.

If the rules require `approvals`, only that many of them are enough, of different approvers. The
node waits for them, and looks into its directory again and again.
"""

import os
import select
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from mpc_train.base.printing import say
from mpc_train.errors import RefusedError
from mpc_train.jobs.job import Job
from mpc_train.run.approval import MAX_APPROVAL_BYTES, SUFFIX, Approvals
from mpc_train.run.node_config import NodeConfig
from parties.agreement.contract import Roles
from parties.errors import RosterError
from parties.files import read_bounded
from parties.keys import lifetime
from parties.keys.identity import reason

if TYPE_CHECKING:
    from mpc_train.run.progress import ProgressView
    from parties.keys.roster import Roster

Ask = Callable[[str], bool]
Wait = Callable[[str], bool]
POLL_S = 1.0
"""How often a waiting node looks for approvals: a directory is cheap to read."""


@dataclass(frozen=True)
class Agreement:
    """Why a node may sign a job, and whose approvals say so, if any do. remarks: which files among
    the approvals do not count, and why."""

    why: str
    approvers: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def roles_of(job: Job) -> Roles:
    """The roles in the contract of a job. All owners of a federated job get its global models."""
    reveal = job.reveal
    owners = tuple(name for name in job.owners if name not in job.visitors)
    recipients = job.owners if job.federates else job.recipients
    return Roles(
        owners,
        job.evaluators,
        job.dealer,
        recipients,
        reveal.threshold,
        reveal.metrics_to,
        job.visitors,
    )


def agree(
    config: NodeConfig,
    roster: "Roster",
    job: Job,
    ask: Ask | None,
    today: Callable[[], date],
    wait: Wait | None = None,
) -> Agreement:
    """Why this node may sign `job`.

    ask: None if nobody can be asked. today: says the day, UTC. wait: is told what is missing, and
    returns after a moment whether to look again; None: do not wait. Raises RefusedError, which says
    what to write where.
    """
    if config.rules.approvals:
        return _approved(config, roster, job, today, wait)
    digest = job.digest().hex()
    if digest in config.rules.jobs:
        return Agreement("its digest is listed under jobs")
    found = _approvals(config, roster, job, today())
    for approver in found.valid:
        return Agreement(f"{approver} has approved it", (approver,), tuple(found.remarks))
    if ask is None:
        remarks = "".join(f"; {remark}" for remark in found.remarks)
        raise RefusedError(
            f"the job {job.name!r}, digest {digest}, is not listed under jobs, no approver has "
            f"signed it{remarks}, and there is no terminal to ask a person at. Nothing was shared. "
            "Read it with mpc-train job check and, if your organisation agrees, write into [rules] "
            f'of {_rules_file(config)}: jobs = ["{digest}"]'
        )
    if not ask(f"Sign the job {job.name}, digest {digest}, and take part? [y/N] "):
        raise RefusedError(
            f"the job {job.name!r}, digest {digest}, was refused at the terminal. Nothing "
            "was shared"
        )
    return Agreement("somebody at the terminal agreed")


def _rules_file(config: NodeConfig) -> str:
    return str(config.path if config.accepted is None else config.accepted.path)


def _approved(
    config: NodeConfig, roster: "Roster", job: Job, today: Callable[[], date], wait: Wait | None
) -> Agreement:
    """The agreement of as many approvers as the rules require; raises RefusedError.

    The roster is read again each time: an approver may be revoked while the node waits.
    """
    least = config.rules.approvals
    while True:
        try:
            known = roster if roster.source is None else roster.load(roster.source)
            found = _approvals(config, known, job, today())
        except RosterError as error:
            # Somebody may be writing it right now.
            if wait is None or not wait(str(error)):
                raise
            continue
        if len(found.valid) >= least:
            names = tuple(found.valid)
            has = "has" if len(names) == 1 else "have"
            why = f"{', '.join(names)} {has} approved it"
            return Agreement(why, names, tuple(found.remarks))
        given = ", ".join(f"{name} ({on})" for name, on in found.valid.items()) or "none"
        missing = (
            f"the job {job.name!r}, digest {job.digest().hex()}, has {len(found.valid)} of the "
            f"{least} approvals that this node requires: {given}; still possible: "
            f"{', '.join(found.able) or 'nobody'}. "
            + "".join(f"{remark}. " for remark in found.remarks)
            + "Each approver runs mpc-train job approve, and the file goes into "
            f"{config.place.approvals}"
        )
        if wait is None or not wait(missing):
            raise RefusedError(f"{missing}. Nothing was shared")


def _approvals(config: NodeConfig, roster: "Roster", job: Job, day: date) -> Approvals:
    """What the approvals in the node's directory say about the job."""
    rules = config.rules
    found = Approvals(rules, config.place.name, job.digest(), day)
    cards = {card.name: card for card in roster.current(lifetime.now())}
    for path in sorted(config.place.approvals.glob(f"*{SUFFIX}")):
        try:
            found.add(path.name, read_bounded(path, MAX_APPROVAL_BYTES), cards)
        except (OSError, ValueError) as error:
            found.pass_over(path.name, f"it cannot be read: {reason(error)}")
    return found


def patience(
    tell: Callable[[str], None],
    wait_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Wait:
    """What waits for approvals, at most `wait_s` from its first call on, and tells each thing that
    is missing once."""
    ends: list[float] = []
    told: list[str] = []

    def wait(missing: str) -> bool:
        if not ends:
            ends.append(clock() + wait_s)
        if told[-1:] != [missing]:
            tell(missing)
            told.append(missing)
        left = ends[0] - clock()
        if left <= 0:
            return False
        sleep(min(POLL_S, left))
        return True

    return wait


def terminal(view: "ProgressView", wait_s: float) -> Ask | None:
    """A function that asks at the terminal and waits `wait_s`; None without a terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def ask(question: str) -> bool:
        with view.paused():
            # Input typed before the question is not an answer to it.
            termios.tcflush(sys.stdin, termios.TCIFLUSH)
            say(question, aside=True, end="")
            return _line(wait_s).strip().lower() in ("y", "yes")

    return ask


def _line(wait_s: float) -> str:
    """The line that is typed; RefusedError if nobody types it in time."""
    deadline, text = time.monotonic() + wait_s, b""
    descriptor = sys.stdin.fileno()
    while not text.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(descriptor, 1024) if ready else b""
        if not piece and not ready:
            raise RefusedError(f"nobody answered within {wait_s:.0f} s. Nothing was shared")
        if not piece:
            break
        text += piece
    return text.decode(errors="replace")
