"""The dealer's material for training and evaluation, stored at the evaluators before it is needed.

A job that says `preprocess = true` has two stages. First the dealer makes all material, and each
evaluator stores its part in an encrypted spool. Then the evaluators train without the dealer, which
has left. Data, linkage and scaling come before both: the dealer takes part in them as always.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from parties.files import private_directory
from parties.vault.spool import Spool
from protocols.roles.dealer import Dealer
from protocols.roles.evaluator import Evaluator
from protocols.roles.frames import swap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mpc_train.jobs.job import Job
    from parties.agreement.session import Session
    from protocols.roles.role import Role

STORED = b"mpc-train stored v1"
MAX_STORING_S = 24 * 3600.0
"""How long an evaluator waits for the others, whose connections to the dealer may be slower."""


@contextmanager
def stored_ahead(session: Session, job: Job, role: Role, most_bytes: int) -> Iterator[None]:
    """Inside this context the evaluators need no dealer, if the job asks for that.

    most_bytes: the most that this node stores on its disk. Raises VaultError if that is not enough,
    if the disk is full, or if what was stored is damaged.
    """
    with ExitStack() as held:
        if job.train.preprocess:
            if isinstance(role, Dealer):
                role.run_ahead()
            elif isinstance(role, Evaluator):
                private_directory(session.run_dir)
                spool = Spool(session.run_dir, session.sid, most_bytes)
                held.callback(spool.close)
                _fill(session, role, spool)
        yield


def _fill(session: Session, role: Evaluator, spool: Spool) -> None:
    def stored(_: int) -> None:
        session.progress(phase="storing", bytes_stored=spool.bytes_stored)

    role.store_ahead(spool, stored)
    spool.finish()
    with session.channel.patience(MAX_STORING_S):
        swap(session.channel, role.peers, STORED, b"")
