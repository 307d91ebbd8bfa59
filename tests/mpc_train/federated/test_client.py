"""An owner that runs no node: which contract it believes, and what it needs to run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mpc_train.errors import RefusedError
from mpc_train.federated.rounds import client as module
from mpc_train.node.consent import roles_of
from tests.support.federated import federated_job


def test_another_job_than_the_one_that_was_checked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, checks = federated_job(tmp_path), []

    class Client:
        def __init__(self, vault: Any, roster: Any, settings: Any, check: Any, *_: Any) -> None:
            checks.append(check)

        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(module, "Client", Client)
    owner = SimpleNamespace(limits=SimpleNamespace(size=3), initial=lambda: None)
    vault, given = SimpleNamespace(card=SimpleNamespace(name="cas")), cast(Any, None)
    roles = roles_of(job)
    with module.rounds_client(
        *(cast(Any, vault), given, given, job, roles, cast(Any, owner), given, given, given),
        *(given, given),
    ):
        pass
    (check,) = checks
    check(SimpleNamespace(roles=roles), job.to_bytes())
    other = federated_job(tmp_path, clip="5")
    for contract, body in (
        (SimpleNamespace(roles=roles), other.to_bytes()),
        (SimpleNamespace(roles=roles_of(federated_job(tmp_path, rounds="9"))), other.to_bytes()),
    ):
        with pytest.raises(RefusedError, match="another job than rounds"):
            check(contract, body)


@pytest.mark.slow
def test_it_needs_no_compiler() -> None:
    """Neither numba nor PyTorch's own compiler is loaded by what such an owner imports."""
    code = (
        "import sys; import mpc_train.commands.owner, mpc_train.federated.rounds.client, "
        "mpc_train.federated.local, mpc_train.owners.table, mpc_train.node.remembered, "
        "mpc_train.commands.nodes, mpc_train.results.report, mpc_train.federated.rounds.result; "
        "from mpc_train.federated.rounds import messages; messages.drawn(bytes(32), 9); "
        "print([name for name in ('numba', 'torch._dynamo', 'crypten') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
