"""Fixtures that several packages' tests share: they start processes, so they are made once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from parties.keys.identity import IdentityKeys
from tests.support.local_run import LocalRun
from tests.support.study import Study, make_homes


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys and rosters of a study's nodes; copy them before anything is changed."""
    folder = tmp_path_factory.mktemp("homes")
    make_homes(folder)
    return folder


@pytest.fixture(scope="session")
def good_study(tmp_path_factory: pytest.TempPathFactory, homes: Path) -> Iterator[Study]:
    """A study that ran well, each node started by hand; for looking at, not for changing.

    Ann and Bob sit behind firewalls: what they send each other goes through the coordinator.
    """
    folder = tmp_path_factory.mktemp("good")
    shutil.copytree(homes, folder / "homes")
    study = Study(folder)
    try:
        study.coordinator()
        study.node("ann", network="")
        study.node("bob", network="")
        study.node("registry")
        study.good = study.ended()
    finally:
        study.close()
    statuses = {name: end.status for name, end in study.good.items()}
    assert statuses == dict.fromkeys(statuses, 0), study.good
    yield study


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
