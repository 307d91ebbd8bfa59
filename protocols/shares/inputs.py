"""Inputs: how an owner's plaintext becomes a masked tensor.

Who owns what is public; shapes come from the job. Four ways, by the owner's role:

* An evaluator draws λ from its own stream and broadcasts Δ = x + λ. It alone holds λ; the shares of
  the others are zero. 8 bytes per element to each other evaluator.
* The dealer knows λ = Σ [λ]_i anyway: it sends Δ to every evaluator, and receives nothing.
* Anybody else splits x into summands: streams in common with all evaluators but the last, the
  last is sent what is missing. The evaluators then mask it: one round.
* Or the evaluators tell the owner their shares of a mask, as roots of streams that each of them has
  in common with the dealer and that serve nothing else. It gives Δ to the first evaluator, which
  tells the others. No round, and the owner sends its words once, however many evaluate.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from protocols.arrays import Shape, Words
from protocols.channel import Channel
from protocols.roles.dealer import Dealer
from protocols.roles.deferred import Deferred
from protocols.roles.evaluator import Evaluator
from protocols.roles.frames import LABEL, receive_all, send_all
from protocols.roles.role import Role
from protocols.roles.streams import Stream, one_time
from protocols.shares.arithmetic import remask
from protocols.shares.masked import Additive, Masked


def outside_label(number: int) -> bytes:
    """The label of an outside owner's tensor, numbered from 0, so that none is mistaken for
    another."""
    return LABEL.pack(b"outs", 0, number, 0)


def from_evaluator(role: Role, owner: int, shape: Shape, words: Words | None = None) -> Masked:
    """The tensor of evaluator `owner`, who passes it as int64 `words`; the others pass nothing."""
    role.issue("input", owner, *shape)
    lam = role.owner_mask(shape, owner)
    if not isinstance(role, Evaluator):
        return Masked(role, shape, role.known(np.empty(0, np.int64)), lam)
    if role.index == owner:
        if words is None or words.shape != shape or lam is None:
            raise ValueError("the owner must provide a tensor of the job's shape")
        delta = words + lam
        role.broadcast(b"inpt", delta)
    else:
        octets = role.collect(b"inpt", role.names[owner], 8 * prod(shape))
        delta = octets.view(np.int64).reshape(shape)
    return Masked(role, shape, role.known(delta), lam)


def from_dealer(role: Role, shape: Shape, words: Words | None = None) -> Masked:
    """The dealer's own tensor. It sends Δ; evaluators hold streamed shares of the mask."""
    role.issue("dealer input", *shape)
    lam = role.mask(shape).words
    if isinstance(role, Dealer):
        if words is None or words.shape != shape:
            raise ValueError("the dealer must provide a tensor of the job's shape")
        role.broadcast(b"inpt", words + lam)
        return Masked(role, shape, role.known(words), lam)
    if not isinstance(role, Evaluator):
        raise TypeError(f"{role}: neither evaluator nor dealer")
    octets = role.collect(b"inpt", role.dealer, 8 * prod(shape))
    return Masked(role, shape, role.known(octets.view(np.int64).reshape(shape)), lam)


def from_outside(role: Role, shape: Shape, source: OutsideSource | None) -> Masked:
    """The tensor of an owner that neither evaluates nor deals; 1 round.

    source: at an evaluator, its end of `send_outside`; None at the dealer.
    """
    role.issue("outside input", *shape)
    if source is None:
        part: Deferred[Words] = role.known(np.empty(0, np.int64))
    else:
        part = role.known(source.take(shape))
    return remask(Additive(role, shape, part, None))


def from_visitor(role: Role, shape: Shape, roots: Sequence[bytes], delta: Words | None) -> Masked:
    """The tensor of somebody who was told the roots of all evaluators' shares of its mask.

    roots: this evaluator's one; at the dealer all of them. delta: the masked words, at the first
    evaluator. No round; 8 bytes an element from the first evaluator to each other one.
    """
    role.issue("visitor", *shape)
    count = prod(shape)
    lam = one_time(roots[0]).words(count)
    for root in roots[1:]:
        one_time(root).add_words(lam)
    lam = lam.reshape(shape)
    if not isinstance(role, Evaluator):
        return Masked(role, shape, role.known(lam), lam)
    if not role.is_first:
        octets = role.collect(b"visi", role.names[0], 8 * count)
        return Masked(role, shape, role.known(octets.view(np.int64).reshape(shape)), lam)
    if delta is None or delta.size != count:
        raise ValueError("the first evaluator must have a masked tensor of the job's shape")
    role.broadcast(b"visi", delta)
    return Masked(role, shape, role.known(delta.reshape(shape)), lam)


class OutsideSource:
    """An evaluator's end of the tensors that one outside owner sends.

    stream: shared with the owner, None at the evaluator that is sent its summand.
    """

    def __init__(self, channel: Channel, owner: str, stream: Stream | None) -> None:
        self._channel = channel
        self._owner = owner
        self._stream = stream
        self._taken = 0

    def take(self, shape: Shape) -> Words:
        """This evaluator's summand of the owner's next tensor."""
        label = outside_label(self._taken)
        self._taken += 1
        if self._stream is not None:
            return self._stream.words(prod(shape)).reshape(shape)
        octets = receive_all(self._channel, self._owner, label, 8 * prod(shape))
        return octets.view(np.int64).reshape(shape)


def send_outside(
    channel: Channel,
    evaluators: Sequence[str],
    streams: Sequence[Stream],
    words: Words,
    number: int,
) -> None:
    """At an outside owner: split `words` into summands; the last evaluator is sent its own.

    number: of this tensor among all that this owner sends, from 0.
    streams: one shared with each evaluator but the last, in their order, each used for this job's
    inputs only.
    """
    if len(streams) != len(evaluators) - 1:
        raise ValueError("one stream for each evaluator but the last is needed")
    missing = words.reshape(-1)
    for stream in streams:
        missing = missing - stream.words(words.size)
    send_all(channel, evaluators[-1], outside_label(number), missing.view(np.uint8))
