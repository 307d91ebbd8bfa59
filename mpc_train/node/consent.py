"""Whether this organisation agrees to a job: by its digest, by an approver, or by a person.

Rules cannot detect everything that a job may reveal about a row (`admission.cautions`). So a node
signs a job only if its digest is listed under `[rules] jobs`, an approval by one of `approvers` is
in the node's `approvals`, or a person at the terminal, who was shown the job, answers yes. Without
a terminal, and for machines (`--format json`), nobody is asked.
"""

import os
import select
import sys
import termios
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpc_train.base.printing import say
from mpc_train.errors import RefusedError
from mpc_train.jobs.job import Job
from mpc_train.run.approval import MAX_APPROVAL_BYTES, SUFFIX, ApprovalError, approver_of
from mpc_train.run.node_config import NodeConfig
from parties.files import read_bounded

if TYPE_CHECKING:
    from mpc_train.run.progress import ProgressView
    from parties.keys.roster import Roster

Ask = Callable[[str], bool]


def agree(config: NodeConfig, roster: "Roster", job: Job, ask: Ask | None) -> str:
    """A text that says why this node may sign `job`. ask: None if nobody can be asked.

    Raises RefusedError, which says what to write where.
    """
    digest = job.digest().hex()
    if digest in config.rules.jobs:
        return "its digest is listed under jobs"
    approver = _approver(config, roster, job)
    if approver is not None:
        return f"{approver} has approved it"
    if ask is None:
        raise RefusedError(
            f"the job {job.name!r}, digest {digest}, is not listed under jobs, no approver has "
            "signed it, and there is no terminal to ask a person at. Nothing was shared. Read it "
            "with mpc-train job check and, if your organisation agrees, write into [rules] of "
            f'{config.path}: jobs = ["{digest}"]'
        )
    if not ask(f"Sign the job {job.name}, digest {digest}, and take part? [y/N] "):
        raise RefusedError(
            f"the job {job.name!r}, digest {digest}, was refused at the terminal. Nothing "
            "was shared"
        )
    return "somebody at the terminal agreed"


def _approver(config: NodeConfig, roster: "Roster", job: Job) -> str | None:
    """Return one of the node's approvers who signed the job; raise RefusedError for other files."""
    cards = {name: roster.card(name) for name in config.rules.approvers if name in roster}
    if not cards:
        return None
    for path in sorted(config.place.approvals.glob(f"*{SUFFIX}")):
        try:
            found = approver_of(read_bounded(path, MAX_APPROVAL_BYTES), job.digest(), cards)
        except (ApprovalError, OSError, ValueError) as error:
            raise RefusedError(f"{path}: {error}. Nothing was shared; remove the file") from error
        if found is not None:
            return found
    return None


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
