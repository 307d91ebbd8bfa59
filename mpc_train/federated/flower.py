"""An adapter for Flower: each client sends one sealed message a round, and the server sees no
update.

`sealed_mod` goes into the mods of a ClientApp: the reply's arrays become one sealed message to the
evaluators (`sealed`). `SealedFedAvg` takes these messages in place of arrays and adds the mean that
the evaluators open to the global arrays. Sampling, evaluation and metrics stay Flower's. The server
still learns the numbers of examples and the clients' metrics, and everybody the mean.

Needs flwr (extra `flower`), in an environment of its own: flwr asks for older releases of libraries
than this project's commands (`examples/flower`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from mpc_train.errors import DataError
from mpc_train.federated.limits import Limits
from mpc_train.federated.sealed import SealedRound, sealed_update

SEALED = "sealed-update"
ROUND = "server-round"
Next = Callable[[Message, Context], Message]


def sealed_mod(
    evaluators: Sequence[bytes], clip: float
) -> Callable[[Message, Context, Next], Message]:
    """A mod for training messages that seals what the client returns; put it first, so that it sees
    the reply last.

    evaluators: their public keys. A client takes them from whom it trusts and not from the server,
    which could otherwise name its own. clip: the largest norm of an update.
    """

    def mod(message: Message, context: Context, call_next: Next) -> Message:
        (before,) = message.content.array_records.values()
        number = int(next(iter(message.content.config_records.values()))[ROUND])
        sender = str(message.metadata.dst_node_id)
        start = _flat(before)
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        ((name, after),) = reply.content.array_records.items()
        if list(after.keys()) != list(before.keys()):
            raise DataError("a client returned other arrays than it was sent")
        update = _flat(after) - start
        limits = Limits(Fraction(clip), update.size)
        sealed = sealed_update(update, limits, number, sender, evaluators)
        record = ArrayRecord({SEALED: Array(np.frombuffer(sealed, np.uint8))})
        reply.content.array_records[name] = record
        return reply

    return mod


class SealedFedAvg(FedAvg):
    """Flower's FedAvg over sealed messages.

    house: the evaluators. clip: as of `sealed_mod`. least: with fewer updates a round leaves the
    model as it is. What else: as of FedAvg.
    """

    def __init__(self, house: SealedRound, clip: float, least: int = 2, **given: Any) -> None:
        super().__init__(**given)
        self._house, self._clip, self._least = house, clip, least
        self._arrays: ArrayRecord | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        valid = [reply for reply in replies if not reply.has_error()]
        before = self._arrays
        if before is None or len(valid) < self._least:
            log(WARNING, "round %s: %s updates, %s needed", server_round, len(valid), self._least)
            return before, None
        messages, rows = {}, {}
        for reply in valid:
            (record,) = reply.content.array_records.values()
            (metrics,) = reply.content.metric_records.values()
            sender = str(reply.metadata.src_node_id)
            messages[sender] = record[SEALED].numpy().tobytes()
            rows[sender] = int(metrics[self.weighted_by_key])
        start = _flat(before)
        limits = Limits(Fraction(self._clip), start.size)
        found, refused = self._house.mean(messages, rows, limits, server_round)
        for sender, why in refused.items():
            log(WARNING, "round %s: %s is left out: %s", server_round, sender, why)
        if sum(found.within) < self._least:
            return before, None
        log(INFO, "round %s: the mean of %s sealed updates", server_round, sum(found.within))
        contents = [reply.content for reply in valid]
        measured = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        return _moved(before, found.value.numpy()), measured


def _flat(arrays: ArrayRecord) -> np.ndarray:
    """The floating-point arrays in order, as one vector."""
    found = [one.numpy() for one in arrays.values()]
    parts = [one.astype(np.float64).reshape(-1) for one in found if one.dtype.kind == "f"]
    return np.concatenate(parts)


def _moved(arrays: ArrayRecord, update: np.ndarray) -> ArrayRecord:
    """The arrays with an update added to those of floating-point numbers; the others stay."""
    found, start = {}, 0
    for name, one in arrays.items():
        values = one.numpy()
        if values.dtype.kind == "f":
            part = update[start : start + values.size].reshape(values.shape)
            start += values.size
            values = (values.astype(np.float64) + part).astype(values.dtype)
        found[name] = Array(values)
    return ArrayRecord(found)
