"""An owner that runs no node: which contract it believes, and what it needs to run."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from mpc_train.commands import owner
from mpc_train.errors import RefusedError
from mpc_train.federated.rounds import client as module
from mpc_train.federated.rounds.messages import State
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


@pytest.mark.parametrize(
    "later", [[(1, b"first"), (2, b"first"), (3, b"first")], [(2, b"second"), (3, b"second")]]
)
def test_an_owner_begins_anew_if_the_evaluators_do_or_go_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: list[tuple[int, bytes]]
) -> None:
    """Evaluators whose disks were set back open a round a second time, with other updates: an owner
    that kept its model, or what it has trained from it, would end with one that nobody else has."""
    monkeypatch.setattr(module.time, "sleep", lambda s: None)
    states = [(2, b"first"), *later]
    caught_up, held = list[int](), list[Any]()
    owner = SimpleNamespace(limits=SimpleNamespace(size=3), initial=lambda: np.zeros(3))
    given = cast(Any, None)
    client: Any = SimpleNamespace(line=lambda timeout_s: SimpleNamespace(sid=b"session"))
    rounds = module.RoundsClient(
        client, federated_job(tmp_path), "cas", cast(Any, owner), module.Waiting(1.0), given, given
    )

    def catch_up(line: Any, number: int) -> None:
        caught_up.append(number)
        held.append(rounds._update)
        rounds.model.round = number
        if len(held) == 1:
            rounds._update = 3, given

    def state(line: Any) -> State:
        opened, run = states.pop(0)
        return State(opened, 0, run)

    monkeypatch.setattr(rounds, "_catch_up", catch_up)
    monkeypatch.setattr(rounds, "_state", state)
    assert rounds.run().round == 3
    assert caught_up == [1, 2, 1, 2, 3] and not states
    assert held == [None, (3, None), None, None, None]


def _imported(source: str) -> list[str]:
    """The modules that a program imports, also inside functions, but not only for types."""
    tree = ast.parse(source)
    typing = {
        id(one)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for one in ast.walk(node)
    }
    return [
        node.module or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and id(node) not in typing
    ]


@pytest.mark.slow
def test_what_such_an_owner_does_not_load() -> None:
    """Neither numba nor PyTorch's own compiler, and nothing that reads tables: its process would be
    half as large again."""
    code = f"import sys, {', '.join(_imported(inspect.getsource(owner)))}\n" + (
        "from protocols.roles.streams import one_time; one_time(bytes(32)).words(9)\n"
        "kept_out = ('numba', 'polars', 'crypten', 'scipy', 'pyarrow', 'torch._dynamo')\n"
        "print([name for name in kept_out if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
