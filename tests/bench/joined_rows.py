"""What it costs an evaluator to keep joined rows, and to go on with them.

    python tests/bench/joined_rows.py [ROWS [COLUMNS]]

Two evaluators and a dealer in one process, the vault of one of them under its identity: encoding
and encrypting its part, verifying it before it signs for it, and reading and masking it anew.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mpc_train.checkpoints.joined import JoinedRows, kept_bytes, restored
from mpc_train.checkpoints.keeper import token_of
from mpc_train.preparation.fitted import Parameters
from mpc_train.preparation.sharing import Shared
from mpc_train.run.phases.shelf import VaultShelf
from protocols.crypten_tensor.tensor import MaskedTensor
from protocols.roles.role import Role
from tests.support.lockstep import run_lockstep
from tests.support.loopback import secret
from tests.support.node_vaults import node_vault
from tests.support.tensors import attached

SECONDS: dict[str, float] = {}


def timed(what: str, work: Any) -> Any:
    begin = time.perf_counter()
    found = work()
    SECONDS[what] = time.perf_counter() - begin
    return found


def main(rows: int = 100_000, columns: int = 100) -> None:
    pipeline = SimpleNamespace(width=columns, scaled=(), filled=())
    job: Any = SimpleNamespace(rows=rows, pipeline=pipeline, outputs=1, weight=None)
    words = np.random.default_rng(1).integers(-(2**20), 2**20, (rows, columns + 1))
    with tempfile.TemporaryDirectory() as folder:

        def program(role: Role) -> None:
            with attached(role, 20):
                shared = Shared(
                    MaskedTensor(secret(role, words[:, :-1], 0)),
                    MaskedTensor(secret(role, words[:, -1:], 1)),
                    Parameters(),
                )
                role.finish()
                if role.index is None:
                    restored(job, role, None, b"")
                    return
                me = f"p{role.index}"
                shelf = VaultShelf(node_vault(Path(folder) / me, me).opened, "net", "0" * 64)
                kept = JoinedRows(job, shared, bytes(32))
                first = role.index == 0
                clock = timed if first else lambda _, work: work()
                clock("keep", lambda: shelf.write_rows(kept.pieces()))
                shelf.write(token_of(0, False, bytes(32)), b"", kept.digest)
                clock("verify", shelf.tokens)
                with shelf.rows() as reader:
                    clock(
                        "resume, both evaluators", lambda: restored(job, role, reader, kept.digest)
                    )

        run_lockstep(program, 2)
    print(
        f"{kept_bytes(job) / 1e6:.0f} MB; "
        + ", ".join(f"{k} {v:.2f} s" for k, v in SECONDS.items())
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
