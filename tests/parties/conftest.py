"""Fixtures of local runs in real processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from parties.keys.identity import IdentityKeys
from tests.support.local_run import LocalRun


@pytest.fixture(scope="session")
def keys() -> dict[str, IdentityKeys]:
    names = ("alice", "bob", "dora", "rita", "coordinator", "mallory")
    return {name: IdentityKeys.generate() for name in names}


@pytest.fixture
def local_run(tmp_path: Path, keys: dict[str, IdentityKeys]) -> Iterator[LocalRun]:
    run = LocalRun(tmp_path, keys)
    try:
        yield run
    finally:
        run.supervisor.close()
