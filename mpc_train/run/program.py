"""The training program that every node of a job runs: one text for evaluators and the dealer.

1. prepare: the job's ranges are checked, an owner's file is loaded, the digest of all public
   constants is made. Nothing has been sent yet.
2. link and share in: where owners bring identifiers, records are compared, and the schedule is
   that of the rows that are joined. Each owner's rows and labels become masked tensors. Where a
   column's mean does not exist the run ends.
3. train: the steps of the public schedule.
4. evaluate: the listed metrics on the held-out rows pass the reveal gate.
5. reveal: each evaluator seals its half of the weights to every recipient.

An owner that neither evaluates nor deals sends its summands and is done.
"""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpc_train.admission.load import fewest, job_from_bytes, resolved
from mpc_train.admission.network import check_network
from mpc_train.admission.ranges import check_ranges
from mpc_train.errors import JobError
from mpc_train.evaluation.findings import Findings
from mpc_train.evaluation.folds import cross_validated, fold_steps
from mpc_train.evaluation.learnt import Found
from mpc_train.evaluation.metrics import evaluation_of, revealed
from mpc_train.evaluation.own import exchange, own_halves
from mpc_train.jobs.audience import listed
from mpc_train.jobs.job import Job
from mpc_train.jobs.outputs import leaving
from mpc_train.jobs.schedule import (
    checked_rows,
    distinct_rates,
    is_newton,
    split,
    total_steps,
)
from mpc_train.jobs.sealed import sealed_tensors
from mpc_train.jobs.training import needs_file
from mpc_train.linkage.link import Linked, Place, check_duplicates, link, patience_s
from mpc_train.linkage.partners import linkage_warnings, without_partner
from mpc_train.linkage.sharing import share_joined
from mpc_train.owners.table import Table, load_table
from mpc_train.preparation.gaps import check_gaps, gap_outputs
from mpc_train.preparation.sharing import Shared, share_in, words_brought
from mpc_train.regression.run import regress
from mpc_train.results.artifact import ENVELOPE_FILE, seal_model
from mpc_train.run.memory import settle
from mpc_train.training.balance import balanced
from mpc_train.training.first_weights import initial_weights
from mpc_train.training.optimizers.gradients import unseen
from mpc_train.training.range_guard import ADVICE, NEWTON_ADVICE, RangeGuard, look_at_network
from mpc_train.training.rates import rate
from mpc_train.training.trainer import Training, make_trainer, train
from mpc_train.training.warm_start import PUBLIC, flat, load_start, started_with
from mpc_train.training.watch import Watch, disclosures
from protocols.crypten_tensor import dispatch
from protocols.crypten_tensor.tensor import MaskedTensor, Source, attach, detach
from protocols.functions.splines import constants_digest
from protocols.ring import products
from protocols.ring.fixed_point import encode
from protocols.roles.dealer import Dealer
from protocols.roles.evaluator import Evaluator
from protocols.roles.role import Role
from protocols.roles.streams import Stream
from protocols.shares.inputs import OutsideSource, send_outside
from protocols.shares.masked import Masked
from protocols.shares.reveal import Output, RevealGate, SealedHalf

if TYPE_CHECKING:
    from mpc_train.run.node_config import NodeConfig
    from mpc_train.tables.loading.load import Report
    from parties.agreement.contract import Roles
    from parties.agreement.session import Session

STREAM_LABEL = "mpc-train stream root v1"
INPUT_LABEL = "mpc-train outside input root v1"
TRAINING_S = 7 * 24 * 3600.0
"""So long an owner that does not compute waits for metrics of its own."""

Reals = NDArray[np.float64]

log = logging.getLogger(__name__)


class TrainProgram:
    """Training as the nodes of `parties` run it.

    config: this node's own file. reading: told how far this node's own table is read.
    """

    def __init__(self, config: NodeConfig, reading: Report | None = None) -> None:
        self._config = config
        self._reading = reading
        self._job: Job | None = None
        self._table: Table | None = None
        self._start: dict[str, Reals] | None = None
        self.found = Found()
        """What this node learns, once the run is over; `run` returns what the coordinator may be
        told."""
        self.unmatched_records: int | None = None
        """How many of this node's own records found no partner, where records are joined."""
        self.warnings: list[str] = []
        """What this node's owner should look at; for nobody else."""

    @property
    def table(self) -> Table | None:
        """This node's rows, from `prepare` until they are shared in; None where it has none."""
        return self._table

    @property
    def told(self) -> dict[str, object]:
        """What this node's owner is told of its own records, as a run's JSON has it."""
        found: dict[str, object] = {}
        if self.unmatched_records is not None:
            found["unmatched_records"] = self.unmatched_records
        return found | ({"warnings": self.warnings} if self.warnings else {})

    def _warn(self, *warnings: str) -> None:
        """Keep warnings for the end of the run, and say them now: training may take days."""
        self.warnings += warnings
        for warning in warnings:
            log.warning("%s", warning)

    def prepare(self, body: bytes, roles: Roles) -> bytes:
        """Check the job and load this node's data; the digest of the public constants.

        Raises JobError, DataError or RangeError, before anything is signed.
        """
        job = job_from_bytes(body)
        if job.data.joined:
            raise JobError("data.joined: is known only during a run; propose the job without it")
        for one in (job, *fewest(job)):
            check_ranges(one)
        check_network(job)
        me = self._config.place.name
        if me in job.owners:
            self._table = load_table(self._config.source(job.name), job, me, self._reading)
            self._warn(*self._table.warnings)
        if needs_file(job, me):
            self._start = load_start(self._config.start_file(job.name), job)
        self._job = job
        return public_constants(job)

    def run(self, session: Session) -> dict[str, object]:
        """Share in, train, evaluate, seal.

        Returns progress, sizes and times: what the coordinator may be told. What was learnt is in
        `found`.
        """
        job = self._job
        if job is None:
            raise RuntimeError("run before prepare")
        torch.set_num_threads(1)
        before = session.channel.bytes_sent
        if session.is_evaluator or session.is_dealer:
            summary = self._compute(session, job)
        else:
            self._send_rows(session, job)
            if job.reveal.per_party:
                with session.channel.patience(TRAINING_S):
                    own = exchange(job, session.channel, session.me, {})
                self.found = Found(own=own)
            summary = {"steps": 0}
        summary["bytes_sent"] = session.channel.bytes_sent - before
        summary["peak_rss_mb"] = peak_rss_mb()
        return summary

    def _compute(self, session: Session, job: Job) -> dict[str, object]:
        role = make_role(session)
        dispatch.install()
        attach(role, job.fraction_bits)
        # Words wrap around: that is the ring, and NumPy warns of it where there is one word only.
        with np.errstate(over="ignore"):
            return self._attached(session, job, role)

    def _attached(self, session: Session, job: Job, role: Role) -> dict[str, object]:
        try:
            role.begin_step(0)
            job, linked = self._link(session, job, role)
            shared, start = self._share_in(session, job, role, linked)
            gate = RevealGate(agreed_outputs(job))
            check_gaps(job, gate, shared.parameters.some)
            role.finish()
            steps = total_steps(job)

            def done(number: int) -> None:
                session.progress(
                    step=number,
                    steps=steps,
                    bytes_sent=session.channel.bytes_sent,
                    phase="training",
                )

            settle()
            guard = _range_guard(job, role)
            trained = _trained(job, role, gate, shared, start, done, guard)
            training = trained.training
            session.progress(phase="evaluating")

            def fold_model(fold: Job, later: Any) -> Any:
                session.progress(phase="evaluating", fold=fold.data.fold, folds=job.reveal.folds)
                return _trained(
                    fold, later, None, shared, {}, lambda _: None, guard
                ).model.evaluated

            folds = cross_validated(
                job,
                role,
                gate,
                shared.inputs,
                shared.labels,
                fold_model,
                lambda: None if guard is None else guard.decide(gate, steps),
            )
            role.begin_step(steps + fold_steps(job) + 1)
            found = _reveal_metrics(job, gate, trained, shared) | folds
            found.check()
            own = own_halves(job, gate, trained.model.evaluated, shared.inputs, shared.labels)
            halves = _reveal_sealed(job, gate, trained, shared)
            role.close()
        finally:
            detach()
        if not role.is_dealer:
            self._seal(session, job, halves, found)
        self.found = Found(
            metrics=found.metrics,
            unavailable=found.reasons,
            losses={str(number): loss for number, loss in trained.losses.items()},
            revealed=tuple(output.name for output in gate.passed),
            joined_rows=None if linked is None else linked.rows,
            own=exchange(job, session.channel, session.me, own),
        )
        return {
            "steps": len(training.step_seconds),
            "train_seconds": sum(training.step_seconds),
            "step_seconds_median": statistics.median(training.step_seconds),
            "rounds": training.rounds,
        }

    def _link(self, session: Session, job: Job, role: Role) -> tuple[Job, Linked | None]:
        """2: the job for the rows that are joined, where owners hold columns of it."""
        if job.data.link is None:
            return job, None
        place = Place(session.me, session.channel, session.sid, min(os.cpu_count() or 1, 4))
        tokens = None if self._table is None else self._table.tokens
        session.progress(phase="linking", records=sum(job.data.rows.values()))
        with session.channel.patience(patience_s(job)):
            if job.data.join is None:
                check_duplicates(job, role, place, tokens)
                return job, None
            linked = link(job, role, place, tokens)
        if self._table is not None:
            self._table = replace(self._table, tokens=None)
            self.unmatched_records = without_partner(job, linked.rows)[session.me]
            self._warn(*linkage_warnings(job, linked.rows, session.me))
        job = resolved(job, linked.rows)
        # Whoever derives another schedule than the others is told so at the next frame.
        role.issue("joined", linked.rows, *public_constants(job))
        return job, linked

    def _share_in(
        self, session: Session, job: Job, role: Role, linked: Linked | None
    ) -> tuple[Shared, dict[str, MaskedTensor]]:
        """2: rows and labels, in the order of owners, and the weights that training starts from,
        where the job gives them."""
        sources = {owner: _source(session, job, owner) for owner in job.owners}
        if linked is None:
            shared = share_in(
                job, sources, session.me, self._take_table(), partial(_sharing, session)
            )
        else:
            shared = share_joined(job, role, linked, session.me, self._take_table())
        start, settings = {}, job.train.warm_start
        if settings is not None:
            source_of_start: Source | None = None
            if settings.source == job.dealer:
                source_of_start = "dealer"
            elif settings.source != PUBLIC:
                source_of_start = sources[settings.source]
            start = started_with(job, role, source_of_start, self._start)
        return shared, start

    def _take_table(self) -> Table | None:
        """This node's rows, which are needed once and not kept."""
        table, self._table = self._table, None
        return table

    def _send_rows(self, session: Session, job: Job) -> None:
        """2, at an owner that only brings data."""
        table = self._take_table()
        if table is None:
            raise RuntimeError("run before prepare")
        streams = []
        for evaluator in job.evaluators[:-1]:
            stream = Stream(session.export(evaluator, INPUT_LABEL))
            stream.begin_step(0)
            streams.append(stream)
        words = words_brought(job, session.me, table, partial(_sharing, session))
        if self._start is not None:
            words = chain(words, [encode(flat(self._start), job.fraction_bits)])
        for number, each in enumerate(words):
            send_outside(session.channel, job.evaluators, streams, each, number)

    def _seal(
        self,
        session: Session,
        job: Job,
        halves: dict[str, SealedHalf],
        found: Findings,
    ) -> None:
        """5: this evaluator's half of the weights, an envelope for each recipient."""
        for recipient in job.recipients:
            envelope = seal_model(
                job,
                sid=session.sid,
                me=session.me,
                recipient=recipient,
                recipient_public=session.cards[recipient].hpke,
                delta={name: half.delta for name, half in halves.items()},
                mask={name: half.lam for name, half in halves.items()},
                metrics=found.metrics,
                unavailable=found.reasons,
                signer=session.vault,
            )
            session.emit("sealed", f"{recipient}/{ENVELOPE_FILE}", envelope)


@dataclass(frozen=True, slots=True)
class _Trained:
    """What training ends with. model: has `tensors` by name and `evaluated(inputs)`. secret: what
    else is sealed. losses: revealed ones, by step."""

    model: Any
    training: Training
    secret: dict[str, Masked]
    losses: dict[int, float]


def _trained(
    job: Job,
    role: Role,
    gate: RevealGate | None,
    shared: Shared,
    start: dict[str, MaskedTensor],
    done: Callable[[int], None],
    guard: RangeGuard | None = None,
) -> _Trained:
    """3, by the steps of an optimizer or of a regression. gate: None where nothing is disclosed on
    the way. guard: looks on, and at what came out."""
    if is_newton(job):
        found = regress(job, role, shared.inputs, shared.labels, done, shared.weights, guard)
        return _Trained(found, found.training, found.secret, {})
    trainer = make_trainer(job, start, unseen if guard is None else guard.sample)
    if job.train.loss.balanced:
        trainer = replace(trainer, loss=balanced(job, trainer.loss, shared.labels))
    model = trainer.model
    watch = None
    if gate is not None:
        watch = Watch(job, gate, model, trainer.loss, model.secret, shared.inputs, shared.labels)
    training = train(
        job, role, trainer, shared.inputs, shared.labels, done, watch, shared.weights, guard
    )
    if guard is not None:
        look_at_network(guard, job, model, shared.inputs)
    return _Trained(model, training, {}, {} if watch is None else watch.losses)


def _sharing(session: Session, rows: int, of_rows: int) -> None:
    """Tell how many rows are shared in."""
    session.progress(
        rows=rows, of_rows=of_rows, bytes_sent=session.channel.bytes_sent, phase="sharing"
    )


def _source(session: Session, job: Job, owner: str) -> Source:
    """How `owner` brings its rows, as this node sees it."""
    if owner in job.evaluators:
        return job.evaluators.index(owner)
    if owner == job.dealer:
        return "dealer"
    if session.is_dealer:
        return "outside"
    stream = None
    if session.me != job.evaluators[-1]:
        stream = Stream(session.export(owner, INPUT_LABEL))
        stream.begin_step(0)
    return OutsideSource(session.channel, owner, stream)


def _reveal_metrics(job: Job, gate: RevealGate, trained: _Trained, shared: Shared) -> Findings:
    """4: the listed metrics, known to all evaluators; empty at the dealer."""
    metrics = job.reveal.metrics
    if not metrics:
        return Findings()
    _, rows = split(job)
    evaluation = evaluation_of(
        job, metrics, trained.model.evaluated, shared.inputs, shared.labels, rows
    )
    return revealed(job, gate, total_steps(job), metrics, evaluation)


def _reveal_sealed(
    job: Job, gate: RevealGate, trained: _Trained, shared: Shared
) -> dict[str, SealedHalf]:
    """5: this evaluator's halves of what is sealed, under fresh masks; empty at the dealer."""
    secret = {name: trained.model.tensors[name].masked() for name in job.shapes}
    secret |= shared.parameters.sealed | trained.secret
    found = {}
    for name in sealed_tensors(job):
        half = gate.for_recipients(name, total_steps(job), secret[name])
        if half is not None:
            found[name] = half
    return found


def _range_guard(job: Job, role: Role) -> RangeGuard | None:
    if not job.train.guards_end:
        return None
    return RangeGuard(role, NEWTON_ADVICE if is_newton(job) else ADVICE)


def agreed_outputs(job: Job) -> frozenset[Output]:
    """All that may leave: metrics and what is sealed, once, at the end, what `watch` discloses, and
    before that what `gaps` does.

    The end counts as the job's last step, also where early stopping comes before it. Raises
    RuntimeError for an output that nodes' rules do not see, because `leaving` does not list it.
    """
    found = gap_outputs(job) | disclosures(job)
    found |= {Output(name, total_steps(job)) for name in listed(job)}
    unlisted = {output.name for output in found}.difference(leaving(job))
    if unlisted:
        raise RuntimeError(f"no rule sees what leaves as {', '.join(sorted(unlisted))}")
    return found


def public_constants(job: Job) -> bytes:
    """SHA-256 of all constants that nodes derive for themselves: splines, weights, rates, rows."""
    digest = hashlib.sha256(constants_digest(job.fraction_bits))
    for name, words in initial_weights(job).items():
        digest.update(name.encode() + words.astype("<i8").tobytes())
    digest.update(repr([rate(job, epoch, step) for epoch, step in distinct_rates(job)]).encode())
    for rows in (*split(job), checked_rows(job)):
        digest.update(rows.astype("<i8").tobytes())
    return digest.digest()


def make_role(session: Session) -> Role:
    """This node's role in the arithmetic, with streams keyed from the session's handshakes."""
    products.calibrate(time.perf_counter)
    names, dealer = session.roles.evaluators, session.roles.dealer
    if session.is_dealer:
        streams = [Stream(session.export(name, STREAM_LABEL)) for name in names]
        return Dealer(session.channel, names=names, streams=streams)
    return Evaluator(
        session.channel,
        index=names.index(session.me),
        names=names,
        dealer=dealer,
        stream=Stream(session.export(dealer, STREAM_LABEL)),
    )


def peak_rss_mb() -> float:
    """Largest resident size of this process so far, in MB of 10^6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
