"""All roles of a computation in one process, exactly one of them running at any time.

The threads take turns as those of a dry run do (`mpc_train.estimates.lockstep`).
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from functools import partial
from typing import Any

from mpc_train.estimates.lockstep import Baton
from protocols.errors import FrameError
from protocols.roles.role import Role
from protocols.shares.masked import Masked
from tests.support.loopback import (
    Endpoint,
    InsecureLoopback,
    combine_masked,
    make_role,
    shares_of,
)

TIMEOUT_S = 100


class LockstepLoopback(InsecureLoopback):
    """The in-memory network of `loopback`, with the baton handed on at every wait."""

    def __init__(self) -> None:
        super().__init__()
        self.baton = Baton()

    def endpoint(self, name: str) -> Endpoint:
        return LockstepEndpoint(self, name)


class LockstepEndpoint(Endpoint):
    def receive(self, peer: str, max_bytes: int) -> tuple[bytes, memoryview]:
        assert isinstance(self.net, LockstepLoopback)
        incoming: queue.Queue[Any] = self.net.queue(peer, self.name)
        self.net.baton.wait_until(lambda: not incoming.empty())
        if len(incoming.queue[0][1]) > max_bytes:
            raise FrameError(f"{peer}: a frame of more than {max_bytes} bytes")
        return super().receive(peer, max_bytes)


def run_lockstep(
    program: Callable[[Role], Any],
    evaluators: int,
    seed: int = 1,
    net: LockstepLoopback | None = None,
) -> list[Any]:
    """As `loopback.run_roles`, one role at a time; roles are closed at the end."""
    net = net or LockstepLoopback()
    roles = [make_role(net, evaluators, i, seed) for i in [*range(evaluators), None]]

    def work(role: Role) -> Any:
        role.begin_step(0)
        result = program(role)
        role.close()
        return result

    return net.baton.run([partial(work, role) for role in roles], TIMEOUT_S)


def compute(program: Callable[[Role], Masked], evaluators: int = 2, seed: int = 1) -> Any:
    """The plaintext of what `program` returns, after a check that all roles agree on it."""
    return combine_masked(run_lockstep(lambda role: shares_of(program(role)), evaluators, seed))
