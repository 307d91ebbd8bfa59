"""Every run of a small instance at once: the exact distribution of a corrupted view.

The lanes of the tensors are the runs. Each bit that an honest evaluator draws is one bit of the
lane's number, so that all values of all honest randomness occur, each once; what the corrupted
evaluators draw is the same in all lanes. A draw is restricted to `width` bits at position `shift`:
at the top, words restricted like this are the subgroup 2^(64 − width)·Z, which behaves as
Z_2^width; at the bottom, the protocol's sums are looked at modulo 2^width. What is seen is recorded
in the same window.

Two secrets with the same multiset of views cannot be told apart by any attacker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from protocols.arrays import Shape, Words
from protocols.roles.role import Role
from tests.support.transcript_first import InsecureDealer, InsecureEvaluator, InsecureScript

Window = tuple[int, int]
"""(width, shift) of one draw of words."""


class InsecureEnumeration(InsecureScript):
    """windows: of each draw of words, in the order of the program."""

    def __init__(
        self,
        evaluators: int,
        corrupted: Sequence[int],
        seed: int,
        windows: Iterable[Window],
        bits: int,
    ) -> None:
        super().__init__(evaluators, corrupted, seed, coins=0)
        self.windows = iter(windows)
        self.lane = np.arange(1 << bits, dtype=np.int64)
        self.used = 0
        self.key = np.zeros(1 << bits, np.int64)
        self.key_bits = 0
        self._window_of: dict[int, Window] = {}

    @property
    def lanes(self) -> int:
        return len(self.lane)

    def take(self, honest: bool, width: int, source: np.random.Generator) -> Words:
        """The next `width` bits in every lane: of the lane's number, or the same everywhere."""
        if not honest:
            return np.full(self.lanes, source.integers(0, 1 << width), np.int64)
        value = (self.lane >> self.used) & ((1 << width) - 1)
        self.used += width
        return value

    def record(self, values: Words, width: int) -> None:
        for column in values.reshape(-1, self.lanes):
            self.key = (self.key << width) | (column & ((1 << width) - 1))
            self.key_bits += width

    def words(self, i: int, shape: Shape, window: Window, source: np.random.Generator) -> Words:
        width, shift = window
        copies = int(np.prod(shape)) // self.lanes
        honest = i not in self.corrupted
        columns = [self.take(honest, width, source) for _ in range(copies)]
        return (np.stack(columns) << np.int64(shift)).reshape(shape)

    def planes(self, i: int, shape: Shape, source: np.random.Generator) -> Any:
        """Packed bits whose last axis runs over lanes, possibly several times."""
        copies = int(np.prod(shape)) * 8 // self.lanes
        honest = i not in self.corrupted
        columns = [self.take(honest, 1, source) for _ in range(copies)]
        bits = np.stack(columns).astype(np.uint8).reshape(*shape[:-1], -1)
        return np.packbits(bits, axis=-1, bitorder="little")

    def see_planes(self, octets: Any) -> None:
        bits = np.unpackbits(octets, axis=-1, bitorder="little").astype(np.int64)
        self.record(bits, 1)

    def see_words(self, words: Words, window: Window) -> None:
        width, shift = window
        self.record((words.view(np.uint64) >> np.uint64(shift)).view(np.int64), width)

    # The script's answers, with everything drawn and nothing defined

    def mask(self, shape: Shape, octets: bool, bits: int = 64) -> list[Any]:
        window = (0, 0) if octets else next(self.windows)
        arrays = [
            self.planes(i, shape, self._streams[i])
            if octets
            else self.words(i, shape, window, self._streams[i])
            for i in range(self.evaluators)
        ]
        total = arrays[0].copy()
        for array in arrays[1:]:
            total = total ^ array if octets else total + array
        arrays.append(total)
        for array in arrays:
            self._window_of[id(array)] = window
        self.__dict__.setdefault("_kept", []).extend(arrays)
        return arrays

    def owner_mask(self, shape: Shape, owner: int) -> list[Any]:
        window = next(self.windows)
        arrays: list[Any] = [None] * (self.evaluators + 1)
        arrays[owner] = arrays[-1] = self.words(owner, shape, window, self._streams[owner])
        self._window_of[id(arrays[owner])] = window
        self.__dict__.setdefault("_kept", []).extend(arrays)
        return arrays

    def deal(self, value: Any, shape: Shape, octets: bool, bits: int) -> list[Any]:
        self._last = (self._last + 1) % self.evaluators
        window = (0, 0) if octets else next(self.windows)
        rest = value
        shares: list[Any] = [None] * self.evaluators
        for i in range(self.evaluators):
            if i == self._last:
                continue
            if octets:
                shares[i] = self.planes(i, shape, self._streams[i])
            else:
                shares[i] = self.words(i, shape, window, self._streams[i])
            rest = rest ^ shares[i] if octets else rest - shares[i]
        shares[self._last] = rest
        if self._last in self.corrupted:
            if octets:
                self.see_planes(rest)
            else:
                self.see_words(rest, window)
        return [*shares, value]

    def open(
        self, offers: list[tuple[Any, Any]], octets: bool, bits: int, low: int = 0
    ) -> list[Any]:
        opened: Any = None
        for i in range(self.evaluators):
            part, array = offers[i]
            message = part ^ array if octets else (part + array) >> low << low
            if i not in self.corrupted:
                if octets:
                    self.see_planes(message)
                else:
                    self.see_words(message, self._window_of.get(id(array), (1, 0)))
            opened = message if i == 0 else opened ^ message if octets else opened + message
        if bits < 64 and not octets:
            opened = opened & np.int64((1 << bits) - 1)
        return [opened.copy() for _ in range(self.evaluators)] + [None]

    def announce_owner(self, owner: int, words: Words, lam: Words) -> None:
        if owner not in self.corrupted:
            self.see_words(words, self._window_of[id(lam)])


def view_distribution(
    program: Callable[[Role, int], Any],
    evaluators: int,
    corrupted: Sequence[int],
    *,
    windows: Sequence[Window],
    seed: int = 1,
) -> tuple[list[Any], dict[int, int], int]:
    """Results by role, how often each view occurs, and the number of honest random bits.

    program(role, lanes): secrets are int64[lanes], the same in all lanes.
    """
    bits = 3  # at least a byte of lanes; the first pass counts what is drawn
    while True:
        script = InsecureEnumeration(evaluators, corrupted, seed, windows, bits)
        roles: list[Role] = [InsecureEvaluator(script, i) for i in range(evaluators)]
        roles.append(InsecureDealer(script))
        results = script.baton.run([partial(program, role, 1 << bits) for role in roles])
        if script.used <= bits:
            break
        assert bits == 3, "a second pass draws as much as the first"
        bits = script.used
    assert script.used <= 22, f"{script.used} random bits are too many to enumerate"
    assert script.key_bits <= 63
    values, counts = np.unique(script.key, return_counts=True)
    return results, dict(zip(values.tolist(), counts.tolist(), strict=True)), script.used
