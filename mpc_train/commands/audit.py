"""`mpc-train audit`: a node's log of what it did, for its own people, other nodes and auditors."""

import contextlib
import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpc_train.base.printing import escaped, say
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
    from parties.audit.entries import Entry, Value
    from parties.keys.identity import Card
    from parties.keys.statements import Succession

audit = typer.Typer(no_args_is_help=True, help="What this node did, signed and encrypted.")

NameOption = Annotated[
    str | None, typer.Option("--name", help="The node; may be left out if there is one identity.")
]
LogOption = Annotated[
    Path | None, typer.Option("--log", help="The folder of a log; default: in the home.")
]
TAMPERED = 9
"""Exit status where something is wrong with a log."""


@audit.command("verify")
def audit_verify(
    log: LogOption = None,
    card: Annotated[
        Path | None,
        typer.Option(help="The card of the node that signed it; default: the one in the home."),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Another node's log, or a checkpoint of this one; may be repeated."),
    ] = None,
    name: NameOption = None,
    home: HomeOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Check that a log is what its node signed and what others hold of it; needs no key.

    Exit status 9 where it is not, with the entry that is wrong. Entries that the node has not
    signed yet are no fault, and are said.
    """
    with reporting(output):
        from parties.audit.log import log_folder
        from parties.audit.verify import verify_log
        from parties.errors import AuditError

        missing = [path for path in against or () if not path.exists()]
        if missing:
            raise AuditError(f"{missing[0]}: there is no such log or checkpoint")
        if log is None:
            folder = home_of(home)
            log = log_folder(folder, find_name(folder, name))
        known, later = line_of(log, card)
        report = verify_log(log, known, tuple(against or ()), later)
        if output is Format.json:
            status = "ok" if report.ok else "AuditTamperedError"
            faults = [dataclasses.asdict(fault) for fault in report.faults]
            emit(
                {
                    "status": status,
                    "log": str(log),
                    "origin": report.origin,
                    "entries": report.size,
                    "signed": report.signed,
                    "root": report.root,
                    "checked": report.checked,
                    "faults": faults,
                }
            )
        else:
            say(f"{log}: {report.size} entries of {report.origin}, root {report.root}")
            for line in report.checked:
                say(f"  agrees: {line}")
            if report.signed < report.size:
                say(
                    f"  not signed yet: from entry {report.signed} on; the node signs them when it "
                    "closes the log, and until then whoever can write to the file may have added "
                    "them"
                )
        for fault in report.faults:
            say(f"error: {log}: {fault}", aside=True)
        if not report.ok:
            raise typer.Exit(TAMPERED)


@audit.command("show")
def audit_show(
    config: Annotated[
        Path | None,
        typer.Option("--config", help="This node's own file (TOML), of whatever kind."),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option("--log", help="For an auditor: the folder of a log, or a copy of it."),
    ] = None,
    identity: Annotated[
        Path | None,
        typer.Option("--identity", help="For an auditor, with --log: your own identity file."),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(
            help="For an auditor, with --log: the card of the node whose log it is; without it "
            "nobody checks who signed what is shown."
        ),
    ] = None,
    job: Annotated[str, typer.Option(help="Entries about this job only.")] = "",
    kind: Annotated[list[str] | None, typer.Option(help="Of this kind; may be repeated.")] = None,
    since: Annotated[
        str, typer.Option(help="From this moment on, UTC: 2026-01-31 or 2026-01-31T12:00:00Z.")
    ] = "",
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Decrypt a log and show it: a node's own, or as an auditor whom the node's rules name.

    If the rules name auditors, the node's own identity shows nothing. That somebody looked with the
    node's identity is an entry as well; an auditor, who cannot write there, leaves none.

    Exit status 9 if the log is not what the node of --card signed; it is shown all the same.
    """
    with reporting(output):
        from parties.audit.entries import Kind
        from parties.errors import AuditError

        unknown = sorted(set(kind or ()) - set(Kind))
        if unknown:
            raise AuditError(f"{unknown[0]!r} is no kind of entry; there are {', '.join(Kind)}")
        start, faults = _moment(since), list[str]()
        if config is not None and log is None and identity is None and card is None:
            entries = _own_entries(config, passphrase_file, passphrase_fd)
        elif config is None and log is not None and identity is not None:
            entries = _audited_entries(log, identity, passphrase_file, passphrase_fd)
            faults = [] if card is None else _faults(log, card)
        else:
            raise AuditError(
                "name a node's own file with --config or, as an auditor, --log, --identity and "
                "--card"
            )
        found = [
            (number, entry)
            for number, entry in entries
            if (not job or entry.job == job)
            and (not kind or entry.kind in kind)
            and entry.time >= start
        ]
        if output is Format.json:
            status = "AuditTamperedError" if faults else "ok"
            shown = [entry.record(number) for number, entry in found]
            signed = None if log is not None and card is None else not faults
            emit({"status": status, "signed": signed, "faults": faults, "entries": shown})
        else:
            for line in _lines(found):
                say(line)
        if log is not None and card is None:
            say(
                f"warning: {log}: nobody checked that its node signed this; name the node's card "
                "with --card",
                aside=True,
            )
        for fault in faults:
            say(f"error: {log}: {fault}", aside=True)
        if faults:
            raise typer.Exit(TAMPERED)


def _own_entries(
    config: Path, passphrase_file: Path | None, passphrase_fd: int | None
) -> "list[tuple[int, Entry]]":
    """All entries of a node's own log; raises RefusedError where they are for auditors."""
    from mpc_train.admission.rules import today
    from mpc_train.node.logbook import logbook
    from mpc_train.node.policy import check_auditor
    from mpc_train.node.storage import open_key
    from mpc_train.run.node_config import load_any_config
    from parties.keys.roster import Roster
    from parties.keys.services.identity_service import IdentityService

    node = load_any_config(config)
    if node.party is not None:
        roster = Roster.load(node.place.roster, missing_ok=True)
        check_auditor(node.party, roster, today())
    identity = identity_at(node.place, node.audit, passphrase_file, passphrase_fd)
    key = IdentityService(identity) if node.vault is None else open_key(node.vault.key, identity)
    with logbook(node.place, node.audit, identity, key, "audit show") as opened:
        return list(opened.entries())


def _audited_entries(
    log: Path, identity: Path, passphrase_file: Path | None, passphrase_fd: int | None
) -> "list[tuple[int, Entry]]":
    """All entries of a log whose key is sealed to an auditor's identity."""
    from parties.audit.auditors import entries_for

    auditor = open_vault(identity.parent, identity.stem, passphrase_file, passphrase_fd)
    return entries_for(log, auditor)[1]


def _faults(log: Path, card: Path) -> list[str]:
    """Why a log is not what the node of a card signed. Whoever has an auditor's public card can
    encrypt a log to it that the node never wrote."""
    from parties.audit.verify import verify_log
    from parties.keys.identity import Card

    return [str(fault) for fault in verify_log(log, Card.load(card)).faults]


@audit.command("checkpoint")
def audit_checkpoint(
    log: LogOption = None,
    name: NameOption = None,
    home: HomeOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Print the newest checkpoint that this node has signed; give it to whoever wants to compare.

    Needs no key.
    """
    with reporting(output):
        from parties.audit.checkpoint import read_checkpoint
        from parties.audit.log import log_folder
        from parties.audit.reading import CHECKPOINT

        if log is None:
            folder = home_of(home)
            log = log_folder(folder, find_name(folder, name))
        note = _read(log / CHECKPOINT)
        found = read_checkpoint(note)
        if output is Format.json:
            said = {"origin": found.origin, "entries": found.size, "checkpoint": note.decode()}
            emit({"status": "ok", **said})
            return
        say(note.decode(), end="")


@audit.command("cosign")
def audit_cosign(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Of another log.")],
    log: Annotated[
        Path, typer.Option("--log", help="The log that it is of, or a copy, which is checked.")
    ],
    card: Annotated[Path, typer.Option(help="The card of the node whose log it is.")],
    earlier: Annotated[
        list[Path] | None,
        typer.Option(help="A checkpoint that you saw before; may be repeated."),
    ] = None,
    name: NameOption = None,
    home: HomeOption = None,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Add a signature of your own to a checkpoint, as a witness; prints the checkpoint with it.

    The log is checked against the checkpoint and against what you saw before. Nothing is signed if
    they do not agree.
    """
    with reporting(output):
        from parties.audit.checkpoint import cosign
        from parties.audit.verify import verify_log
        from parties.errors import AuditTamperedError
        from parties.keys.identity import Card

        report = verify_log(log, Card.load(card), (checkpoint, *(earlier or ())))
        if not report.ok:
            raise AuditTamperedError(f"{log}: {report.faults[0]}; nothing was signed")
        folder = home_of(home)
        identity = open_vault(folder, find_name(folder, name), passphrase_file, passphrase_fd)
        note = cosign(_read(checkpoint), identity, int(datetime.now(UTC).timestamp()))
        if output is Format.json:
            witness = identity.card.name
            emit({"status": "ok", "witness": witness, "checkpoint": note.decode()})
            return
        say(note.decode(), end="")


def line_of(log: Path, given: Path | None) -> "tuple[Card, tuple[Succession, ...]]":
    """The card that was given, or the one in the home that the log lies in; and the successions
    that led to it, where its identity is there."""
    from parties.errors import AuditError
    from parties.keys.identity import Card
    from parties.keys.vault import card_path, identity_path, read_line

    if given is not None:
        return Card.load(given), ()
    folder = log.absolute()
    home, name = folder.parent.parent, folder.name
    if identity_path(home, name).exists():
        return read_line(identity_path(home, name))
    beside = card_path(home, name)
    if not beside.exists():
        raise AuditError(f"{log}: whose signatures are to be checked? Name the node's card: --card")
    return Card.load(beside), ()


def _read(path: Path) -> bytes:
    from parties.audit.note import MAX_NOTE_BYTES
    from parties.errors import AuditError
    from parties.files import read_bounded
    from parties.keys.identity import reason

    try:
        return read_bounded(path, MAX_NOTE_BYTES)
    except (OSError, ValueError) as error:
        raise AuditError(f"{path}: cannot be read: {reason(error)}") from error


def _moment(text: str) -> str:
    """A moment as entries write it; of an empty text, the beginning."""
    from parties.errors import AuditError

    if not text:
        return ""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise AuditError(f"--since {text}: write 2026-01-31 or 2026-01-31T12:00:00Z") from error
    utc = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    return utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _lines(found: "list[tuple[int, Entry]]") -> Iterator[str]:
    for number, entry in found:
        fields = " ".join(f"{key}={_shown(key, value)}" for key, value in entry.fields.items())
        of = f"  {entry.job}" if entry.job else ""
        yield escaped(f"{number:>6}  {entry.time}  {entry.kind:22}{of}  {fields}".rstrip())


def _shown(key: str, value: "Value") -> str:
    """A field for people: of a checkpoint, which nodes name by one number, the step and the session
    that wrote it."""
    from mpc_train.checkpoints.keeper import parts_of
    from mpc_train.errors import ArtifactError

    if key == "resumed" and value == "":
        return "no"
    if key == "resumed" and isinstance(value, str):
        with contextlib.suppress(ArtifactError, ValueError):
            step, finished, session = parts_of(bytes.fromhex(value))
            return f"step:{step}{',finished' if finished else ''},session:{session.hex()}"
    return ",".join(value) if isinstance(value, tuple) else str(value)
