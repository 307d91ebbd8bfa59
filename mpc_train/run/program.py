"""The training program that every node of a job runs: the same code for evaluators and the dealer.

1. prepare: check the job's ranges, load an owner's file, compute the digest of all public
   constants. Nothing has been sent yet.
2. link and share: if owners have identifiers, compare records; the schedule is then that of the
   joined rows. Each owner's rows and labels become masked tensors. If a column's mean does not
   exist the run ends.
3. train: the steps of the public schedule.
4. evaluate: the listed metrics on the held-out rows pass the reveal gate.
5. reveal: each evaluator seals its half of the weights to every recipient; or, if the model stays
   in shares, keeps its share, with noisy counts of the training rows if drift will be watched.

An owner that neither evaluates nor deals sends its summands and is done. 2 to 5 are the modules of
`phases`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from mpc_train.admission.load import fewest, job_from_bytes
from mpc_train.admission.network import check_network
from mpc_train.admission.ranges import check_ranges
from mpc_train.checkpoints.keeper import KEPT, Keeper
from mpc_train.errors import ArtifactError, DataError, JobError
from mpc_train.evaluation.findings import Findings
from mpc_train.evaluation.learnt import Found
from mpc_train.evaluation.own import exchange
from mpc_train.evaluation.telling import spread
from mpc_train.evaluation.training_counts import TrainingCounts
from mpc_train.jobs.job import Job
from mpc_train.jobs.schedule import total_steps
from mpc_train.jobs.training import leaving, needs_file
from mpc_train.linkage.link import Linked
from mpc_train.linkage.partners import linkage_warnings, without_partner
from mpc_train.owners.table import Table
from mpc_train.preparation.gaps import check_gaps
from mpc_train.results.outcome import check, outcome_of, read_outcome
from mpc_train.run.history import table_mark
from mpc_train.run.memory import peak_rss_mb, settle
from mpc_train.run.phases.evaluate import evaluate
from mpc_train.run.phases.keep import Library, keep_model, refresh_model
from mpc_train.run.phases.ledger import RunLedger
from mpc_train.run.phases.link import joined_job, link_records
from mpc_train.run.phases.notes import Note
from mpc_train.run.phases.prepare import agreed_outputs, public_constants
from mpc_train.run.phases.reveal import reveal_sealed, seal_halves, seal_metrics
from mpc_train.run.phases.share import send_rows, share_all
from mpc_train.run.phases.store import stored_ahead
from mpc_train.run.phases.train import guard_of, train_model
from mpc_train.shared.brought import load_statistics
from mpc_train.shared.permits import check_use
from mpc_train.training.warm_start import load_start
from protocols.arrays import Reals, Words
from protocols.crypten_tensor import dispatch
from protocols.crypten_tensor.tensor import attach
from protocols.ring import products
from protocols.roles.dealer import Dealer
from protocols.roles.evaluator import Evaluator
from protocols.roles.role import Role
from protocols.roles.streams import Stream
from protocols.shares.reveal import RevealGate, SealedHalf

if TYPE_CHECKING:
    from mpc_train.run.node_config import NodeConfig
    from mpc_train.run.phases.notes import RunNote
    from mpc_train.run.phases.shelf import VaultShelf
    from mpc_train.shared.share import ModelShare
    from parties.agreement.contract import Roles
    from parties.agreement.session import Session

STREAM_LABEL = "mpc-train stream root v1"
_TABLE_MARK = b"the table of a run that goes on"
MAX_TRAINING_S = 7 * 24 * 3600.0
"""How long a non-computing owner waits for metrics of its own rows."""

log = logging.getLogger(__name__)


class TrainProgram:
    """Training as the nodes of `parties` run it.

    config: this node's own file. table: its rows for the job, None if it has none. shelf: where
    an evaluator keeps checkpoints; None: nowhere. note: what this node keeps of the run
    besides. library: where an evaluator keeps its share of a model that nobody opens. on_loss:
    called with each training loss that is revealed to this node.
    """

    def __init__(
        self,
        config: NodeConfig,
        table: Table | None = None,
        shelf: VaultShelf | None = None,
        note: RunNote | None = None,
        library: Library | None = None,
        on_loss: Callable[[int, float], None] = lambda step, loss: None,
    ) -> None:
        self._config, self._shelf, self._note = config, shelf, note
        self._library = library
        self._on_loss = on_loss
        self._mark = ""
        self._job: Job | None = None
        self._table = table
        self._start: dict[str, Reals] | None = None
        self._statistics: Words | None = None
        self._held: list[ModelShare] = []
        self.found = Found()
        """What this node has learnt, after the run; `run` returns what the coordinator may
        learn."""
        self.unmatched_records: int | None = None
        """How many of this node's own records found no partner, if records are joined."""
        self._outcome = b""
        self.warnings: list[str] = []
        """Warnings for this node's owner only."""

    @property
    def table(self) -> Table | None:
        """This node's rows, until they are shared; None if it has none."""
        return self._table

    @property
    def told(self) -> dict[str, object]:
        """What this node's owner is told about its own records, in the fields of a run's JSON."""
        found: dict[str, object] = {}
        if self.unmatched_records is not None:
            found["unmatched_records"] = self.unmatched_records
        return found | ({"warnings": self.warnings} if self.warnings else {})

    def _warn(self, *warnings: str) -> None:
        """Keep warnings for the end of the run, and report them now: training may take days."""
        self.warnings += warnings
        for warning in warnings:
            log.warning("%s", warning)

    def prepare(self, body: bytes, roles: Roles) -> bytes:
        """Check the job; return the digest of the public constants.

        Raises JobError, DataError or RangeError, before anything is signed; ArtifactError or
        RefusedError if this evaluator has no share of the model that the job starts from, or may
        not use it so.
        """
        job = job_from_bytes(body)
        if job.data.joined:
            raise JobError("data.joined: is known only during a run; propose the job without it")
        for one in (job, *fewest(job)):
            check_ranges(one)
        check_network(job)
        if self._table is not None:
            self._warn(*self._table.warnings)
        if needs_file(job, self._config.place.name):
            path = self._config.start_file(job.name)
            self._start = load_start(path, job)
            if not job.has_own_statistics and job.pipeline.secret:
                self._statistics = load_statistics(path, job)
        if job.starts_from_shares and self._config.place.name in job.evaluators:
            self._held = self._shares_of(job)
        self._job = job
        return public_constants(job)

    def _shares_of(self, job: Job) -> list[ModelShare]:
        """This evaluator's shares of the model that the job starts from."""
        start = job.train.warm_start
        assert start is not None
        if self._library is None:
            raise ArtifactError("this node has no vault, hence no share of a model")
        found = self._library.shares(start.sha256)
        check_use(found[0].about.job, start.sha256, job)
        return found

    def run(self, session: Session) -> dict[str, object]:
        """Share, train, evaluate, seal.

        Returns progress, sizes and times, which the coordinator may learn. Results are in `found`.
        """
        job = self._job
        if job is None:
            raise RuntimeError("run before prepare")
        torch.set_num_threads(1)
        self._begin(job, session)
        before = session.channel.bytes_sent
        if job.refreshes:
            summary = self._refresh(session, job)
        elif session.is_evaluator or session.is_dealer:
            with ExitStack() as held, _attached(session, job) as role:
                summary = self._compute(session, job, role, held)
        else:
            summary = self._provide(session, job)
        summary["bytes_sent"] = session.channel.bytes_sent - before
        summary["peak_rss_mb"] = peak_rss_mb()
        return summary

    def checkpoints(self) -> tuple[bytes, ...]:
        """Of the job that was prepared, where this node keeps any."""
        job, shelf = self._job, self._shelf
        return () if job is None or shelf is None else shelf.tokens()

    def insists(self) -> bool:
        """Whether the run may not begin anew here: results may have left, or all evaluators should
        hold an older checkpoint than this node's newest."""
        if self._note is None:
            return False
        found = self._note.read()
        if found is not None and found.leaving:
            return True
        return len(self.checkpoints()) >= KEPT

    def _begin(self, job: Job, session: Session) -> None:
        """Note with which table the run begins, or compare it if the run goes on. Raises
        DataError."""
        if self._note is None:
            return
        if self._table is not None:
            self._mark = table_mark(_TABLE_MARK, self._table)
        if not session.resume:
            self._note.write(Note(self._mark))
            return
        found = self._note.read()
        if self._mark and (found is None or found.table != self._mark):
            raise DataError(
                f"the run of {job.name} goes on, but the table of {session.me} is not the one "
                "with which it began, or the note of that is lost; nothing was shared. Restore "
                "the table, or begin anew with --fresh at all nodes"
            )
        if found is None:
            self._note.write(Note(self._mark))

    def _leave(self, job: Job) -> None:
        """At an evaluator: from here on results leave. A dealer may be here long before they do."""
        if self._note is not None:
            self._note.write(Note(self._mark, leaving=True))
        if job.reveal.noise is not None:
            self._draw_no_more()

    def _draw_no_more(self) -> None:
        """Before noise is drawn: drawn a second time it says more, so that the run does not even go
        on."""
        if self._shelf is not None:
            self._shelf.prune(0)

    def outcome(self) -> bytes:
        """What all nodes sign: the first weights, and what left. See `results.outcome`."""
        return self._outcome

    def leaving(self, body: bytes) -> tuple[str, ...]:
        """The dealer, if it makes all its material before training."""
        return leaving(job_from_bytes(body))

    def check_outcome(self, outcome: bytes) -> None:
        """Raises ArtifactError unless the job allows it."""
        if self._job is None:
            raise RuntimeError("check_outcome before prepare")
        check(self._job, read_outcome(outcome))

    def _provide(self, session: Session, job: Job) -> dict[str, object]:
        """The run of an owner that only provides data."""
        table = self._take_table()
        if table is None and job.data.rows[session.me]:
            raise RuntimeError("run before prepare")
        send_rows(session, job, table, self._start, self._statistics)
        with session.channel.patience(MAX_TRAINING_S):
            findings = spread(job, session.channel, session.me, Findings())
            own = _own(session, job, {})
        self.found = Found(findings.metrics, findings.reasons, own=own)
        return {"steps": 0}

    def _compute(
        self, session: Session, job: Job, role: Role, held: ExitStack
    ) -> dict[str, object]:
        """The run of an evaluator or the dealer. held: what lasts until its end."""
        role.begin_step(0)
        ledger, keeper = RunLedger(session, job), self._keeper(session, job)
        if keeper.joined_before:
            linked: Linked | None = Linked(keeper.joined_before)
            ledger.joined_before()
        else:
            linked = link_records(session, job, role, self._table, ledger)  # 2
        self._note_linked(session, job, linked)
        job = joined_job(job, role, linked)
        counting = TrainingCounts(job) if job.counts_training else None
        shared, start = share_all(
            session,
            job,
            role,
            linked,
            self._take_table,
            self._start,
            keeper,
            self._held,
            self._statistics,
            (lambda rows: None) if counting is None else counting.take,
        )
        gate = RevealGate(agreed_outputs(job), ledger)
        check_gaps(job, gate, shared.parameters.some)
        role.finish()
        settle()
        if linked is not None and not keeper.joined_before:
            keeper.keep_rows(job, shared)
        most = self._config.place.spool_bytes
        held.enter_context(stored_ahead(session, job, role, most))
        guard = guard_of(job, role)
        ledger.resumed(keeper.begun)
        steps = total_steps(job)

        def done(number: int) -> None:
            sent = session.channel.bytes_sent
            phase = "dealing" if role.is_dealer and job.train.preprocess else "training"
            session.progress(
                step=number, steps=steps, bytes_sent=sent, rounds=role.rounds, phase=phase
            )

        with session.stoppable() if keeper.writes else nullcontext():
            trained = train_model(  # 3
                job, role, gate, shared, start, done, guard, keeper, self._on_loss
            )
        # Metrics of a model that is not trained are the same each time, unless they have noise.
        if session.is_evaluator and (job.trains or job.reveal.noise is not None):
            self._leave(job)
        findings, own, metrics = evaluate(session, job, role, gate, shared, trained, guard)  # 4
        halves = reveal_sealed(job, gate, trained, shared)  # 5
        counts = None
        if counting is not None:
            if session.is_evaluator:
                self._draw_no_more()
            model = trained.model.evaluated
            counts = counting.released(gate, model, shared.inputs, shared.labels)
        if job.stays_shared:
            keep_model(session, job, role, trained, shared, self._library, counts)
        role.close()
        if not role.is_dealer:
            seal_halves(session, job, halves, findings)
            seal_metrics(session, job, metrics)
        with session.channel.patience(MAX_TRAINING_S) if role.is_dealer else nullcontext():
            findings = spread(job, session.channel, session.me, findings)
        self.found = Found(
            metrics=findings.metrics,
            unavailable=findings.reasons,
            losses={str(number): loss for number, loss in trained.losses.items()},
            revealed=tuple(one.output for one in ledger.openings if one.values),
            joined_rows=None if linked is None else linked.rows,
            own=_own(session, job, own),
        )
        self._outcome = outcome_of(job, ledger.openings).to_bytes()
        training = trained.training
        return {
            "steps": keeper.begun + training.steps.count,
            **({"resumed_after": keeper.begun} if keeper.begun else {}),
            "train_seconds": training.steps.total_s,
            "step_seconds_median": training.steps.median_s(),
            "rounds": training.rounds,
        }

    def _refresh(self, session: Session, job: Job) -> dict[str, object]:
        """The run of a job that replaces the shares of a model: the evaluators' alone."""
        if session.is_evaluator:
            refresh_model(session, job, self._held, self._library)
        if session.is_evaluator or session.is_dealer:
            self._outcome = outcome_of(job, ()).to_bytes()
        self.found = Found(revealed=())
        return {"steps": 0}

    def _keeper(self, session: Session, job: Job) -> Keeper:
        """What writes checkpoints in this session, which may go on from one."""
        shelf = self._shelf if session.is_evaluator else None
        every_s = self._config.place.checkpoint_s
        keeper = Keeper(session, job, shelf, every_s, self._warn)
        if session.resume:
            keeper.resume(session.resume)
        return keeper

    def _note_linked(self, session: Session, job: Job, linked: Linked | None) -> None:
        """Keep how many of this owner's records found no partner; the tokens are not needed any
        more."""
        if linked is None or self._table is None:
            return
        self._table = replace(self._table, tokens=None)
        self.unmatched_records = without_partner(job, linked.rows)[session.me]
        self._warn(*linkage_warnings(job, linked.rows, session.me))

    def _take_table(self) -> Table | None:
        """Return this node's rows, which are needed once, and do not keep them."""
        table, self._table = self._table, None
        return table


def _own(session: Session, job: Job, halves: dict[str, SealedHalf]) -> Findings:
    """The metrics of this node's own rows; none if only readers learn them."""
    if job.reveal.metrics_to:
        return Findings()
    return exchange(job, session.channel, session.me, halves)


@contextmanager
def _attached(session: Session, job: Job) -> Iterator[Role]:
    """A context in which CrypTen's tensors compute with this node's role."""
    role = make_role(session)
    with dispatch.computing():
        attach(role, job.fraction_bits)
        yield role


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
