"""An evaluator's openings: the share it sends, the sum it collects, and the opened value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeVar

import numpy as np

from protocols.arrays import Octets, Words
from protocols.ring.kernels import add_unpacked, pack_sum, packed_size, unpack_sum
from protocols.roles.deferred import Deferred, Settle
from protocols.roles.role import Mask

T = TypeVar("T")


class Opening(Deferred[T], ABC):
    """A value that the next exchange provides after the evaluators' summands are available.

    size: bytes of a share in a frame, a multiple of 8.
    """

    __slots__ = ("_mask", "_payload", "_queue", "_share", "_total", "size")

    def __init__(self, settle: Settle, mask: Mask, size: int, queue: list[Opening[Any]]) -> None:
        super().__init__(settle)
        self.size = (size + 7) & ~7
        self._mask: Any = mask.array
        self._queue = queue
        self._share: Any = None
        self._payload: Any = None
        self._total: Any = None

    def begin(self, share: T) -> None:
        """Wait in the queue for the next exchange, now that this evaluator's summand is there."""
        self._share = share
        self._queue.append(self)

    @abstractmethod
    def write(self, out: Octets) -> None:
        """Put this evaluator's share into the payload."""

    @abstractmethod
    def add(self, theirs: Octets) -> None:
        """Add the share of another evaluator."""

    def finish(self) -> None:
        """Pass the opened value to the waiting callbacks, and free everything else."""
        total, shape = self._total, self._mask.shape
        assert total is not None, "there are at least two evaluators"
        self._mask = self._share = self._payload = self._total = None
        self.resolve(total.reshape(shape))


class WordsOpening(Opening[Words]):
    """A sum of words of `bits` bits, which stand above `low` others that are left out."""

    __slots__ = ("_bits", "_low")

    def __init__(
        self, settle: Settle, mask: Mask, bits: int, low: int, queue: list[Opening[Any]]
    ) -> None:
        super().__init__(settle, mask, packed_size(mask.array.size, bits), queue)
        self._bits = bits
        self._low = low

    def write(self, out: Octets) -> None:
        self._payload = out
        words = self._mask
        if self._bits == 64:
            np.add(self._share, words, out=out.view(np.int64).reshape(words.shape))
        else:
            packed = packed_size(words.size, self._bits)
            pack_sum(self._share.ravel(), words.ravel(), self._low, self._bits, out[:packed])
            out[packed:] = 0

    def add(self, theirs: Octets) -> None:
        if self._bits == 64:
            if self._total is None:
                self._total = self._payload.view(np.int64)  # sent, so it can be added to
            self._total += theirs.view(np.int64)
            return
        if self._total is None:
            self._total = np.empty(self._mask.size, np.int64)
            unpack_sum(self._payload, theirs, self._bits, self._total)
        else:
            add_unpacked(theirs, self._bits, 1, self._total)

    def finish(self) -> None:
        if self._low:
            self._total <<= self._low
        super().finish()


class BitsOpening(Opening[Octets]):
    """A sum of bits modulo 2, eight a byte."""

    __slots__ = ()

    def __init__(self, settle: Settle, mask: Mask, queue: list[Opening[Any]]) -> None:
        super().__init__(settle, mask, mask.array.size, queue)

    def write(self, out: Octets) -> None:
        octets = self._mask
        self._payload = out[: octets.size]
        np.bitwise_xor(self._share, octets, out=self._payload.reshape(octets.shape))
        out[octets.size :] = 0

    def add(self, theirs: Octets) -> None:
        if self._total is None:
            self._total = self._payload
        self._total ^= theirs[: self._total.size]
