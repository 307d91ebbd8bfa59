"""`mpc-train evidence`: a signed folder about one run, for those who review it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mpc_train.base.printing import say
from mpc_train.commands.audit import line_of
from mpc_train.commands.common import (
    Format,
    FormatOption,
    HomeOption,
    PassphraseFdOption,
    PassphraseFileOption,
    emit,
    home_of,
    identity_at,
    reporting,
)

if TYPE_CHECKING:
    from mpc_train.node.provenance import Provenance
    from parties.keys.roster import Roster

NOT_VERIFIED = 9
"""Exit status if something in the evidence does not verify."""
JSON_FILE, HTML_FILE, PDF_FILE = "evidence.json", "evidence.html", "evidence.pdf"
BOM_FILE = "bom.cdx.json"
OWN_FILES = (JSON_FILE, HTML_FILE, BOM_FILE)


class _WriteByDefault(TyperGroup):
    """`mpc-train evidence JOB` is `mpc-train evidence write JOB`."""

    default = "write"

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = [self.default, *args]
        return super().resolve_command(ctx, args)


evidence = typer.Typer(
    cls=_WriteByDefault,
    no_args_is_help=True,
    help="A signed folder about one run: evidence JOB --config party.toml --out DIR.",
)


@evidence.command("write")
def evidence_write(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's name, or its digest.")],
    config: Annotated[
        Path, typer.Option("--config", help="This node's own file (TOML), of whatever kind.")
    ],
    out: Annotated[Path, typer.Option(help="A directory that does not exist yet.")],
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Another node's log, or a checkpoint of this one; may be repeated."),
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Write evidence.pdf as well.")] = False,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Write evidence about the newest run of a job at this node, signed by this node.

    Exit status 9 if anything does not verify; the evidence is written all the same and says so.
    """
    with reporting(output):
        import msgspec

        from mpc_train.node.collect import RECORD_FILE
        from mpc_train.node.components import bill_of_materials
        from mpc_train.node.evidence import evidence_of
        from mpc_train.node.evidence_page import page
        from mpc_train.node.evidence_page import pdf as printed
        from mpc_train.node.logbook import logbook
        from mpc_train.node.pack import write_pack
        from mpc_train.node.storage import open_key
        from mpc_train.run.node_config import load_any_config
        from parties.audit.log import log_folder
        from parties.audit.verify import verify_log
        from parties.keys.roster import Roster
        from parties.keys.services.identity_service import IdentityService

        node = load_any_config(config)
        roster = Roster.load(node.place.roster)
        bom = bill_of_materials()
        found, record = _newest(node.place.run_dir, job, roster)
        identity = identity_at(node.place, node.audit, passphrase_file, passphrase_fd)
        log = log_folder(node.place.home, node.place.name)
        card, later = line_of(log, None)
        report = verify_log(log, card, tuple(against or ()), later)
        entries = []
        if report.ok:
            vault = node.vault
            keys = IdentityService(identity) if vault is None else open_key(vault.key, identity)
            with logbook(node.place, node.audit, identity, keys, "evidence") as opened:
                digest = found.job.digest().hex()
                entries = [pair for pair in opened.entries() if pair[1].digest == digest]
        made = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        said = evidence_of(
            found, roster, node=node.place.name, made=made, log=report, entries=entries
        )
        html = page(said)
        files = {
            JSON_FILE: msgspec.json.format(msgspec.json.encode(said), indent=2) + b"\n",
            HTML_FILE: html,
            BOM_FILE: bom,
            RECORD_FILE: record,
        }
        if pdf:
            files[PDF_FILE] = printed(html)
        write_pack(out, files, identity, made)
        if output is Format.json:
            status = "ok" if said.verified else "AuditTamperedError"
            about = {"session": said.session, "verified": said.verified, "faults": said.faults}
            emit({"status": status, "evidence": str(out), "files": sorted(files), **about})
        else:
            say(f"Evidence about {said.job}, session {said.session}: {out}")
        for fault in said.faults:
            say(f"error: not verified: {fault}", aside=True)
        if not said.verified:
            raise typer.Exit(NOT_VERIFIED)


@evidence.command("verify")
def evidence_verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What evidence JOB wrote.")],
    cards: Annotated[
        Path | None,
        typer.Option(help="Cards of all whom the job names, and of the node that wrote it."),
    ] = None,
    home: HomeOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Check that evidence is what its node signed, and that it fits what all nodes signed.

    Needs no key. Exit status 9 if it is not, or if it says itself that something is not verified.
    """
    with reporting(output):
        from mpc_train.base.release import version
        from mpc_train.errors import ArtifactError
        from mpc_train.node.collect import RECORD_FILE
        from mpc_train.node.evidence import differing, read_evidence
        from mpc_train.node.evidence_page import page
        from mpc_train.node.pack import read_pack
        from mpc_train.node.provenance import verify_record
        from parties.keys.roster import Roster

        roster = Roster.load(cards if cards is not None else home_of(home) / "roster")
        node, files = read_pack(folder, roster)
        missing = [name for name in (*OWN_FILES, RECORD_FILE) if name not in files]
        if missing:
            raise ArtifactError(f"{folder}: lacks {', '.join(missing)}")
        found = verify_record(files[RECORD_FILE], roster)
        try:
            said = read_evidence(files[JSON_FILE])
        except ValueError as error:
            raise ArtifactError(f"{folder / JSON_FILE}: not evidence: {error}") from error
        run = found.record
        about = (run.contract.digest().hex(), run.statement.sid.hex(), run.digest().hex())
        if (said.contract, said.session, said.statement) != about or said.node != node:
            raise ArtifactError(f"{folder / JSON_FILE}: is about another run than {RECORD_FILE}")
        # Another release may say and show the same differently.
        same_release = said.versions.get("mpc-train") == version()
        if wrong := differing(said, found, roster, words=same_release):
            raise ArtifactError(
                f"{folder / JSON_FILE}: its {', '.join(wrong)} are not those of {RECORD_FILE}, "
                "which all nodes signed"
            )
        if same_release and page(said) != files[HTML_FILE]:
            raise ArtifactError(f"{folder / HTML_FILE}: does not say what {JSON_FILE} says")
        if output is Format.json:
            status = "ok" if said.verified else "AuditTamperedError"
            emit(
                {
                    "status": status,
                    "node": node,
                    "job": said.job,
                    "session": said.session,
                    "signed_by": found.nodes,
                    "verified": said.verified,
                    "faults": said.faults,
                    "page_compared": same_release,
                }
            )
        else:
            say(f"Evidence about {said.job}, session {said.session}, signed by {node}")
            say(f"Results signed by {', '.join(found.nodes)}")
            if not same_release:
                other = said.versions.get("mpc-train", "unknown")
                say(
                    f"Warning {node} says that release {other} wrote it; this is {version()}, and "
                    f"did not compare {HTML_FILE} and the explanations with what all nodes signed"
                )
        for fault in said.faults:
            say(f"error: {node} says: not verified: {fault}", aside=True)
        if not said.verified:
            raise typer.Exit(NOT_VERIFIED)


def _newest(runs: Path, job: str, roster: "Roster") -> "tuple[Provenance, bytes]":
    """The newest run of a job below `runs`, verified, and its record."""
    from mpc_train.errors import ArtifactError
    from mpc_train.node.collect import RECORD_FILE
    from mpc_train.node.provenance import read_result, verify_record
    from parties.agreement.result import MAX_RECORD_BYTES, Record
    from parties.errors import ContractError

    newest: tuple[float, bytes] | None = None
    there: set[str] = set()
    for path in sorted(runs.glob(f"*/{RECORD_FILE}")):
        data = read_result(path, MAX_RECORD_BYTES)
        try:
            contract = Record.from_bytes(data).contract
        except ContractError as error:
            raise ArtifactError(f"{path}: {error}") from error
        there.add(contract.name)
        when = path.stat().st_mtime
        named = job in (contract.name, contract.body_digest.hex())
        if named and (newest is None or when > newest[0]):
            newest = when, data
    if newest is None:
        known = ", ".join(sorted(there)) or "no job"
        raise ArtifactError(
            f"{runs}: no finished run of {job!r} here, only of {known}; name the job, or give its "
            "digest"
        )
    return verify_record(newest[1], roster), newest[1]
