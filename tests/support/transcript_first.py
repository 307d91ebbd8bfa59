"""Runs a program with the view of corrupted evaluators fixed before any secret is known.

From a seed and nothing else come: every word that a corrupted evaluator draws from its stream,
every correction that it receives, and every message that an honest evaluator sends (masked
inputs, its part of every opening). From these and the secrets follow the randomness of the honest
evaluators and the masks of the dealer: a message is a summand plus a mask share, so the share is
*defined* as the message less the summand; of a dealt value, the last honest share is the value
less all others. For fixed secrets this is a bijection between the honest randomness and the
messages, hence the messages of a real run are distributed as they are here: uniformly, whatever
the secrets.

If a program computes the right result for every choice of secrets like this, and its view is
the same for all of them, its view tells nothing. An opening under a mask that was used before,
or was never drawn, cannot be chosen: it is computed, lands in the view, and differs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from protocols.arrays import Octets, Positions, Shape, Words
from protocols.roles.dealer import Dealer
from protocols.roles.deferred import Deferred, Never
from protocols.roles.evaluator import Evaluator
from protocols.roles.role import Mask, Role
from tests.support.lockstep import Baton

View = list[tuple[str, bytes]]


def low_bits(words: Words, bits: int) -> Words:
    return words if bits == 64 else words & np.int64((1 << bits) - 1)


class _Group:
    """One mask: its arrays at all evaluators and the dealer, and whether they are defined yet."""

    def __init__(self, arrays: list[Any], xor: bool) -> None:
        self.arrays = arrays
        self.xor = xor
        self.defined = False

    def total(self) -> Any:
        total = self.arrays[0].copy()
        for array in self.arrays[1:-1]:
            if self.xor:
                total ^= array
            else:
                total += array
        return total


class InsecureScript:
    """The meeting point of all roles: draws the view, defines the rest.

    corrupted: indices of evaluators. seed: of the view. coins: of honest randomness that the view
    leaves free; it may differ from run to run.
    """

    def __init__(self, evaluators: int, corrupted: Sequence[int], seed: int, coins: int) -> None:
        self.evaluators = evaluators
        self.corrupted = frozenset(corrupted)
        self.honest = [i for i in range(evaluators) if i not in self.corrupted]
        assert self.honest, "somebody has to be honest"
        self.view: View = []
        self.baton = Baton()
        self._streams = [self._random("stream", i, seed) for i in range(evaluators)]
        places = range(evaluators + 1)
        self._own = [self._random("own", i, seed if i in corrupted else coins) for i in places]
        self._messages = self._random("messages", 0, seed)
        self._corrections = self._random("corrections", 0, seed)
        self._coins = self._random("coins", 0, coins)
        self._meetings: dict[int, dict[int, Any]] = {}
        self._results: dict[int, list[Any]] = {}
        self._posted: dict[tuple[int, bytes], list[Words]] = {}
        self._groups: dict[int, _Group] = {}
        self._last: int = 0

    @staticmethod
    def _random(*what: object) -> np.random.Generator:
        digest = hashlib.sha256(repr(what).encode()).digest()
        return np.random.Generator(np.random.Philox(int.from_bytes(digest[:16], "big")))

    def draw(self, source: np.random.Generator, shape: Shape, octets: bool, bits: int = 64) -> Any:
        if octets:
            return np.asarray(source.integers(0, 256, shape, np.uint8))
        return np.asarray(low_bits(source.integers(-(2**63), 2**63, shape, np.int64), bits))

    def see(self, kind: str, array: Any) -> None:
        self.view.append((kind, np.ascontiguousarray(array).tobytes()))

    def meet(self, role: Any, offer: Any, action: Callable[[list[Any]], list[Any]]) -> Any:
        """Wait for all roles at the same call; `action` makes the results from all offers."""
        number = role.meetings = role.meetings + 1
        place = self.place(role)
        offers = self._meetings.setdefault(number, {})
        offers[place] = offer
        if len(offers) == self.evaluators + 1:
            self._results[number] = action([offers[i] for i in range(self.evaluators + 1)])
        self.baton.wait_until(lambda: number in self._results)
        return self._results[number][place]

    def place(self, role: Any) -> int:
        return self.evaluators if role.index is None else role.index

    def post(self, place: int, tag: bytes, words: Words) -> None:
        self._posted.setdefault((place, tag), []).append(words.copy())

    def fetch(self, place: int, tag: bytes, number: int) -> Words:
        """The tensor that the role at `place` announced under `tag` as its `number`-th."""
        posted = self._posted.setdefault((place, tag), [])
        self.baton.wait_until(lambda: len(posted) > number)
        words: Words = posted[number]
        return words

    # What the roles ask for

    def mask(self, shape: Shape, octets: bool, bits: int = 64) -> list[Any]:
        """Arrays of a new mask; honest ones hold rubbish until an opening defines them."""
        arrays = [
            self.draw(self._streams[i] if i in self.corrupted else self._coins, shape, octets, bits)
            for i in range(self.evaluators)
        ]
        arrays.append(self.draw(self._coins, shape, octets, bits))
        return self._register(_Group(arrays, octets))

    def own(self, place: int, count: int) -> Octets:
        """What only the role at `place` knows: its own part of the view, if it is corrupted."""
        return np.asarray(self._own[place].integers(0, 256, count, np.uint8))

    def owner_mask(self, shape: Shape, owner: int) -> list[Any]:
        arrays: list[Any] = [None] * (self.evaluators + 1)
        if owner in self.corrupted:
            arrays[owner] = self.draw(self._streams[owner], shape, False)
            arrays[-1] = arrays[owner].copy()
        else:
            arrays[owner] = self.draw(self._coins, shape, False)
            arrays[-1] = self.draw(self._coins, shape, False)
        return self._register(_Group(arrays, False))

    def permutation(self, count: int, owner: int) -> list[Any]:
        source = self._streams[owner] if owner in self.corrupted else self._coins
        order = source.permutation(count)
        return [
            order if i in (owner, self.evaluators) else None for i in range(self.evaluators + 1)
        ]

    def _register(self, group: _Group) -> list[Any]:
        for array in group.arrays:
            if array is not None:
                self._groups[id(array)] = group
        return group.arrays

    def group_of(self, array: Any) -> _Group | None:
        return self._groups.get(id(array))

    def deal(self, value: Any, shape: Shape, octets: bool, bits: int) -> list[Any]:
        self._last = (self._last + 1) % self.evaluators
        shares: list[Any] = [None] * self.evaluators
        free = self.honest[:-1]
        for i in range(self.evaluators):
            if i in self.corrupted:
                source = self._corrections if i == self._last else self._streams[i]
                shares[i] = self.draw(source, shape, octets, bits)
                if i == self._last:
                    self.see("correction", shares[i])
            elif i in free:
                shares[i] = self.draw(self._coins, shape, octets, bits)
        rest = value.copy()
        for share in shares:
            if share is not None:
                rest = rest ^ share if octets else rest - share
        shares[self.honest[-1]] = rest if octets else low_bits(rest, bits)
        return [*shares, value]

    def open(
        self, offers: list[tuple[Any, Any]], octets: bool, bits: int, low: int = 0
    ) -> list[Any]:
        """offers: (summand, mask array) of each evaluator, and of the dealer without a summand."""
        arrays = [array for _, array in offers]
        group = self.group_of(arrays[0])
        chosen = group is not None and not group.defined
        opened = None
        for i in range(self.evaluators):
            part, array = offers[i]
            if chosen and i not in self.corrupted:
                message = self.draw(self._messages, array.shape, octets, bits)
                if octets:
                    array[...] = message ^ part
                elif low:
                    message = message >> low << low
                    unseen = low_bits(self.draw(self._coins, array.shape, False), low)
                    array[...] = message + unseen - part
                else:
                    high = array - low_bits(array, bits)
                    array[...] = high + low_bits(message - part, bits)
            else:
                message = part ^ array if octets else low_bits(part + array, bits) >> low << low
            if i not in self.corrupted:
                self.see("opening", message)
            if opened is None:
                opened = message
            else:
                opened = opened ^ message if octets else low_bits(opened + message, bits)
        if chosen:
            assert group is not None
            group.arrays[-1][...] = group.total()
            group.defined = True
        return [np.array(opened) for _ in range(self.evaluators)] + [None]

    def common(self, shape: Shape) -> list[Any]:
        """What evaluators draw together: seeds of honest ones make it, so it comes first."""
        drawn = self.draw(self._messages, shape, True)
        self.see("common", drawn)
        return [drawn] * self.evaluators + [None]

    def announce_owner(self, owner: int, words: Words, lam: Words) -> None:
        """The masked input of an evaluator: its Δ comes first, its mask follows."""
        group = self.group_of(lam)
        if owner in self.corrupted:
            return
        if group is not None and not group.defined:
            plain = words - lam
            words[...] = self.draw(self._messages, words.shape, False)
            group.arrays[owner][...] = words - plain
            group.arrays[-1][...] = group.arrays[owner]
            group.defined = True
        self.see("input", words)

    def announce_dealer(self, words: Words, lam: Words) -> None:
        """The dealer's masked input: an honest evaluator's mask share follows from Δ."""
        group = self.group_of(lam)
        if group is not None and not group.defined:
            plain = words - lam
            words[...] = self.draw(self._messages, words.shape, False)
            last = group.arrays[self.honest[-1]]
            last[...] = 0
            last[...] = words - plain - group.total()
            group.arrays[-1][...] = group.total()
            group.defined = True
        self.see("input", words)

    def outside(self, value: Words) -> list[Words]:
        """Summands of an outside owner's tensor, one for each evaluator."""
        parts: list[Any] = [None] * self.evaluators
        rest = value.copy()
        for i in range(self.evaluators):
            if i == self.honest[-1]:
                continue
            source = self._streams[i] if i in self.corrupted else self._coins
            parts[i] = self.draw(source, value.shape, False)
            rest = rest - parts[i]
        parts[self.honest[-1]] = rest
        return parts


class _Scripted:
    """What evaluators and dealer of a script have in common."""

    script: InsecureScript
    meetings: int

    def _meet(self, offer: Any, action: Callable[[list[Any]], list[Any]]) -> Any:
        return self.script.meet(self, offer, action)

    def mask(self, shape: Shape, bits: int = 64) -> Mask:
        return Mask(self._meet(None, lambda _: self.script.mask(shape, False, bits)))

    def mask_bits(self, shape: Shape) -> Mask:
        return Mask(self._meet(None, lambda _: self.script.mask(shape, True)))

    def permutation(self, count: int, owner: int) -> Positions | None:
        order: Positions | None = self._meet(None, lambda _: self.script.permutation(count, owner))
        return order

    def deal(self, value: Words | None, shape: Shape, bits: int = 64) -> Words:
        self.issue("deal", bits)  # type: ignore[attr-defined]
        share: Words = self._meet(
            value, lambda offers: self.script.deal(offers[-1], shape, False, bits)
        )
        return share

    def own(self, count: int) -> Octets:
        return self.script.own(self.script.place(self), count)

    def deal_bits(self, value: Octets | None, shape: Shape) -> Octets:
        self.issue("deal_bits")  # type: ignore[attr-defined]
        share: Octets = self._meet(
            value, lambda offers: self.script.deal(offers[-1], shape, True, 8)
        )
        return share


class InsecureEvaluator(_Scripted, Evaluator):
    """An evaluator whose openings are there at once, as the script says."""

    def __init__(self, script: InsecureScript, index: int) -> None:
        Role.__init__(self, script.evaluators, index)
        self.script = script
        self.meetings = 0
        self.names = tuple(f"p{i}" for i in range(script.evaluators))
        self.dealer = "dealer"
        self.peers = [name for name in self.names if name != self.names[index]]
        self._fetched: Counter[tuple[int, bytes]] = Counter()
        self._input: Any = None

    def issue(self, name: str, *sizes: int) -> None:
        Role.issue(self, name, *sizes)

    def begin_step(self, step: int) -> None:
        self.step = step

    def finish(self) -> None:
        """Nothing is ever pending."""

    def close(self) -> None:
        """Nothing is ever pending."""

    def owner_mask(self, shape: Shape, owner: int) -> Words | None:
        self._input = self._meet(None, lambda _: self.script.owner_mask(shape, owner))
        lam: Words | None = self._input
        return lam

    def open(
        self, part: Deferred[Words], mask: Mask, bits: int = 64, low: int = 0
    ) -> Deferred[Words]:
        mask.spend()
        offer = (part.get(), mask.array)
        opened: Any = self._meet(offer, lambda offers: self.script.open(offers, False, bits, low))
        return self.known(opened)

    def open_bits(self, part: Deferred[Octets], mask: Mask) -> Deferred[Octets]:
        mask.spend()
        offer = (part.get(), mask.array)
        opened: Any = self._meet(offer, lambda offers: self.script.open(offers, True, 8))
        return self.known(opened)

    def common(self, shape: Shape, *, anew: bool = False) -> Deferred[Octets]:
        self.issue("common")
        return self.known(self._meet(None, lambda _: self.script.common(shape)))

    def known(self, value: Any) -> Deferred[Any]:
        result: Deferred[Any] = Deferred(self.flush)
        result.resolve(value)
        return result

    def flush(self) -> None:
        raise AssertionError("an opening of a script is there at once")

    def broadcast(self, tag: bytes, words: Words) -> None:
        assert self.index is not None
        if tag == b"inpt":
            self.script.announce_owner(self.index, words, self._input)
        elif self.index not in self.script.corrupted:
            self.script.see(tag.decode(), words)
        self.script.post(self.index, tag, words)

    def tell(self, *decisions: bool) -> None:
        assert self.index is not None
        self.script.post(self.index, b"told", np.array(decisions, np.int64))

    def collect(self, tag: bytes, peer: str, count: int) -> Octets:
        place = self.evaluators if peer == self.dealer else self.names.index(peer)
        words = self.script.fetch(place, tag, self._fetched[place, tag])
        self._fetched[place, tag] += 1
        assert words.nbytes == count
        return words.copy().reshape(-1).view(np.uint8)


class InsecureDealer(_Scripted, Dealer):
    """The dealer of a script."""

    def __init__(self, script: InsecureScript) -> None:
        Role.__init__(self, script.evaluators, None)
        self.script = script
        self.meetings = 0
        self.names = tuple(f"p{i}" for i in range(script.evaluators))
        self._never = Never()
        self._inputs = [0] * script.evaluators
        self._decisions = 0
        self._mask: Any = None

    def begin_step(self, step: int) -> None:
        self.step = step

    def finish(self) -> None:
        """Nothing is ever pending."""

    def close(self) -> None:
        """Nothing is ever pending."""

    def mask(self, shape: Shape, bits: int = 64) -> Mask:
        mask = super().mask(shape, bits)
        self._mask = mask.array
        return mask

    def owner_mask(self, shape: Shape, owner: int) -> Words | None:
        lam: Words = self._meet(None, lambda _: self.script.owner_mask(shape, owner))
        # The mask follows from Δ, so the dealer waits until the owner has announced that.
        self.script.fetch(owner, b"inpt", self._inputs[owner])
        self._inputs[owner] += 1
        return lam

    def open(
        self, part: Deferred[Words], mask: Mask, bits: int = 64, low: int = 0
    ) -> Deferred[Words]:
        mask.spend()
        self._meet((None, mask.array), lambda offers: self.script.open(offers, False, bits, low))
        return self._never

    def open_bits(self, part: Deferred[Octets], mask: Mask) -> Deferred[Octets]:
        mask.spend()
        self._meet((None, mask.array), lambda offers: self.script.open(offers, True, 8))
        return self._never

    def common(self, shape: Shape, *, anew: bool = False) -> Deferred[Octets]:
        self.issue("common")
        self._meet(None, lambda _: self.script.common(shape))
        return self._never

    def known(self, value: Words) -> Deferred[Words]:
        return self._never

    def told(self, count: int = 1) -> tuple[bool, ...]:
        number, self._decisions = self._decisions, self._decisions + 1
        told = {
            tuple(map(bool, self.script.fetch(i, b"told", number))) for i in range(self.evaluators)
        }
        (decisions,) = told
        assert len(decisions) == count
        return decisions

    def broadcast(self, tag: bytes, words: Words) -> None:
        assert tag == b"inpt"
        self.script.announce_dealer(words, self._mask)
        self.script.post(self.evaluators, tag, words)


class OutsideStub:
    """Takes the place of `OutsideSource`: summands that the script draws."""

    def __init__(self, role: Any, value: Words) -> None:
        self._role, self._value = role, value

    def take(self, shape: Shape) -> Words:
        assert self._value.shape == shape
        role = self._role
        shared = role.script.__dict__.setdefault("_outside", {})
        number = role.__dict__["_outside_number"] = role.__dict__.get("_outside_number", 0) + 1
        if number not in shared:
            shared[number] = role.script.outside(self._value)
        parts: list[Words] = shared[number]
        return parts[role.index]


def run_scripted(
    program: Callable[[Role], Any],
    evaluators: int,
    corrupted: Sequence[int],
    *,
    seed: int = 1,
    coins: int = 1,
) -> tuple[list[Any], View]:
    """Results at evaluators 0 … N−1 and the dealer, and what the corrupted evaluators saw."""
    script = InsecureScript(evaluators, corrupted, seed, coins)
    roles: list[Role] = [InsecureEvaluator(script, i) for i in range(evaluators)]
    roles.append(InsecureDealer(script))

    def work(role: Role) -> Any:
        role.begin_step(0)
        return program(role)

    results = script.baton.run([partial(work, role) for role in roles])
    return results, script.view
