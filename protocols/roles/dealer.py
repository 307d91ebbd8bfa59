"""The dealer's side of `Role`: all masks, outgoing corrections, no opened values."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from protocols.arrays import Octets, Positions, Shape, Words
from protocols.channel import Channel
from protocols.errors import DesyncError
from protocols.ring.kernels import add_unpacked, pack_difference, packed_size, unpack_sum
from protocols.roles.credit import CORRECTION_BYTES, CREDIT_FRAMES, DONE, WINDOW_CREDITS, credit
from protocols.roles.deferred import Deferred, Never
from protocols.roles.frames import FRAME_BYTES, check_label, send_all
from protocols.roles.role import Mask, Role, order_of
from protocols.roles.streams import KEY_BYTES, TAG_BYTES, Stream


class Dealer(Role):
    """The node that hands out correlated randomness: it knows every mask and no opened value.

    names: the evaluators by index. streams: one for each of them. entropy: makes the key of `own`.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        names: Sequence[str],
        streams: Sequence[Stream],
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        super().__init__(len(names), None)
        if len(streams) != len(names):
            raise ValueError("a dealer needs one stream for each evaluator")
        self._channel = channel
        self.names = tuple(names)
        self._streams = list(streams)
        self._corrections = [np.empty(0, np.uint8) for _ in names]
        self._filled = [0] * len(names)
        self._frames = [0] * len(names)
        self._credits = [0] * len(names)
        self._never = Never()
        self._entropy = entropy
        self._own: Stream | None = None
        self._ahead = self._unbounded = False
        self._others = [
            [stream for other, stream in enumerate(streams) if other != index]
            for index in range(len(names))
        ]

    def __repr__(self) -> str:
        return f"Dealer(evaluators={self.evaluators}, step={self.step})"

    def begin_step(self, step: int) -> None:
        self.finish()
        for stream in self._streams:
            stream.begin_step(step)
        if self._own is not None:
            self._own.begin_step(step)
        self.step = step
        self.checksums.clear()

    def finish(self) -> None:
        # Send everything to everybody before any wait: the evaluator whose credit is awaited may
        # itself wait for one that needs data still queued here.
        for index in range(self.evaluators):
            self._send_corrections(index)
        if self._unbounded:
            return
        for index in range(self.evaluators):
            self._await_credit(index)

    def close(self) -> None:
        self.finish()
        for name in self.names:
            # An evaluator that waits for more corrections detects that its program is longer.
            self._channel.send(name, DONE, b"")
        for index, name in enumerate(self.names):
            while self._take_credit(index, name) != DONE:
                pass

    def run_ahead(self, *, unbounded: bool = False) -> None:
        """From here on the evaluators store what this node sends (`Evaluator.store_ahead`), and
        tell it nothing more: every bit that they decide is taken to be False.

        So it cannot be used where a bit that is True changes what the dealer does next. unbounded:
        they do not acknowledge either (`Evaluator.take_from`): somebody else says how much is made.
        """
        self.finish()
        self._ahead = True
        self._unbounded = unbounded

    def frames(self) -> tuple[int, ...]:
        return tuple(self._frames)

    def skip(self, frames: Sequence[int], turns: int) -> int:
        self.turn = (self.turn + turns) % self.evaluators
        total = 0
        for index, more in enumerate(frames):
            before = self._frames[index] // CREDIT_FRAMES
            while self._credits[index] < before:  # it has run ahead of the evaluator
                self._take_credit(index, self.names[index])
            self._frames[index] += more
            self._credits[index] = self._frames[index] // CREDIT_FRAMES
            total += self._credits[index] - before
        return total

    def mask(self, shape: Shape, bits: int = 64) -> Mask:
        count = prod(shape)
        if bits == 64:
            total = self._streams[0].words(count)
            for stream in self._streams[1:]:
                total += stream.words(count)
        else:
            first, second, *more = (s.octets(packed_size(count, bits)) for s in self._streams)
            total = np.empty(count, np.int64)
            unpack_sum(first, second, bits, total)
            for packed in more:
                add_unpacked(packed, bits, 1, total)
        return Mask(total.reshape(shape))

    def owner_mask(self, shape: Shape, owner: int) -> Words | None:
        return self._streams[owner].words(prod(shape)).reshape(shape)

    def permutation(self, count: int, owner: int) -> Positions | None:
        return order_of(self._streams[owner].words(count))

    def mask_bits(self, shape: Shape) -> Mask:
        count = prod(shape)
        total = self._streams[0].octets(count)
        for stream in self._streams[1:]:
            total ^= stream.octets(count)
        return Mask(total.reshape(shape))

    def deal(self, value: Words | None, shape: Shape, bits: int = 64) -> Words:
        count = prod(shape)
        self.issue("deal", count, bits)
        if value is None or value.shape != shape:
            raise AssertionError("the dealer deals values of the shape that the program says")
        last, others = self._next_last()
        out = self._reserve(last, packed_size(count, bits))
        if bits == 64:
            missing = out.view(np.int64)
            rest = value.reshape(-1)
            for stream in others:
                rest = np.subtract(rest, stream.words(count), out=missing)
        else:
            first, *more = (stream.octets(packed_size(count, bits)) for stream in others)
            rest = value.flatten() if more else value.ravel()
            for packed in more:
                add_unpacked(packed, bits, -1, rest)
            pack_difference(rest, first, bits, out)
        return value

    def deal_bits(self, value: Octets | None, shape: Shape) -> Octets:
        count = prod(shape)
        self.issue("deal_bits", count)
        if value is None or value.shape != shape:
            raise AssertionError("the dealer deals values of the shape that the program says")
        last, others = self._next_last()
        missing = self._reserve(last, count, TAG_BYTES)
        others[0].xor_octets(value.reshape(-1), missing)
        for stream in others[1:]:
            missing[:count] ^= stream.octets(count)
        missing[count : (count + 7) & ~7] = 0
        return value

    def open(
        self, part: Deferred[Words], mask: Mask, bits: int = 64, low: int = 0
    ) -> Deferred[Words]:
        mask.spend()
        return self._never

    def own(self, count: int) -> Octets:
        if self._own is None:
            self._own = Stream(self._entropy(KEY_BYTES))
            self._own.begin_step(self.step)
        return self._own.octets(count)

    def open_bits(self, part: Deferred[Octets], mask: Mask) -> Deferred[Octets]:
        mask.spend()
        return self._never

    def common(self, shape: Shape, *, anew: bool = False) -> Deferred[Octets]:
        self.issue("common", prod(shape))
        return self._never

    def known(self, value: Words) -> Deferred[Words]:
        return self._never

    def broadcast(self, tag: bytes, words: Words) -> None:
        """Send the same words (the dealer's own masked input) to all evaluators."""
        self.finish()  # corrections that evaluators take before this come first
        for name in self.names:
            send_all(self._channel, name, self.label(tag), words.reshape(-1).view(np.uint8))

    def _next_last(self) -> tuple[int, list[Stream]]:
        """Who receives the next correction, and the streams of all others: at least one."""
        last = self.turn = (self.turn + 1) % self.evaluators
        return last, self._others[last]

    def _reserve(self, index: int, count: int, spare: int = 0) -> Octets:
        """Room for `count` bytes in the frame to evaluator `index`, to be filled at once.

        spare: additional bytes for the next correction.
        """
        padded = (count + 7) & ~7
        start = self._filled[index]
        if start + padded + TAG_BYTES > len(self._corrections[index]):
            if start:
                self.finish()
            self._corrections[index] = np.empty(max(padded, CORRECTION_BYTES) + TAG_BYTES, np.uint8)
            start = 0
        self._filled[index] = start + padded
        room = self._corrections[index][start : start + padded + spare]
        room[count:] = 0
        return room[: count + spare]

    def _send_corrections(self, index: int) -> None:
        filled, self._filled[index] = self._filled[index], 0
        # Recently freed memory is in the cache; a frame kept until the next one is not.
        frame, self._corrections[index] = self._corrections[index].data, np.empty(0, np.uint8)
        for start in range(0, filled, FRAME_BYTES):
            label = self.label(b"corr")
            piece = frame[start : min(start + FRAME_BYTES, filled)]
            self._channel.send(self.names[index], label, piece)
            self._frames[index] += 1

    def told(self, count: int = 1) -> tuple[bool, ...]:
        """The bits that all evaluators `tell` here; DesyncError if they differ."""
        self.finish()
        if self._ahead:
            return (False,) * count
        expected, found = self.label(b"told"), set()
        for index, name in enumerate(self.names):
            label, payload = self._channel.receive(name, count)
            while label != expected:
                self._credits[index] += 1
                check_label(name, credit(self._credits[index] * CREDIT_FRAMES), label)
                label, payload = self._channel.receive(name, count)
            found.add(bytes(payload))
        bits = found.pop()
        if found or len(bits) != count or not set(bits) <= {0, 1}:
            raise DesyncError("evaluators sent different decisions, or none")
        return tuple(bit == 1 for bit in bits)

    def _await_credit(self, index: int) -> None:
        """Wait until evaluator `index` is at most WINDOW_CREDITS credits behind."""
        while self._frames[index] // CREDIT_FRAMES - self._credits[index] > WINDOW_CREDITS:
            label = self._take_credit(index, self.names[index])
            if label == DONE:
                raise DesyncError(f"{self.names[index]} ended before this node did")

    def _take_credit(self, index: int, name: str) -> bytes:
        label, _ = self._channel.receive(name, 0)
        if label != DONE:
            self._credits[index] += 1
            check_label(name, credit(self._credits[index] * CREDIT_FRAMES), label)
        return label
