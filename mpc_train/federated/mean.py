"""Sums and means of tensors over shares, as a call: for scripts, and for research in one process.

    from mpc_train.federated.mean import mean          # in a script, at every party
    found = mean(update, rows=[120, 80], clip=1.0)     # each party's own update; found.value

    with Simulation(evaluators=2) as evaluators:       # all parties in this process
        found = evaluators.mean([one, other], rows=[120, 80], clip=1.0)

Each update is clipped to the norm `clip` and rounded (`limits`), and its norm is checked over
shares: one that is beyond, which only a party that runs other software can send, is left out. All
parties learn the mean, and of each update whether it was left out; the dealer learns the latter.
"""

from __future__ import annotations

import operator
import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import isfinite
from typing import Any

import numpy as np
import torch

from mpc_train.errors import DataError
from mpc_train.federated.adding import add_up, entered
from mpc_train.federated.limits import MOST_ROWS, Limits
from protocols.arrays import Reals, Words
from protocols.channel import Buffer
from protocols.crypten_tensor.tensor import runtime_or_none
from protocols.errors import PeerLostError, PeerTimeoutError
from protocols.roles.dealer import Dealer
from protocols.roles.evaluator import Evaluator
from protocols.roles.role import Role
from protocols.roles.streams import KEY_BYTES, Stream
from protocols.shares.arithmetic import remask
from protocols.shares.masked import Masked
from protocols.shares.reveal import Output, RevealGate

PATIENCE_S = 600.0
Opened = Callable[[Masked], Words | None]


@dataclass(frozen=True)
class Mean:
    """value: Σ rows · update / Σ rows over those within the limit, float64; NaN at the dealer,
    which learns no value, and where no update is within. within: of each update, whether it counts.
    rows: Σ rows of those."""

    value: torch.Tensor
    within: tuple[bool, ...]
    rows: int

    @property
    def sum(self) -> torch.Tensor:
        """Σ rows · update."""
        return self.value * self.rows


def mean(update: Any, *, rows: int | Sequence[int] = 1, clip: float) -> Mean:
    """In a script: the mean of the parties' updates, of which each passes its own.

    update: a tensor or array of one shape at all parties; the dealer passes anything of this shape.
    rows: the weight of each party, the same list at all of them; a number: that of each.
    Raises DataError for an update that is not finite, for weights that are not whole numbers and
    for a clip out of range, before anything of it is sent; RuntimeError outside a script.
    """
    state = runtime_or_none()
    if state is None:
        raise RuntimeError(
            "mean: this is for scripts that every party runs (launch.py --script); in one process "
            "use mpc_train.federated.mean.Simulation"
        )
    if state.opened is None:
        raise RuntimeError('mean: this is for scripts; in a job write mode = "federated"')
    parties = state.role.evaluators
    counts = _counts(rows, parties)
    values = _real(update)
    limits = _limits(clip, values.size)
    mine = None if state.role.is_dealer else limits.rounded(values)[0]
    with np.errstate(over="ignore"):
        own = [mine if place == state.role.index else None for place in range(parties)]
        return _mean(state.role, limits, own, counts, state.opened, values.shape)


class Simulation:
    """Evaluators and a dealer as threads of this process, with keys that are drawn anew for each
    call: for research, where nobody needs protection from this process. A context manager.
    """

    def __init__(self, evaluators: int = 2) -> None:
        if evaluators < 2:
            raise ValueError("at least two evaluators are needed")
        self.evaluators = evaluators

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is kept between calls."""

    def mean(self, updates: Sequence[Any], *, rows: int | Sequence[int] = 1, clip: float) -> Mean:
        """The mean of `updates`, as of the function `mean`."""
        values = [_real(update) for update in updates]
        if not values:
            raise DataError("a mean needs at least one update")
        for number, one in enumerate(values):
            if one.shape != values[0].shape:
                raise DataError(
                    f"update {number} has the shape {one.shape} and update 0 {values[0].shape}: "
                    "a mean needs all of one shape"
                )
        limits = _limits(clip, values[0].size)
        words = [limits.rounded(one, f"update {number}")[0] for number, one in enumerate(values)]
        parts = [_split(one, self.evaluators) for one in words]
        return self.mean_of_summands(
            [[part[index] for part in parts] for index in range(self.evaluators)],
            _counts(rows, len(values)),
            limits,
            values[0].shape,
        )

    def mean_of_summands(
        self,
        summands: Sequence[Sequence[Words]],
        rows: Sequence[int],
        limits: Limits,
        shape: tuple[int, ...],
    ) -> Mean:
        """The same of what the evaluators have: by evaluator, its summand of each update."""

        def part(role: Role) -> Mean:
            mine = [None] * len(rows) if role.index is None else summands[role.index]
            outputs = frozenset(Output(f"opening {n}", 0) for n in range(len(rows) + 1))
            gate, count = RevealGate(outputs), iter(range(len(rows) + 1))

            def opened(x: Masked) -> Words | None:
                return gate.to_everybody(f"opening {next(count)}", 0, x)

            with np.errstate(over="ignore"):
                return _mean(role, limits, mine, rows, opened, shape)

        return _run_all(self.evaluators, part)


def _counts(rows: int | Sequence[int], count: int) -> tuple[int, ...]:
    given = tuple(rows) if isinstance(rows, Iterable) else (rows,) * count
    if len(given) != count:
        raise DataError(f"rows: {len(given)} weights for {count} updates; give one for each")
    counts = []
    for number, one in enumerate(given):
        try:
            # Words are whole numbers: a weight of 1.5 would count as 1 and be divided by as 1.5.
            counts.append(operator.index(one))
        except TypeError:
            raise DataError(f"rows: weight {number} is {one!r}, not a whole number") from None
        if not 1 <= counts[-1] < MOST_ROWS:
            raise DataError(f"rows: weight {number} is {one}; 1 to {MOST_ROWS - 1} are possible")
    if sum(counts) >= MOST_ROWS:
        raise DataError(f"rows: together below {MOST_ROWS}")
    return tuple(counts)


def _limits(clip: float, size: int) -> Limits:
    try:
        usable = isfinite(clip)
    except TypeError:
        usable = False
    if not usable:
        raise DataError(f"clip: {clip!r} is not a finite number")
    limits = Limits(Fraction(clip), size)
    limits.check()
    return limits


def _real(update: Any) -> Reals:
    if isinstance(update, torch.Tensor):
        update = update.detach().cpu().double().numpy()
    return np.asarray(update, np.float64)


def _split(words: Words, parties: int) -> list[Words]:
    """Summands, all but the first from the system's randomness."""
    parts = [np.frombuffer(os.urandom(words.nbytes), np.int64) for _ in range(parties - 1)]
    with np.errstate(over="ignore"):
        return [words - sum(parts), *parts]


def _mean(
    role: Role,
    limits: Limits,
    mine: Sequence[Words | None],
    rows: Sequence[int],
    opened: Opened,
    shape: tuple[int, ...],
) -> Mean:
    """mine: this evaluator's summand of each update; None: zeros."""

    def decide(start: int, bits: Masked) -> tuple[bool, ...]:
        words = opened(bits)
        if isinstance(role, Dealer):
            return role.told(bits.size)
        assert words is not None and isinstance(role, Evaluator)
        found = tuple(bool(word) for word in words.reshape(-1))
        role.tell(*found)
        return found

    enters = [partial(entered, role, (limits.size,), words) for words in mine]
    found = add_up(role, limits, enters, rows, decide)
    value: Reals = np.full(limits.size, np.nan)
    if found.total is not None:
        words = opened(remask(found.total))
        if words is not None:
            value = limits.real(words) / found.rows
    return Mean(torch.from_numpy(value.reshape(shape)), found.within, found.rows)


class _Net:
    """Frames between the threads of one call."""

    def __init__(self) -> None:
        self.queues: dict[tuple[str, str], queue.Queue[tuple[bytes, bytes] | None]] = {}
        self._lock = threading.Lock()

    def between(self, sender: str, receiver: str) -> queue.Queue[tuple[bytes, bytes] | None]:
        with self._lock:
            return self.queues.setdefault((sender, receiver), queue.Queue())

    def end(self) -> None:
        """Wake whoever waits: another thread has failed."""
        with self._lock:
            for each in self.queues.values():
                each.put(None)


class _Place:
    """One thread's channel."""

    def __init__(self, net: _Net, name: str) -> None:
        self._net, self._name = net, name
        self.bytes_sent = self.bytes_received = 0

    def send(self, peer: str, label: bytes, payload: Buffer) -> None:
        self._net.between(self._name, peer).put((bytes(label), bytes(payload)))

    def receive(self, peer: str, max_bytes: int) -> tuple[bytes, memoryview]:
        try:
            found = self._net.between(peer, self._name).get(timeout=PATIENCE_S)
        except queue.Empty:
            raise PeerTimeoutError(f"{self._name}: nothing from {peer}") from None
        if found is None:
            raise PeerLostError(f"{self._name}: {peer} or another thread has failed")
        return found[0], memoryview(found[1])


def _run_all(evaluators: int, part: Callable[[Role], Mean]) -> Mean:
    """The result of the first evaluator; raises the first error of any thread."""
    net, names = _Net(), [f"evaluator-{index}" for index in range(evaluators)]
    roots = [os.urandom(KEY_BYTES) for _ in names]
    roles: list[Role] = [
        Evaluator(
            _Place(net, name),
            index=index,
            names=names,
            dealer="dealer",
            stream=Stream(roots[index]),
        )
        for index, name in enumerate(names)
    ]
    roles.append(Dealer(_Place(net, "dealer"), names=names, streams=[Stream(r) for r in roots]))
    found: list[Mean] = []
    errors: list[BaseException] = []

    def work(role: Role) -> None:
        try:
            role.begin_step(0)
            result = part(role)
            role.close()
            if role.is_first:
                found.append(result)
        except BaseException as error:
            errors.append(error)
            net.end()

    threads = [threading.Thread(target=work, args=(role,), daemon=True) for role in roles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found[0]
