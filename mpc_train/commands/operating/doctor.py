"""`mpc-train doctor`: whether this machine and its network are fit for a run, before the first one.

The operator of the coordinator runs it with `--listen`, and every organisation runs it against that
port; a coordinator that gathers its nodes answers as well. Exit statuses of its own say where the
remedy lies.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import (
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
from mpc_train.errors import DOCTOR_STATUS

if TYPE_CHECKING:
    from mpc_train.run.node_config import LogConfig
    from parties.doctor.findings import Finding
    from parties.keys.roster import Roster
    from parties.keys.vault import FileVault
    from parties.wire.proxy import Proxy

LIBRARIES = ("torch", "crypten", "numba", "numpy", "pyzmq", "cryptography", "msgspec", "polars")
MAX_IDLE_S = 24 * 3600
_PEER = re.compile(r"([a-z0-9-]+)=(.+)\Z")
_ADDRESS = re.compile(r"(?:tcp://)?((?:\[[0-9a-fA-F:.%a-z]+\]|[A-Za-z0-9._-]+):\d{1,5})\Z")


def doctor_command(
    config: Annotated[
        Path | None, typer.Option("--config", help="This node's own file (TOML).")
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Try this address instead of the file's."),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=HOST:PORT", help="Also try to dial this node; repeatable."),
    ] = None,
    listen: Annotated[
        bool, typer.Option("--listen", help="Answer the doctors of others until interrupted.")
    ] = False,
    idle: Annotated[
        int | None,
        typer.Option(metavar="SECONDS", help="Also leave a connection silent for so long."),
    ] = None,
    megabytes: Annotated[
        float, typer.Option(help="Send and receive at most so much to measure the rates, up to 24.")
    ] = 12.0,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
    verbose: VerboseOption = False,
) -> None:
    """Examine this machine and the way to the coordinator, and say what to do about each problem.

    Without --config only this machine, and whether the address of --coordinator answers. Nothing
    about a job is sent, and no data are read.
    """
    asked = _Asked(
        _address("--coordinator", coordinator) if coordinator else None,
        _peers(peer or []),
        idle,
        megabytes,
    )
    _check(asked, config, listen)
    with reporting(output):
        from mpc_train.run.node_config import load_any_config

        configure_logging(verbose)
        node = None if config is None else load_any_config(config)
        report = _Report(output)
        entered = None
        if node is not None:
            entered = _entered(node, passphrase_file, passphrase_fd, report)
        report.take(_machine(node))
        if node is not None and entered is not None:
            report.take(_cards(node, *entered))
        if listen and node is not None and entered is not None:
            _listen(node, *entered, report)
        else:
            report.take(_network(node, entered, asked))
        raise typer.Exit(report.finish(config is None and coordinator is None))


@dataclass(frozen=True)
class _Asked:
    """The options. coordinator: tcp://host:port; peers: by name the same."""

    coordinator: str | None
    peers: dict[str, str]
    idle_s: int | None
    megabytes: float


def _check(asked: _Asked, config: Path | None, listen: bool) -> None:
    if config is None and (listen or asked.peers or asked.idle_s is not None):
        raise typer.BadParameter("--listen, --peer and --idle need --config: whose keys count?")
    if listen and (asked.coordinator or asked.peers or asked.idle_s is not None):
        raise typer.BadParameter("--listen answers others: run without it to examine the network")
    if asked.idle_s is not None and not 1 <= asked.idle_s <= MAX_IDLE_S:
        raise typer.BadParameter("--idle: from 1 to 86400 seconds")
    if not 1 <= asked.megabytes <= 24:
        raise typer.BadParameter("--megabytes: from 1 to 24")


def _address(option: str, text: str) -> str:
    match = _ADDRESS.match(text)
    if match is None or not 0 < int(match[1].rpartition(":")[2]) <= 65535:
        raise typer.BadParameter(f"{option}: write HOST:PORT, like study.example.org:7700")
    return f"tcp://{match[1]}"


def _peers(texts: Iterable[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        match = _PEER.match(text)
        if match is None:
            raise typer.BadParameter("--peer: write NAME=HOST:PORT")
        found[match[1]] = _address("--peer", match[2])
    return found


@dataclass
class _Report:
    """Shows findings as they come, and keeps them."""

    output: Format
    findings: "list[Finding]" = field(default_factory=list)

    def add(self, finding: "Finding") -> None:
        self.findings.append(finding)
        if self.output is Format.text:
            level = finding.level.value
            shown = level.upper() if level == "problem" else level
            say(f"{shown:8}  {finding.check:10}  {finding.text}")
            if finding.remedy:
                say(f"{'':8}  {'':10}  -> {finding.remedy}")

    def take(self, findings: "Iterator[Finding]") -> None:
        for finding in findings:
            self.add(finding)

    def finish(self, alone: bool) -> int:
        """Say the verdict; return the exit status. alone: no other side was named."""
        counts = Counter(finding.level.value for finding in self.findings)
        places = {each.place.value for each in self.findings if each.level == "problem"}
        status = min((DOCTOR_STATUS[place] for place in places), default=0)
        if self.output is Format.json:
            emit(
                {
                    "status": "problems" if places else "ok",
                    "problems": counts["problem"],
                    "warnings": counts["warning"],
                    "findings": [dataclasses.asdict(finding) for finding in self.findings],
                }
            )
            return status
        warned = f", {_count(counts['warning'], 'warning')}" if counts["warning"] else ""
        if places:
            say(f"NOT PASSED: {_count(counts['problem'], 'problem')}{warned}")
        else:
            only = " of this machine; the network was not tried" if alone else ""
            say(f"PASSED: {counts['passed']} checks{only}{warned}")
        return status


def _entered(
    node: "LogConfig", file: Path | None, descriptor: int | None, report: _Report
) -> "tuple[FileVault, Roster] | None":
    """The identity and the roster of the node; a finding if they cannot be opened."""
    from parties.doctor.findings import Level, machine
    from parties.errors import PartiesError

    try:
        return enter(node.place, node.audit, file, descriptor)
    except PartiesError as error:
        text = str(error)
        report.add(machine("identity", Level.problem, text, "without it nothing else is asked"))
        return None


def _machine(node: "LogConfig | None") -> "Iterator[Finding]":
    """What concerns this machine alone."""
    from parties.doctor.disk import directory
    from parties.doctor.machine import entropy, memory, open_files, processor, versions

    yield versions(LIBRARIES)
    yield processor()
    yield memory()
    yield entropy()
    yield open_files()
    if node is None:
        return
    folders = {node.place.home: "home", node.place.run_dir: "run_dir"}
    if node.vault is not None:
        folders.setdefault(node.vault.folder, "vault")
    for path, title in folders.items():
        yield directory(title, path)


def _cards(node: "LogConfig", vault: "FileVault", roster: "Roster") -> "Iterator[Finding]":
    """Whether the cards that this node needs are there and valid."""
    from parties.doctor.findings import Level, machine
    from parties.errors import PartiesError
    from parties.keys import lifetime

    moment = lifetime.now()
    try:
        lifetime.check_own(vault.card, moment)
        if node.party is not None:
            roster.card(node.party.coordinator)
        warnings = roster.check_lifetimes(moment)
    except PartiesError as error:
        yield machine("cards", Level.problem, str(error), "mpc-train roster show lists the cards")
        return
    text = (
        f"{len(list(roster))} in the roster; that of {node.place.name} expires {vault.card.expires}"
    )
    yield machine("cards", Level.passed, text)
    for warning in warnings:
        yield machine(
            "cards", Level.warning, warning, "its owner rotates: mpc-train identity rotate"
        )


def _network(
    node: "LogConfig | None", entered: "tuple[FileVault, Roster] | None", asked: _Asked
) -> "Iterator[Finding]":
    """Where this node listens, and the way to the coordinator and to the peers that were named."""
    from parties.doctor.addresses import address
    from parties.doctor.listening import port

    party = None if node is None else node.party
    proxy = proxy_of(None if party is None else party.proxy)
    if node is not None and node.listen is not None:
        yield port(node.listen)
    where = asked.coordinator or (None if party is None else party.coordinator_address)
    title = "coordinator" if party is None else party.coordinator
    sides = dict(asked.peers) if where is None else {title: where, **asked.peers}
    for name, each in sides.items():
        reached = True
        for finding in address(name, each, proxy):
            reached = reached and finding.level.value != "problem"
            yield finding
        if reached and entered is not None:
            beat_s = 1.0 if party is None else float(party.timeouts.heartbeat_s)
            yield from _link(name, each, entered, asked, proxy, beat_s)


def _link(
    name: str,
    where: str,
    entered: "tuple[FileVault, Roster]",
    asked: _Asked,
    proxy: "Proxy | None",
    heartbeat_s: float,
) -> "Iterator[Finding]":
    """The way to one node, over a connection like that of a run."""
    from parties.agreement.contract import CONTRACT_VERSION
    from parties.doctor.findings import Level, other
    from parties.doctor.line import Target
    from parties.doctor.link import Wanted, examine
    from parties.errors import RosterError
    from parties.wire.zmq_transport import CurveKeys

    vault, roster = entered
    try:
        card = roster.card(name)
    except RosterError as error:
        yield other("key", Level.problem, str(error), "mpc-train roster add")
        return
    keys = CurveKeys(vault.card.curve, vault.curve_secret())
    wanted = Wanted(CONTRACT_VERSION, asked.megabytes, asked.idle_s, heartbeat_s)
    yield from examine(keys, Target(name, where, card.curve), wanted, proxy)


def _listen(node: "LogConfig", vault: "FileVault", roster: "Roster", report: _Report) -> None:
    """Answer the doctors of others until interrupted; then say who has not come."""
    from parties.agreement.contract import CONTRACT_VERSION
    from parties.doctor.listening import Listener
    from parties.errors import TransportError
    from parties.keys import lifetime
    from parties.stop import sigterm_interrupts
    from parties.wire.zmq_transport import CurveKeys

    if node.listen is None:
        raise TransportError(
            "this node does not listen: write listen under [network], or let others use the relay"
        )
    me = node.place.name
    allowed = {card.name: card.curve for card in roster.current(lifetime.now()) if card.name != me}
    seen: set[str] = set()

    def tell(kind: str, name: str) -> None:
        seen.update([name] if kind == "visit" else [])
        if report.output is Format.json:
            emit({"event": kind, "node": name})
        else:
            say(_EVENTS[kind].format(name))

    keys = CurveKeys(vault.card.curve, vault.curve_secret())
    with Listener(keys, allowed, node.listen, CONTRACT_VERSION, tell) as listener:
        if report.output is Format.json:
            emit({"event": "listening", "address": listener.address})
        else:
            say(f"Listening on {listener.address} for the doctors of {', '.join(sorted(allowed))}")
        try:
            with sigterm_interrupts():
                while True:
                    listener.attend(0.5)
        except KeyboardInterrupt:
            missing = sorted(set(allowed) - seen)
            if report.output is Format.text:
                say(f"Examined this side: {', '.join(sorted(seen)) or 'nobody'}")
                say(f"Did not: {', '.join(missing)}" if missing else "Nobody is missing")


_EVENTS = {
    "visit": "{} examines the way to this node",
    "started": "{} starts a run here, but no coordinator is running: end this doctor and start it",
    "refused": "a connection {} was refused",
}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
