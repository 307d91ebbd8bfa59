"""The only way to reveal: the outputs that the signed job lists, once each, under a fresh mask.

A `RevealGate` knows the outputs that all nodes agreed on. It opens a listed value to everybody
(`to_everybody`, for metrics and decision bits) or hands over this node's half of a listed tensor
for sealing to the recipients (`for_recipients`). Any other request, and a second request, raises
RevealError before a byte is sent. A `Ledger` hears of each opening before it happens, of its value
afterwards, and of what was refused; it may stop what it hears of by raising.

A value is masked afresh before it is revealed, and the dealer hands out new shares of that mask:
the shares under which the evaluators' summands travelled never leave a node. Anybody who saw
[x]_i + [m]_i and then [m]_i would learn [x]_i, and with it a tensor that one owner masked alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np

from protocols.arrays import Words
from protocols.errors import RevealError
from protocols.roles.dealer import Dealer
from protocols.roles.evaluator import Evaluator
from protocols.shares.arithmetic import remask
from protocols.shares.masked import Additive, Masked


@dataclass(frozen=True, slots=True)
class Output:
    """One agreed output: its name, and the training step after which it may leave."""

    name: str
    step: int


@dataclass(frozen=True, slots=True, repr=False)
class SealedHalf:
    """What one evaluator knows of a revealed tensor: Δ and its share of λ, both int64[shape].

    All evaluators' halves together give the plaintext Δ − Σ [λ]_i; one alone gives nothing.
    """

    delta: Words
    lam: Words

    def __repr__(self) -> str:
        return f"SealedHalf(shape={self.delta.shape})"


class Ledger(Protocol):
    """What keeps account of what passes a gate. Protocols do no input or output: nodes bring it."""

    def opening(self, output: Output, values: int) -> None:
        """`values` numbers are about to leave as `output`; raises to keep them."""

    def opened(self, output: Output, words: Words) -> None:
        """They have. words: what this evaluator knows of them: the opened words, int64[shape], Δ
        of its sealed half, or its fresh summand. Not called at the dealer, which learns nothing."""

    def refused(self, output: Output) -> None:
        """It was asked for and is not agreed on, or has left already: it stays."""


class NoLedger:
    """For programs of tests and measurements."""

    def opening(self, output: Output, values: int) -> None: ...

    def opened(self, output: Output, words: Words) -> None: ...

    def refused(self, output: Output) -> None: ...


class RevealGate:
    """Keeps the list of agreed outputs; each may pass once in a session."""

    def __init__(self, outputs: frozenset[Output], ledger: Ledger | None = None) -> None:
        self._open = set(outputs)
        self._ledger = ledger or NoLedger()
        self._passed: list[Output] = []

    @property
    def passed(self) -> tuple[Output, ...]:
        """The outputs that have left so far, in order."""
        return tuple(self._passed)

    def _pass(self, name: str, step: int, size: int) -> Output:
        output = Output(name, step)
        if output not in self._open:
            self._ledger.refused(output)
            raise RevealError(
                f"'{name}' at step {step} is not an output of the signed job, or has left already"
            )
        self._ledger.opening(output, size)
        self._open.remove(output)
        self._passed.append(output)
        return output

    def to_everybody(self, name: str, step: int, x: Masked) -> Words | None:
        """Open a listed value to all evaluators, who may tell the other nodes. 2 rounds.

        Returns int64[shape], at the dealer None.
        """
        output = self._pass(name, step, x.size)
        role = x.role
        fresh, lam = _fresh(x)
        role.issue("reveal", *x.shape)
        if not isinstance(role, Evaluator):
            return None
        delta = fresh.delta.get()
        total = np.array(lam)
        role.broadcast(b"rvl ", lam)
        for peer in role.peers:
            octets = role.collect(b"rvl ", peer, total.nbytes)
            total += octets.view(np.int64).reshape(x.shape)
        words: Words = delta - total
        self._ledger.opened(output, words)
        return words

    def decide(self, name: str, step: int, x: Masked) -> bool:
        """Disclose a listed bit, int64[] of 0 or 1, to all nodes, the dealer included. 2 rounds.

        For what a run does next: whether it stops, whether its values left their range.
        """
        if x.size != 1:
            raise RevealError(f"'{name}' is not a decision")
        (decision,) = self.decide_each(name, step, x)
        return decision

    def decide_each(self, name: str, step: int, x: Masked) -> tuple[bool, ...]:
        """The same for several listed bits, which leave together. 2 rounds."""
        words = self.to_everybody(name, step, x)
        if isinstance(x.role, Dealer):
            return x.role.told(x.size)
        assert words is not None and isinstance(x.role, Evaluator)
        if not np.isin(words, (0, 1)).all():
            raise RevealError(f"'{name}' is not a bit: values have left the ring's range")
        decisions = tuple(bool(word) for word in words.reshape(-1))
        x.role.tell(*decisions)
        return decisions

    def for_recipients(self, name: str, step: int, x: Masked) -> SealedHalf | None:
        """This evaluator's half of a listed tensor, to be sealed; None at the dealer. 1 round."""
        output = self._pass(name, step, x.size)
        fresh, lam = _fresh(x)
        if x.role.is_dealer:
            return None
        half = SealedHalf(fresh.delta.get(), lam)
        self._ledger.opened(output, half.delta)
        return half

    def summand_for_recipients(self, name: str, step: int, z: Additive) -> Words | None:
        """This evaluator's fresh summand of a listed tensor, int64[shape], to be sealed; None at
        the dealer. No round.

        The dealer hands out shares of its own summand, or of zero: all fresh summands together are
        the tensor, and fewer of them are uniform words, also for those who know what the summands
        were before. Corrections: 8 bytes an element.
        """
        output = self._pass(name, step, prod(z.shape))
        dealt = None
        if z.role.is_dealer:
            dealt = np.zeros(z.shape, np.int64) if z.dealt is None else z.dealt
        share = z.role.deal(dealt, z.shape)
        if z.role.is_dealer:
            return None
        fresh = z.part.get() + share
        self._ledger.opened(output, fresh)
        return fresh


def _fresh(x: Masked) -> tuple[Masked, Words]:
    """x under a fresh mask, and new shares of that mask. Corrections: 8 bytes an element."""
    role = x.role
    fresh = remask(x.shares())
    return fresh, role.deal(fresh.lam if role.is_dealer else None, x.shape)
