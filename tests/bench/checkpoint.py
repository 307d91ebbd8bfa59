"""What one checkpoint of net_a (784-128-128-10, SGD with momentum) costs an evaluator.

    python tests/bench/checkpoint.py

Median of 20: encoding its part, encrypting it into a vault under the node's identity, bringing it
to the disk, and destroying the one before the last. The evaluators tell each other two bytes.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mpc_train.checkpoints.keeper import KEPT, token_of
from mpc_train.checkpoints.state import Entry, Position, State
from mpc_train.run.phases.shelf import VaultShelf
from tests.support.node_vaults import node_vault

TIMES = 20
WIDTHS = (784, 128, 128, 10)


def main() -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for prefix in ("tensor", "optimizer"):
        for place, (ins, outs) in enumerate(pairwise(WIDTHS)):
            shapes[f"{prefix}/{2 * place}.weight"] = (outs, ins)
            shapes[f"{prefix}/{2 * place}.bias"] = (outs,)
    generator = np.random.default_rng(1)
    parts = {n: generator.integers(-(2**62), 2**62, shape) for n, shape in shapes.items()}
    entries = tuple(Entry(name, shape) for name, shape in sorted(shapes.items()))
    seconds, size = [], 0
    with tempfile.TemporaryDirectory() as folder:
        shelf = VaultShelf(node_vault(Path(folder)).opened, "net", "0" * 64)
        for number in range(1, TIMES + 1):
            begin = time.perf_counter()
            seen = hashlib.sha256()
            for words in parts.values():
                seen.update(words.data)
            position = Position(number, False, entries, {"rate": "1/10"}, 0, number)
            data = State(position, parts, seen.digest()).to_bytes()
            shelf.write(token_of(number, False, bytes(32)), data)
            shelf.prune(KEPT)
            seconds.append(time.perf_counter() - begin)
            size = len(data)
    print(f"{1000 * statistics.median(seconds):.0f} ms, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
