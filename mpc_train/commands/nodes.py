"""`mpc-train party`, `dealer` and `coordinator`: run one node, as its own file describes it."""

import contextlib
import dataclasses
import json
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import (
    ConfigOption,
    Format,
    FormatOption,
    LiveOption,
    PassphraseFdOption,
    PassphraseFileOption,
    VerboseOption,
    configure_logging,
    emit,
    enter,
    proxy_of,
    reporting,
)

if TYPE_CHECKING:
    from mpc_train.evaluation.findings import Findings
    from mpc_train.evaluation.learnt import Found
    from mpc_train.federated.rounds.program import FederatedProgram
    from mpc_train.federated.rounds.told import Told
    from mpc_train.jobs.job import Job
    from mpc_train.node.consent import Agreement, Ask
    from mpc_train.node.remembered import Remembered
    from mpc_train.node.storage import NodeVault
    from mpc_train.owners.table import Table
    from mpc_train.run.node_config import CoordinatorConfig, NodeConfig
    from mpc_train.run.phases.notes import Note, RunNote
    from mpc_train.run.phases.shelf import VaultShelf
    from mpc_train.run.program import TrainProgram
    from mpc_train.tables.reading import Progress
    from parties.agreement.contract import Roles
    from parties.agreement.session import Session
    from parties.audit.entries import Value
    from parties.audit.log import AuditLog
    from parties.keys.roster import Roster
    from parties.nodes.coordinator import CoordinatorResult, CoordinatorSettings
    from parties.nodes.node import NodeResult, NodeSettings
    from parties.wire.proxy import Proxy

ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Ask nobody again about a job in whose run this node took part, for restarts without "
        "a person; all rules are checked again.",
    ),
]
FreshOption = Annotated[
    bool,
    typer.Option(
        "--fresh", help="Destroy this node's checkpoints of the job: training begins anew."
    ),
]
ReportFdOption = Annotated[int | None, typer.Option("--report-fd", hidden=True)]


def party(
    config: ConfigOption,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    resume: ResumeOption = False,
    fresh: FreshOption = False,
    output: FormatOption = Format.text,
    verbose: VerboseOption = False,
    live: LiveOption = None,
) -> None:
    """Take part in a job: join the coordinator, show the job, sign it if the rules allow, run.

    If this node holds a checkpoint of the job, and the other evaluators do, training goes on there.
    """
    _node(
        config,
        passphrase_file,
        passphrase_fd,
        output,
        verbose,
        deals=False,
        again=(resume, fresh),
        live_port=live,
    )


def dealer(
    config: ConfigOption,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    resume: ResumeOption = False,
    fresh: FreshOption = False,
    output: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> None:
    """Deal correlated randomness for a job. A dealer sees no data except its own, if it has any."""
    _node(
        config, passphrase_file, passphrase_fd, output, verbose, deals=True, again=(resume, fresh)
    )


def coordinator(
    config: ConfigOption,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
    verbose: VerboseOption = False,
    live: LiveOption = None,
    report_fd: ReportFdOption = None,
) -> None:
    """Connect the nodes of a job. The coordinator sees no data, no share, and no key that opens
    one."""
    with reporting(output):
        from mpc_train.admission.load import load_job
        from mpc_train.admission.rules import expired, today
        from mpc_train.errors import ConfigError, RefusedError
        from mpc_train.live.server import on_page
        from mpc_train.live.traces import traced
        from mpc_train.node.collect import bundle, keep_record, summarise
        from mpc_train.node.consent import roles_of
        from mpc_train.node.logbook import logbook
        from mpc_train.node.places import check_room, run_directory
        from mpc_train.results.artifact import METRICS_ENVELOPE_FILE
        from mpc_train.results.report import beware, describe, outcome
        from mpc_train.run.memory import settle
        from mpc_train.run.node_config import load_coordinator_config
        from mpc_train.serving.service_file import is_service_file
        from parties.keys.services.identity_service import IdentityService
        from parties.nodes.coordinator import Coordinator
        from parties.nodes.supervisor import end_with_parent, report
        from parties.stop import sigterm_interrupts

        end_with_parent()
        configure_logging(verbose)
        settings = load_coordinator_config(config)
        if is_service_file(settings.job):
            raise ConfigError(
                f"{settings.job}: the file of a service, not of a job; start the coordinator with "
                "mpc-train serve"
            )
        job = load_job(settings.job)
        for line in expired(job, today()):
            raise RefusedError(f"the job {job.name!r}: {line}")
        vault, roster = enter(settings.place, settings.audit, passphrase_file, passphrase_fd)
        run_dir = run_directory(settings.place.run_dir, job.name)
        check_room(settings.place.run_dir, job, len(job.recipients))
        events = Events(output, job.nodes)
        found: dict[str, Any] = {}

        def keep(result: "CoordinatorResult") -> None:
            """Make one file for each recipient."""
            cards, kept = node.roster.signers(), (run_dir, result.files)
            bundles = bundle(*kept, job.recipients, job.evaluators, cards, result.record)
            metrics = bundle(
                *kept,
                job.reveal.metrics_to,
                job.evaluators,
                cards,
                result.record,
                "{}.metrics.sealed",
                METRICS_ENVELOPE_FILE,
            )
            keep_record(run_dir, result.record)
            sealed, read = ([str(path) for path in each.values()] for each in (bundles, metrics))
            found.update(summarise(job, result.summaries))
            found.update(model=None, sealed=sealed, sealed_metrics=read)

        keys = IdentityService(vault)
        settle()  # it carries frames of a MiB, one after the other
        with logbook(settings.place, settings.audit, vault, keys, "coordinator") as audit:
            node = Coordinator(
                vault,
                roster,
                job.name,
                (roles_of(job), job.to_bytes()),
                coordinator_settings(settings, run_dir),
                audit,
                events,
                keep,
            )
            if report_fd is not None:
                report(report_fd, node.address)
            events("listening", {"address": node.address, "job": job.name})
            if output is Format.text:
                say("\n".join([describe(job), *beware(job), ""]))
                say(f"Listening on {node.address}, waiting for the nodes")
            with (
                _going_on_told(config, events),
                events.view.shown(),
                on_page(events.board, live, events.page),
                sigterm_interrupts(),
                traced(job.name, job.nodes) as events.trace,
            ):
                node.run()
        if output is Format.json:
            emit(found)
        else:
            say(outcome(found))


@contextlib.contextmanager
def _going_on_told(config: Path, events: "Events") -> Iterator[None]:
    """Inside this context, if a coordinator is stopped in the middle of a run, or waits in vain for
    a node, the operator hears how the run goes on."""
    from protocols.errors import PeerLostError, PeerTimeoutError

    try:
        yield
    except (KeyboardInterrupt, PeerLostError, PeerTimeoutError) as error:
        if events.has_started:
            command = f"mpc-train coordinator --config {shlex.quote(str(config))}"
            error.resume = {"command": command, "step": None}  # type: ignore[union-attr]
        raise


def _node(
    config: Path,
    passphrase_file: Path | None,
    passphrase_fd: int | None,
    output: Format,
    verbose: bool,
    *,
    deals: bool,
    again: tuple[bool, bool] = (False, False),
    live_port: int | None = None,
) -> None:
    with reporting(output):
        from mpc_train.admission.rules import today
        from mpc_train.federated.rounds.result import MODEL_FILE
        from mpc_train.live.server import on_page
        from mpc_train.node.collect import bundle, keep_record
        from mpc_train.node.consent import terminal
        from mpc_train.node.logbook import logbook
        from mpc_train.node.places import run_directory
        from mpc_train.node.policy import in_force
        from mpc_train.node.remembered import Remembered
        from mpc_train.node.storage import NodeVault
        from mpc_train.results.artifact import METRICS_ENVELOPE_FILE
        from mpc_train.results.report import learnt_words, metric, told_lines
        from mpc_train.run.node_config import load_node_config
        from mpc_train.run.place import default_home
        from parties.keys.live import LiveIdentity
        from parties.nodes.node import run_node
        from parties.nodes.supervisor import end_with_parent

        end_with_parent()
        configure_logging(verbose)
        settings = load_node_config(config)
        vault, roster = enter(settings.place, settings.audit, passphrase_file, passphrase_fd)
        proxy = proxy_of(settings.proxy)
        # Its keys may be succeeded during the run: everybody who uses it sees the newest.
        live = LiveIdentity(vault, settings.place.rotate_after_days)
        run_dir = run_directory(settings.place.run_dir, settings.place.name)
        safe = NodeVault(settings.vault, settings.place.name, live)
        if settings.data:
            Remembered(safe, settings.place.name, settings.rules).try_to_write()
        events = Events(output, (settings.place.name,))
        join_s = float(settings.timeouts.join_s)
        ask = None if output is Format.json else terminal(events.view, join_s)
        verb = "dealer" if deals else "party"
        keys = safe.keys()
        with logbook(settings.place, settings.audit, live, keys, verb) as audit:
            settings = in_force(settings, roster, today(), audit, keys)
            program = _Guarded(settings, roster, deals, events, ask, audit, safe, again)
            with (
                events.view.shown(),
                on_page(events.board, live_port, events.page),
                program.checkpoint_told(verb, config),
            ):
                result = run_node(
                    live,
                    roster,
                    node_settings(settings, run_dir, proxy),
                    program,
                    audit,
                    events,
                )
        cards = result.roster.signers()
        if not result.record:
            _told_to_leave(output, result.summary)
            return
        mine = [name for name in program.recipients if name == settings.place.name]
        bundles = bundle(
            run_dir,
            result.files,
            mine,
            program.evaluators,
            cards,
            result.record,
            target="model.sealed",
        )
        sealed = [str(path) for path in bundles.values()]
        read = [name for name in program.readers if name == settings.place.name]
        metrics = bundle(
            run_dir,
            result.files,
            read,
            program.evaluators,
            cards,
            result.record,
            "metrics.sealed",
            METRICS_ENVELOPE_FILE,
        )
        sealed += [str(path) for path in metrics.values()]
        keep_record(run_dir, result.record)
        kept = program.keep_signed(result)
        found, told = program.found, program.told
        own = _own_metrics(safe, program.job, found.own) | told
        found.own.check()
        known = program.learnt()
        if output is Format.json:
            said = {**result.summary, **found.printed(), **own}
            emit({"status": "ok", **said, **kept, "learnt": known, "sealed": sealed})
            return
        say("Run finished.")
        say(f"Learnt by {settings.place.name}: {learnt_words(known)}")
        for name, value in found.own.metrics.items():
            shown = metric(name, value, found.own.reasons)
            say(f"Metric {shown}, of this node's own rows, known only to this node")
        for name, value in found.metrics.items():
            say(f"Metric {metric(name, value, found.unavailable)}")
        for line in told_lines(told):
            say(line)
        place = settings.place
        home = "" if place.home == default_home().absolute() else f" --home {place.home}"
        if kept:
            say(
                f"Model {kept['kept']}, in shares: this node keeps its share of it in its vault  "
                "(mpc-train model list)"
            )
        job = program.job
        if job is not None and job.federates and place.name in job.owners:
            say(f"The global model is {run_dir / MODEL_FILE}")
        if job is not None and job.refreshes and place.name in job.evaluators:
            say(
                "Shares refreshed: this node has a new share of the model, the old one is destroyed"
            )
        for path in sealed:
            say(f"Sealed result; open it with  mpc-train open {path}{home}")


def node_settings(
    config: "NodeConfig", run_dir: Path, proxy: "Proxy | None", return_s: float = 0.0
) -> "NodeSettings":
    """A node's file as `parties` takes it. return_s: for how long the coordinator and the others
    are waited for at first, and a lost session may be followed by another, at least."""
    from parties.nodes.node import NodeSettings

    join_s = float(config.timeouts.join_s)
    return NodeSettings(
        coordinator=config.coordinator,
        address=config.coordinator_address,
        run_dir=run_dir,
        listen=config.listen,
        advertise=config.advertise,
        # Nobody is there to start a service again that has waited in vain.
        connect_timeout_s=max(join_s, return_s),
        # The coordinator, who can name the missing one, gives up before we do.
        agree_timeout_s=2 * join_s,
        peer_timeout_s=float(config.timeouts.peer_s),
        return_timeout_s=max(float(config.timeouts.return_s), return_s),
        reconnect_s=float(config.timeouts.reconnect_s),
        pulse=config.timeouts.pulse,
        dial_timeout_s=float(config.timeouts.dial_s),
        proxy=proxy,
    )


def coordinator_settings(
    config: "CoordinatorConfig", run_dir: Path, return_s: float = 0.0
) -> "CoordinatorSettings":
    """A coordinator's file as `parties` takes it. return_s: as of `node_settings`."""
    from parties.nodes.coordinator import CoordinatorSettings

    timeouts = config.timeouts
    return CoordinatorSettings(
        listen=config.listen,
        run_dir=run_dir,
        arrive_timeout_s=max(float(timeouts.join_s), return_s),
        agree_timeout_s=timeouts.join_s,
        reconnect_s=float(timeouts.reconnect_s),
        pulse=timeouts.pulse,
        return_timeout_s=max(timeouts.return_s, return_s),
    )


def _told_to_leave(output: Format, summary: Mapping[str, Any]) -> None:
    """The end of a node that the others do not need any more."""
    if output is Format.json:
        emit({"status": "ok", "left": True, **summary})
        return
    say("All material is stored at the evaluators: this node may be switched off.")
    say("The others go on without it; this node does not learn how they end.")


def _own_metrics(safe: "NodeVault", job: "Job | None", found: "Findings") -> dict[str, object]:
    """Keep what only this node learns in its vault; return where, and what."""
    from mpc_train.node.storage import METRICS

    if not found.metrics or job is None:
        return {}
    content = found.metrics | ({"unavailable": found.reasons} if found.reasons else {})
    with safe.opened() as store, store.writing(METRICS, job.name, job.digest().hex()) as out:
        out.write(json.dumps(content).encode() + b"\n")
    return {"own_metrics": out.info.title}


class _Guarded:
    """The training program behind this organisation's rules: shows the job, checks it against the
    rules and against earlier runs, and asks for consent."""

    def __init__(
        self,
        config: "NodeConfig",
        roster: "Roster",
        deals: bool,
        events: "Events",
        ask: "Ask | None",
        audit: "AuditLog",
        safe: "NodeVault",
        again: tuple[bool, bool] = (False, False),
    ) -> None:
        """again: whether nobody is asked once more about a job of which a checkpoint is kept;
        whether checkpoints are destroyed."""
        self._config, self._roster, self._deals = config, roster, deals
        self._resume, self._fresh = again
        self._agreed: dict[str, Agreement] = {}
        self._safe, self._audit = safe, audit
        named = (source.stored for source in config.data.values() if source.stored)
        self._vault = safe.tables(named)
        self._events, self._ask = events, ask
        self._program: TrainProgram | FederatedProgram | None = None
        self.rounds: list[Told] = []
        """What this owner was told about the rounds of a federated job."""
        self._held: VaultShelf | None = None
        self._note: RunNote | None = None
        self._remembered: Remembered | None = None
        self._reserved = False
        self.job: Job | None = None
        self.evaluators: tuple[str, ...] = ()
        self.recipients: tuple[str, ...] = ()
        self.readers: tuple[str, ...] = ()

    def prepare(self, body: bytes, roles: "Roles") -> bytes:
        """Show the job, apply the rules, ask for consent, then let the program prepare.

        Raises RefusedError and the program's errors; nothing has been signed then.
        """
        from mpc_train.admission.load import job_from_bytes
        from mpc_train.admission.recipient_keys import check_recipient_keys, key_cautions
        from mpc_train.admission.rules import check_rules, today
        from mpc_train.errors import RefusedError
        from mpc_train.node.consent import Agreement, agree, patience, roles_of
        from mpc_train.node.places import check_room
        from mpc_train.results.report import beware, describe, in_lines
        from mpc_train.run.phases.notes import RunNote
        from parties.audit.entries import Kind

        job = job_from_bytes(body)
        self._events.say(describe(job))
        self._events("checking", {"job": job.name})
        if roles_of(job) != roles:
            raise RefusedError(
                "the roles in the contract differ from those in the job; nothing was shared"
            )
        me = self._config.place.name
        if (me == job.dealer) != self._deals:
            started, verb = ("dealer", "party") if self._deals else ("party", "dealer")
            raise RefusedError(
                f"{me} was started as a {started}, but has another role in this job; if your "
                f"organisation agrees, start it with: mpc-train {verb}"
            )
        self._check_dates(job)
        check_rules(self._config.rules, job, me)
        keys = {card.name: card.recipient_key for card in self._roster}
        check_recipient_keys(self._config.rules, job, keys)
        check_room(self._config.place.run_dir, job, me in job.recipients)
        for line in (*beware(job), *in_lines(key_cautions(job, keys))):
            self._events.say(line)
        self._remember(job)

        def tell(missing: str) -> None:
            self._events("approvals", {"job": job.name, "missing": missing})

        digest, policy = job.digest().hex(), self._config.accepted
        self._held, self._note = self._shelf(job), RunNote(self._safe.opened, job.name, digest)
        if self._fresh:
            self._destroy()
        begun = self._note.read()
        if self._resume and begun is not None:
            self._agreed[digest] = Agreement("it was signed here before, and goes on")
        wait = patience(tell, float(self._config.timeouts.join_s))
        if digest not in self._agreed:
            found = agree(self._config, self._roster, job, self._ask, today, wait)
            self._agreed[digest] = found  # not asked again for another session of the same run
        found = self._agreed[digest]
        self._reserved = self._is_reserved(job, begun)
        self._fresh = False
        self._check_dates(job)  # it may have waited for days
        fields: dict[str, Value] = {"why": found.why, "approvers": found.approvers}
        if policy is not None:
            fields |= {"policy": policy.digest, "number": policy.terms.number}
        if job.privacy:
            privacy = job.privacy
            fields |= {"epsilon": str(privacy.epsilon), "delta": str(privacy.small_delta)}
            fields |= {"unit": privacy.unit, "neighbours": privacy.neighbours}
        self._audit.append(Kind.JOB_APPROVED, fields, job=job.name, digest=digest)
        self._events.say(f"This node may sign: {found.why}")
        for remark in found.remarks:
            self._events.say(f"Warning {remark}")
        self.evaluators, self.recipients, self.job = job.evaluators, job.recipients, job
        self.readers = job.reveal.metrics_to

        self._events("preparing", {"job": job.name, "table": me in job.owners})
        # What a run that goes on reveals is recorded already; `run` checks one that begins.
        table = self._read(job, begun is None) if job.data.rows.get(me) else None
        # Loads PyTorch, which takes seconds: a bad cell is reported before that.
        self._check_machine(job)
        if job.federates:
            from mpc_train.federated.rounds.program import FederatedProgram

            shelf, note, device = self._held, self._note, self._config.place.device
            self._program = FederatedProgram(me, table, shelf, note, device, self._round)
            return self._program.prepare(body, roles)
        from mpc_train.run.program import TrainProgram
        from mpc_train.shared.library import Library

        library = Library(self._safe.opened)
        self._program = TrainProgram(
            self._config, table, self._held, self._note, library, self._loss
        )
        return self._program.prepare(body, roles)

    def _is_reserved(self, job: "Job", begun: "Note | None") -> bool:
        """Whether a run of the job that began here has let nothing leave, so that one that begins
        anew spends its budget. Only an evaluator knows: nothing leaves without it."""
        if not job.privacy or begun is None or self._config.place.name not in job.evaluators:
            return False
        return not begun.leaving

    def _destroy(self) -> None:
        """Destroy what this node keeps of the run: the note first, which would bar another run."""
        if self._note is not None:
            self._note.clear()
        if self._held is not None:
            self._held.prune(0)

    @contextlib.contextmanager
    def checkpoint_told(self, verb: str, config: Path) -> Iterator[None]:
        """Inside this context, a run that ends well destroys its checkpoints; of another one the
        operator hears that it can go on, and by which command."""
        from mpc_train.checkpoints.keeper import place_of
        from mpc_train.errors import ArtifactError
        from parties.errors import VaultError

        try:
            yield
        except BaseException as error:
            with contextlib.suppress(Exception):  # the error of the run counts
                if self._note is not None and self._note.read() is not None:
                    kept = self._held.tokens() if self._held is not None else ()
                    command = f"mpc-train {verb} --config {shlex.quote(str(config))} --resume"
                    error.resume = {  # type: ignore[attr-defined]
                        "command": command,
                        "step": place_of(kept[-1])[0] if kept else None,
                    }
            raise
        try:
            self._destroy()
        except (ArtifactError, VaultError) as error:
            # The results are there; they must not be lost because the vault is away now.
            self._events.say(f"Warning checkpoints stay until --fresh destroys them: {error}")

    def _round(self, told: "Told") -> None:
        """For this node's own page and output, as of a loss."""
        self.rounds.append(told)
        self._events("round", told.printed())

    def _loss(self, step: int, loss: float) -> None:
        """For this node's own page and output: the coordinator is not told."""
        self._events("loss", {"step": step, "loss": loss})

    def _shelf(self, job: "Job") -> "VaultShelf | None":
        """Where this node keeps checkpoints of the job, if it evaluates."""
        from mpc_train.run.phases.shelf import VaultShelf

        if self._config.place.name not in job.evaluators:
            return None
        return VaultShelf(self._safe.opened, job.name, job.digest().hex())

    def _check_machine(self, job: "Job") -> None:
        """Raise ConfigError if this node may not have the memory or the disk that its part
        needs."""
        from mpc_train.errors import JobError
        from mpc_train.estimates.estimate import disk_needs, memory_needs
        from mpc_train.node.places import check_disk, check_memory

        place = self._config.place
        try:
            needed = memory_needs(job)[place.name]
            checkpoints, stored = disk_needs(job)[place.name]
        except JobError:
            raise
        except Exception as error:
            # The estimate is a help, and a fault in it is no reason to refuse a job.
            self._events.say(
                "Warning how much memory and disk the job needs could not be found "
                f"({type(error).__name__})"
            )
            return
        self._events.say(check_memory(job, place.name, needed, place.memory_bytes))
        check_disk(job, {self._safe.folder: checkpoints, place.run_dir: stored})

    def _check_dates(self, job: "Job") -> None:
        """Raise RefusedError if this node's policy, or the job, is not valid today: the node may
        have waited for days since it accepted the policy."""
        from mpc_train.admission.rules import expired, today
        from mpc_train.errors import RefusedError

        policy, day = self._config.accepted, today()
        found = [] if policy is None else policy.outside(day)
        said = [f"the policy {policy.path}: {what}" for _, what in found] if policy else []
        said += [f"the job {job.name!r}: {line}" for line in expired(job, day)]
        if said:
            raise RefusedError(f"{'; '.join(said)}. Nothing was shared")

    def _read(self, job: "Job", begins: bool) -> "Table":
        """This node's rows, checked against the job and, if the run begins, against what was
        revealed of them before."""
        from mpc_train.admission.rules import check_table_rows
        from mpc_train.owners.table import load_table

        source = self._config.source(job.name)
        me = self._config.place.name
        secret = job.federates and job.federated.sizes == "secret"
        table = load_table(
            source, job, me, self._events.reading, vault=self._vault, any_rows=secret
        )
        check_table_rows(self._config.rules, job, me, table.rows)
        if begins and self._remembered is not None:
            self._remembered.check(job, source, table)
        return table

    def _remember(self, job: "Job") -> None:
        """Find what was revealed of this node's table, if it has one, and print it."""
        from mpc_train.node.remembered import Remembered

        place = self._config.place
        if job.data.rows.get(place.name):
            self._remembered = Remembered(self._safe, place.name, self._config.rules)
            for line in self._remembered.notes(self._config.source(job.name)):
                self._events.say(line)

    def learnt(self) -> list[str]:
        """What this node has learnt from the reveal gate. A node that computed nothing did not see
        the gate, and reports what the job says. Losses of batches are known to evaluators only: no
        other node is told them."""
        from mpc_train.jobs.audience import learnt
        from mpc_train.jobs.outputs import through_the_gate
        from mpc_train.training.watch import LOSS

        if self.job is None:
            return []
        seen, me = self.found.revealed, self._config.place.name
        outputs = through_the_gate(self.job) if seen is None else seen
        known = learnt(self.job, outputs)[me]
        return [name for name in known if name != LOSS or me in self.job.evaluators]

    @property
    def found(self) -> "Found":
        """What this node has learnt; the coordinator does not learn it."""
        from mpc_train.evaluation.learnt import Found

        return Found() if self._program is None else self._program.found

    @property
    def told(self) -> dict[str, object]:
        if self.rounds:
            place = getattr(self._program, "model", None)
            said = [told.printed() for told in self.rounds]
            return {"rounds_told": said, "model": str(place)}
        program = self._program
        return {} if program is None or not hasattr(program, "told") else program.told

    def run(self, session: "Session") -> dict[str, object]:
        """Record that the run begins, then run the prepared program; the result is public."""
        if self._program is None or self.job is None:
            raise RuntimeError("run before prepare")
        begins = not session.resume
        if begins and self._remembered is not None and self._program.table is not None:
            source = self._config.source(self.job.name)
            self._remembered.write(self.job, source, self._program.table, reserved=self._reserved)
        return self._program.run(session)

    def keep_signed(self, result: "NodeResult") -> dict[str, object]:
        """At an evaluator of a model that stays in shares: keep what all nodes signed beside its
        share. Returns what the model is, for those who read JSON."""
        from mpc_train.shared.library import Library
        from mpc_train.shared.share import model_digest

        job = self.job
        if job is None or not job.stays_shared or self._config.place.name not in job.evaluators:
            return {}
        digest = model_digest(job, result.sid)
        Library(self._safe.opened).sign(job.name, digest, result.record)
        return {"kept": job.name, "kept_digest": digest}

    def outcome(self) -> bytes:
        return b"" if self._program is None else self._program.outcome()

    def checkpoints(self) -> tuple[bytes, ...]:
        return () if self._program is None else self._program.checkpoints()

    def insists(self) -> bool:
        return self._program is not None and self._program.insists()

    def leaving(self, body: bytes) -> tuple[str, ...]:
        from mpc_train.admission.load import job_from_bytes
        from mpc_train.jobs.training import leaving

        return leaving(job_from_bytes(body))

    def check_outcome(self, outcome: bytes) -> None:
        if self._program is None:
            raise RuntimeError("check_outcome before prepare")
        self._program.check_outcome(outcome)


class Events:
    """Shows the events of a run: lines of JSON, or text and a bar."""

    def __init__(self, output: Format, names: tuple[str, ...] = ()) -> None:
        from mpc_train.live.board import Board
        from mpc_train.run.pacing import EventPace
        from mpc_train.run.progress import ProgressView

        self._json = output is Format.json
        self.view: ProgressView = ProgressView(enabled=not self._json)
        self._lock = threading.Lock()
        self._pace = EventPace()
        self.board = Board(names)
        self.has_started = False
        """Whether all nodes have computed together."""
        self.trace: Callable[[str, Mapping[str, Any]], None] = lambda kind, fields: None

    def say(self, text: str) -> None:
        self.view.say(text)

    def page(self, url: str) -> None:
        """Say where the live page is."""
        self("live", {"url": url})
        self.say(f"Live at {url}  (in a terminal: mpc-train watch {url})")

    def reading(self, progress: "Progress") -> None:
        """Report how much of this node's own table has been read."""
        self("reading", dataclasses.asdict(progress))

    def __call__(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Show one event; may be called from any thread."""
        if kind == "proposed" and "trust" in fields:
            self.say(f"{fields['job']}: this node is asked to be {fields['role']}")
            self.say(str(fields["trust"]))
        elif kind == "connected":
            self.say(f"{kind}: {fields.get('address')}")
        self.has_started |= kind == "started"
        self.view.event(kind, fields)
        self.board.event(kind, fields)
        self.trace(kind, fields)
        if self._json and not (kind in ("progress", "reading") and self._too_soon(kind, fields)):
            with self._lock:
                emit({"event": kind, **fields})

    def _too_soon(self, kind: str, fields: Mapping[str, Any]) -> bool:
        news = fields.get("fields") or {}
        if kind == "reading":
            news = {"phase": kind, "step": fields["done"], "steps": fields["total"]}
        return not self._pace.due(str(fields.get("node", "")), news)
