"""`mpc-train owner`: take part in the rounds of a federated job without running one of its
nodes."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import (
    ConfigOption,
    Format,
    FormatOption,
    PassphraseFdOption,
    PassphraseFileOption,
    VerboseOption,
    configure_logging,
    emit,
    enter,
    proxy_of,
    reporting,
)
from mpc_train.errors import ConfigError

if TYPE_CHECKING:
    from mpc_train.federated.rounds.told import Told
    from mpc_train.jobs.job import Job
    from mpc_train.run.node_config import NodeConfig
    from parties.audit.entries import Kind, Value
    from parties.audit.log import AuditLog
    from parties.keys.roster import Roster

log = logging.getLogger(__name__)

_TABLE_MARK = b"the table of an owner that comes and goes"


def owner_command(
    config: ConfigOption,
    job_path: Annotated[
        Path, typer.Argument(metavar="JOB.toml", help="The federated job, as all owners have it.")
    ],
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> None:
    """Train on this node's own rows, round by round, and share in the updates. May be stopped and
    started again at any time: it is left out of the rounds that it misses."""
    with reporting(output):
        from mpc_train.admission.load import load_job
        from mpc_train.admission.rules import check_rules, today
        from mpc_train.node.logbook import logbook
        from mpc_train.node.places import run_directory
        from mpc_train.node.policy import in_force
        from mpc_train.node.storage import NodeVault
        from mpc_train.results.report import beware, describe
        from mpc_train.run.memory import peak_rss_mb
        from mpc_train.run.node_config import load_node_config
        from parties.nodes.supervisor import end_with_parent
        from parties.stop import sigterm_interrupts

        end_with_parent()
        configure_logging(verbose)
        settings = load_node_config(config)
        me = settings.place.name
        # Before the job, which loads PyTorch: so it and what Argon2id takes are not there at once.
        vault, roster = enter(settings.place, settings.audit, passphrase_file, passphrase_fd)
        safe = NodeVault(settings.vault, me, vault)
        keys = safe.keys()
        with logbook(settings.place, settings.audit, vault, keys, "owner") as audit:
            settings = in_force(settings, roster, today(), audit, keys)
            job = load_job(job_path, settings.rules.modules)
            if me not in job.visitors:
                raise ConfigError(
                    f"{job_path}: {me} is no owner that comes and goes; "
                    + (
                        "this command is for federated jobs"
                        if not job.federates
                        else f"those are {', '.join(job.visitors) or 'none'}; a node of the job is "
                        "started with mpc-train party or dealer"
                    )
                )
            run_dir = run_directory(settings.place.run_dir, job.name)
            if output is Format.text:
                say("\n".join([describe(job), *beware(job), ""]))
            check_rules(settings.rules, job, me)
            _consent(settings, roster, job, audit, output)
            told: list[Told] = []

            def on_round(one: "Told") -> None:
                told.append(one)
                if output is Format.json:
                    emit({"event": "round", **one.printed()})
                else:
                    say(in_words(one))

            with sigterm_interrupts():
                path, weights, sent = _rounds(
                    settings, roster, vault, safe, job, audit, on_round, run_dir
                )
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "job": job.name,
                    "rounds": job.federated.rounds,
                    "took_part": sum(one.counted is not None for one in told),
                    "sent_bytes": sent,
                    "model": str(path),
                    "weights": weights,
                    "peak_rss_mb": peak_rss_mb(),
                }
            )
        else:
            say(f"All rounds are over. The global model is {path}")
            say(f"The digest of its weights, the same at every owner: {weights}")


def in_words(told: "Told") -> str:
    """A round in one line."""
    how = {True: "with", False: "without, since its update was too large,", None: "without"}
    measured = ", ".join(f"{name} {value:.4f}" for name, value in told.measured.items())
    return f"Round {told.round}: {told.owners} updates, {how[told.counted]} this owner's" + (
        f"; here {measured}" if measured else ""
    )


def _consent(
    settings: "NodeConfig", roster: "Roster", job: "Job", audit: "AuditLog", output: Format
) -> None:
    """Raise RefusedError unless this organisation agrees."""
    from mpc_train.admission.rules import today
    from mpc_train.node.consent import agree, patience, terminal
    from mpc_train.run.progress import ProgressView
    from parties.audit.entries import Kind

    join_s = float(settings.timeouts.join_s)
    ask = None if output is Format.json else terminal(ProgressView(enabled=False), join_s)
    found = agree(settings, roster, job, ask, today, patience(lambda _: None, join_s))
    fields: dict[str, Value] = {"why": found.why, "approvers": found.approvers}
    if job.privacy:
        privacy = job.privacy
        fields |= {"epsilon": str(privacy.epsilon), "delta": str(privacy.small_delta)}
        fields |= {"unit": privacy.unit, "neighbours": privacy.neighbours}
    if settings.accepted is not None:
        policy = settings.accepted
        fields |= {"policy": policy.digest, "number": policy.terms.number}
    audit.append(Kind.JOB_APPROVED, fields, job=job.name, digest=job.digest().hex())


def _rounds(
    settings: "NodeConfig",
    roster: "Roster",
    vault: Any,
    safe: Any,
    job: "Job",
    audit: "AuditLog",
    on_round: Any,
    run_dir: Path,
) -> tuple[Path, str, int]:
    from mpc_train.admission.rules import check_table_rows
    from mpc_train.commands.nodes import node_settings
    from mpc_train.estimates.rounds import rounds_costs
    from mpc_train.federated.rounds.begun import Begun
    from mpc_train.node.consent import roles_of
    from mpc_train.node.places import check_memory
    from mpc_train.node.remembered import Remembered
    from mpc_train.owners.apart import read_apart
    from mpc_train.owners.table import load_table
    from mpc_train.run.history import table_mark
    from mpc_train.run.memory import settle

    place = settings.place
    needed = rounds_costs(job)[place.name].memory_bytes
    log.info("%s", check_memory(job, place.name, needed, place.memory_bytes))
    source = settings.source(job.name)
    named = (one.stored for one in settings.data.values() if one.stored)
    read = partial(
        load_table,
        source,
        job,
        place.name,
        vault=safe.tables(named),
        any_rows=job.federated.sizes == "secret",
    )
    # Key services keep connections and sessions that a forked process could not share.
    table = read() if source.stored else read_apart(read)
    check_table_rows(settings.rules, job, place.name, table.rows)
    remembered = Remembered(safe, place.name, settings.rules)
    mark = table_mark(_TABLE_MARK, table)
    spend = partial(remembered.write, job, source, table)
    begun = Begun(safe.opened, job.name, job.digest().hex(), mark, spend)
    if not begun.is_there:
        remembered.check(job, source, table)
    # Loads PyTorch, which takes seconds: a bad cell is reported before that.
    from mpc_train.federated.local import Owner
    from mpc_train.federated.rounds.client import Waiting, rounds_client
    from mpc_train.federated.rounds.result import digest_of, write_model

    owner = Owner(job, place.name, table, place.device)

    def on_event(event: str, said: Mapping[str, Any]) -> None:
        log.info("%s %s", event, said)

    def note(kind: "Kind", fields: "Mapping[str, Value]") -> None:
        audit.append(kind, fields)

    node = node_settings(settings, run_dir, proxy_of(settings.proxy))
    settle()
    patience_s = float(max(settings.timeouts.join_s, settings.timeouts.return_s))
    with rounds_client(
        vault,
        roster,
        node,
        job,
        roles_of(job),
        owner,
        Waiting(patience_s),
        note,
        on_event,
        on_round,
        begun,
    ) as client:
        model = client.run()
        sent = client.sent_bytes
    path = write_model(run_dir, owner, model, job)
    begun.clear()
    return path, digest_of(model), sent
