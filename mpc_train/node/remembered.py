"""The file in which a node keeps what it has revealed of its tables (`mpc_train.run.history`).

`<name>.revealed` in the node's home, readable by its owner only. A run is recorded when all nodes
have signed and nothing has been shared yet: a run that breaks off later counts as revealed. Two
nodes of one identity that run at the same time see each other's entries.
"""

from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from mpc_train.admission.rules import Rules
from mpc_train.errors import ConfigError
from mpc_train.jobs.job import Job
from mpc_train.node.places import try_directory
from mpc_train.owners.table import Table
from mpc_train.run.history import History, check_history
from mpc_train.tables.source import Source
from parties.files import locked, write_atomic

SUFFIX = ".revealed"


class Remembered:
    """The record in its home of what the node `me` has revealed."""

    def __init__(self, home: Path, me: str, rules: Rules) -> None:
        self._path = home / f"{me}{SUFFIX}"
        self._me, self._rules = me, rules

    def try_to_write(self) -> None:
        """Raise ConfigError if nothing can be recorded: now, not after all have signed."""
        try:
            try_directory(self._path.parent, self._me)
            with self._locked():
                pass
        except OSError as error:
            raise self._unwritable(error) from error

    def notes(self, source: Source) -> list[str]:
        """Lines for people: the runs over the table at `source`."""
        runs = self._load().of_source(source)
        return [
            f"this table was used on {run.at} by {run.job}, digest {run.digest[:16]}"
            + (f", with noise of ε = {run.epsilon}" if run.epsilon else "")
            for run in runs
        ]

    def check(self, job: Job, source: Source, table: Table) -> None:
        """Raise RefusedError if a run of `job` would reveal too much after the earlier runs."""
        history = self._load()
        if history.runs:  # without earlier runs the table's mark need not be computed
            check_history(self._rules, history, history.entry(_now(), job, self._me, source, table))

    def write(self, job: Job, source: Source, table: Table) -> None:
        """Record that a run of `job` begins; raises the errors of `check`, and then records
        nothing."""
        with self._locked():
            history = self._load()
            run = history.entry(_now(), job, self._me, source, table)
            check_history(self._rules, history, run)
            history = msgspec.structs.replace(history, runs=(*history.runs, run))
            try:
                write_atomic(self._path, msgspec.json.encode(history) + b"\n")
            except OSError as error:
                raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"{self._path}: cannot be written ({error.strerror}), but what is revealed must be "
            "recorded; nothing was shared"
        )

    def _load(self) -> History:
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=History)
            if found.version != 1:
                raise msgspec.ValidationError(f"version {found.version}")
            bytes.fromhex(found.key)
            return found
        except FileNotFoundError:
            return History.begun()
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            raise ConfigError(
                f"{self._path}: cannot be read, but it records what this node has revealed; "
                "restore it, or remove it if your organisation accepts that the record is lost"
            ) from error

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self._path.with_suffix(".lock"))


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%SZ}"
