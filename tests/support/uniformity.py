"""Whether what real roles send is uniform: the same secrets, many runs, fresh streams.

`transcript_first` replaces the code that masks; here evaluators and dealer are the real ones, over
an in-memory network that keeps the transcript. Of every payload, by sender, receiver and label:

1. χ². The ones at each bit, over R runs of constant secrets, give S² / R for S = ones − zeros, and
   the sum over the n bits of a label is that of n squares of a normal variable, or less: a
   Rademacher sum has no larger exponential moments. So it exceeds n + 2·√(n·x) + 2·x with
   probability e^-x at most (Laurent and Massart, Annals of Statistics 2000, lemma 1).
2. No bit is far from half and half by itself: |S| > √(2·R·x) with probability 2·e^-x at most
   (Hoeffding). With 96 runs a bit that never changes is seen, be it one among 10^6.
3. The same of what an exchange opens: the XOR and the sum of all evaluators' payloads.
4. Words of 64 bits in one receiver's view: no two are equal, from one run to another none stays as
   it is, and no two keep their difference, their sum or their XOR, as under a mask used twice.

What is not random in a payload is known from the program, not from what was seen: bits that pad a
packed word or fill a payload up (`Frame.free`), empty frames, and what is disclosed to everybody.

Seeds are fixed, so that a result never changes; with other seeds one program fails by chance with
probability below FALSE_ALARM, a view of n words with n² / 2^63, and all of them below 10^-9.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import log, sqrt
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from protocols.arrays import Octets
from protocols.linkage.intersection import ITEM_BYTES
from protocols.ring.kernels import pack_sum, packed_size
from protocols.roles.evaluator import Evaluator
from protocols.roles.frames import FRAME_BYTES, LABEL
from protocols.roles.openings import BitsOpening, Opening, WordsOpening
from protocols.roles.role import Role
from tests.support.lockstep import LockstepLoopback, run_lockstep

RUNS = 96
FEW = 24
"""Enough for what leaks words rather than bits: for programs of parts that are tested alone."""
FALSE_ALARM = 1e-12
"""Of one program; there are some hundreds."""

DISCLOSED = {
    b"told": "a bit that the job discloses to everybody",
    b"size": "how many records are joined",
}
EMPTY = {b"cred", b"done"}
Run = Callable[[int, LockstepLoopback], object]


@dataclass(frozen=True)
class Frame:
    """One payload, and which of its bits are random. exchange: which one of openings, else -1."""

    sender: str
    receiver: str
    label: bytes
    payload: Octets
    free: Octets
    exchange: int

    @property
    def tag(self) -> bytes:
        return self.label[:4]

    def __str__(self) -> str:
        if len(self.label) != LABEL.size:
            return f"{self.sender} to {self.receiver}, {self.label!r}"
        _, step, operation, _ = LABEL.unpack(self.label)
        return f"{self.sender} to {self.receiver}, {self.tag!r} step {step} operation {operation}"


Transcript = list[Frame]


@cache
def free_bits(count: int, bits: int) -> bytes:
    """Which bits of a packed array of `count` words modulo 2^bits are not padding."""
    size = packed_size(count, bits)
    if bits == 64:
        return b"\xff" * size
    out = np.zeros((size + 7) & ~7, np.uint8)
    pack_sum(np.full(count, -1), np.zeros(count, np.int64), 0, bits, out[:size])
    return out.tobytes()


def _padded(free: bytes) -> bytes:
    return free + bytes(-len(free) % 8)


class _Layout:
    """The random bits of openings and corrections, as the roles send and take them."""

    def __init__(self) -> None:
        self.openings: dict[str, list[list[bytes]]] = defaultdict(list)
        self.corrections: dict[str, list[bytes]] = defaultdict(list)


@contextlib.contextmanager
def _looking_on() -> Iterator[_Layout]:
    """Notes the sizes of what evaluators open and take. All of it is still done by themselves."""
    layout = _Layout()
    flush, deal, deal_bits = Evaluator.flush, Evaluator.deal, Evaluator.deal_bits
    words, octets = WordsOpening.write, BitsOpening.write

    def name_of(role: Any) -> str:
        return str(role.names[role.index])

    def opened(opening: Opening[Any], free: bytes) -> None:
        role: Any = opening.settle.__self__  # type: ignore[attr-defined]
        layout.openings[name_of(role)][-1].append(_padded(free))

    def flushing(role: Any) -> None:
        layout.openings[name_of(role)].append([])
        flush(role)

    def writing_words(opening: Any, out: Any) -> None:
        opened(opening, free_bits(opening._mask.size, opening._bits))
        words(opening, out)

    def writing_octets(opening: Any, out: Any) -> None:
        opened(opening, b"\xff" * opening._mask.size)
        octets(opening, out)

    def dealing(role: Any, value: Any, shape: Any, bits: int = 64) -> Any:
        share = deal(role, value, shape, bits)
        if role.turn == role.index:
            layout.corrections[name_of(role)].append(_padded(free_bits(share.size, bits)))
        return share

    def dealing_bits(role: Any, value: Any, shape: Any) -> Any:
        share = deal_bits(role, value, shape)
        if role.turn == role.index:
            layout.corrections[name_of(role)].append(_padded(b"\xff" * share.size))
        return share

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "flush", flushing)
        patch.setattr(Evaluator, "deal", dealing)
        patch.setattr(Evaluator, "deal_bits", dealing_bits)
        patch.setattr(WordsOpening, "write", writing_words)
        patch.setattr(BitsOpening, "write", writing_octets)
        yield layout


def _frames(net: LockstepLoopback, layout: _Layout) -> Transcript:
    found = []
    for (sender, receiver), sent in sorted(net.transcript.items()):
        openings = enumerate(layout.openings[sender])
        corrections = b"".join(layout.corrections[receiver])
        for label, payload in sent:
            tag, size, exchange = label[:4], len(payload), -1
            assert size < FRAME_BYTES, "programs here send what fits one frame"
            free = b"\xff" * size
            if tag == b"open":
                exchange, parts = next(openings)
                free = b"".join(parts)
            elif tag == b"corr":
                free, corrections = corrections[:size], corrections[size:]
            elif tag in EMPTY:
                assert not size, "what has no content says nothing"
            elif tag in DISCLOSED:
                free = bytes(size)
            assert len(free) == size, "every byte is known to be random or padding"
            octets, random = (np.frombuffer(each, np.uint8) for each in (payload, free))
            found.append(Frame(sender, receiver, label, octets, random, exchange))
        assert not (corrections and sender == "dealer")
    return found


def observed(run: Run, runs: int = RUNS) -> list[Transcript]:
    """The transcripts of `run(seed, net)` for as many seeds. Padding is zero in all of them."""
    found = []
    for seed in range(runs):
        net = LockstepLoopback()
        with _looking_on() as layout:
            run(seed, net)
        found.append(_frames(net, layout))
        for frame in found[-1]:
            known = frame.tag in DISCLOSED
            assert known or not (frame.payload & ~frame.free).any(), f"{frame}: padding"
    for one, other in pairwise(found):
        assert [str(frame) for frame in one] == [str(frame) for frame in other]
        assert all((a.free == b.free).all() for a, b in zip(one, other, strict=True))
    return found


def of_roles(program: Callable[[Role], object], evaluators: int) -> Run:
    """A program of evaluators and dealer; it must not open what it does not mean to."""

    def body(role: Role) -> object:
        np.seterr(over="ignore")  # words wrap around; NumPy keeps this for each thread
        result = program(role)
        role.finish()
        return result

    return lambda seed, net: run_lockstep(body, evaluators, seed, net)


@dataclass(frozen=True)
class Group:
    """Bits that are random together: [runs, bytes], and which of the bits."""

    what: str
    octets: Octets
    free: Octets

    @property
    def signs(self) -> NDArray[np.float64]:
        """S / √R of each random bit."""
        runs = len(self.octets)
        chosen = np.unpackbits(self.free).astype(bool)
        ones = np.unpackbits(self.octets, axis=1)[:, chosen].sum(axis=0, dtype=np.int64)
        return (2.0 * ones - runs) / sqrt(runs)


def _groups(transcripts: Sequence[Transcript]) -> list[Group]:
    """What is sent by sender, receiver and label, and what the openings of a label add up to."""
    places: dict[str, list[int]] = defaultdict(list)
    opened: dict[int, dict[str, int]] = defaultdict(dict)
    for place, frame in enumerate(transcripts[0]):
        if frame.free.any():
            places[str(frame)].append(place)
            if frame.tag == b"open":
                opened[frame.exchange][frame.sender] = place

    def payloads(place: int) -> Octets:
        return np.stack([transcript[place].payload for transcript in transcripts])

    groups = []
    for what, chosen in places.items():
        free = np.concatenate([transcripts[0][place].free for place in chosen])
        octets = np.concatenate([payloads(place) for place in chosen], axis=1)
        if transcripts[0][chosen[0]].tag == b"list":
            # Sorted, so that items are uniform and independent as a set, not at their places.
            octets, free = octets.reshape(-1, ITEM_BYTES), free[:ITEM_BYTES]
        groups.append(Group(what, octets, free))
    for exchange, by_sender in opened.items():
        first = transcripts[0][next(iter(by_sender.values()))]
        sent = [payloads(place) for place in by_sender.values()]
        whole = np.repeat(_whole_words(first.free), 8)
        total = sum(words.view(np.uint64) for words in sent)
        xored = np.bitwise_xor.reduce(sent)
        what = f"all evaluators together, {str(first).split(', ')[1]}, exchange {exchange}"
        groups.append(Group(f"{what}, sum", np.asarray(total).view(np.uint8), whole))
        groups.append(Group(f"{what}, XOR", xored, first.free))
    return groups


def _whole_words(free: Octets) -> Octets:
    """255 for each aligned word of a payload that is random in all of its bits, else 0."""
    full = len(free) & ~7
    return np.where((free[:full].reshape(-1, 8) == 255).all(axis=1), 255, 0).astype(np.uint8)


def suspicious(transcripts: Sequence[Transcript]) -> dict[str, float]:
    """What is not uniform: the group and how many times over its limit it is."""
    groups = [(group.what, group.signs) for group in _groups(transcripts)]
    x = log(2 * len(groups) / FALSE_ALARM)
    bits = sum(len(signs) for _, signs in groups)
    largest = 2 * log(4 * bits / FALSE_ALARM)
    found = {}
    for what, signs in groups:
        squares = signs**2
        n = len(squares)
        ratio = squares.sum() / (n + 2 * sqrt(n * x) + 2 * x)
        single = squares.max(initial=0) / largest
        if max(ratio, single) > 1:
            found[what] = float(max(ratio, single))
    return found


def related(transcripts: Sequence[Transcript], meant: Collection[str] = ()) -> list[str]:
    """Words in a receiver's view that are equal, stay, or keep what they are to each other."""
    found = []
    first, second = transcripts[:2]
    receivers = {frame.receiver for frame in first} - {"dealer", *meant}
    for receiver in sorted(receivers):
        words = [_view(transcript, receiver) for transcript in (first, second)]
        change = words[0] - words[1]
        for what, numbers in (
            ("words that occur twice", words[0]),
            # A word and its negative change by the same, so that sums count as well.
            ("pairs that keep their difference or sum", np.minimum(change, np.uint64(0) - change)),
            ("pairs that keep their XOR", words[0] ^ words[1]),
        ):
            _, counts = np.unique(numbers, return_counts=True)
            if (counts > 1).any():
                found.append(f"{receiver}: {what}: {(counts > 1).sum()}")
        if not change.all():
            found.append(f"{receiver}: words that do not change: {(change == 0).sum()}")
    return found


def _view(transcript: Transcript, receiver: str) -> NDArray[np.uint64]:
    """Whole random words that a node receives, what it sends itself, and what is opened."""
    parts: list[NDArray[np.uint64]] = []
    sent: set[tuple[bytes, bytes]] = set()
    opened: dict[int, dict[str, Frame]] = defaultdict(dict)
    for frame in transcript:
        if frame.exchange >= 0:
            opened[frame.exchange][frame.sender] = frame
        own = frame.sender == receiver and frame.tag in (b"open", b"inpt")
        own = own and (frame.label, frame.payload.tobytes()) not in sent
        if own:  # what it was dealt and hands on is in the view already
            sent.add((frame.label, frame.payload.tobytes()))
        if own or frame.receiver == receiver:
            parts.append(_random_words(frame.payload, frame.free))
    for by_sender in opened.values():
        frames = list(by_sender.values())
        payloads = [frame.payload.view(np.uint64) for frame in frames]
        total = np.asarray(sum(payloads[1:], payloads[0]))
        for joined in (total, np.bitwise_xor.reduce(payloads)):
            parts.append(_random_words(joined.view(np.uint8), frames[0].free))
    return np.concatenate(parts)


def _random_words(payload: Octets, free: Octets) -> NDArray[np.uint64]:
    full = len(payload) & ~7
    return np.ascontiguousarray(payload[:full]).view(np.uint64)[_whole_words(free) != 0]


def check_uniform(run: Run, runs: int = RUNS, meant: Collection[str] = ()) -> list[Transcript]:
    """Fails where anything that is sent is not uniform, or words are related.

    meant: who is sent all summands of a secret, because it is to learn it.
    """
    transcripts = observed(run, runs)
    found = suspicious(transcripts)
    assert not found, found
    pairs = related(transcripts, meant)
    assert not pairs, pairs
    return transcripts
