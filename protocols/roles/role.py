"""The two roles of a computation, behind one interface: evaluator and dealer.

Every operation of the project is written once, against `Role`, and run by all nodes. Six things
differ between the roles (`evaluator`, `dealer`):

* `mask`, `mask_bits`: a fresh mask. An evaluator draws its share from the stream that it shares
  with the dealer; the dealer draws all shares and adds them up.
* `deal`, `deal_bits`: a correlation. The dealer knows the value; all evaluators but one draw
  their share from their stream, the last receives what is missing. Who is last rotates.
* `open`, `open_bits`: an opening under a fresh mask, which is spent by it. Evaluators exchange
  their shares at the next flush; for the dealer nothing happens.
* `common`: randomness that all evaluators know and the dealer does not.
* `own`: randomness that this node alone knows, for noise.
* `begin_step`, `finish`: streams move to the keys of the next step, nothing stays pending.

Guarantees: a mask is used for one opening (MaskReuseError otherwise); frames carry step, operation
index, a checksum of all operations so far and a tag, so that diverging programs are detected
(DesyncError); every length follows from the program, never from a frame. Masks and correlations are
drawn when an operation is issued, openings travel later.

The dealer never receives a byte that depends on data, except decisions that the job discloses to
everybody (`tell`): otherwise it receives only empty credit frames, which keep it from running ahead
without limit.

Masked evaluation with a dealer: ASTRA (CCSW 2019), ABY2.0 (USENIX Security 2021), TurboSpeedz
(ACNS 2019).
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from protocols.arrays import Octets, Positions, Shape, Words
from protocols.errors import MaskReuseError
from protocols.roles.deferred import Deferred
from protocols.roles.frames import LABEL


class Mask:
    """Randomness for one opening: an evaluator's share, at the dealer the sum of the shares.

    `words` is int64 for `Role.mask`, `octets` uint8 (an XOR mask) for `Role.mask_bits`.
    """

    __slots__ = ("_spent", "array")

    def __init__(self, array: NDArray[np.generic]) -> None:
        self.array = array
        self._spent = False

    def __repr__(self) -> str:
        return f"Mask(shape={self.array.shape}, spent={self._spent})"

    def spend(self) -> None:
        """Note that an opening uses this mask; a second opening raises."""
        if self._spent:
            raise MaskReuseError("a mask was to be used for a second opening")
        self._spent = True

    @property
    def words(self) -> Words:
        return self.array  # type: ignore[return-value]

    @property
    def octets(self) -> Octets:
        return self.array  # type: ignore[return-value]


class Role(ABC):
    """The operations' interface to the node that runs them.

    evaluators: number N >= 2 of evaluators. index: this evaluator's position, None at the dealer.
    """

    def __init__(self, evaluators: int, index: int | None) -> None:
        if evaluators < 2:
            raise ValueError("a computation needs at least two evaluators")
        self.evaluators = evaluators
        self.index = index
        self.is_dealer = index is None
        self.is_first = index == 0
        self.step = -1
        self.operation = 0
        self.checksum = 0
        self.checksums: list[int] = []
        """After each operation of this step."""
        self.rounds = 0
        self.turn = 0
        """The evaluator that got the last correction."""

    def issue(self, name: str, *sizes: int) -> None:
        """Count one operation; its name and sizes enter the checksum that every frame carries."""
        self.operation += 1
        self.checksum = zlib.crc32(_spelled(name, sizes), self.checksum)
        self.checksums.append(self.checksum)

    def label(self, tag: bytes) -> bytes:
        return LABEL.pack(tag, self.step, self.operation, self.checksum)

    @abstractmethod
    def begin_step(self, step: int) -> None:
        """Finish what is pending and move all streams to the keys of `step`."""

    @abstractmethod
    def finish(self) -> None:
        """Exchange and send whatever is pending."""

    @abstractmethod
    def close(self) -> None:
        """Finish the last step; the dealer waits until every evaluator has finished it.

        DesyncError if a program has not used exactly the corrections that the dealer sent.
        """

    @abstractmethod
    def frames(self) -> tuple[int, ...]:
        """How many frames of corrections each evaluator has received, as far as this node knows."""

    @abstractmethod
    def skip(self, frames: Sequence[int], turns: int) -> int:
        """Go on as after operations that are not run, in a program that only counts them.

        frames: of their corrections, as `frames`. turns: how many corrections. Returns how many
        credits these take, which are not sent.
        """

    @abstractmethod
    def mask(self, shape: Shape, bits: int = 64) -> Mask:
        """A fresh mask, uniform modulo 2^bits in every element."""

    @abstractmethod
    def owner_mask(self, shape: Shape, owner: int) -> Words | None:
        """A mask known only to evaluator `owner` and the dealer; None at the other evaluators."""

    @abstractmethod
    def permutation(self, count: int, owner: int) -> Positions | None:
        """A uniform permutation of `count` items, known only to evaluator `owner` and the
        dealer."""

    @abstractmethod
    def mask_bits(self, shape: Shape) -> Mask:
        """A fresh XOR mask of bytes."""

    @abstractmethod
    def deal(self, value: Words | None, shape: Shape, bits: int = 64) -> Words:
        """Additive shares modulo 2^bits of a value that only the dealer has.

        value: int64[shape] at the dealer, ignored elsewhere. Returns an evaluator's share, at the
        dealer the value. Bytes: those of a packed array of `bits`-bit words (see `kernels`), from
        the dealer to one evaluator.
        """

    @abstractmethod
    def deal_bits(self, value: Octets | None, shape: Shape) -> Octets:
        """XOR shares of bytes that only the dealer has; at the dealer the value itself."""

    @abstractmethod
    def open(
        self, part: Deferred[Words], mask: Mask, bits: int = 64, low: int = 0
    ) -> Deferred[Words]:
        """Open sum(part) + mask modulo 2^bits to all evaluators, at the next exchange.

        part: int64 with the mask's shape, one summand an evaluator. low: so many of the lowest
        bits each evaluator leaves out of what it sends, with bits = 64: what comes is a multiple of
        2^low, less than the sum by an integer below N · 2^low. Rounds: 1. Bytes: those of a packed
        array of words of bits − low bits, to each other evaluator. The dealer learns nothing.
        """

    @abstractmethod
    def open_bits(self, part: Deferred[Octets], mask: Mask) -> Deferred[Octets]:
        """Open xor(part) ^ mask to all evaluators, at the next exchange."""

    @abstractmethod
    def common(self, shape: Shape, *, anew: bool = False) -> Deferred[Octets]:
        """Uniform bytes that all evaluators know and the dealer does not.

        The first call of a session exchanges a seed of 32 bytes from each evaluator; whatever
        follows is a keystream of all of them together and sends nothing. anew: exchange fresh
        seeds, for bytes that nobody could know before this call.
        """

    @abstractmethod
    def own(self, count: int) -> Octets:
        """`count` fresh uniform bytes that no other node knows. No communication.

        Their key is drawn in this process for this session and kept nowhere, so nobody can compute
        them again, this node included, once it has ended. No other node has to draw as many.
        """

    @abstractmethod
    def known(self, value: Words) -> Deferred[Words]:
        """A public value as a deferred one: there at once, at the dealer never needed."""


@lru_cache(4096)
def _spelled(name: str, sizes: tuple[int, ...]) -> bytes:
    return f"{name}{sizes}".encode()


def order_of(keys: Words) -> Positions:
    """The order that sorts uniform words: uniform, except for equal pairs.

    Among 10^6 words one pair is equal once in 4·10^7 times.
    """
    order: Positions = np.argsort(keys, kind="stable")
    return order
