"""The record in a node's vault of what it has revealed of its tables (`mpc_train.run.history`).

The newest version of the object `revealed` holds all runs; older ones are shredded. A run is
recorded when all nodes have signed and nothing has been shared yet: a run that breaks off later
counts as revealed. Two nodes of one identity that run at the same time see each other's entries.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from mpc_train.admission.rules import Rules
from mpc_train.errors import ConfigError
from mpc_train.jobs.job import Job
from mpc_train.node.places import try_directory
from mpc_train.node.storage import HISTORY, NodeVault
from mpc_train.run.history import History, check_history, spent_before
from mpc_train.tables.source import Source
from parties.errors import VaultError
from parties.files import locked, private_directory
from parties.vault.store import Store
from protocols.errors import EnvelopeError

if TYPE_CHECKING:
    from mpc_train.owners.table import Table

REVEALED = "revealed"
LOCK = ".revealed.lock"


class Remembered:
    """The record in its vault of what the node `me` has revealed."""

    def __init__(self, safe: NodeVault, me: str, rules: Rules) -> None:
        self._safe, self._me, self._rules = safe, me, rules

    def try_to_write(self) -> None:
        """Raise ConfigError if nothing can be recorded: now, not after all have signed."""
        try:
            private_directory(self._safe.folder)
            try_directory(self._safe.folder, self._me)
        except OSError as error:
            raise self._unwritable(f"{error.strerror}") from error

    def notes(self, source: Source) -> list[str]:
        """Lines for people: the runs over the table at `source`."""
        with self._safe.opened() as store:
            runs = self._load(store).of_source(source)
        lines = [
            f"this table was used on {run.at} by {run.job}, digest {run.digest[:16]}"
            + (f", with noise of ε = {run.epsilon}" if run.epsilon else "")
            + (
                ", without differential privacy"
                if run.budget_epsilon is None
                else f", at ε = {run.budget_epsilon}, δ = {run.budget_delta}"
            )
            for run in runs
        ]
        spent, rules = spent_before(runs), self._rules.privacy
        most = None if rules is None else rules.budget_epsilon
        if spent.runs or most is not None:
            whole = "" if most is None or rules is None else f" of {most}, {rules.budget_delta}"
            lines.append(
                f"runs over this table have cost ε = {spent.epsilon}, "
                f"δ = {spent.small_delta}{whole}"
            )
        return lines

    def check(self, job: Job, source: Source, table: Table) -> None:
        """Raise RefusedError if a run of `job` would reveal too much after the earlier runs."""
        with self._safe.opened() as store:
            history = self._load(store)
        # Without earlier runs and a budget the table's mark need not be computed.
        if history.runs or (job.privacy and self._rules.privacy is not None):
            check_history(self._rules, history, history.entry(_now(), job, self._me, source, table))

    def write(self, job: Job, source: Source, table: Table, *, reserved: bool = False) -> None:
        """Record that a run of `job` begins; raises the errors of `check`, and then records
        nothing.

        reserved: a run of the same job began before, and nothing of it has left: what was recorded
        for it then is for this one, and is not spent twice.
        """
        with locked(self._safe.folder / LOCK), self._safe.opened() as store:
            history = self._load(store)
            run = history.entry(_now(), job, self._me, source, table)
            if reserved and any(old.digest == run.digest for old in history.like(run)):
                return
            check_history(self._rules, history, run)
            history = msgspec.structs.replace(history, runs=(*history.runs, run))
            try:
                with store.writing(HISTORY, REVEALED) as out:
                    out.write(msgspec.json.encode(history) + b"\n")
            except (VaultError, OSError) as error:
                raise self._unwritable(str(error)) from error
            for version in store.versions(HISTORY, REVEALED)[:-1]:
                store.shred(HISTORY, REVEALED, version)

    def _unwritable(self, why: str) -> ConfigError:
        return ConfigError(
            f"{self._safe.folder}: cannot be written ({why}), but what is revealed must be "
            "recorded; nothing was shared"
        )

    def _load(self, store: Store) -> History:
        """The newest version, never an older one: that would forget what was revealed since."""
        if not store.versions(HISTORY, REVEALED):
            return History.begun()
        try:
            with store.open(HISTORY, REVEALED) as content:
                found = msgspec.json.decode(content.reader.read(), type=History)
            if found.version != 1:
                raise msgspec.ValidationError(f"version {found.version}")
            bytes.fromhex(found.key)
            return found
        except (EnvelopeError, VaultError, OSError, msgspec.MsgspecError, ValueError) as error:
            raise ConfigError(
                f"vault {self._safe.folder}, {HISTORY} {REVEALED}: cannot be read ({error}), but "
                "it records what this node has revealed; restore it, or shred it (vault shred "
                f"{REVEALED} --kind {HISTORY}) if your organisation accepts that the record is lost"
            ) from error


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%SZ}"
