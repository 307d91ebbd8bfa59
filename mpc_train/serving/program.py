"""The program that evaluators and the dealer of a service run, until it is stopped.

1. prepare: each evaluator finds its share of every model in its vault; nothing has been sent yet.
2. All open the lanes: the models enter the session under fresh masks, for each number of rows.
3. The first evaluator takes questions as they come, puts those to one model that wait together
   into a batch, and tells the others; all evaluators compute it with a unit that the dealer has
   made ahead, and each sends every client its summands of the answers. When units run out it
   orders more of the dealer, which does nothing else.
4. Where a job watches drift, rows are counted over shares once their answers have left
   (`monitoring.window`), and the counts of a window leave with noise for all evaluators.

An evaluator that has not heard its part of a question takes zeros in its place and answers
nothing: whoever asked gets nothing of use, and the others' answers stay right, since rows do not
mix. Nobody but the client learns an answer.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol

from mpc_train.errors import ArtifactError, QueryError, RefusedError
from mpc_train.serving import messages
from mpc_train.serving.desk import Answers, Kept
from mpc_train.serving.figures import Figures
from mpc_train.serving.forward import asked_shapes
from mpc_train.serving.lanes import (
    BUCKETS,
    STREAM_LABEL,
    Lane,
    LaneChannel,
    LaneStore,
    Releases,
    Sorted,
    lanes_of,
)
from mpc_train.serving.messages import (
    AGAIN,
    BATCH,
    MISSED,
    ORDER,
    Again,
    Batch,
    Missed,
    Order,
    Part,
)
from mpc_train.serving.monitoring.window import Counting, Unit
from mpc_train.serving.offered import Offered
from mpc_train.serving.service import Agreed
from mpc_train.shared.agreeing import common_share, tell_outline, told_outline
from mpc_train.shared.share import ModelShare, Outline
from parties.agreement.visitors import MAX_VISITS
from parties.audit.entries import Kind
from parties.nodes.node import ending
from protocols.crypten_tensor import dispatch
from protocols.ring import products
from protocols.roles.dealer import Dealer
from protocols.roles.evaluator import Evaluator
from protocols.roles.frames import check_label
from protocols.roles.streams import Stream

if TYPE_CHECKING:
    from parties.agreement.contract import Roles
    from parties.agreement.session import Session
    from parties.agreement.visitors import Heard
    from protocols.arrays import Words
    from protocols.channel import Buffer

FOREVER_S = 1e9
LATE_S = 2.0
"""How long an evaluator waits for its part of a question that another one has."""
STRIKES, STRIKE_S = 3, 600.0
"""For so many parts of one client that come late or never an evaluator waits in so many seconds:
who sends them holds the others up for a hundredth of the time."""
IDLE_S = 0.25
LOOK_S = 1.0
"""How often an evaluator looks whether it still keeps a model that it is asked."""
REST_S = 1.5
"""After so long without a question the first evaluator lets the others write their accounts."""
MOST_UNITS, AHEAD_BYTES = 32, 256 << 20
"""How many units of a lane are made ahead: at most so many, and at most the lane's part of so many
bytes of material at each evaluator, but two, so that one is made while the other is used."""
WIDE_SHARE = 3 / 4
"""How full a wide unit is at least: with fewer rows, units of 128 cost less."""
MOST_WAITING = 64
"""Questions of one client that wait."""
MOST_HELD = MAX_VISITS * MOST_WAITING
"""Questions of one client that an evaluator holds until the first one has decided about them."""

log = logging.getLogger(__name__)

Counts = Mapping[str, tuple[int, ...]]
"""By histogram, of each bin."""
Shares = Callable[[str], list[ModelShare]]
"""This evaluator's shares of the model with this digest, the newest first: more than one while a
refresh is not over. Raises ArtifactError."""
Keeps = Callable[[Offered], bool]
"""Whether this evaluator still has a share of a model; not after `mpc-train model retire`."""


class Desk(Protocol):
    """Where an evaluator counts questions, and keeps account of them."""

    def take(self, client: str, model: Offered, rows: int, name: bytes) -> None:
        """Count rows before they are computed; once for a question that was lost and is asked again
        under its name. Raises QueryRefusedError."""

    def left(self, client: str, model: Offered) -> int:
        """How many rows of a model a client may still ask today."""

    def answered(self, client: str, model: str, rows: int, name: bytes) -> None:
        """Answers are about to leave. model: its digest."""

    def lose(self, client: str, name: bytes) -> None:
        """A question that was counted will not be answered."""

    def lose_all(self) -> None:
        """None of those that were not answered will be."""

    def refused(self, client: str, model: str, code: str, rows: int) -> None:
        """A question is refused. model: empty for one that there is not."""

    def releasing(self, model: Offered, rows: int) -> None:
        """Counts with noise of a window of so many rows, padding included, are about to leave."""

    def released(
        self, model: Offered, rows: int, counts: Counts | None, training: Counts | None
    ) -> None:
        """They have. counts: by histogram; None if too few rows were real. training: the same of
        the model's training rows; None if they were not counted."""

    def idle(self) -> None:
        """Called now and then, also while nobody asks."""


class NoDesk:
    """For tests and measurements."""

    def take(self, client: str, model: Offered, rows: int, name: bytes) -> None: ...

    def left(self, client: str, model: Offered) -> int:
        return 0

    def answered(self, client: str, model: str, rows: int, name: bytes) -> None: ...

    def lose(self, client: str, name: bytes) -> None: ...

    def lose_all(self) -> None: ...

    def refused(self, client: str, model: str, code: str, rows: int) -> None: ...

    def releasing(self, model: Offered, rows: int) -> None: ...

    def released(
        self, model: Offered, rows: int, counts: Counts | None, training: Counts | None
    ) -> None: ...

    def idle(self) -> None: ...


@dataclass(frozen=True, repr=False)
class Asked:
    """A question that this node has heard. at: as of `Heard`. root: of the stream from which its
    summands are drawn when it is computed, not before, so that what waits takes no room; None: they
    are in `data`."""

    client: str
    visit: bytes
    number: int
    at: float
    model: int
    rows: int
    data: memoryview
    root: bytes | None
    name: bytes

    def __repr__(self) -> str:
        return f"Asked({self.client}, {self.number})"

    @property
    def key(self) -> tuple[str, bytes, int]:
        return self.client, self.visit, self.number


class ServeProgram:
    """A service as the nodes of `parties` run it.

    me: this node. shares: None where no vault is. allows: checks a service against this node's
    rules, and raises RefusedError. desk: counts questions and keeps account of them. keeps: asked
    while the service is open.
    """

    def __init__(
        self,
        me: str,
        shares: Shares | None,
        allows: Callable[[Agreed], None] = lambda agreed: None,
        desk: Desk | None = None,
        keeps: Keeps = lambda model: True,
    ) -> None:
        self._me, self._shares, self._allows, self._keeps = me, shares, allows, keeps
        self._desk = desk or NoDesk()
        self._agreed: Agreed | None = None
        self._held: dict[str, list[ModelShare]] = {}
        self._answers = Answers()

    def prepare(self, body: bytes, roles: Roles) -> bytes:
        """Check the service and find this node's shares; the digest of the public constants.

        Raises JobError, RefusedError and ArtifactError, before anything is signed.
        """
        agreed = Agreed.from_bytes(body)
        if not agreed.allows(roles):
            raise RefusedError("the roles in the contract differ from those of the models' jobs")
        self._allows(agreed)
        if self._me in roles.evaluators:
            if self._shares is None:
                raise RefusedError(f"{self._me} evaluates, and has no vault with models")
            for about in agreed.models:
                try:
                    self._held[about.digest] = self._shares(about.digest)
                except ArtifactError as error:
                    raise ArtifactError(f"the model {about.job.name}: {error}") from error
        self._agreed = agreed
        return agreed.constants()

    def run(self, session: Session) -> dict[str, object]:
        """Serve until the session ends, which it does by an error."""
        agreed = self._agreed
        if agreed is None:
            raise RuntimeError("run before prepare")
        models = tuple(model.digest for model in agreed.models)
        clients = session.roles.clients  # without those whose cards are not accepted
        session.record(Kind.SERVICE_STARTED, models=models, clients=clients)
        served = {"questions": 0, "rows": 0, "refused": 0} if session.is_evaluator else {"units": 0}
        try:
            self._serve(session, agreed, served)
        except BaseException as error:
            by, code = ending(error, session.me)
            session.record(Kind.SERVICE_ENDED, models=models, by=by, code=code, **served)
            raise
        return {}

    def _serve(self, session: Session, agreed: Agreed, served: dict[str, int]) -> None:
        products.calibrate(time.perf_counter)
        outlines, shares = [], []
        for model in agreed.models:
            if session.is_dealer:
                outlines.append(told_outline(session, model.job, whole=True))
                continue
            share = common_share(session, model.job, self._held[model.digest])
            outlines.append(tell_outline(session, model.job, share, whole=True))
            shares.append(share)
        with dispatch.computing(), session.channel.patience(FOREVER_S):
            if session.is_dealer:
                _deal(session, agreed, outlines, served)
            evaluation = Evaluation(
                session, agreed, outlines, shares, self._desk, self._answers, self._keeps
            )
            try:
                evaluation.run()
            finally:
                self._desk.lose_all()
                figures = evaluation.figures
                served |= {
                    "questions": figures.questions,
                    "rows": figures.rows,
                    "refused": figures.refused,
                }

    def outcome(self) -> bytes:
        return b""

    def checkpoints(self) -> tuple[bytes, ...]:
        return ()

    def insists(self) -> bool:
        return False

    def leaving(self, body: bytes) -> tuple[str, ...]:
        return ()

    def check_outcome(self, outcome: bytes) -> None:
        if outcome:
            raise ArtifactError("a service has no outcome")


def _deal(
    session: Session, agreed: Agreed, outlines: Sequence[Outline], served: dict[str, int]
) -> None:
    """The dealer's part: makes what the first evaluator orders, for ever, and counts the units."""
    names = session.roles.evaluators
    lanes: list[Lane | Releases] = []

    def role() -> Dealer:
        root = STREAM_LABEL.format(len(lanes))
        streams = [Stream(session.export(name, root)) for name in names]
        return Dealer(LaneChannel(session.channel, len(lanes)), names=names, streams=streams)

    for place, rows in lanes_of(model.job for model in agreed.models):
        lanes.append(Lane(agreed.models[place].job, outlines[place], rows, role(), None, None))
    for model in agreed.models:
        if model.job.drift is not None:
            lanes.append(Releases(model.job, role(), None))
    while True:
        label, data = session.channel.receive(names[0], messages.MAX_BATCH_BYTES)
        check_label(names[0], ORDER, label)
        order = messages.order_from(names[0], data)
        if order.lane >= len(lanes):
            raise QueryError(f"{names[0]} ordered material for no lane")
        for _ in range(order.units):
            lanes[order.lane].run_blank()
        served["units"] += order.units
        session.progress(
            phase="dealing", units=served["units"], bytes_sent=session.channel.bytes_sent
        )


class Evaluation:
    """An evaluator's part in one session of a service."""

    def __init__(
        self,
        session: Session,
        agreed: Agreed,
        outlines: Sequence[Outline],
        shares: Sequence[ModelShare],
        desk: Desk,
        answers: Answers,
        keeps: Keeps,
    ) -> None:
        assert session.visitors is not None
        self._session, self._agreed, self._visitors = session, agreed, session.visitors
        self._outlines, self._shares, self._desk = outlines, shares, desk
        self._answers, self._keeps = answers, keeps
        self._looked: dict[int, tuple[float, bool]] = {}
        """By a model's place: when this evaluator looked for its share, and whether it was there.
        """
        self._net, self._names = session.channel, session.roles.evaluators
        self._index = self._names.index(session.me)
        self._places = {about.digest: place for place, about in enumerate(agreed.models)}
        watched = sum(model.job.drift is not None for model in agreed.models)
        self._lane_of = lanes_of(model.job for model in agreed.models)
        lanes = len(self._lane_of) + watched
        self._frames = Sorted(session.channel, session.roles.dealer, lanes)
        self._lanes: list[Lane] = []
        self._ordered: list[int] = []
        self._unit_bytes: list[int] = []
        self._releases: list[Releases] = []
        self._countings: dict[int, Counting] = {}
        """By the model's place, where its job watches drift."""
        self._waiting: OrderedDict[tuple[str, bytes, int], Asked] = OrderedDict()
        self._late: dict[str, deque[float]] = {}
        """By client, when its last parts came late or never, as `time.monotonic` has it."""
        self._led: dict[str, int] = {}
        """By client, the number of the batch that last began with a question of it."""
        self._rests_at = float("inf")
        self.figures = Figures()

    @property
    def _leads(self) -> bool:
        return self._index == 0

    def run(self) -> None:
        """Open the lanes, then answer questions for ever."""
        for place, rows in self._lane_of:
            self._open(place, rows)
        for place, model in enumerate(self._agreed.models):
            if model.job.drift is not None:
                self._open_releases(place, model.job.drift.every_rows)
        if not self._leads:
            self._follow()
        while True:
            self._order()
            self._report()
            self._desk.idle()
            self._hear(IDLE_S if not self._waiting else 0.0)
            if self._waiting:
                self._answer(self._next_batch())
                self._rests_at = time.monotonic() + REST_S
            elif time.monotonic() >= self._rests_at:
                self._rests_at = float("inf")
                self._announce(Batch(0, ()))

    def _open(self, place: int, rows: int) -> None:
        """Open a lane, and run a unit of it for nobody: it says how large units are."""
        number, role = len(self._lanes), self._role(len(self._lanes))
        job, store = self._agreed.models[place].job, LaneStore(self._frames, number)
        lane = Lane(job, self._outlines[place], rows, role, store, self._shares[place].parts)
        self._lanes.append(lane)
        self._ordered.append(0)
        if self._leads:
            self._ask_dealer(number, 1)
        before = self._frames.taken[number]
        lane.run_blank()
        self._unit_bytes.append(self._frames.taken[number] - before)

    def _role(self, lane: int) -> Evaluator:
        session, dealer = self._session, self._session.roles.dealer
        return Evaluator(
            session.channel,
            index=self._index,
            names=self._names,
            dealer=dealer,
            stream=Stream(session.export(dealer, STREAM_LABEL.format(lane))),
        )

    def _open_releases(self, place: int, every_rows: int) -> None:
        """Open the lane of a model's releases; one is made ahead."""
        number, model = len(self._lanes) + len(self._releases), self._agreed.offered[place]
        releases = Releases(model.job, self._role(number), LaneStore(self._frames, number))
        self._releases.append(releases)
        training = self._shares[place].about.training_counts

        def order() -> None:
            if self._leads:
                self._ask_dealer(number, 1)

        def release(rows: int, window: Words) -> None:
            self._desk.releasing(model, rows)
            self._desk.released(model, rows, releases.run(window), training)
            order()

        self._countings[place] = Counting(releases.bins, every_rows, self._missed, release)
        order()

    def _missed(self, mine: tuple[Unit, ...]) -> set[Unit]:
        """Units that any evaluator has missed a part of. 1 round."""
        others = [name for name in self._names if name != self._session.me]
        found = set(mine)
        for name in others:
            self._net.send(name, MISSED, messages.encoded(Missed(mine)))
        for name in others:
            label, data = self._net.receive(name, messages.MAX_BATCH_BYTES)
            check_label(name, MISSED, label)
            found.update(messages.missed_from(name, data).units)
        return found

    def _ask_dealer(self, lane: int, units: int) -> None:
        if lane < len(self._ordered):
            self._ordered[lane] += units
        order = messages.encoded(Order(lane, units))
        self._net.send(self._session.roles.dealer, ORDER, order)

    def _order(self) -> None:
        """Order more units of the lanes that run low."""
        part = AHEAD_BYTES // len(self._lanes)
        for number, lane in enumerate(self._lanes):
            most = part // max(1, self._unit_bytes[number])
            wanted = min(MOST_UNITS, max(2, most))
            left = self._ordered[number] - lane.units
            if 2 * left <= wanted and left < wanted:
                self._ask_dealer(number, wanted - left)

    def _hear(self, timeout_s: float) -> None:
        """Take in the questions that have come."""
        heard = self._visitors.receive(timeout_s)
        while heard is not None:
            self._take_in(heard)
            heard = self._visitors.receive(0.0)

    def _take_in(self, heard: Heard) -> None:
        asked, code = self._read(heard)
        if asked is not None and not asked.rows:
            self._say_left(asked)
            return
        if asked is not None and self._leads and self._repeats(asked):
            return
        if asked is not None and self._leads:
            code = self._refuses(asked)
        if code:
            self._refuse(heard.client, heard.visit, heard.number, code, asked)
        elif asked is not None:
            self._waiting[asked.key] = asked
            self._forget(asked)

    def _refuse(
        self, client: str, visit: bytes, number: int, code: str, asked: Asked | None = None
    ) -> None:
        self.figures.refused += 1
        model, rows = "", 0
        if asked is not None:
            model, rows = self._agreed.offered[asked.model].digest, asked.rows
        self._desk.refused(client, model, code, rows)
        left = 0
        if asked is not None and code == "quota":
            left = self._desk.left(client, self._agreed.offered[asked.model])
        self._visitors.answer(visit, number, messages.refusal_of(code, left))

    def _say_left(self, asked: Asked) -> None:
        """Answer how many rows are left; the first evaluator does, which hears every question."""
        code = self._bars(asked) if self._leads else "malformed"
        if code:
            self._refuse(*asked.key, code, asked)
            return
        left = self._desk.left(asked.client, self._agreed.offered[asked.model])
        self._visitors.answer(asked.visit, asked.number, messages.left_of(left))

    def _forget(self, newest: Asked) -> None:
        """Drop what the first evaluator has refused, or was never asked: no client has so many
        questions on their way, and none of a visit that has ended."""
        if self._leads or len(self._waiting) <= MOST_WAITING:
            return
        mine = []
        for key in tuple(self._waiting):
            if not self._visitors.knows(key[1]):
                del self._waiting[key]
            elif key[0] == newest.client:
                mine.append(key)
        for key in mine[: max(0, len(mine) - MOST_HELD)]:
            del self._waiting[key]

    def _read(self, heard: Heard) -> tuple[Asked | None, str]:
        """A question, or the word with which it is refused."""
        try:
            digest, rows, name = messages.question_head(heard.client, heard.data)
            place = self._places.get(digest)
            if place is None:
                return None, "unknown-model"
            shapes = asked_shapes(self._agreed.offered[place].job, rows)
            drawn = self._index < len(self._names) - 1
            messages.check_question(heard.client, heard.data, shapes, drawn=drawn)
        except QueryError as error:
            log.info("%s", error)
            return None, "malformed"
        root = heard.keys.export(messages.ROOT_LABEL.format(heard.number)) if drawn else None
        asked = Asked(
            heard.client, heard.visit, heard.number, heard.at, place, rows, heard.data, root, name
        )
        return asked, ""

    def _refuses(self, asked: Asked) -> str:
        """The word with which a question is not computed; empty: it is, and its rows count."""
        if code := self._bars(asked):
            return code
        waiting = sum(key[0] == asked.client for key in self._waiting)
        if self._leads and waiting >= MOST_WAITING:
            return "busy"
        try:
            model = self._agreed.offered[asked.model]
            self._desk.take(asked.client, model, asked.rows, asked.name)
        except QueryError as error:
            return error.code
        return ""

    def _bars(self, asked: Asked) -> str:
        """The word with which a client may not ask a model at all; empty: it may."""
        serve = self._agreed.offered[asked.model].job.serve
        if self._is_retired(asked.model):
            return "unknown-model"
        if serve is None or asked.client not in serve.clients:
            return "not-allowed"
        return ""

    def _is_retired(self, place: int) -> bool:
        """Whether this node destroyed its share of a model while the service was open."""
        at, kept = self._looked.get(place, (float("-inf"), True))
        if kept and time.monotonic() - at >= LOOK_S:
            model = self._agreed.offered[place]
            kept = self._keeps(model)
            self._looked[place] = time.monotonic(), kept
            if not kept:
                log.warning(
                    "the share of %s, version %d, was destroyed here: questions to it are refused, "
                    "and no session begins while the file of the service lists the model",
                    model.name,
                    model.version,
                )
        return not kept

    def _repeats(self, asked: Asked) -> bool:
        """At the first evaluator: whether a question was answered before, and its answer is sent
        once more. What waits under its name is not answered."""
        for key, other in tuple(self._waiting.items()):
            if (other.client, other.name) == (asked.client, asked.name):
                del self._waiting[key]
                self._desk.lose(asked.client, asked.name)
        if (kept := self._kept(asked)) is None:
            return False
        again = Again(Part(*asked.key, asked.rows), kept.batch)
        for name in self._names[1:]:
            self._net.send(name, AGAIN, messages.encoded(again))
        self._send_again(asked, kept)
        return True

    def _kept(self, asked: Asked) -> Kept | None:
        about = self._agreed.offered[asked.model]
        if about.job.serve is None or asked.client not in about.job.serve.clients:
            return None
        if self._is_retired(asked.model):
            return None
        return self._answers.find(asked.client, asked.name, about.digest, asked.rows)

    def _send_again(self, asked: Asked, kept: Kept) -> None:
        self._desk.answered(asked.client, kept.model, 0, asked.name)
        self._visitors.answer(asked.visit, asked.number, messages.answer_of(kept.words))
        self.figures.answered(0, asked.at)

    def _follow_again(self, data: Buffer) -> None:
        """What the first evaluator sends again is sent from here as well, if it is of one unit."""
        again = messages.again_from(self._names[0], data)
        self._hear(0.0)
        self._await(Batch(0, (again.part,)))
        part = again.part
        asked = self._waiting.pop((part.client, part.visit, part.number), None)
        if asked is None:
            return
        kept = self._kept(asked)
        if kept is None or kept.batch != again.batch:
            self._refuse(part.client, part.visit, part.number, "unavailable", asked)
        else:
            self._send_again(asked, kept)

    def _next_batch(self) -> Batch:
        """The first question in turn, and others to the same model that fit beside it."""
        waiting = self._in_turn()
        model = waiting[0].model
        self._led[waiting[0].client] = self.figures.batches + 1
        sizes = [rows for place, rows in self._lane_of if place == model]
        parts = _together(waiting, model, sizes[-1])
        if sum(part.rows for part in parts) < WIDE_SHARE * sizes[-1]:
            parts = _together(waiting, model, BUCKETS[-1])
        rows = sum(part.rows for part in parts)
        size = next(size for size in sizes if size >= rows)
        batch = Batch(self._lane_of.index((model, size)), tuple(parts))
        self._announce(batch)
        return batch

    def _in_turn(self) -> list[Asked]:
        """The questions that wait: the oldest of each client, beginning with the client whose turn
        was longest ago, then the next of each. So nobody waits for all that another asks at once,
        and every question's turn comes."""
        earlier = Counter[str]()
        turns = []
        for asked in self._waiting.values():
            turns.append((earlier[asked.client], self._led.get(asked.client, 0), asked))
            earlier[asked.client] += 1
        return [asked for *_, asked in sorted(turns, key=itemgetter(0, 1))]

    def _announce(self, batch: Batch) -> None:
        for name in self._names[1:]:
            self._net.send(name, BATCH, messages.encoded(batch))

    def _follow(self) -> None:
        """The part of every evaluator but the first."""
        first = self._names[0]
        while True:
            label, data = self._net.receive(first, messages.MAX_BATCH_BYTES)
            if label == AGAIN:
                self._follow_again(data)
                continue
            check_label(first, BATCH, label)
            batch = messages.batch_from(first, data)
            if batch.lane >= len(self._lanes):
                raise QueryError(f"{first} announced a batch of no lane")
            self._report()
            self._hear(0.0)
            self._desk.idle()
            if not batch.parts:
                continue
            self._await(batch)
            self._answer(batch)
            self._report()

    def _await(self, batch: Batch) -> None:
        """Wait a moment for parts that others have and this node has not."""
        deadline = time.monotonic() + LATE_S
        for part in batch.parts:
            key = (part.client, part.visit, part.number)
            while (
                key not in self._waiting
                and time.monotonic() < deadline
                and self._visitors.knows(part.visit)
                and not self._is_often_late(part.client)
            ):
                self._hear(0.05)
            if key not in self._waiting:
                if self._visitors.knows(part.visit):
                    late = self._late.setdefault(part.client, deque(maxlen=STRIKES))
                    late.append(time.monotonic())
                self._refuse(part.client, part.visit, part.number, "unavailable")

    def _is_often_late(self, client: str) -> bool:
        late = self._late.get(client, deque[float]())
        return len(late) == STRIKES and time.monotonic() - late[0] < STRIKE_S

    def _answer(self, batch: Batch) -> None:
        """Compute a batch, and send each client its answers."""
        lane, (model, _) = self._lanes[batch.lane], self._lane_of[batch.lane]
        rows, start, there = lane.blank(), 0, []
        for part in batch.parts:
            stop = start + part.rows
            if stop > lane.rows:
                raise QueryError(f"{self._names[0]} announced more rows than a unit has")
            asked = self._waiting.pop((part.client, part.visit, part.number), None)
            if asked is not None:
                if (asked.model, asked.rows) != (model, part.rows):
                    code = "malformed"  # and not counted: it is not computed
                else:
                    code = "" if self._leads else self._refuses(asked)
                if code:
                    self._refuse(part.client, part.visit, part.number, code, asked)
                else:
                    there.append((asked, slice(start, stop)))
                    for name, words in self._summands(asked).items():
                        rows[name][start:stop] = words
            start = stop
        half = lane.run(rows)
        assert half is not None
        mine = half.delta - half.lam if self._leads else -half.lam
        digest = self._agreed.offered[model].digest
        self.figures.batches += 1
        unit = self._session.sid + self.figures.batches.to_bytes(8, "big")
        for asked, where in there:
            self._desk.answered(asked.client, digest, asked.rows, asked.name)
            self._answers.keep(asked.client, asked.name, Kept(digest, unit, mine[where].copy()))
            self._visitors.answer(asked.visit, asked.number, messages.answer_of(mine[where]))
            self.figures.answered(asked.rows, asked.at)
        if (counting := self._countings.get(model)) is not None:
            summands = lane.count()
            assert summands is not None
            whole = len(there) == len(batch.parts)
            counting.add((batch.lane, lane.units), summands, start, whole=whole)

    def _summands(self, asked: Asked) -> dict[str, Words]:
        """Drawn once: what is answered waits no more, and no number comes twice under one key."""
        shapes = asked_shapes(self._agreed.offered[asked.model].job, asked.rows)
        return messages.summands_of(asked.data, shapes, asked.root)

    def _report(self) -> None:
        rounds = sum(lane.role.rounds for lane in self._lanes)
        rounds += sum(releases.role.rounds for releases in self._releases)
        news = self.figures.news(len(self._waiting), rounds)
        if news is not None:
            self._session.progress(phase="serving", bytes_sent=self._net.bytes_sent, **news)


def _together(waiting: Sequence[Asked], model: int, most: int) -> list[Part]:
    """Questions to a model, in their order, of so many rows together."""
    parts, rows = [], 0
    for asked in waiting:
        if asked.model == model and rows + asked.rows <= most:
            parts.append(Part(*asked.key, asked.rows))
            rows += asked.rows
    return parts
