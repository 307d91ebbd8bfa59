"""`mpc-train job`: shows what a job would do before anybody runs it, and approves it."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import (
    Format,
    FormatOption,
    HomeOption,
    PassphraseFdOption,
    PassphraseFileOption,
    emit,
    find_name,
    home_of,
    identity_at,
    open_vault,
    reporting,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mpc_train.estimates.rounds import RoundsCost
    from mpc_train.jobs.job import Job
    from mpc_train.run.node_config import NodeConfig
    from parties.audit.entries import Value
    from parties.keys.roster import Roster
    from parties.keys.vault import FileVault

job = typer.Typer(no_args_is_help=True, help="Job files.")


@job.command("check")
def job_check(
    path: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")],
    roster: Annotated[
        Path | None,
        typer.Option(
            help="Require a card for each name of the job; default: only point out missing cards."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="This node's own file; also checks whether its rules allow the job."),
    ] = None,
    home: HomeOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Validate a job and show what is computed, what is revealed, and to whom.

    If the home has a roster, names of the job without a card are pointed out; with --roster they
    are an error. With --config home and roster are those of the node's file.
    """
    with reporting(output):
        from mpc_train.admission.cautions import cautions
        from mpc_train.admission.load import load_job
        from mpc_train.admission.recipient_keys import key_cautions
        from mpc_train.estimates.estimate import memory_needs
        from mpc_train.estimates.rounds import rounds_costs
        from mpc_train.jobs.outputs import disclosed_on_the_way
        from mpc_train.jobs.schedule import total_steps
        from mpc_train.node.consent import roles_of
        from mpc_train.privacy.words import priced
        from mpc_train.results.report import describe, in_lines
        from parties.agreement.contract import describe_trust
        from parties.keys.roster import Roster

        checked = load_job(path)
        node = None if config is None else node_that_allows(config, checked)
        place = roster or (home_of(home) / "roster" if node is None else node.place.roster)
        known = Roster.load(place, missing_ok=roster is None)
        keys = {card.name: card.recipient_key for card in known}
        unknown = _without_card(checked, place, known, required=roster is not None)
        warned = [*cautions(checked), *key_cautions(checked, keys)]
        needs = memory_needs(checked)
        rounds = rounds_costs(checked) if checked.federates else {}
        trust = describe_trust(roles_of(checked))
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "job": checked.name,
                    "digest": checked.digest().hex(),
                    "schema": checked.schema.digest().hex(),
                    "steps": total_steps(checked),
                    "recipients": list(checked.recipients),
                    "threshold": checked.reveal.threshold,
                    "purpose": msgspec.to_builtins(checked.purpose),
                    "categories": list(checked.categories),
                    "memory_bytes": needs,
                    "round_bytes": {
                        name: {"sent": cost.sent_bytes, "received": cost.received_bytes}
                        for name, cost in rounds.items()
                    },
                    "kept_bytes": {name: cost.disk_bytes for name, cost in rounds.items()},
                    "inputs": list(checked.pipeline.names),
                    "metrics": list(checked.reveal.metrics),
                    "metrics_to": list(checked.reveal.metrics_to),
                    "disclosures": list(disclosed_on_the_way(checked)),
                    "serve": msgspec.to_builtins(checked.serve),
                    "privacy": priced(checked),
                    "cautions": warned,
                    "without_card": list(unknown),
                    "trust": trust,
                }
            )
            return
        memory = ", ".join(f"{count / 1e9:.2f} GB at {name}" for name, count in needs.items())
        lines = [describe(checked), f"  memory     {memory}", *_of_a_round(rounds)]
        lines += [*in_lines(warned), "", trust]
        say("\n".join(lines))
        for line in unknown.values():
            say(f"Warning {line}")
        if node is not None:
            rules = node.path if node.accepted is None else node.accepted.path
            mine = node.place.name in checked.owners
            later = "; earlier runs over its table count when the node starts" if mine else ""
            say(f"The rules of {rules} allow the job to {node.place.name}{later}.")


def _of_a_round(rounds: "Mapping[str, RoundsCost]") -> list[str]:
    """What a federated round sends, and what is kept of all of them."""
    if not rounds:
        return []
    sent = ", ".join(f"{cost.sent_bytes / 1e6:.2f} MB by {name}" for name, cost in rounds.items())
    kept = [f"{cost.disk_bytes / 1e6:.2f} MB at {name}" for name, cost in rounds.items()]
    kept = [one for one, cost in zip(kept, rounds.values(), strict=True) if cost.disk_bytes]
    return [f"  a round    sent: {sent}", f"             kept of all rounds: {', '.join(kept)}"]


def node_that_allows(config: Path, job: "Job") -> "NodeConfig":
    """Return the node's file if its rules allow the job; raise RefusedError with everything that
    they forbid. Earlier runs and consent are checked only at the run."""
    from mpc_train.admission.recipient_keys import check_recipient_keys
    from mpc_train.admission.rules import check_rules, today
    from mpc_train.errors import ConfigError
    from mpc_train.node.policy import accepted
    from mpc_train.run.node_config import load_node_config
    from parties.keys.roster import Roster

    node = load_node_config(config)
    if node.place.name not in (*job.nodes, *job.visitors):
        away = f", and {', '.join(job.visitors)} train without one" if job.visitors else ""
        raise ConfigError(
            f"{config}: {node.place.name} is not a node of the job {job.name}; its nodes are "
            + ", ".join(job.nodes)
            + away
        )
    roster = Roster.load(node.place.roster, missing_ok=True)
    node = accepted(node, roster, today())
    check_rules(node.rules, job, node.place.name)
    check_recipient_keys(node.rules, job, {card.name: card.recipient_key for card in roster})
    return node


def _without_card(job: "Job", place: Path, known: "Roster", *, required: bool) -> dict[str, str]:
    """The names of the job without a card in the roster at `place`, each with a line about it;
    raises RosterError for them if they are `required`. Who may ask the model needs no card before
    it is served, and is only warned of. Empty if there is no roster."""
    from parties.errors import RosterError

    if not place.exists():
        return {}
    unknown, serve = {}, job.serve
    clients, validators = ((), ()) if serve is None else (serve.clients, serve.validators)
    for name in dict.fromkeys((*job.names, *clients, *validators)):
        if name not in known:
            parts = [part for part in ("owner", "recipient") if name in getattr(job, f"{part}s")]
            parts += ["evaluator"] * (name in job.evaluators and "owner" not in parts)
            parts += ["dealer"] * (name == job.dealer)
            parts += ["client"] * (name in clients) + ["validator"] * (name in validators)
            near = difflib.get_close_matches(name, known.names, 1)
            unknown[name] = (
                f"no card of {name} ({', '.join(parts)}) in the roster {place}; "
                + (f"did you mean {near[0]}? If not, " if near else "")
                + "get it from its owner, compare fingerprints, and run mpc-train roster add"
            )
    if required and (missing := [line for name, line in unknown.items() if name in job.names]):
        raise RosterError("\n  ".join(missing))
    return unknown


@job.command("approve")
def job_approve(
    path: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")],
    name: Annotated[
        str | None,
        typer.Option(help="The approver's identity; may be omitted if there is only one."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory for the approval; default: beside the job, or the node's."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A node's own file: its rules must allow the job and list you, and its approvals "
            "directory and its audit log get the approval."
        ),
    ] = None,
    home: HomeOption = None,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Sign a job's digest, with the day. Nodes that list you under approvers count it."""
    with reporting(output):
        from mpc_train.admission.load import load_job
        from mpc_train.admission.rules import today
        from mpc_train.errors import ConfigError
        from mpc_train.results.report import beware, describe
        from mpc_train.run.approval import SUFFIX, approve
        from parties.files import private_directory, write_atomic

        checked = load_job(path)
        node = None if config is None else node_that_allows(config, checked)
        folder = home_of(home) if home is not None or node is None else node.place.home
        me = find_name(folder, name)
        if node is not None:
            _check_approver(node, me)
        vault = open_vault(folder, me, passphrase_file, passphrase_fd)
        digest = checked.digest().hex()
        target = out or (path.parent if node is None else node.place.approvals)
        target /= f"{checked.name}-{digest[:16]}-{me}{SUFFIX}"
        logged = node is not None and _log_approval(node, checked, vault)
        try:
            if out is None and node is not None:
                private_directory(target.parent)
            write_atomic(target, approve(checked, me, today(), vault), 0o644)
        except OSError as error:
            raise ConfigError(f"{target}: cannot be written ({error.strerror})") from error
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "digest": digest,
                    "approver": me,
                    "approval": str(target),
                    "logged": logged,
                }
            )
            return
        said = [describe(checked), *beware(checked), "", f"Approved by {me}: {target}"]
        say("\n".join(said))
        if node is None or out is not None:
            say("Each node that lists you under approvers puts it into its approvals directory.")
        if node is not None and not logged:
            say("Not in the node's audit log yet: the node logs it when it signs the job.")


def _check_approver(node: "NodeConfig", me: str) -> None:
    """Raise RefusedError unless the node's rules count an approval by `me`."""
    from mpc_train.admission.rules import separates
    from mpc_train.errors import RefusedError

    rules, place = node.rules, node.place
    if me not in rules.approvers:
        listed = ", ".join(rules.approvers) or "nobody"
        raise RefusedError(
            f"{me} is not an approver of {place.name}: its rules list {listed}. Nothing was signed"
        )
    if separates(rules) and me in (place.name, *rules.operators):
        raise RefusedError(
            f"{me} runs {place.name}, and somebody else must approve (separate). Nothing was signed"
        )


def _log_approval(node: "NodeConfig", job: "Job", approver: "FileVault") -> bool:
    """Write into the node's audit log that somebody approves a job; return whether the node's
    identity could be opened for that, as only it can write there."""
    from mpc_train.node.logbook import logbook
    from mpc_train.node.storage import open_key
    from parties.audit.entries import Kind

    mine = approver.card.name == node.place.name
    if not mine and node.place.passphrase_file is None:
        return False
    identity = approver if mine else identity_at(node.place, node.audit, None, None)
    keys = open_key(node.vault.key, identity)
    with logbook(node.place, node.audit, identity, keys, "job approve") as audit:
        fields: dict[str, Value] = {"by": approver.card.name}
        if node.accepted is not None:
            fields |= {"policy": node.accepted.digest, "number": node.accepted.terms.number}
        audit.append(Kind.APPROVAL_GIVEN, fields, job=job.name, digest=job.digest().hex())
    return True
