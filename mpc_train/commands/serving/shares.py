"""`mpc-train serve`: an evaluator, the dealer, or the coordinator of a service with models in
shares."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

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
    from collections.abc import Iterator

    from mpc_train.run.node_config import NodeConfig
    from mpc_train.serving.offered import Offered
    from mpc_train.serving.service import Agreed
    from parties.audit.log import AuditLog

Secret = tuple[Path | None, int | None]
"""Where the passphrase comes from: a file, or a descriptor."""

RETURN_S = 7 * 24 * 3600.0
"""For how long a service whose session is lost waits for its nodes: no operator is there to begin a
run that has ended anew."""


def serve_command(
    config: ConfigOption,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
    verbose: VerboseOption = False,
    live: LiveOption = None,
) -> None:
    """Serve models in shares, at each evaluator, the dealer and the coordinator, until it is
    stopped.

    The coordinator's file names the file of the service, with its models and clients; the other
    nodes serve what the owners have signed in the models' jobs and their own rules allow.
    """
    with reporting(output):
        from mpc_train.run.node_config import load_any_config

        if load_any_config(config).party is None:
            _coordinate(config, (passphrase_file, passphrase_fd), output, verbose, live)
        else:
            _serve(config, (passphrase_file, passphrase_fd), output, verbose, live)


def _serve(config: Path, secret: Secret, output: Format, verbose: bool, live: int | None) -> None:
    """An evaluator or the dealer."""
    from mpc_train.admission.rules import today
    from mpc_train.commands.nodes import Events, node_settings
    from mpc_train.live.server import on_page
    from mpc_train.node.logbook import logbook
    from mpc_train.node.places import run_directory
    from mpc_train.node.policy import in_force
    from mpc_train.node.storage import NodeVault
    from mpc_train.run.memory import settle
    from mpc_train.run.node_config import load_node_config
    from mpc_train.serving.allowance import Allowance
    from mpc_train.serving.desk import ServiceDesk
    from mpc_train.serving.journal import Journal
    from mpc_train.serving.monitoring.record import Model, Record, drift_event
    from mpc_train.serving.program import ServeProgram
    from mpc_train.shared.library import Library, is_kept
    from parties.keys.live import LiveIdentity
    from parties.nodes.node import run_node
    from parties.nodes.supervisor import end_with_parent

    end_with_parent()
    configure_logging(verbose)
    settings = load_node_config(config)
    vault, roster = enter(settings.place, settings.audit, *secret)
    identity = LiveIdentity(vault, settings.place.rotate_after_days)
    safe = NodeVault(settings.vault, settings.place.name, identity)
    run_dir = run_directory(settings.place.run_dir, settings.place.name)
    events = Events(output, (settings.place.name,))
    events.view.serves = True

    me, home = settings.place.name, settings.place.home

    def on_window(digest: str, model: Model) -> None:
        events("drift", drift_event(digest, model))

    with (
        logbook(settings.place, settings.audit, identity, safe.keys(), "serve") as audit,
        Allowance(home / f"{me}.allowance.json") as allowance,
        ServiceDesk(
            me,
            allowance,
            Journal(audit.append),
            Record(home / f"{me}.drift.json", on_window),
        ) as desk,
    ):
        settings = in_force(settings, roster, today(), audit, safe.keys())

        def allows(agreed: Agreed) -> None:
            _check(settings, agreed)
            events.say(_offer(agreed))

        def keeps(model: Offered) -> bool:
            return is_kept(safe.folder, model.name, model.digest)

        program = ServeProgram(me, Library(safe.opened).shares, allows, desk, keeps)
        settle()
        with (
            events.view.shown(),
            on_page(events.board, live, events.page),
            contextlib.suppress(KeyboardInterrupt),
        ):
            run_node(
                identity,
                roster,
                node_settings(settings, run_dir, proxy_of(settings.proxy), RETURN_S),
                program,
                audit,
                events,
            )
    _stopped(output)


def _coordinate(
    config: Path,
    secret: Secret,
    output: Format,
    verbose: bool,
    live: int | None,
) -> None:
    """Connects the nodes of a service, and its clients with them."""
    from mpc_train.commands.nodes import Events, coordinator_settings
    from mpc_train.errors import ConfigError
    from mpc_train.live.server import on_page
    from mpc_train.node.logbook import logbook
    from mpc_train.node.places import run_directory
    from mpc_train.run.memory import settle
    from mpc_train.run.node_config import load_coordinator_config
    from mpc_train.serving.service_file import is_service_file, load_service_file
    from parties.keys.services.identity_service import IdentityService
    from parties.nodes.coordinator import Coordinator
    from parties.nodes.supervisor import end_with_parent
    from parties.stop import sigterm_interrupts

    end_with_parent()
    configure_logging(verbose)
    settings = load_coordinator_config(config)
    if not is_service_file(settings.job):
        raise ConfigError(
            f"{settings.job}: not the file of a service; a job's coordinator is started with "
            "mpc-train coordinator"
        )
    agreed = load_service_file(settings.job)
    events = Events(output, agreed.roles.nodes)
    events.view.serves = True
    vault, roster = enter(settings.place, settings.audit, *secret)
    run_dir = run_directory(settings.place.run_dir, agreed.name)
    keys = IdentityService(vault)
    with logbook(settings.place, settings.audit, vault, keys, "coordinator") as audit:
        node = Coordinator(
            vault,
            roster,
            agreed.name,
            (agreed.roles, agreed.to_bytes()),
            coordinator_settings(settings, run_dir, RETURN_S),
            audit,
            events,
        )
        events("listening", {"address": node.address, "job": agreed.name})
        events.say(_offer(agreed))
        events.say(f"Listening on {node.address}, waiting for the nodes")
        settle()
        with (
            events.view.shown(),
            on_page(events.board, live, events.page),
            contextlib.suppress(KeyboardInterrupt),
            sigterm_interrupts(),
            _in_log(audit, agreed, settings.place.name),
        ):
            node.run()
    _stopped(output)


@contextlib.contextmanager
def _in_log(audit: AuditLog, agreed: Agreed, me: str) -> Iterator[None]:
    """Notes what the coordinator offers, and how that ended; evaluators and the dealer note their
    own sessions (`ServeProgram.run`)."""
    from parties.audit.entries import Kind
    from parties.nodes.node import ending

    models = tuple(model.digest for model in agreed.models)
    audit.append(Kind.SERVICE_STARTED, {"models": models, "clients": agreed.body.clients})
    try:
        yield
    except BaseException as error:
        by, code = ending(error, me)
        audit.append(Kind.SERVICE_ENDED, {"models": models, "by": by, "code": code})
        raise


def _check(settings: NodeConfig, agreed: Agreed) -> None:
    """Raise RefusedError unless this node's rules allow each model's job today."""
    from mpc_train.admission.rules import check_serving, expired, today
    from mpc_train.errors import RefusedError

    for about in agreed.models:
        for line in expired(about.job, today()):
            raise RefusedError(f"the model {about.job.name}: {line}")
        check_serving(settings.rules, about.job, settings.place.name)


def _offer(agreed: Agreed) -> str:
    """What a service offers, for people."""
    from mpc_train.serving.offers import allowed, answers_with

    lines = [f"Service {agreed.name}"]
    for model in agreed.offered:
        serve = allowed(model)
        drift = serve.watched
        watched = ""
        if drift is not None:
            baseline = "training rows" if model.job.counts_training else "the first window"
            watched = f"; drift of each {drift.every_rows:,} rows against {baseline}"
        lines.append(
            f"  {model.name} {model.version}  {model.digest[:16]}  {answers_with(serve)} "
            f"for each of {', '.join(serve.clients)}{watched}"
        )
    lines.append(f"Clients {', '.join(agreed.body.clients)}")
    return "\n".join(lines)


def _stopped(output: Format) -> None:
    if output is Format.json:
        emit({"status": "ok", "stopped": True})
    else:
        say("Stopped.")
