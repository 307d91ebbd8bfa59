"""The two roles of a computation, behind one interface: evaluator and dealer.

Every operation of the project is written once, against `Role`, and run by all nodes. Four things
differ between the roles, and they are all here:

* `mask`, `mask_bits`: a fresh mask. An evaluator draws its share from the stream that it has in
  common with the dealer; the dealer draws all shares and adds them up.
* `deal`, `deal_bits`: a correlation. The dealer knows the value; all evaluators but one draw
  their share from their stream, the last receives what is missing. Who is last rotates.
* `open`, `open_bits`: an opening under a fresh mask, which is spent by it. Evaluators exchange
  their shares at the next flush; for the dealer nothing happens.
* `begin_step`, `finish`: streams move to the keys of the next step, nothing stays pending.

Guarantees: a mask is used for one opening (MaskReuseError otherwise); frames carry step,
operation index, a checksum of all operations so far and a tag, so that programs that part are
told apart (DesyncError); every length follows from the program, never from a frame. Masks and
correlations are drawn when an operation is issued, openings travel later.

The dealer never receives a byte that depends on data: only empty credit frames that keep it from
running ahead without bound.

Masked evaluation with a dealer: ASTRA (CCSW 2019), ABY2.0 (USENIX Security 2021), TurboSpeedz
(ACNS 2019).
"""

from __future__ import annotations

import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from protocols.channel import Channel
from protocols.deferred import Deferred, Never
from protocols.errors import DesyncError, FrameError, MaskReuseError
from protocols.streams import Stream

Words = NDArray[np.int64]
Octets = NDArray[np.uint8]
Shape = tuple[int, ...]

FRAME_BYTES = 1 << 25
"""Longer payloads are sent as several frames: 32 MiB bounds what a receiver has to hold."""
CORRECTION_BYTES = 1 << 18
"""The dealer sends corrections in frames of about 256 KiB."""
CREDIT_FRAMES = 16
"""An evaluator acknowledges every 16 correction frames with an empty frame."""
WINDOW_CREDITS = 4
"""The dealer runs at most 4 credits ahead of the slowest evaluator."""

_LABEL = struct.Struct(">4sIII")
_DONE = _LABEL.pack(b"done", 0, 0, 0)


def _credit(frames: int) -> bytes:
    return _LABEL.pack(b"cred", 0, frames, 0)


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
        """Note that an opening uses this mask; the second one raises."""
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
    """What an operation may ask of the node that runs it.

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
        self.rounds = 0

    def issue(self, name: str, *sizes: int) -> None:
        """Count one operation; its name and sizes enter the checksum that every frame carries."""
        self.operation += 1
        self.checksum = zlib.crc32(f"{name}{sizes}".encode(), self.checksum)

    def label(self, tag: bytes) -> bytes:
        return _LABEL.pack(tag, self.step, self.operation, self.checksum)

    @abstractmethod
    def begin_step(self, step: int) -> None:
        """Finish what is pending and move all streams to the keys of `step`."""

    @abstractmethod
    def finish(self) -> None:
        """Exchange and send whatever is pending."""

    @abstractmethod
    def close(self) -> None:
        """Finish the last step; the dealer waits until every evaluator is through with it."""

    @abstractmethod
    def mask(self, shape: Shape) -> Mask:
        """A fresh mask, uniform modulo 2^64 in every element."""

    @abstractmethod
    def owner_mask(self, shape: Shape, owner: int) -> Words | None:
        """A mask known to evaluator `owner` and the dealer alone; None at the other evaluators."""

    @abstractmethod
    def mask_bits(self, shape: Shape) -> Mask:
        """A fresh XOR mask of bytes."""

    @abstractmethod
    def deal(self, value: Words | None, shape: Shape, bits: int = 64) -> Words:
        """Additive shares modulo 2^bits of a value that only the dealer has.

        value: int64[shape] at the dealer, ignored elsewhere. Returns an evaluator's share; at the
        dealer zeros, because evaluators now hold everything. Bytes: ceil(bits / 8) an element,
        from the dealer to one evaluator.
        """

    @abstractmethod
    def deal_bits(self, value: Octets | None, shape: Shape) -> Octets:
        """XOR shares of bytes that only the dealer has; at the dealer the value itself."""

    @abstractmethod
    def open(self, part: Deferred[Words], mask: Mask, bits: int = 64) -> Deferred[Words]:
        """Open sum(part) + mask modulo 2^bits to all evaluators, at the next exchange.

        part: int64 with the mask's shape, one summand an evaluator. Rounds: 1. Bytes:
        ceil(bits / 8) an element to each other evaluator. The dealer learns nothing.
        """

    @abstractmethod
    def open_bits(self, part: Deferred[Octets], mask: Mask) -> Deferred[Octets]:
        """Open xor(part) ^ mask to all evaluators, at the next exchange."""

    @abstractmethod
    def known(self, value: Words) -> Deferred[Words]:
        """A public value as a deferred one: there at once, at the dealer never needed."""


class Evaluator(Role):
    """One of the nodes that compute: sees masked values and its own mask shares.

    peers: the other evaluators in the order of their indices. stream: shared with the dealer.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        index: int,
        names: Sequence[str],
        dealer: str,
        stream: Stream,
    ) -> None:
        super().__init__(len(names), index)
        self._channel = channel
        self.names = tuple(names)
        self.dealer = dealer
        self.peers = [name for name in names if name != names[index]]
        self._stream = stream
        self._pending: list[_Opening] = []
        self._flushing = False
        self._last = 0
        self._corrections = memoryview(b"")
        self._correction_frames = 0

    def __repr__(self) -> str:
        return f"Evaluator(index={self.index} of {self.evaluators}, step={self.step})"

    def begin_step(self, step: int) -> None:
        self.finish()
        self._check_corrections()
        self._stream.begin_step(step)
        self.step = step

    def finish(self) -> None:
        while self._pending:
            self.flush()

    def close(self) -> None:
        self.finish()
        self._check_corrections()
        self._channel.send(self.dealer, _DONE, b"")

    def mask(self, shape: Shape) -> Mask:
        return Mask(self._stream.words(prod(shape)).reshape(shape))

    def owner_mask(self, shape: Shape, owner: int) -> Words | None:
        if owner != self.index:
            return None
        return self._stream.words(prod(shape)).reshape(shape)

    def mask_bits(self, shape: Shape) -> Mask:
        return Mask(self._stream.octets(prod(shape)).reshape(shape))

    def deal(self, value: Words | None, shape: Shape, bits: int = 64) -> Words:
        count = prod(shape)
        self.issue("deal", count, bits)
        if self._is_last():
            words = unpack_words(self._take(count * packed_bytes(bits)), count, bits)
        else:
            words = self._stream.words(count)
            if bits < 64:
                words = words & low_mask(bits)
        return words.reshape(shape)

    def deal_bits(self, value: Octets | None, shape: Shape) -> Octets:
        count = prod(shape)
        self.issue("deal_bits", count)
        if self._is_last():
            return np.frombuffer(self._take(count), np.uint8).reshape(shape)
        return self._stream.octets(count).reshape(shape)

    def open(self, part: Deferred[Words], mask: Mask, bits: int = 64) -> Deferred[Words]:
        mask.spend()
        result: Deferred[Words] = Deferred(self.flush)

        def send(share: Words) -> None:
            words = share + mask.words
            self._pending.append(_WordsOpening(result, words, bits))

        part.then(send)
        return result

    def open_bits(self, part: Deferred[Octets], mask: Mask) -> Deferred[Octets]:
        mask.spend()
        result: Deferred[Octets] = Deferred(self.flush)

        def send(share: Octets) -> None:
            self._pending.append(_BitsOpening(result, share ^ mask.octets))

        part.then(send)
        return result

    def known(self, value: Words) -> Deferred[Words]:
        result: Deferred[Words] = Deferred(self.flush)
        result.resolve(value)
        return result

    def flush(self) -> None:
        """Exchange all pending openings with the other evaluators: one round."""
        if self._flushing or not self._pending:
            raise AssertionError("flush: nothing is pending, or a flush waits for itself")
        self._flushing = True
        pending, self._pending = self._pending, []
        self.rounds += 1
        payload = np.empty(sum(opening.size for opening in pending), np.uint8)
        start = 0
        for opening in pending:
            opening.write(payload[start : start + opening.size])
            start += opening.size
        label = self.label(b"open")
        for peer in self.peers:
            send_all(self._channel, peer, label, payload)
        for peer in self.peers:
            theirs = receive_all(self._channel, peer, label, len(payload))
            start = 0
            for opening in pending:
                opening.add(theirs[start : start + opening.size])
                start += opening.size
        self._flushing = False
        for opening in pending:
            opening.finish()

    def broadcast(self, tag: bytes, words: Words) -> None:
        """Send the same words (a masked input, an output's mask) to all other evaluators."""
        for peer in self.peers:
            send_all(self._channel, peer, self.label(tag), words.reshape(-1).view(np.uint8))

    def collect(self, tag: bytes, peer: str, count: int) -> Octets:
        """Receive the `count` bytes that `peer` broadcasts at this operation."""
        return receive_all(self._channel, peer, self.label(tag), count)

    def _is_last(self) -> bool:
        self._last = (self._last + 1) % self.evaluators
        return self._last == self.index

    def _take(self, count: int) -> memoryview:
        """The next `count` bytes of the dealer's corrections, which are padded to full words."""
        return self._take_padded((count + 7) & ~7)[:count]

    def _take_padded(self, count: int) -> memoryview:
        if len(self._corrections) >= count:
            taken = self._corrections[:count]
            self._corrections = self._corrections[count:]
            return taken
        out = bytearray()
        while len(out) < count:
            if not len(self._corrections):
                self._corrections = self._correction_frame()
            missing = count - len(out)
            out += self._corrections[:missing]
            self._corrections = self._corrections[missing:]
        return memoryview(out)

    def _check_corrections(self) -> None:
        if len(self._corrections):
            raise DesyncError(
                f"{self.dealer} sent {len(self._corrections)} bytes of corrections more than "
                f"step {self.step} uses"
            )

    def _correction_frame(self) -> memoryview:
        label, payload = self._channel.receive(self.dealer, CORRECTION_BYTES + FRAME_BYTES)
        expected = _LABEL.pack(b"corr", self.step, self._correction_frames, 0)
        check_label(self.dealer, expected, label)
        if not len(payload):
            raise FrameError(f"{self.dealer}: an empty frame of corrections")
        self._correction_frames += 1
        if self._correction_frames % CREDIT_FRAMES == 0:
            self._channel.send(self.dealer, _credit(self._correction_frames), b"")
        return payload


class Dealer(Role):
    """The node that hands out correlated randomness: it knows every mask and no opened value.

    names: the evaluators by index. streams: one for each of them.
    """

    def __init__(
        self, channel: Channel, *, names: Sequence[str], streams: Sequence[Stream]
    ) -> None:
        super().__init__(len(names), None)
        if len(streams) != len(names):
            raise ValueError("a dealer needs one stream for each evaluator")
        self._channel = channel
        self.names = tuple(names)
        self._streams = list(streams)
        self._last = 0
        self._corrections = [bytearray() for _ in names]
        self._frames = [0] * len(names)
        self._credits = [0] * len(names)
        self._never = Never()

    def __repr__(self) -> str:
        return f"Dealer(evaluators={self.evaluators}, step={self.step})"

    def begin_step(self, step: int) -> None:
        self.finish()
        for stream in self._streams:
            stream.begin_step(step)
        self.step = step

    def finish(self) -> None:
        # Everything to everybody before any wait: the evaluator whose credit is waited for may
        # itself wait for one that needs what would still lie here.
        for index in range(self.evaluators):
            self._send_corrections(index)
        for index in range(self.evaluators):
            self._await_credit(index)

    def close(self) -> None:
        self.finish()
        for index, name in enumerate(self.names):
            while self._take_credit(index, name) != _DONE:
                pass

    def mask(self, shape: Shape) -> Mask:
        return Mask(self._sum_of_streams(prod(shape)).reshape(shape))

    def owner_mask(self, shape: Shape, owner: int) -> Words | None:
        return self._streams[owner].words(prod(shape)).reshape(shape)

    def mask_bits(self, shape: Shape) -> Mask:
        count = prod(shape)
        total = self._streams[0].octets(count)
        for stream in self._streams[1:]:
            total = total ^ stream.octets(count)
        return Mask(total.reshape(shape))

    def deal(self, value: Words | None, shape: Shape, bits: int = 64) -> Words:
        count = prod(shape)
        self.issue("deal", count, bits)
        if value is None or value.shape != shape:
            raise AssertionError("the dealer deals values of the shape that the program says")
        last = self._next_last()
        missing = value.reshape(-1)
        for index, stream in enumerate(self._streams):
            if index != last:
                missing = missing - stream.words(count)
        self._append(last, pack_words(missing, bits))
        return np.zeros(shape, np.int64)

    def deal_bits(self, value: Octets | None, shape: Shape) -> Octets:
        count = prod(shape)
        self.issue("deal_bits", count)
        if value is None or value.shape != shape:
            raise AssertionError("the dealer deals values of the shape that the program says")
        last = self._next_last()
        missing = value.reshape(-1)
        for index, stream in enumerate(self._streams):
            if index != last:
                missing = missing ^ stream.octets(count)
        self._append(last, missing)
        return value

    def open(self, part: Deferred[Words], mask: Mask, bits: int = 64) -> Deferred[Words]:
        mask.spend()
        return self._never

    def open_bits(self, part: Deferred[Octets], mask: Mask) -> Deferred[Octets]:
        mask.spend()
        return self._never

    def known(self, value: Words) -> Deferred[Words]:
        return self._never

    def broadcast(self, tag: bytes, words: Words) -> None:
        """Send the same words (the dealer's own masked input) to all evaluators."""
        self.finish()  # corrections that evaluators take before this come first
        for name in self.names:
            send_all(self._channel, name, self.label(tag), words.reshape(-1).view(np.uint8))

    def _sum_of_streams(self, count: int) -> Words:
        total = self._streams[0].words(count)
        for stream in self._streams[1:]:
            total = total + stream.words(count)
        return total

    def _next_last(self) -> int:
        self._last = (self._last + 1) % self.evaluators
        return self._last

    def _append(self, index: int, octets: Octets) -> None:
        pending = self._corrections[index]
        pending += octets.reshape(-1).data
        pending += bytes(-octets.size % 8)
        if len(pending) >= CORRECTION_BYTES:
            self.finish()

    def _send_corrections(self, index: int) -> None:
        pending = memoryview(self._corrections[index])
        self._corrections[index] = bytearray()
        for start in range(0, len(pending), FRAME_BYTES):
            label = _LABEL.pack(b"corr", self.step, self._frames[index], 0)
            self._channel.send(self.names[index], label, pending[start : start + FRAME_BYTES])
            self._frames[index] += 1

    def _await_credit(self, index: int) -> None:
        """Wait until evaluator `index` is at most WINDOW_CREDITS credits behind."""
        while self._frames[index] // CREDIT_FRAMES - self._credits[index] > WINDOW_CREDITS:
            label = self._take_credit(index, self.names[index])
            if label == _DONE:
                raise DesyncError(f"{self.names[index]} ended before this node did")

    def _take_credit(self, index: int, name: str) -> bytes:
        label, _ = self._channel.receive(name, 0)
        if label != _DONE:
            self._credits[index] += 1
            check_label(name, _credit(self._credits[index] * CREDIT_FRAMES), label)
        return label


class _Opening(ABC):
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


class _WordsOpening(_Opening):
    __slots__ = ("bits", "packed", "result", "size", "words")

    def __init__(self, result: Deferred[Words], words: Words, bits: int) -> None:
        self.result = result
        self.words = words
        self.bits = bits
        self.size = (words.size * packed_bytes(bits) + 7) & ~7

    def write(self, out: Octets) -> None:
        packed = pack_words(self.words.reshape(-1), self.bits)
        out[: packed.size] = packed
        out[packed.size :] = 0

    def add(self, theirs: Octets) -> None:
        count = self.words.size
        words = unpack_words(theirs[: count * packed_bytes(self.bits)], count, self.bits)
        self.words += words.reshape(self.words.shape)

    def finish(self) -> None:
        if self.bits < 64:
            self.words &= low_mask(self.bits)
        self.result.resolve(self.words)


class _BitsOpening(_Opening):
    __slots__ = ("octets", "result", "size")

    def __init__(self, result: Deferred[Octets], octets: Octets) -> None:
        self.result = result
        self.octets = octets
        self.size = (octets.size + 7) & ~7

    def write(self, out: Octets) -> None:
        out[: self.octets.size] = self.octets.reshape(-1)
        out[self.octets.size :] = 0

    def add(self, theirs: Octets) -> None:
        self.octets ^= theirs[: self.octets.size].reshape(self.octets.shape)

    def finish(self) -> None:
        self.result.resolve(self.octets)


def send_all(channel: Channel, peer: str, label: bytes, octets: Octets) -> None:
    """Send bytes in frames of at most FRAME_BYTES."""
    view = octets.data
    for start in range(0, max(len(view), 1), FRAME_BYTES):
        channel.send(peer, label, view[start : start + FRAME_BYTES])


def receive_all(channel: Channel, peer: str, label: bytes, count: int) -> Octets:
    """Receive exactly `count` bytes that came through `send_all` under the same label."""
    if count <= FRAME_BYTES:
        return np.frombuffer(_receive_frame(channel, peer, label, count), np.uint8)
    out = np.empty(count, np.uint8)
    for start in range(0, count, FRAME_BYTES):
        size = min(FRAME_BYTES, count - start)
        frame = _receive_frame(channel, peer, label, size)
        out[start : start + size] = np.frombuffer(frame, np.uint8)
    return out


def _receive_frame(channel: Channel, peer: str, label: bytes, count: int) -> memoryview:
    theirs, payload = channel.receive(peer, count)
    check_label(peer, label, theirs)
    if len(payload) != count:
        raise FrameError(f"{peer}: a frame of {len(payload)} bytes, {count} were expected")
    return payload


def low_mask(bits: int) -> np.int64:
    """The word with the `bits` < 64 lowest bits set."""
    return np.int64((1 << bits) - 1)


def packed_bytes(bits: int) -> int:
    """Bytes that an element modulo 2^bits takes on the wire."""
    return (bits + 7) // 8


def pack_words(words: Words, bits: int) -> Octets:
    """Little-endian bytes of the elements modulo 2^bits; the bits above are sent as zero."""
    if bits == 64:
        return np.ascontiguousarray(words).view(np.uint8)
    low = words & low_mask(bits)
    size = packed_bytes(bits)
    if size in (1, 2, 4):
        return low.astype(f"<u{size}").view(np.uint8)
    return np.ascontiguousarray(low.view(np.uint8).reshape(-1, 8)[:, :size]).reshape(-1)


def unpack_words(octets: Octets | memoryview, count: int, bits: int) -> Words:
    """Inverse of `pack_words`; bits above are cleared, whatever a peer has put there."""
    flat = np.frombuffer(octets, np.uint8)
    if bits == 64:
        words: Words = flat.view(np.int64)
        return words if words.flags.aligned else words.copy()
    size = packed_bytes(bits)
    if size in (1, 2, 4):
        words = flat.view(f"<u{size}").astype(np.int64)
    else:
        words = np.zeros(count, np.int64)
        words.view(np.uint8).reshape(-1, 8)[:, :size] = flat.reshape(-1, size)
    if bits % 8:
        words &= low_mask(bits)
    return words


def check_label(peer: str, expected: bytes, received: bytes) -> None:
    """Raise DesyncError, naming both operations, unless the peer is where this node is."""
    if received == expected:
        return
    try:
        tag, step, operation, checksum = _LABEL.unpack(received)
    except struct.error:
        raise FrameError(f"{peer}: a label of {len(received)} bytes") from None
    if len(expected) != _LABEL.size:
        raise DesyncError(f"{peer} sent {tag!r} where {expected!r} was expected")
    mine = _LABEL.unpack(expected)
    raise DesyncError(
        f"{peer} is at {tag!r} step {step} operation {operation} (program {checksum:08x}), "
        f"this node at {mine[0]!r} step {mine[1]} operation {mine[2]} (program {mine[3]:08x})"
    )
