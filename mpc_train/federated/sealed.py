"""An update as one sealed message, for frameworks that carry messages between clients and a server.

The client splits its update into summands, one for each evaluator: seeds for all but the first,
which gets what is missing. Each is sealed to its evaluator's key (HPKE), and all together are one
message. Whoever carries it reads nothing; a message opens only for the round and the sender that it
was made for. The evaluators may be anywhere; `SealedRound` has all of them in this process, which
is for simulations.

    message    length-prefixed fields, one for each evaluator in their order: its sealed summand
    summand    the first: int64 words, little endian; every other: the 32-byte root of a stream
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mpc_train.errors import DataError
from mpc_train.federated.limits import Limits
from mpc_train.federated.mean import Mean, Simulation
from protocols.arrays import Words
from protocols.canonical import pack, unpack
from protocols.errors import AuthenticationError, FrameError
from protocols.roles.streams import KEY_BYTES, one_time
from protocols.sealing.hpke import OVERHEAD_BYTES, HybridPrivateKey, seal

_TAG = b"mpc-train/sealed-update/1"


def _info(round_number: int, sender: str, limits: Limits, index: int) -> bytes:
    settings = (str(limits.clip), str(limits.size), str(round_number), sender, str(index))
    return pack(_TAG, *(text.encode() for text in settings))


def sealed_update(
    update: Any, limits: Limits, round_number: int, sender: str, evaluators: Sequence[bytes]
) -> bytes:
    """At a client: its update, clipped and rounded, as one message to all evaluators.

    evaluators: their public keys. Raises DataError for an update that is not finite.
    """
    if isinstance(update, torch.Tensor):
        update = update.detach().cpu().double().numpy()
    left, _ = limits.rounded(np.asarray(update), f"the update of {sender}")
    roots = [os.urandom(KEY_BYTES) for _ in evaluators[1:]]
    with np.errstate(over="ignore"):
        for root in roots:
            one_time(root).add_words(left, negative=True)
    parts = [left.astype("<i8").tobytes(), *roots]
    return pack(
        *(
            seal(public, _info(round_number, sender, limits, index), part)
            for index, (public, part) in enumerate(zip(evaluators, parts, strict=True))
        )
    )


class SealedRound:
    """Evaluators in this process, each with a key of its own.

    public: their keys, for clients.
    """

    def __init__(self, evaluators: int = 2) -> None:
        self._simulation = Simulation(evaluators)
        self._keys = [HybridPrivateKey.generate() for _ in range(evaluators)]
        self.public = tuple(key.public for key in self._keys)

    def mean(
        self,
        messages: Mapping[str, bytes],
        rows: Mapping[str, int],
        limits: Limits,
        round_number: int,
    ) -> tuple[Mean, dict[str, str]]:
        """The mean of the updates in these messages, by sender, and why some were left out: a
        message that does not open, or an update beyond the limit. Raises DataError if none
        opens."""
        opened: dict[str, list[Words]] = {}
        refused: dict[str, str] = {}
        for sender, message in messages.items():
            try:
                opened[sender] = self._summands(message, limits, round_number, sender)
            except (AuthenticationError, FrameError) as error:
                refused[sender] = str(error)
        if not opened:
            raise DataError(f"no update of round {round_number} opens")
        senders = tuple(opened)
        found = self._simulation.mean_of_summands(
            [[opened[sender][index] for sender in senders] for index in range(len(self._keys))],
            [rows[sender] for sender in senders],
            limits,
            (limits.size,),
        )
        for sender, counts in zip(senders, found.within, strict=True):
            if not counts:
                refused[sender] = "its norm is beyond the clip"
        return found, refused

    def _summands(
        self, message: bytes, limits: Limits, round_number: int, sender: str
    ) -> list[Words]:
        sizes = [8 * limits.size, *[KEY_BYTES] * (len(self._keys) - 1)]
        parts = unpack(message, [size + OVERHEAD_BYTES for size in sizes])
        found = []
        for index, (key, part, size) in enumerate(zip(self._keys, parts, sizes, strict=True)):
            plain = key.open(_info(round_number, sender, limits, index), part)
            if len(plain) != size:
                raise FrameError(f"{sender} sent a summand of {len(plain)} bytes, not {size}")
            if index:
                found.append(one_time(plain).words(limits.size))
            else:
                found.append(np.frombuffer(plain, "<i8").astype(np.int64))
        return found
