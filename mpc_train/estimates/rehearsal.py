"""A run of the real program over shapes alone: what each node would send, compute and hold.

All nodes of the job run in this process (`lockstep`), each with the real program, the real roles
and arrays without memory (`blanks`). Frames are counted, not carried (`stage`). Of steps that are
alike only the first ones are run (`repeats`). The few places where the program looks at a value or
makes a secret get an answer that leads on: a decision is no, a mask is blank, nothing is sealed.

Everything here is about public sizes: no table is read, and nothing is opened.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial, wraps
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from mpc_train.checkpoints.state import State
from mpc_train.estimates import blanks
from mpc_train.estimates.blanks import Meter, is_blank, made, meter_here
from mpc_train.estimates.repeats import RepeatedGuard, Repeats
from mpc_train.estimates.roundings import Roundings
from mpc_train.estimates.stage import (
    CountingChannel,
    DrySession,
    NoLibrary,
    NoShelf,
    Wires,
    blank_share,
    blank_table,
)
from mpc_train.evaluation.findings import Findings
from mpc_train.run import program
from mpc_train.run.phases import link, reveal
from mpc_train.shared.brought import statistics_size
from mpc_train.training import passes, trainer
from mpc_train.training.optimizers import adaptive, sgd
from mpc_train.training.warm_start import PUBLIC
from protocols.linkage.intersection import Exponent
from protocols.ring import fixed_point, kernels, products
from protocols.roles.dealer import Dealer
from protocols.roles.evaluator import Evaluator
from protocols.roles.role import Role
from protocols.roles.streams import Stream
from protocols.shares.reveal import RevealGate

if TYPE_CHECKING:
    from mpc_train.evaluation.forms import Form
    from mpc_train.jobs.job import Job
    from protocols.arrays import Words

PHASES = {
    "link_records": "link",
    "share_all": "share",
    "send_rows": "share",
    "train_model": "train",
    "evaluate": "evaluate",
    "reveal_sealed": "reveal",
}
"""The functions of `run.program` with which a phase begins."""


@dataclass(slots=True)
class Spent:
    """What one phase costs one node.

    seconds: of the processor, for what the interpreter does. moved, products, points: see `Meter`.
    """

    rounds: int = 0
    sent: int = 0
    received: int = 0
    seconds: float = 0.0
    moved: int = 0
    products: int = 0
    points: int = 0

    def __add__(self, other: Spent) -> Spent:
        names = self.__slots__
        return Spent(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def __sub__(self, other: Spent) -> Spent:
        names = self.__slots__
        return Spent(**{name: getattr(self, name) - getattr(other, name) for name in names})


@dataclass(slots=True)
class Rehearsed:
    """One node of a dry run. phases: by name, in order. rounds: of training, as a run's
    record counts them; 0 at other nodes than evaluators. arrays: bytes of arrays at most."""

    me: str
    channel: CountingChannel
    meter: Meter = field(default_factory=Meter)
    repeats: Repeats | None = None
    phases: dict[str, Spent] = field(default_factory=dict)
    rounds: int = 0
    brief: bool = False
    checkpoint: int = 0
    """Bytes of a checkpoint."""
    _phase: str = ""
    _before: Spent = field(default_factory=Spent)

    @property
    def arrays(self) -> int:
        return self.meter.peak

    def enter(self, phase: str) -> None:
        """Whatever comes now belongs to this phase; empty: to none."""
        now = self._so_far()
        if self._phase:
            self.phases[self._phase] = self.phases.get(self._phase, Spent()) + now - self._before
        self._phase, self._before = phase, now

    def _so_far(self) -> Spent:
        meter, again = self.meter, self.repeats
        return Spent(
            0 if again is None else again.role.rounds,
            self.channel.bytes_sent,
            self.channel.bytes_received,
            time.thread_time() + (0.0 if again is None else again.seconds),
            meter.moved,
            meter.products,
            meter.points,
        )


def rehearse(job: Job, joined: int | None = None, *, brief: bool = False) -> dict[str, Rehearsed]:
    """What each node of the job spends in a run, by name.

    joined: how many records all owners have in common, if the job joins columns; by default as
    many as the shortest table has. brief: run fewer steps; memory is the same, bytes are not exact.
    """
    wires = Wires()
    nodes = {name: Rehearsed(name, CountingChannel(wires, name), brief=brief) for name in job.nodes}
    wires.meters = {name: node.meter for name, node in nodes.items()}
    works = [partial(_node, job, node, joined) for node in nodes.values()]
    with blanks.installed(), _replaced():
        wires.baton.run(works)
    return nodes


def _node(job: Job, node: Rehearsed, joined: int | None) -> None:
    with blanks.measured(node.meter):
        _here.node = node
        table = None
        if job.data.rows.get(node.me):
            common = min(job.data.rows.values()) if joined is None else joined
            table = blank_table(job, node.me, common if job.data.join is not None else 0)
        started = _Program(job, node.me, table)
        del table
        session: Any = DrySession(node.me, job, node.channel)
        try:
            found = started.run(session)
            node.rounds = int(str(found.get("rounds", 0)))
        finally:
            node.enter("")


class _Program(program.TrainProgram):
    """The program after `prepare`, with blank inputs."""

    def __init__(self, job: Job, me: str, table: Any) -> None:
        place = SimpleNamespace(name=me, spool_bytes=0, checkpoint_s=math.inf)
        no_file: Any = SimpleNamespace(place=place)
        shelf: Any = NoShelf()
        library: Any = NoLibrary()
        super().__init__(no_file, table, shelf, library=library)
        self._job = job
        start = job.train.warm_start
        if job.starts_from_shares:
            self._held = [blank_share(job)] if me in job.evaluators else []
            return
        whose = () if start is None else job.nodes if start.source == PUBLIC else (start.source,)
        if me in whose:
            self._start = {name: made(shape, np.float64) for name, shape in job.shapes.items()}
            if not job.has_own_statistics:
                self._statistics = made((statistics_size(job),), np.int64)

    def _warn(self, *warnings: str) -> None:
        """Nobody is there to be warned."""


class _Here(threading.local):
    node: Rehearsed | None = None


_here = _Here()


def _dry(original: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """`instead` in the threads of a dry run, `original` in all others."""

    @wraps(original)
    def chosen(*arguments: Any, **options: Any) -> Any:
        function = original if meter_here() is None else instead
        return function(*arguments, **options)

    return chosen


def _replacements() -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """Every function that is replaced: its owner, its name, and what stands in its place."""
    for name, phase in PHASES.items():
        yield program, name, _entering(getattr(program, name), phase)
    yield program, "guard_of", _guard_of
    yield program, "make_role", _role
    yield program, "settle", _nothing
    yield program, "stored_ahead", lambda *_: contextlib.nullcontext()
    yield trainer, "steps", _steps
    yield trainer, "make_optimizer", _optimizer(trainer.make_optimizer)
    yield sgd, "coefficients", _coefficients(sgd.coefficients)
    yield adaptive, "joined", _joined(adaptive.joined)
    yield passes, "parts", _parts
    yield trainer, "initial_weights", _weights
    yield products, "sum_of_products", _product_of(products.sum_of_products)
    yield products, "calibrate", _nothing
    yield Stream, "octets", _octets
    yield Stream, "xor_octets", _nothing
    yield RevealGate, "to_everybody", _to_everybody(RevealGate.to_everybody)
    yield RevealGate, "decide_each", _decide_each
    yield Findings, "take", _take
    yield State, "to_bytes", _state
    yield reveal, "seal_result", lambda *_, **__: b""
    yield link, "public_constants", lambda _: bytes(32)
    yield Exponent, "_masked", _masked


@contextlib.contextmanager
def _replaced() -> Iterator[None]:
    changed = [
        (owner, name, getattr(owner, name), instead) for owner, name, instead in _replacements()
    ]
    changed = [(owner, name, now, _dry(now, instead)) for owner, name, now, instead in changed]
    changed += list(_everywhere())
    for owner, name, _, instead in changed:
        setattr(owner, name, instead)
    try:
        yield
    finally:
        for owner, name, before, _ in changed:
            setattr(owner, name, before)


def _everywhere() -> Iterator[tuple[Any, str, Any, Callable[..., Any]]]:
    """The compiled loops and `encode`, wherever a module has one of them by name."""
    wrapped = {
        id(kernel): _counted(kernel)
        for name, kernel in vars(kernels).items()
        if hasattr(kernel, "py_func") and not name.startswith("_")
    }
    wrapped[id(fixed_point.encode)] = _encode
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith(("protocols.", "mpc_train.")):
            for name, value in list(vars(module).items()):
                if id(value) in wrapped:
                    yield module, name, value, _dry(value, wrapped[id(value)])


def _encode(values: Any, fraction_bits: int) -> Any:
    """As `fixed_point.encode`, without its look at the values."""
    real = np.asarray(values, np.float64)
    checked = ~(np.abs(real) < 1.0)
    words = np.rint(np.ldexp(real, fraction_bits)).astype(np.int64)
    del checked
    return words


def _counted(kernel: Callable[..., None]) -> Callable[..., None]:
    """The kernel, which does nothing where an array is blank."""

    def counted(*arguments: Any) -> None:
        meter = meter_here()
        assert meter is not None
        meter.moved += sum(x.nbytes for x in arguments if isinstance(x, np.ndarray))
        if not is_blank(*arguments):
            kernel(*arguments)

    return counted


def _product_of(original: Callable[..., Any]) -> Callable[..., Any]:
    def sum_of_products(pairs: Any, negative: bool = False) -> Any:
        (m, _), n = pairs[0][0].shape, pairs[0][1].shape[1]
        meter = meter_here()
        assert meter is not None
        meter.products += sum(m * x.shape[1] * n for x, _ in pairs)
        if any(is_blank(x, y) for x, y in pairs):
            return made((m, n), np.int64)
        with blanks.real():
            return original(pairs, negative)

    return sum_of_products


def _entering(original: Callable[..., Any], phase: str) -> Callable[..., Any]:
    def entering(*arguments: Any, **options: Any) -> Any:
        assert _here.node is not None
        _here.node.enter(phase)
        return original(*arguments, **options)

    return entering


def _role(session: DrySession) -> Role:
    names, dealer = session.roles.evaluators, session.roles.dealer
    node = _here.node
    assert node is not None
    role: Role
    if session.is_dealer:
        streams = [Stream(bytes(32)) for _ in names]
        role = Dealer(session.channel, names=names, streams=streams)
    else:
        role = Evaluator(
            session.channel,
            index=names.index(session.me),
            names=names,
            dealer=dealer,
            stream=Stream(bytes(32)),
            entropy=bytes,
        )
    node.repeats = Repeats(role, node.channel, node.meter, node.brief)
    return role


def _guard_of(job: Job, role: Role) -> RepeatedGuard | None:
    node = _here.node
    if not job.train.guards_end or node is None or node.repeats is None:
        return None
    node.repeats.guard = RepeatedGuard(role)
    return node.repeats.guard


def _steps(job: Job) -> Any:
    assert _here.node is not None and _here.node.repeats is not None
    return _here.node.repeats.steps(job)


def _noting() -> Roundings | None:
    """What notes the roundings of the step that this node runs."""
    assert _here.node is not None and _here.node.repeats is not None
    return _here.node.repeats.roundings


def _optimizer(original: Callable[..., Any]) -> Callable[..., Any]:
    def make_optimizer(job: Job, *arguments: Any) -> Any:
        optimizer = original(job, *arguments)
        assert _here.node is not None and _here.node.repeats is not None
        _here.node.repeats.roundings = Roundings(job, optimizer)
        return optimizer

    return make_optimizer


def _coefficients(original: Callable[..., Any]) -> Callable[..., Any]:
    def coefficients(rate: Any, weight: Any, factor: Any, bits: Any, decay: Any, kept: Any) -> Any:
        noting = _noting()
        if noting is not None:
            noting.note(weight, factor, bits, decay, kept * noting.rate)
        return original(rate, weight, factor, bits, decay, kept)

    return coefficients


def _joined(original: Callable[..., Any]) -> Callable[..., Any]:
    def joined(gradients: Any, scale: Any, limit: Any, seen: Any, result_bits: int) -> Any:
        noting = _noting()
        if noting is not None:
            finenesses = tuple(gradient.words_per_unit for gradient in gradients.values())
            noting.note(finenesses, result_bits)
        return original(gradients, scale, limit, seen, result_bits)

    return joined


def _parts(job: Job, rows: Any, metrics: Any) -> Any:
    assert _here.node is not None and _here.node.repeats is not None
    return _here.node.repeats.parts(job, rows, metrics)


def _weights(job: Job) -> dict[str, Any]:
    return {name: made(shape, np.int64) for name, shape in job.shapes.items()}


def _octets(stream: Stream, count: int) -> Any:
    return made(((count + 7) & ~7,), np.uint8)[:count]


def _masked(exponent: Exponent, items: Any, point: Any) -> Any:
    """As many points as items, which are equal where the items are."""
    meter = meter_here()
    assert meter is not None
    meter.points += len(items)
    return items.copy()


def _to_everybody(original: Callable[..., Any]) -> Callable[..., Any]:
    """Every number that is revealed is 0, which no check finds impossible."""

    def to_everybody(*arguments: Any) -> Any:
        words = original(*arguments)
        return None if words is None else blanks.zeros_real(words.shape, np.int64)

    return to_everybody


def _take(found: Findings, job: Job, name: str, form: Form, words: Words) -> None:
    """Keeps the words, which other nodes are told, and reads nothing in them."""
    found.words[name] = words


def _decide_each(gate: RevealGate, name: str, step: int, x: Any) -> tuple[bool, ...]:
    gate.to_everybody(name, step, x)
    decisions = (False,) * x.size
    if isinstance(x.role, Evaluator):
        x.role.tell(*decisions)
    else:
        x.role.told(x.size)
    return decisions


def _state(state: State) -> bytes:
    """Memory for a checkpoint, as plaintext and encrypted."""
    sizes = sum(words.nbytes for words in state.parts.values())
    assert _here.node is not None
    _here.node.checkpoint = max(_here.node.checkpoint, sizes)
    plain, sealed = made((sizes,), np.uint8), made((sizes,), np.uint8)
    del plain, sealed
    return b""


def _nothing(*_: Any, **__: Any) -> None:
    """Instead of what only a real run needs."""
