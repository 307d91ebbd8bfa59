"""The program of evaluators and dealer of a federated job: rounds, until all are over.

1. Each owner that runs a node trains, while the others' updates come in (`desk`). The first
   evaluator closes the round when all are there or the deadline has passed, and says who takes
   part.
2. All add up the updates over shares, and disclose for each owner whether its update is within the
   limit (`adding`). With `[privacy]` every node adds noise of its own to the sum.
3. The sum passes the reveal gate, to the owners. Every evaluator but the first puts a pad over its
   summand and sends it to the first, which adds everything up: it holds the sum under pads that it
   does not know, and each other evaluator holds the key of its own.
4. All store the round. When all have, it counts as opened: owners that run a node are sent the
   masked sum and the keys, the others fetch them. A sum that was not stored everywhere was seen by
   nobody.

The dealer sees whose updates are there and which are too large. No node sees an update, and an
evaluator that owns no rows sees no model.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from mpc_train.admission.load import job_from_bytes
from mpc_train.checkpoints.keeper import place_of
from mpc_train.errors import DataError, JobError, OwnersError
from mpc_train.evaluation.learnt import Found
from mpc_train.federated.adding import Enter, add_up, groups
from mpc_train.federated.limits import Limits
from mpc_train.federated.rounds import messages
from mpc_train.federated.rounds.desk import Desk
from mpc_train.federated.rounds.kept import Kept, Memory, newest
from mpc_train.federated.rounds.messages import Arrived, Record
from mpc_train.federated.rounds.result import write_model
from mpc_train.federated.rounds.told import Told, mean_of
from mpc_train.federated.rules import Global
from mpc_train.federated.sizes import limits_of, variance_of, weights_of
from mpc_train.jobs.audience import GLOBAL, WITHIN
from mpc_train.jobs.schedule import round_steps
from mpc_train.results.outcome import Opening, check, outcome_of, read_outcome
from mpc_train.run.history import table_mark
from mpc_train.run.memory import peak_rss_mb, settle
from mpc_train.run.phases.ledger import RunLedger
from mpc_train.run.phases.notes import Note
from parties.errors import ResumeError
from protocols.errors import FrameError
from protocols.functions.splines import constants_digest
from protocols.ring import products
from protocols.roles.dealer import Dealer
from protocols.roles.evaluator import Evaluator
from protocols.roles.frames import check_label, receive_all, send_all
from protocols.roles.role import Role
from protocols.roles.streams import KEY_BYTES, Stream, one_time
from protocols.shares.inputs import from_dealer, from_evaluator, from_visitor
from protocols.shares.masked import Masked
from protocols.shares.reveal import Output, RevealGate

if TYPE_CHECKING:
    from pathlib import Path

    from mpc_train.federated.local import Owner, Update
    from mpc_train.jobs.job import Job
    from mpc_train.owners.table import Table
    from mpc_train.run.phases.notes import RunNote
    from mpc_train.run.phases.shelf import VaultShelf
    from parties.agreement.contract import Roles
    from parties.agreement.session import Session
    from protocols.arrays import Words

STREAM_LABEL = "mpc-train federated stream root v1, round {}"
FOREVER_S = 1e9
LAST_FETCH_S = 120.0
"""How long evaluators wait at the end for owners that took part in the last round."""
_TABLE_MARK = b"the table of a run that goes on"


class FederatedProgram:
    """Federated rounds as the nodes of `parties` run them.

    me: this node. table: its rows, None if it owns none. shelf: where an evaluator keeps rounds;
    None: in memory. note: what a node keeps of a run that goes on. device: where it trains.
    on_round: called at an owner after each round.
    """

    def __init__(
        self,
        me: str,
        table: Table | None = None,
        shelf: VaultShelf | None = None,
        note: RunNote | None = None,
        device: str = "",
        on_round: Callable[[Told], None] = lambda told: None,
    ) -> None:
        self._me, self._table, self._shelf, self._note = me, table, shelf, note
        self._device, self._on_round = device, on_round
        self._job: Job | None = None
        self._owner: Owner | None = None
        self._outcome = b""
        self.found = Found()
        """What left, as this node has seen it."""
        self.model: Path | None = None
        """Where an owner's copy of the last global model is, after the run."""

    @property
    def table(self) -> Table | None:
        return self._table

    def prepare(self, body: bytes, roles: Roles) -> bytes:
        """Check the job and make this owner's module; the digest of the public constants.

        Raises JobError, ModelError, DataError and, without the library of `[privacy]`, ConfigError,
        before anything is signed.
        """
        job = job_from_bytes(body)
        if not job.federates:
            raise JobError("train.mode: not a federated job")
        if self._me in job.owners:
            if self._table is None:
                raise RuntimeError("an owner without a table")
            from mpc_train.federated.local import Owner

            self._owner = Owner(job, self._me, self._table, self._device)
        self._job = job
        digest = hashlib.sha256(constants_digest(job.fraction_bits) + job.plain.initial.encode())
        digest.update(limits_of(job).fraction_bits.to_bytes(4, "big", signed=True))
        digest.update(f"noise {variance_of(job)}".encode())
        return digest.digest()

    def checkpoints(self) -> tuple[bytes, ...]:
        return newest(self._shelf)

    def insists(self) -> bool:
        """A round that was opened is not opened a second time with other updates."""
        found = None if self._note is None else self._note.read()
        return found is not None and found.leaving

    def leaving(self, body: bytes) -> tuple[str, ...]:
        return ()

    def outcome(self) -> bytes:
        return self._outcome

    def check_outcome(self, outcome: bytes) -> None:
        if self._job is None:
            raise RuntimeError("check_outcome before prepare")
        check(self._job, read_outcome(outcome))

    def run(self, session: Session) -> dict[str, object]:
        """All rounds that are left. Returns progress, sizes and times, which the coordinator may
        learn. Raises OwnersError."""
        job = self._job
        if job is None:
            raise RuntimeError("run before prepare")
        products.calibrate(time.perf_counter)
        mark = self._begin(session)
        settle()
        before = session.channel.bytes_sent
        rounds = Rounds(session, job, self._owner, self._shelf, self._note, mark, self._on_round)
        with session.channel.patience(FOREVER_S), np.errstate(over="ignore"):
            rounds.run()
        self.model = rounds.model
        left = tuple(one.output for one in rounds.ledger.openings)
        self.found = Found(revealed=tuple(dict.fromkeys(left)))
        self._outcome = outcome_of(job, rounds.ledger.openings).to_bytes()
        return {
            "steps": job.federated.rounds,
            "train_seconds": sum(rounds.seconds),
            "step_seconds_median": median(rounds.seconds) if rounds.seconds else 0.0,
            "rounds": rounds.exchanges,
            "bytes_sent": session.channel.bytes_sent - before,
            "peak_rss_mb": peak_rss_mb(),
            **({"resumed_after": rounds.begun} if rounds.begun else {}),
        }

    def _begin(self, session: Session) -> str:
        """Note with which table the run begins, or compare it if the run goes on. Raises DataError,
        and ResumeError if a round that was opened would be opened once more: with other owners or
        other noise, whose difference tells what neither sum does."""
        mark = "" if self._table is None else table_mark(_TABLE_MARK, self._table)
        self._table = None
        if self._note is None:
            return mark
        found = self._note.read()
        if session.resume and mark and (found is None or found.table != mark):
            raise DataError(
                f"the run goes on, but the table of {session.me} is not the one with which it "
                "began, or the note of that is lost; nothing was shared. Restore the table, or "
                "begin anew with --fresh at all nodes"
            )
        begun = place_of(session.resume)[0] if session.resume else 0
        if found is not None and found.opened > begun:
            raise ResumeError(
                f"round {found.opened} was opened, but the newest round that all evaluators keep "
                f"is {begun}: the rounds between would be opened a second time. Restore what the "
                "evaluators have kept, or begin anew with --fresh at all nodes, where the run then "
                "counts again against the budgets of owners"
            )
        if not session.resume or found is None:
            self._note.write(Note(mark, leaving=begun > 0, opened=begun))
        return mark


class Rounds:
    """A node's part in one session of a federated job."""

    def __init__(
        self,
        session: Session,
        job: Job,
        owner: Owner | None,
        shelf: VaultShelf | None,
        note: RunNote | None,
        mark: str,
        on_round: Callable[[Told], None],
    ) -> None:
        self._session, self._job, self._owner, self._note = session, job, owner, note
        self._mark, self._on_round = mark, on_round
        self._net, self._names = session.channel, session.roles.evaluators
        self._first, self._dealer = self._names[0], session.roles.dealer
        self._leads = session.me == self._first
        self._limits = limits_of(job)
        self._secret, self._variance = job.sums_sizes, variance_of(job)
        self._words = self._limits.size + (1 if self._secret else 0)
        self._here = tuple(name for name in job.owners if name in job.nodes)
        self._kept = Kept(shelf or Memory(), session.sid)
        self._global = None if owner is None else Global(owner.initial())
        self.ledger = RunLedger(session, job)
        self.begun = self.exchanges = 0
        self.seconds: list[float] = []
        """That each round took."""
        self.model: Path | None = None

    def run(self) -> None:
        self._recall()  # before owners ask which rounds were opened, and of which run
        with ExitStack() as held:
            self._desk: Desk | None = None
            if self._session.visitors is not None:
                self._desk = held.enter_context(
                    Desk(
                        self._session.visitors,
                        self._words,
                        self._job.visitors,
                        self._kept,
                        lambda arrived: self._mask_root(self._dealer, arrived),
                        leads=self._leads,
                    )
                )
            self._resume()
            record: Record | None = None
            for number in range(self.begun + 1, self._job.federated.rounds + 1):
                began = time.monotonic()
                record = self._round(number)
                self.seconds.append(time.monotonic() - began)
            self._end(record)
        if self._owner is not None and self._global is not None:
            self.model = write_model(self._session.run_dir, self._owner, self._global, self._job)

    def _recall(self) -> None:
        """Find the rounds that an earlier session has opened."""
        if self._session.resume:
            self.begun = place_of(self._session.resume)[0]
        if self._session.is_evaluator:
            if self._session.resume:
                self._kept.resume(self._session.resume)
            else:
                self._kept.begin()

    def _resume(self) -> None:
        """Go on after these rounds."""
        for number in range(1, self.begun + 1):
            record = self._told_record(number)
            self._enter(record)
            self._hand_over(number, record, None)

    def _told_record(self, number: int) -> Record:
        """The record of an earlier round, which the dealer does not keep."""
        if self._session.is_dealer:
            label, data = self._net.receive(self._first, messages.MAX_CLOSED_BYTES)
            check_label(self._first, messages.CHOSEN, label)
            return messages.record_from(self._first, data)
        record, _ = self._kept.read(number)
        if self._leads:
            self._net.send(self._dealer, messages.CHOSEN, messages.encoded(record))
        return record

    def _enter(self, record: Record) -> None:
        """What an earlier session has opened, for the statement that all nodes sign."""
        job, per, number = self._job, round_steps(self._job), record.round
        present = len(record.counted) + len(record.left_out)
        for start, size in _group_sizes(present, self._limits):
            step = (number - 1) * per + start + 1
            key = "train.federated.clip"
            self.ledger.openings.append(Opening(WITHIN, step, job.names, key, size))
        if record.counted:
            self.ledger.openings.append(
                Opening(GLOBAL, number * per, job.owners, "train.mode", self._words)
            )

    def _round(self, number: int) -> Record:
        session, settings = self._session, self._job.federated
        deadline = time.monotonic() + settings.deadline_s
        if self._desk is not None:
            self._desk.open_round(number)
        session.progress(step=number - 1, steps=settings.rounds, phase="training")
        update = None
        if self._owner is not None and self._global is not None:
            update = self._owner.train(self._global.weights, number)
        chosen = self._choose(deadline)
        owners = self._taking_part(chosen)
        if len(owners) < settings.least_owners:
            missing = [name for name in self._job.owners if name not in owners]
            raise OwnersError(
                f"round {number}: {len(owners)} of {len(self._job.owners)} owners sent an update "
                f"within {settings.deadline_s} s, least_owners = {settings.least_owners}; missing: "
                f"{', '.join(missing)}. Nothing of this round was opened; when they are back, "
                "start the nodes again, and the run goes on after round "
                f"{number - 1}"
            )
        words = None if update is None else self._with_rows(update.words, update.rows)
        role = self._role(number)
        role.begin_step(0)
        record, summand = self._summed(role, number, owners, chosen, words)
        role.close()
        self.exchanges += role.rounds
        content = self._padded(summand)
        self._store(record, content)
        self._hand_over(number, record, update)
        session.progress(
            step=number, steps=settings.rounds, bytes_sent=self._net.bytes_sent, phase="training"
        )
        return record

    def _with_rows(self, words: Words, rows: int) -> Words:
        return np.append(words, rows) if self._secret else words

    def _role(self, number: int) -> Role:
        """A role of its own for each round: streams of keys that no other round uses."""
        session, label = self._session, STREAM_LABEL.format(number)
        if session.is_dealer:
            streams = [Stream(session.export(name, label)) for name in self._names]
            return Dealer(self._net, names=self._names, streams=streams)
        return Evaluator(
            self._net,
            index=self._names.index(session.me),
            names=self._names,
            dealer=self._dealer,
            stream=Stream(session.export(self._dealer, label)),
        )

    def _mask_root(self, peer: str, arrived: Arrived) -> bytes:
        """Of an evaluator's share of the mask of this update; peer: that evaluator, or the
        dealer."""
        return self._session.export(peer, messages.mask_label(arrived))

    def _choose(self, deadline: float) -> dict[str, Arrived]:
        """The updates of owners that run no node which all evaluators have, as the first one
        says."""
        others = [name for name in self._names if name != self._session.me]
        if self._leads:
            here: tuple[Arrived, ...] = ()
            if self._desk is not None:
                here = self._desk.gather(deadline, self._check)
            for name in others:
                self._net.send(name, messages.CLOSED, messages.encoded(here))
            held = [True] * len(here)
            for name in others:
                label, data = self._net.receive(name, len(here))
                check_label(name, messages.HELD, label)
                theirs = messages.held_from(name, data, len(here))
                held = [mine and their for mine, their in zip(held, theirs, strict=True)]
            chosen = tuple(one for one, is_held in zip(here, held, strict=True) if is_held)
            for name in (*others, self._dealer):
                self._net.send(name, messages.CHOSEN, messages.encoded(chosen))
            return {one.owner: one for one in chosen}
        if self._session.is_evaluator:
            here = self._told(messages.CLOSED)
            held = list(self._desk.holds(here)) if self._desk is not None else [False] * len(here)
            self._net.send(self._first, messages.HELD, bytes(held))
        return {one.owner: one for one in self._told(messages.CHOSEN)}

    def _check(self) -> None:
        """While the first evaluator waits for owners: whether the node must stop."""
        if self._desk is not None and self._desk.fault is not None:
            raise self._desk.fault

    def _told(self, expected: bytes) -> tuple[Arrived, ...]:
        label, data = self._net.receive(self._first, messages.MAX_CLOSED_BYTES)
        check_label(self._first, expected, label)
        found = messages.closed_from(self._first, data)
        if any(one.owner not in self._job.visitors for one in found) or (
            len({one.owner for one in found}) != len(found)
        ):
            raise FrameError(f"{self._first} named owners that the job does not")
        return found

    def _taking_part(self, chosen: dict[str, Arrived]) -> tuple[str, ...]:
        return tuple(name for name in self._job.owners if name in self._here or name in chosen)

    def _summed(
        self,
        role: Role,
        number: int,
        owners: tuple[str, ...],
        chosen: dict[str, Arrived],
        words: Words | None,
    ) -> tuple[Record, Words | None]:
        job, per = self._job, round_steps(self._job)
        base = (number - 1) * per
        outputs = {Output(WITHIN, base + place + 1) for place in range(per)}
        gate = RevealGate(frozenset({*outputs, Output(GLOBAL, number * per)}), self.ledger)
        whole = [partial(self._entered, role, name, chosen.get(name), words) for name in owners]
        rows: Sequence[int] | Sequence[Enter]
        enters: list[Enter]
        if self._secret:
            cells: dict[int, Masked] = {}

            def update(place: int) -> Masked:
                cells[place] = whole[place]()
                return cells[place].select(slice(0, self._limits.size))

            def count(place: int) -> Masked:
                return cells.pop(place).select(slice(self._limits.size, None))

            enters = [partial(update, place) for place in range(len(owners))]
            rows = [partial(count, place) for place in range(len(owners))]
        else:
            enters, weights = list(whole), weights_of(job)
            rows = [weights[name] for name in owners]
        group = iter(range(1, per + 1))

        def decide(start: int, bits: Masked) -> tuple[bool, ...]:
            return gate.decide_each(WITHIN, base + next(group), bits)

        most = max(job.data.rows.values())
        found = add_up(role, self._limits, enters, rows, decide, most, self._variance)
        counted = tuple(name for name, good in zip(owners, found.within, strict=True) if good)
        left_out = tuple(name for name, good in zip(owners, found.within, strict=True) if not good)
        if len(counted) < job.federated.least_owners:
            raise OwnersError(
                f"round {number}: only the updates of {len(counted)} owners are within the clip, "
                f"least_owners = {job.federated.least_owners}; left out: {', '.join(left_out)}. "
                "Nothing of this round was opened"
            )
        assert found.total is not None
        summand = gate.summand_for_recipients(GLOBAL, number * per, found.total)
        return Record(number, counted, left_out, found.rows), summand

    def _entered(
        self, role: Role, owner: str, arrived: Arrived | None, words: Words | None
    ) -> Masked:
        """One owner's update, and its rows if they are secret."""
        shape, mine = (self._words,), self._session.me
        if owner == self._dealer:
            return from_dealer(role, shape, words if mine == owner else None)
        if owner in self._names:
            place = self._names.index(owner)
            return from_evaluator(role, place, shape, words if mine == owner else None)
        assert arrived is not None
        if role.is_dealer:
            roots = [self._mask_root(name, arrived) for name in self._names]
            return from_visitor(role, shape, roots, None)
        assert self._desk is not None
        delta = self._desk.take(arrived)
        return from_visitor(role, shape, [self._mask_root(self._dealer, arrived)], delta)

    def _padded(self, summand: Words | None) -> bytes:
        """What this evaluator keeps of the sum: the first one the sum under pads, every other one
        the key of its pad."""
        if summand is None:
            return b""
        if self._leads:
            for name in self._names[1:]:
                hidden = receive_all(self._net, name, messages.PADDED, summand.nbytes)
                summand += hidden.view(np.int64)
            return summand.tobytes()
        pad = os.urandom(KEY_BYTES)
        one_time(pad).add_words(summand, negative=True)
        send_all(self._net, self._first, messages.PADDED, summand.view(np.uint8))
        return pad

    def _store(self, record: Record, content: bytes) -> None:
        """Keep the round; it counts as opened when all evaluators have."""
        number = messages.ROUND.pack(record.round)
        others = [name for name in self._names if name != self._first]
        if self._session.is_evaluator:
            self._kept.store(record, content)
        if self._session.is_dealer or not self._leads:
            if not self._session.is_dealer:
                self._net.send(self._first, messages.STORED, number)
            self._expect(self._first, messages.RELEASED, number)
        else:
            for name in others:
                self._expect(name, messages.STORED, number)
            self._leave(record.round)
            for name in (*others, self._dealer):
                self._net.send(name, messages.RELEASED, number)
        if not self._leads:
            self._leave(record.round)
        self._kept.release(record.round)

    def _leave(self, number: int) -> None:
        """From here on the model of this round has left: the run goes on after it, or not at
        all."""
        if self._note is not None and self._session.is_evaluator:
            self._note.write(Note(self._mark, leaving=True, opened=number))

    def _expect(self, peer: str, expected: bytes, content: bytes) -> None:
        label, data = self._net.receive(peer, len(content))
        check_label(peer, expected, label)
        if bytes(data) != content:
            raise FrameError(f"{peer} speaks of another round")

    def _hand_over(self, number: int, record: Record, update: Update | None) -> None:
        """Give the opened sum to the owners that run a node, and take it as one of them."""
        me, size = self._session.me, 8 * self._words
        if self._session.is_evaluator:
            _, content = self._kept.read(number)
            label = messages.SUM if self._leads else messages.PAD
            for name in self._here:
                if name != me:
                    send_all(self._net, name, label, np.frombuffer(content, np.uint8))
        if self._owner is None or self._global is None:
            return
        if self._leads:
            total = np.frombuffer(self._kept.read(number)[1], np.int64).copy()
        else:
            total = receive_all(self._net, self._first, messages.SUM, size).view(np.int64)
        for name in self._names[1:]:
            pad = (
                self._kept.read(number)[1]
                if name == me
                else receive_all(self._net, name, messages.PAD, KEY_BYTES).tobytes()
            )
            messages.lift(pad, total)
        self._global.move(self._job.federated, mean_of(total, record, self._limits, self._secret))
        measured = self._owner.measured(self._global.weights)
        self._on_round(Told.of(me, record, update, measured))

    def _end(self, record: Record | None) -> None:
        """Wait until owners that run no node have the last model; then all nodes end together."""
        if self._leads:
            if self._desk is not None:
                last = self._job.federated.rounds
                present = () if record is None else (*record.counted, *record.left_out)
                visitors = [name for name in present if name in self._job.visitors]
                self._desk.end(visitors, last, LAST_FETCH_S)
            for name in (*self._names[1:], self._dealer):
                self._net.send(name, messages.OVER, b"")
        else:
            self._expect(self._first, messages.OVER, b"")


def _group_sizes(present: int, limits: Limits) -> Iterator[tuple[int, int]]:
    for number, places in enumerate(groups(present, limits.size)):
        yield number, len(places)
