"""The adapter for Flower, in an environment that has it (`examples/flower`):

flower/bin/python -m pytest --noconftest tests/mpc_train/federated/test_flower.py
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower needs an environment of its own")

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.supercore.task_identity import TaskIdentity

from mpc_train.federated.flower import ROUND, SEALED, SealedFedAvg, sealed_mod
from mpc_train.federated.sealed import SealedRound

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # whoever sends messages
ROOT = Path(__file__).resolve().parents[3]
CLIP = 2.0


def _arrays(values: np.ndarray) -> ArrayRecord:
    """Two tensors, and a counter that stays as it is."""
    return ArrayRecord(
        {
            "weight": Array(values[:6].reshape(2, 3).astype(np.float32)),
            "count": Array(np.array([7])),
            "bias": Array(values[6:].astype(np.float32)),
        }
    )


def _reply(house: SealedRound, node: int, start: np.ndarray, end: np.ndarray, rows: int) -> Message:
    """What a client with this mod sends."""
    sent = RecordDict({"arrays": _arrays(start), "config": ConfigRecord({ROUND: 3})})
    message = Message(content=sent, dst_node_id=node, message_type="train")

    def train(asked: Message, context: Any) -> Message:
        metrics = MetricRecord({"num-examples": rows})
        trained = RecordDict({"arrays": _arrays(end), "metrics": metrics})
        return Message(content=trained, reply_to=asked)

    found: Message = sealed_mod(house.public, CLIP)(message, None, train)
    return found


def test_a_client_sends_one_sealed_message_and_the_server_adds_their_mean() -> None:
    rng, house = np.random.default_rng(1), SealedRound(evaluators=2)
    start = rng.normal(size=8)
    updates = {11: rng.normal(size=8) * 0.1, 12: rng.normal(size=8) * 0.1}
    rows = {11: 30, 12: 10}
    replies = [_reply(house, node, start, start + one, rows[node]) for node, one in updates.items()]
    for reply in replies:
        (record,) = reply.content.array_records.values()
        assert list(record) == [SEALED]
    strategy: Any = SealedFedAvg(house, CLIP)
    strategy._arrays = _arrays(start)
    arrays, _ = strategy.aggregate_train(3, replies)
    mean = sum(rows[node] * one for node, one in updates.items()) / sum(rows.values())
    found = {name: one.numpy() for name, one in arrays.items()}
    expected = _arrays(start + mean)
    for name in ("weight", "bias"):
        assert np.abs(found[name] - expected[name].numpy()).max() < 1e-6
    assert found["count"].tolist() == [7]


def test_one_update_is_not_opened() -> None:
    house = SealedRound(evaluators=2)
    strategy: Any = SealedFedAvg(house, CLIP)
    strategy._arrays = _arrays(np.zeros(8))
    reply = _reply(house, 11, np.zeros(8), np.full(8, 0.1), 30)
    arrays, metrics = strategy.aggregate_train(3, [reply])
    assert metrics is None and not arrays["bias"].numpy().any()


@pytest.mark.slow
def test_the_simulation_runs_to_its_end() -> None:
    """Sealed rounds are plain ones up to rounding, of float32 and in each of five rounds."""
    pytest.importorskip("ray", reason="a simulation needs flwr[simulation]")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "flower" / "simulate.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"differ by at most (\S+) in a weight", done.stdout)
    assert found is not None and float(found[1]) < 2.0**-17
