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

The dealer never receives a byte that depends on data, but for decisions that the job discloses to
everybody (`tell`): otherwise only empty credit frames that keep it from running ahead without
bound.

Masked evaluation with a dealer: ASTRA (CCSW 2019), ABY2.0 (USENIX Security 2021), TurboSpeedz
(ACNS 2019).
"""

from __future__ import annotations

import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from protocols.channel import Channel
from protocols.deferred import Deferred, Never
from protocols.errors import DesyncError, FrameError, MaskReuseError
from protocols.kernels import add_unpacked, pack_sum, packed_size, unpack
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
        self.checksum = zlib.crc32(_spelled(name, sizes), self.checksum)

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
    def mask(self, shape: Shape, bits: int = 64) -> Mask:
        """A fresh mask, uniform modulo 2^bits in every element."""

    @abstractmethod
    def owner_mask(self, shape: Shape, owner: int) -> Words | None:
        """A mask known to evaluator `owner` and the dealer alone; None at the other evaluators."""

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
    def open(self, part: Deferred[Words], mask: Mask, bits: int = 64) -> Deferred[Words]:
        """Open sum(part) + mask modulo 2^bits to all evaluators, at the next exchange.

        part: int64 with the mask's shape, one summand an evaluator. Rounds: 1. Bytes: those of a
        packed array, to each other evaluator. The dealer learns nothing.
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
        self._checksums: list[int] = []
        self._marks: list[bytes] = []

    def __repr__(self) -> str:
        return f"Evaluator(index={self.index} of {self.evaluators}, step={self.step})"

    def issue(self, name: str, *sizes: int) -> None:
        super().issue(name, *sizes)
        self._checksums.append(self.checksum)

    def begin_step(self, step: int) -> None:
        self.finish()
        self._check_corrections()
        self._stream.begin_step(step)
        self.step = step
        self._checksums.clear()

    def finish(self) -> None:
        while self._pending:
            self.flush()

    def close(self) -> None:
        self.finish()
        self._check_corrections()
        self._channel.send(self.dealer, _DONE, b"")

    def mask(self, shape: Shape, bits: int = 64) -> Mask:
        return Mask(_draw(self._stream, prod(shape), bits).reshape(shape))

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
            words = unpack_words(self._take(packed_size(count, bits)), count, bits)
        else:
            words = _draw(self._stream, count, bits)
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
        part.then(lambda share: self._pending.append(_WordsOpening(result, share, mask, bits)))
        return result

    def open_bits(self, part: Deferred[Octets], mask: Mask) -> Deferred[Octets]:
        mask.spend()
        result: Deferred[Octets] = Deferred(self.flush)
        part.then(lambda share: self._pending.append(_BitsOpening(result, share, mask)))
        return result

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
        pending, self._pending = self._pending, []
        self.rounds += 1
        payload = np.empty(sum(opening.size for opening in pending), np.uint8)
        slices = []
        start = 0
        for opening in pending:
            slices.append(slice(start, start + opening.size))
            start += opening.size
        for opening, place in zip(pending, slices, strict=True):
            opening.write(payload[place])
        label = self.label(b"open")
        for peer in self.peers:
            send_all(self._channel, peer, label, payload)
        for peer in self.peers:
            theirs = receive_all(self._channel, peer, label, len(payload))
            for opening, place in zip(pending, slices, strict=True):
                opening.add(theirs[place])
        self._flushing = False
        for opening in pending:
            opening.finish()

    def broadcast(self, tag: bytes, words: Words) -> None:
        """Send the same words (a masked input, an output's mask) to all other evaluators."""
        for peer in self.peers:
            send_all(self._channel, peer, self.label(tag), words.reshape(-1).view(np.uint8))

    def tell(self, decision: bool) -> None:
        """Let the dealer know a bit that the job discloses to everybody."""
        self._channel.send(self.dealer, self.label(b"told"), bytes([decision]))

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

    def _check_marks(self) -> None:
        """Compare where the dealer was when it sent its frames with where this node was then."""
        later = []
        for mark in self._marks:
            operation = _LABEL.unpack(mark)[2]
            place = operation - self.operation - 1
            if place >= 0:
                later.append(mark)
                continue
            known = -place <= len(self._checksums)
            checksum = self._checksums[place] if known else self.checksum
            check_label(self.dealer, _LABEL.pack(b"corr", self.step, operation, checksum), mark)
        self._marks = later

    def _check_corrections(self) -> None:
        self._check_marks()
        if self._marks:
            check_label(self.dealer, self.label(b"corr"), self._marks[0])
        if len(self._corrections):
            raise DesyncError(
                f"{self.dealer} sent {len(self._corrections)} bytes of corrections more than "
                f"step {self.step} uses"
            )

    def _correction_frame(self) -> memoryview:
        label, payload = self._channel.receive(self.dealer, CORRECTION_BYTES + FRAME_BYTES)
        if len(label) != _LABEL.size or label[:8] != self.label(b"corr")[:8]:
            check_label(self.dealer, self.label(b"corr"), label)
        # The dealer may be ahead in the program: its place is compared once this node is there.
        self._marks.append(label)
        self._check_marks()
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
        self._corrections = [np.empty(0, np.uint8) for _ in names]
        self._filled = [0] * len(names)
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

    def mask(self, shape: Shape, bits: int = 64) -> Mask:
        count = prod(shape)
        total = _draw(self._streams[0], count, bits)
        for stream in self._streams[1:]:
            if bits == 64:
                total += stream.words(count)
            else:
                add_unpacked(stream.octets(packed_size(count, bits)), bits, 1, total)
        return Mask(total.reshape(shape))

    def owner_mask(self, shape: Shape, owner: int) -> Words | None:
        return self._streams[owner].words(prod(shape)).reshape(shape)

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
            rest = value.flatten()
            for stream in others:
                add_unpacked(stream.octets(packed_size(count, bits)), bits, -1, rest)
            pack_sum(rest, np.zeros(count, np.int64), bits, out)
        return value

    def deal_bits(self, value: Octets | None, shape: Shape) -> Octets:
        count = prod(shape)
        self.issue("deal_bits", count)
        if value is None or value.shape != shape:
            raise AssertionError("the dealer deals values of the shape that the program says")
        last, others = self._next_last()
        missing = self._reserve(last, count)
        rest = value.reshape(-1)
        for stream in others:
            rest = np.bitwise_xor(rest, stream.octets(count), out=missing)
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

    def _next_last(self) -> tuple[int, list[Stream]]:
        """Who receives the next correction, and the streams of all others: at least one."""
        last = self._last = (self._last + 1) % self.evaluators
        return last, [stream for index, stream in enumerate(self._streams) if index != last]

    def _reserve(self, index: int, count: int) -> Octets:
        """Room for `count` bytes in the frame to evaluator `index`, to be filled at once."""
        padded = (count + 7) & ~7
        start = self._filled[index]
        if start + padded > len(self._corrections[index]):
            if start:
                self.finish()
            self._corrections[index] = np.empty(max(padded, CORRECTION_BYTES), np.uint8)
            start = 0
        self._filled[index] = start + padded
        room = self._corrections[index][start : start + padded]
        room[count:] = 0
        return room[:count]

    def _send_corrections(self, index: int) -> None:
        filled, self._filled[index] = self._filled[index], 0
        frame, self._corrections[index] = self._corrections[index].data, np.empty(0, np.uint8)
        for start in range(0, filled, FRAME_BYTES):
            label = self.label(b"corr")
            piece = frame[start : min(start + FRAME_BYTES, filled)]
            self._channel.send(self.names[index], label, piece)
            self._frames[index] += 1

    def told(self) -> bool:
        """The bit that all evaluators `tell` here; DesyncError where they tell different ones."""
        self.finish()
        expected, bits = self.label(b"told"), set()
        for index, name in enumerate(self.names):
            label, payload = self._channel.receive(name, 1)
            while label != expected:
                self._credits[index] += 1
                check_label(name, _credit(self._credits[index] * CREDIT_FRAMES), label)
                label, payload = self._channel.receive(name, 1)
            bits.add(bytes(payload))
        if bits not in ({b"\0"}, {b"\1"}):
            raise DesyncError("evaluators tell different decisions, or none")
        return bits == {b"\1"}

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


class _BitsOpening(_Opening):
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


def unpack_words(octets: Octets | memoryview, count: int, bits: int) -> Words:
    """`count` words from a packed array; what a peer put into padding bits is dropped."""
    flat = np.frombuffer(octets, np.uint8)
    if bits == 64:
        words: Words = flat.view(np.int64)
        return words if words.flags.aligned else words.copy()
    words = np.empty(count, np.int64)
    unpack(flat, bits, words)
    return words


def _draw(stream: Stream, count: int, bits: int) -> Words:
    """The next `count` words modulo 2^bits of a stream."""
    if bits == 64:
        return stream.words(count)
    return unpack_words(stream.octets(packed_size(count, bits)), count, bits)


@lru_cache(4096)
def _spelled(name: str, sizes: tuple[int, ...]) -> bytes:
    return f"{name}{sizes}".encode()


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
