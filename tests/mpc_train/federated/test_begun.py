"""What an owner that comes and goes pays for a run: once, and again for another run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpc_train.errors import DataError, RefusedError
from mpc_train.federated.rounds.begun import Begun
from tests.support.node_vaults import node_vault

FIRST, SECOND, THIRD = (bytes([number]) * 32 for number in (1, 2, 3))
DIGEST = "ab" * 32


class Purse:
    """Counts what is spent; refuses more than `most`."""

    def __init__(self, folder: Path, most: int = 9) -> None:
        self._vault, self._most = node_vault(folder), most
        self.spent = 0

    def spend(self) -> None:
        if self.spent == self._most:
            raise RefusedError("beyond the budget")
        self.spent += 1

    def begun(self, table: str = "mark", digest: str = DIGEST) -> Begun:
        """As a new process of the owner has it."""
        return Begun(self._vault.opened, "rounds", digest, table, self.spend)


def test_a_run_that_goes_on_is_paid_once(tmp_path: Path) -> None:
    purse = Purse(tmp_path)
    assert not purse.begun().is_there
    purse.begun().enter(FIRST, b"")
    purse.begun().enter(FIRST, b"")
    purse.begun().enter(FIRST, FIRST)
    assert purse.begun().is_there
    purse.begun().enter(SECOND, FIRST)
    purse.begun().enter(THIRD, FIRST)
    assert purse.spent == 1
    purse.begun().clear()
    assert not purse.begun().is_there


def test_a_run_that_begins_anew_is_paid_again(tmp_path: Path) -> None:
    purse = Purse(tmp_path)
    purse.begun().enter(FIRST, FIRST)
    purse.begun().enter(SECOND, SECOND)
    assert purse.spent == 2
    # Nobody can tell whether the first round was opened before the session broke.
    purse.begun().enter(THIRD, b"")
    assert purse.spent == 3


def test_beyond_a_budget_nothing_begins(tmp_path: Path) -> None:
    purse = Purse(tmp_path, most=0)
    with pytest.raises(RefusedError):
        purse.begun().enter(FIRST, b"")
    assert not purse.begun().is_there


def test_another_table_or_job_is_another_matter(tmp_path: Path) -> None:
    purse = Purse(tmp_path)
    purse.begun().enter(FIRST, b"")
    with pytest.raises(DataError, match="begun here with another table"):
        _ = purse.begun(table="other").is_there
    assert not purse.begun(digest="cd" * 32).is_there
