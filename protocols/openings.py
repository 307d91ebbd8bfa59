"""Pending openings of an evaluator: what it sends, and the sum that it collects."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from protocols.deferred import Deferred
from protocols.frames import Octets, Words, unpack_words
from protocols.kernels import add_unpacked, pack_sum, packed_size
from protocols.role import Mask


class Opening(ABC):
    """One pending opening of an evaluator: what it sends, and the sum that it collects."""

    size: int

    @abstractmethod
    def write(self, out: Octets) -> None:
        """Put this evaluator's share into the payload."""

    @abstractmethod
    def add(self, theirs: Octets) -> None:
        """Add the share of another evaluator."""

    @abstractmethod
    def finish(self) -> None:
        """Hand the opened value to whoever waits for it."""


class WordsOpening(Opening):
    __slots__ = ("bits", "mask", "payload", "result", "share", "size", "total")

    def __init__(self, result: Deferred[Words], share: Words, mask: Mask, bits: int) -> None:
        self.result = result
        self.share = share
        self.mask = mask
        self.bits = bits
        self.size = (packed_size(mask.array.size, bits) + 7) & ~7
        self.total: Words | None = None

    def write(self, out: Octets) -> None:
        self.payload = out
        words = self.mask.words
        if self.bits == 64:
            np.add(self.share, words, out=out.view(np.int64).reshape(words.shape))
        else:
            packed = packed_size(words.size, self.bits)
            pack_sum(self.share.reshape(-1), words.reshape(-1), self.bits, out[:packed])
            out[packed:] = 0

    def add(self, theirs: Octets) -> None:
        if self.bits == 64:
            words = theirs.view(np.int64)
            if self.total is None:
                self.total = self.payload.view(np.int64) + words
            else:
                self.total += words
            return
        if self.total is None:
            self.total = unpack_words(self.payload, self.mask.array.size, self.bits)
        add_unpacked(theirs, self.bits, 1, self.total)

    def finish(self) -> None:
        assert self.total is not None, "there are at least two evaluators"
        self.result.resolve(self.total.reshape(self.mask.array.shape))


class BitsOpening(Opening):
    __slots__ = ("mask", "payload", "result", "share", "size", "total")

    def __init__(self, result: Deferred[Octets], share: Octets, mask: Mask) -> None:
        self.result = result
        self.share = share
        self.mask = mask
        self.size = (mask.array.size + 7) & ~7
        self.total: Octets | None = None

    def write(self, out: Octets) -> None:
        octets = self.mask.octets
        self.payload = out[: octets.size]
        np.bitwise_xor(self.share, octets, out=self.payload.reshape(octets.shape))
        out[octets.size :] = 0

    def add(self, theirs: Octets) -> None:
        mine = self.payload if self.total is None else self.total
        self.total = mine ^ theirs[: len(mine)]

    def finish(self) -> None:
        assert self.total is not None, "there are at least two evaluators"
        self.result.resolve(self.total.reshape(self.mask.array.shape))
