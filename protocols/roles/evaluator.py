"""The evaluator's side of `Role`: shares, exchanges, incoming corrections."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np

from protocols.arrays import Octets, Positions, Shape, Words
from protocols.channel import Buffer, Channel
from protocols.errors import DesyncError, FrameError
from protocols.ring.kernels import packed_size
from protocols.roles.credit import CORRECTION_BYTES, CREDIT_FRAMES, DONE, credit
from protocols.roles.deferred import Deferred
from protocols.roles.frames import (
    FRAME_BYTES,
    LABEL,
    check_label,
    receive_all,
    send_all,
    unpack_words,
)
from protocols.roles.openings import BitsOpening, Opening, WordsOpening
from protocols.roles.role import Mask, Role, order_of
from protocols.roles.streams import KEY_BYTES, Stream

COMMON_LABEL = b"mpc-train common stream v1"


class Store(Protocol):
    """Where an evaluator keeps frames of the dealer until it uses them, in their order."""

    def put(self, label: bytes, payload: Buffer) -> None:
        """Keep one frame."""

    def take(self) -> tuple[bytes, memoryview]:
        """The next frame, once: its label, and a buffer that belongs to the caller."""


class Evaluator(Role):
    """One of the computing nodes: sees masked values and its own mask shares.

    peers: the other evaluators in the order of their indices. stream: shared with the dealer.
    entropy: makes this evaluator's part of the seed of `common`, and the key of `own`.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        index: int,
        names: Sequence[str],
        dealer: str,
        stream: Stream,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        super().__init__(len(names), index)
        self._channel = channel
        self.names = tuple(names)
        self.dealer = dealer
        self.peers = [name for name in names if name != names[index]]
        self._stream = stream
        self._entropy = entropy
        self._common: Stream | None = None
        self._own: Stream | None = None
        self._pending: list[Opening[Any]] = []
        self._flushing = False
        self._corrections = np.empty(0, np.uint8)
        self._taken = 0
        self._correction_frames = 0
        self._marks: list[bytes] = []
        self._store: Store | None = None

    def __repr__(self) -> str:
        return f"Evaluator(index={self.index} of {self.evaluators}, step={self.step})"

    def begin_step(self, step: int) -> None:
        self.finish()
        self._check_corrections()
        self._stream.begin_step(step)
        for stream in (self._common, self._own):
            if stream is not None:
                stream.begin_step(step)
        self.step = step
        self.checksums.clear()

    def finish(self) -> None:
        while self._pending:
            self.flush()

    def close(self) -> None:
        self.finish()
        self._check_corrections()
        label, _ = self._from_dealer()
        if label != DONE:
            check_label(self.dealer, DONE, label)
        if self._store is None:
            self._channel.send(self.dealer, DONE, b"")

    def store_ahead(self, store: Store, stored: Callable[[int], None]) -> None:
        """Receive all material for the rest of the run, of which none is used yet, into `store`.

        Returns when the dealer has sent its last frame (`Dealer.run_ahead`); afterwards this node
        neither waits for it nor sends it anything. stored: called with the bytes of each frame.
        """
        self.finish()
        self._check_corrections()
        while True:
            label, payload = self._channel.receive(self.dealer, CORRECTION_BYTES + FRAME_BYTES)
            store.put(label, payload)
            stored(len(payload))
            if label[:4] != b"corr":
                check_label(self.dealer, DONE, label)
                break
            self._acknowledge()
        self._channel.send(self.dealer, DONE, b"")
        self._store = store

    def take_from(self, store: Store) -> None:
        """From here on the dealer's frames come from `store`, and this node tells it nothing
        (`Dealer.run_ahead`)."""
        self.finish()
        self._check_corrections()
        self._store = store

    def frames(self) -> tuple[int, ...]:
        return (self._correction_frames,)

    def skip(self, frames: Sequence[int], turns: int) -> int:
        before = self._correction_frames
        self._correction_frames += frames[0]
        self.turn = (self.turn + turns) % self.evaluators
        return self._correction_frames // CREDIT_FRAMES - before // CREDIT_FRAMES

    def mask(self, shape: Shape, bits: int = 64) -> Mask:
        return Mask(self._stream.words_modulo(prod(shape), bits).reshape(shape))

    def owner_mask(self, shape: Shape, owner: int) -> Words | None:
        if owner != self.index:
            return None
        return self._stream.words(prod(shape)).reshape(shape)

    def permutation(self, count: int, owner: int) -> Positions | None:
        return order_of(self._stream.words(count)) if owner == self.index else None

    def mask_bits(self, shape: Shape) -> Mask:
        return Mask(self._stream.octets(prod(shape)).reshape(shape))

    def deal(self, value: Words | None, shape: Shape, bits: int = 64) -> Words:
        count = prod(shape)
        self.issue("deal", count, bits)
        if self._is_last():
            words = unpack_words(self._take(packed_size(count, bits)), count, bits)
        else:
            words = self._stream.words_modulo(count, bits)
        return words.reshape(shape)

    def deal_bits(self, value: Octets | None, shape: Shape) -> Octets:
        count = prod(shape)
        self.issue("deal_bits", count)
        if self._is_last():
            return self._take(count).reshape(shape)
        return self._stream.octets(count).reshape(shape)

    def open(
        self, part: Deferred[Words], mask: Mask, bits: int = 64, low: int = 0
    ) -> Deferred[Words]:
        mask.spend()
        opening = WordsOpening(self.flush, mask, bits - low, low, self._pending)
        part.then(opening.begin)
        return opening

    def open_bits(self, part: Deferred[Octets], mask: Mask) -> Deferred[Octets]:
        mask.spend()
        opening = BitsOpening(self.flush, mask, self._pending)
        part.then(opening.begin)
        return opening

    def common(self, shape: Shape, *, anew: bool = False) -> Deferred[Octets]:
        count = prod(shape)
        self.issue("common", count)
        if self._common is None or anew:
            self._common = self._agreed_stream()
        result: Deferred[Octets] = Deferred(self.flush)
        result.resolve(self._common.octets(count).reshape(shape))
        return result

    def _agreed_stream(self) -> Stream:
        """A stream keyed by seeds of all evaluators, each sent to the others and to nobody else."""
        seeds = [b""] * self.evaluators
        assert self.index is not None
        seeds[self.index] = self._entropy(KEY_BYTES)
        label = self.label(b"seed")
        for peer in self.peers:
            self._channel.send(peer, label, seeds[self.index])
        for peer in self.peers:
            theirs = receive_all(self._channel, peer, label, KEY_BYTES)
            seeds[self.names.index(peer)] = theirs.tobytes()
        stream = Stream(hashlib.sha256(COMMON_LABEL + b"".join(seeds)).digest())
        stream.begin_step(self.step)
        return stream

    def own(self, count: int) -> Octets:
        if self._own is None:
            self._own = Stream(self._entropy(KEY_BYTES))
            self._own.begin_step(self.step)
        return self._own.octets(count)

    def known(self, value: Words) -> Deferred[Words]:
        result: Deferred[Words] = Deferred(self.flush)
        result.resolve(value)
        return result

    def flush(self) -> None:
        """Exchange all pending openings with the other evaluators: one round."""
        if self._flushing or not self._pending:
            raise AssertionError("flush: nothing is pending, or a flush waits for itself")
        self._check_marks()
        self._flushing = True
        pending = self._pending.copy()
        self._pending.clear()
        self.rounds += 1
        places = []
        end = 0
        for opening in pending:
            start, end = end, end + opening.size
            places.append((opening, start, end))
        payload = np.empty(end, np.uint8)
        for opening, start, stop in places:
            opening.write(payload[start:stop])
        label = self.label(b"open")
        for peer in self.peers:
            send_all(self._channel, peer, label, payload)
        for peer in self.peers:
            theirs = receive_all(self._channel, peer, label, end)
            for opening, start, stop in places:
                opening.add(theirs[start:stop])
        self._flushing = False
        for opening in pending:
            opening.finish()

    def broadcast(self, tag: bytes, words: Words) -> None:
        """Send the same words (a masked input, an output's mask) to all other evaluators."""
        for peer in self.peers:
            send_all(self._channel, peer, self.label(tag), words.reshape(-1).view(np.uint8))

    def tell(self, *decisions: bool) -> None:
        """Tell the dealer bits that the job discloses to everybody, a byte each."""
        if self._store is None:
            self._channel.send(self.dealer, self.label(b"told"), bytes(decisions))

    def collect(self, tag: bytes, peer: str, count: int) -> Octets:
        """Receive the `count` bytes that `peer` broadcasts at this operation."""
        return receive_all(self._channel, peer, self.label(tag), count)

    def _is_last(self) -> bool:
        self.turn = (self.turn + 1) % self.evaluators
        return self.turn == self.index

    def _take(self, count: int) -> Octets:
        """The next `count` bytes of the dealer's corrections, which are padded to full words."""
        padded = (count + 7) & ~7
        if padded and self._taken == len(self._corrections):
            self._next_corrections()
        start = self._taken
        if start + padded > len(self._corrections):
            return self._gathered(padded)[:count]
        self._taken = start + padded
        return self._corrections[start : start + count]

    def _gathered(self, count: int) -> Octets:
        """The next bytes, over several frames: a correction longer than one of them."""
        out = np.empty(count, np.uint8)
        end = 0
        while end < count:
            if self._taken == len(self._corrections):
                self._next_corrections()
            piece = self._corrections[self._taken : self._taken + count - end]
            out[end : end + len(piece)] = piece
            self._taken += len(piece)
            end += len(piece)
        return out

    def _check_marks(self) -> None:
        """Compare where the dealer was when it sent its frames with where this node was then."""
        later = []
        for mark in self._marks:
            operation = LABEL.unpack(mark)[2]
            place = operation - self.operation - 1
            if place >= 0:
                later.append(mark)
                continue
            known = -place <= len(self.checksums)
            checksum = self.checksums[place] if known else self.checksum
            check_label(self.dealer, LABEL.pack(b"corr", self.step, operation, checksum), mark)
        self._marks = later

    def _check_corrections(self) -> None:
        self._check_marks()
        if self._marks:
            check_label(self.dealer, self.label(b"corr"), self._marks[0])
        left = len(self._corrections) - self._taken
        if left:
            raise DesyncError(
                f"{self.dealer} sent {left} bytes of corrections more than step {self.step} uses"
            )

    def _from_dealer(self) -> tuple[bytes, memoryview]:
        """Its next frame, from the channel or from what was stored ahead."""
        if self._store is not None:
            return self._store.take()
        return self._channel.receive(self.dealer, CORRECTION_BYTES + FRAME_BYTES)

    def _acknowledge(self) -> None:
        """Count a frame of corrections; the dealer hears of every CREDIT_FRAMES."""
        self._correction_frames += 1
        if self._correction_frames % CREDIT_FRAMES == 0:
            self._channel.send(self.dealer, credit(self._correction_frames), b"")

    def _next_corrections(self) -> None:
        label, payload = self._from_dealer()
        if len(label) != LABEL.size or label[:8] != self.label(b"corr")[:8]:
            check_label(self.dealer, self.label(b"corr"), label)
        # The dealer may be ahead in the program: its place is compared once this node is there.
        self._marks.append(label)
        self._check_marks()
        if len(payload) % 8 or not len(payload):
            raise FrameError(f"{self.dealer}: a frame of corrections of {len(payload)} bytes")
        if self._store is None:
            self._acknowledge()
        words = np.frombuffer(payload, np.int64)
        self._corrections = (words if words.flags.aligned else words.copy()).view(np.uint8)
        self._taken = 0
