"""What a script gets for CrypTen: sharing by one party, and public values that must agree."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpc_train.errors import ScriptError
from mpc_train.scripts import crypten
from mpc_train.scripts.program import execute
from protocols.crypten_tensor import dispatch
from protocols.crypten_tensor.tensor import attach
from protocols.crypten_tensor.tensor import crypten as stock
from protocols.errors import DesyncError
from protocols.roles.role import Role, Words
from protocols.shares.masked import Masked
from protocols.shares.reveal import Output, RevealGate
from tests.support.lockstep import run_lockstep

VALUES = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


def executed(script: Callable[[int], Any], evaluators: int = 2) -> list[Any]:
    """What `script(rank)` returns at each node, the dealer last."""

    def program(role: Role) -> Any:
        gate = RevealGate(frozenset(Output("opening", n) for n in range(9)))
        count = iter(range(9))

        def opened(value: Masked) -> Words | None:
            return gate.to_everybody("opening", next(count), value)

        dispatch.install()
        attach(role, 20, opened)
        with np.errstate(over="ignore"):
            return script(crypten.communicator.get().get_rank())

    return run_lockstep(program, evaluators)


def test_the_first_party_shares_where_no_other_is_named() -> None:
    """In CrypTen as here; taken as public, values that differ would give nonsense."""

    def script(rank: int) -> Any:
        return crypten.cryptensor(VALUES * (rank + 1)).get_plain_text()

    first, second, dealer = executed(script)
    assert torch.equal(first, VALUES.double()) and torch.equal(second, first)
    assert dealer.isnan().all()


SHARE: Any = crypten.cryptensor
"""Without its types: what no reader of them would write."""

PARTED: dict[str, Callable[[Any, int], Any]] = {
    "operand": lambda x, rank: x * (VALUES + (rank == 1)),
    "left operand": lambda x, rank: (VALUES + (rank == 1)) * x,
    "summand": lambda x, rank: x + (VALUES + (rank == 1)),
    "number": lambda x, rank: x * (2 + (rank == 1)),
    "summand number": lambda x, rank: x + (2 + (rank == 1)),
    "divisor": lambda x, rank: x / (2 + (rank == 1)),
    "index": lambda x, rank: x[int(rank == 1)],
    "order": lambda x, rank: x[torch.tensor([1, 0] if rank == 1 else [0, 1])],
    "slice": lambda x, rank: x[:, 1:] if rank == 1 else x[:, :1],
    "target": lambda x, rank: crypten.nn.MSELoss()(x, VALUES + (rank == 1)),
    "the dealer's": lambda x, rank: x * (VALUES + (rank == 2)),
}


@pytest.mark.parametrize("name", PARTED)
def test_public_values_that_differ_end_the_run(name: str) -> None:
    def script(rank: int) -> Any:
        shared = crypten.cryptensor(VALUES, src=1)
        return PARTED[name](shared, rank).get_plain_text()

    with pytest.raises(DesyncError):
        executed(script)


def test_public_values_that_agree_do_not() -> None:
    def script(rank: int) -> Any:
        x = crypten.cryptensor(VALUES, src=1)
        torch.manual_seed(3)
        return (x[torch.randperm(2)] * VALUES / 2 + 1).sum().get_plain_text()

    got = executed(script)[:2]
    assert got[0] == got[1]


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "negative": (lambda: crypten.cryptensor(VALUES, src=-1), ValueError, "0 to 1"),
    "too large": (lambda: crypten.cryptensor(VALUES, src=2), ValueError, "0 to 1"),
    "a word": (lambda: SHARE(VALUES, src="dealer"), ValueError, "0 to 1"),
    "no whole number": (lambda: SHARE(VALUES, src=1.0), ValueError, "0 to 1"),
    "other shape": (lambda: crypten.cryptensor(VALUES, shape=(4,)), ValueError, "of shape"),
    "shared": (
        lambda: crypten.cryptensor(crypten.cryptensor(VALUES)),
        TypeError,
        "shared tensor already",
    ),
    "words": (lambda: SHARE(VALUES, bits=0), TypeError, "bits"),
    "elsewhere": (lambda: crypten.mpc, AttributeError, "not offered"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused(name: str) -> None:
    body, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        executed(lambda rank: body())


def test_crypten_s_own_init_is_refused_in_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every party would be rank 0 of 1, and share the first one's values."""
    path = tmp_path / "script.py"
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = stock.init
    with pytest.raises(
        ScriptError, match=r"script\.py:2: .*from mpc_train\.scripts import crypten"
    ):
        execute(path, b"import crypten\ncrypten.init()\n")
    assert stock.init is before
