"""`mpc-train open`: a recipient turns a sealed model into an ordinary one."""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import (
    Format,
    FormatOption,
    HomeOption,
    OpenedNode,
    PassphraseFdOption,
    PassphraseFileOption,
    check_there,
    emit,
    find_name,
    home_of,
    open_vault,
    opened_vault,
    reporting,
)

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.results.contribution import Consent
    from mpc_train.results.opening import OpenedMetrics, OpenedModel
    from parties.audit.entries import Kind, Value
    from parties.keys.roster import Roster
    from parties.keys.vault import Vault

MAX_SEALED_BYTES = 1 << 36
"""Far larger than any model that a run can train; the file is read completely."""


def open_command(
    sealed: Annotated[Path, typer.Argument(metavar="MODEL.sealed", help="The sealed model.")],
    name: Annotated[
        str | None,
        typer.Option(help="The recipient; may be omitted if there is only one identity."),
    ] = None,
    job: Annotated[
        Path | None, typer.Option(help="Accept only this job; default: the job that was signed.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory for the model, or file for the contribution; default: beside the "
            "sealed file."
        ),
    ] = None,
    parts: Annotated[
        list[Path] | None,
        typer.Option(
            "--with", help="A contribution of another recipient, if the job requires several."
        ),
    ] = None,
    contribute: Annotated[
        bool,
        typer.Option(
            "--contribute", help="Open nothing; contribute to another recipient's opening (--for)."
        ),
    ] = False,
    opener: Annotated[
        str | None, typer.Option("--for", help="With --contribute: the recipient who will open.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --contribute: do not ask before it is written.")
    ] = False,
    roster: Annotated[
        Path | None, typer.Option(help="Cards of the evaluators; default: roster in the home.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="This recipient's own file as a node: it names identity, home and roster, and the "
            "opening gets an entry in its audit log."
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="With --config: keep the files in the vault, under this name."
        ),
    ] = None,
    home: HomeOption = None,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Open a sealed model that all nodes of its run signed: write model.safetensors and a signed
    manifest.json, or nothing.

    If the job requires several recipients, one opens with the contributions of the others.
    """
    if contribute != (opener is not None):
        raise typer.BadParameter("--contribute and --for NAME belong together")
    if contribute and parts:
        raise typer.BadParameter("--with is for the recipient who opens")
    if keep is not None and (config is None or contribute or out is not None):
        raise typer.BadParameter("--keep NAME needs --config, and takes the place of --out")
    if config is not None and any(each is not None for each in (name, roster, home)):
        raise typer.BadParameter("--config names the identity, its home and its roster")
    with reporting(output):
        from mpc_train.admission.load import load_job
        from mpc_train.errors import ArtifactError
        from parties.audit.entries import Kind
        from parties.keys.roster import Roster

        expected = load_job(job) if job is not None else None
        with contextlib.ExitStack() as held:
            node = None
            if config is not None:
                node = held.enter_context(
                    opened_vault(config, passphrase_file, passphrase_fd, "open")
                )
                vault, known = node.identity, Roster.load(node.config.place.roster)
            else:
                folder = home_of(home)
                me = find_name(folder, name)
                known = Roster.load(roster or folder / "roster")
                vault = open_vault(folder, me, passphrase_file, passphrase_fd)
            check_there(sealed, "the sealed file that the run left")
            target = _Target(sealed, node, out or sealed.parent, keep)
            if opener is not None:
                made, consent = contribution_of(sealed, vault, known, opener, expected)
                if not _agreed(sealed, consent, vault.card.name, yes or job is not None, output):
                    raise ArtifactError("nothing was written")
                path = out or sealed.with_name(f"{sealed.stem}-{vault.card.name}-for-{opener}.part")
                target.log(Kind.CONTRIBUTION_MADE, {"opener": opener})
                _write_contribution(path, made, consent, output)
            elif is_metrics(sealed):
                if parts:
                    raise ArtifactError("each reader opens metrics alone; leave out --with")
                metrics = opened_metrics(sealed, vault, known, expected)
                _show_metrics(metrics, target.take_metrics(metrics), output)
            else:
                model, files = opened_model(sealed, vault, known, expected, parts or ())
                _show_model(model, target.take_model(model, files), output)


@dataclass
class _Target:
    """Where opened files go: into a folder in the clear, or into the vault of a node."""

    sealed: Path
    node: OpenedNode | None
    out: Path
    keep: str | None

    def log(self, kind: "Kind", fields: "dict[str, Value]", job: "Job | None" = None) -> None:
        """Write what is about to happen into the node's audit log."""
        if self.node is None:
            return
        digest = sha256(_read(self.sealed, MAX_SEALED_BYTES)).hexdigest()
        name, job_digest = ("", "") if job is None else (job.name, job.digest().hex())
        self.node.audit.append(kind, {"sealed": digest, **fields}, job=name, digest=job_digest)

    def take_model(self, model: "OpenedModel", files: dict[str, bytes]) -> str:
        """Keep or write the files; return where the model is."""
        from mpc_train.node.storage import MODEL
        from mpc_train.results.kept import KeptModel
        from mpc_train.results.opening import MANIFEST_FILE, MODEL_FILE
        from parties.audit.entries import Kind

        self.log(Kind.MODEL_OPENED, {"to": self.keep or ""}, model.job)
        if self.node is None or self.keep is None:
            _write(self.out, files, MANIFEST_FILE)
            return str(self.out / MODEL_FILE)
        digest = model.job.digest().hex()
        with self.node.store.writing(MODEL, self.keep, digest) as kept:
            kept.write(KeptModel("", files).packed())
        return f"vault:{self.keep}"

    def take_metrics(self, metrics: "OpenedMetrics") -> str:
        """Keep or write the metrics; return where they are."""
        from mpc_train.node.storage import METRICS
        from mpc_train.results.opening import METRICS_FILE
        from parties.audit.entries import Kind

        self.log(Kind.METRICS_OPENED, {"to": self.keep or ""}, metrics.job)
        if self.node is None or self.keep is None:
            _write(self.out, metrics.files, METRICS_FILE)
            return str(self.out / METRICS_FILE)
        digest = metrics.job.digest().hex()
        with self.node.store.writing(METRICS, self.keep, digest) as kept:
            kept.write(metrics.files[METRICS_FILE])
        return f"vault:{self.keep}"


def _show_model(model: "OpenedModel", place: str, output: Format) -> None:
    """place: of the model, a file or an object of the vault."""
    from mpc_train.results.report import metric

    table = model.results
    if output is Format.json:
        manifest = (
            {}
            if place.startswith("vault:")
            else {"manifest": str(Path(place).parent / "manifest.json")}
        )
        emit(
            {
                "status": "ok",
                "model": place,
                **manifest,
                "job": model.job.name,
                "job_digest": model.job.digest().hex(),
                "metrics": model.metrics,
                "unavailable": model.unavailable,
                "preparation": model.remarks,
                **({} if table is None else {"results": asdict(table)}),
                "warnings": [*model.warnings, *(() if table is None else table.warnings)],
            }
        )
        return
    say(f"Job {model.job.name}, digest {model.job.digest().hex()}")
    say(f"Signed and sealed by {', '.join(model.job.evaluators)}")
    for measure, value in model.metrics.items():
        say(f"Metric {metric(measure, value, model.unavailable)}")
    for warning in model.warnings:
        say(f"Warning {warning}")
    for line in () if table is None else table.lines():
        say(line)
    say(f"Model {place}")


def _show_metrics(opened: "OpenedMetrics", place: str, output: Format) -> None:
    from mpc_train.results.report import metric

    warnings = [f"{name} has no possible value" for name in opened.impossible]
    if output is Format.json:
        emit(
            {
                "status": "ok",
                "metrics_file": place,
                "job": opened.job.name,
                "job_digest": opened.job.digest().hex(),
                "metrics": opened.metrics,
                "unavailable": opened.unavailable,
                "warnings": warnings,
            }
        )
        return
    say(f"Job {opened.job.name}, digest {opened.job.digest().hex()}")
    say(f"Signed and sealed by {', '.join(opened.job.evaluators)}")
    for measure, value in opened.metrics.items():
        say(f"Metric {metric(measure, value, opened.unavailable)}")
    say(f"Metrics {place}")


def is_metrics(sealed: Path) -> bool:
    """Whether a sealed file says that it contains metrics. Raises ArtifactError, EnvelopeError."""
    from mpc_train.results.artifact import METRICS
    from mpc_train.results.opening import sealed_title

    return sealed_title(_read(sealed, MAX_SEALED_BYTES)) == METRICS


def opened_metrics(
    sealed: Path, vault: "Vault", roster: "Roster", job: "Job | None" = None
) -> "OpenedMetrics":
    """The metrics in `sealed`, opened as the identity in `vault`.

    Raises ArtifactError, EnvelopeError, RosterError.
    """
    from mpc_train.node.provenance import verify_sealed
    from mpc_train.results.opening import open_metrics

    blob = _read(sealed, MAX_SEALED_BYTES)
    found = verify_sealed(blob, roster)
    return open_metrics(blob, recipient=vault.card.name, private=vault, cards=found.cards, job=job)


def _write(out: Path, files: dict[str, bytes], last: str) -> None:
    """Write files into a directory; `last` last: if it exists, so do the others."""
    from mpc_train.errors import ArtifactError
    from parties.files import private_directory, write_atomic

    try:
        private_directory(out)
        for name in sorted(files, key=lambda name: name == last):
            write_atomic(out / name, files[name])
    except OSError as error:
        raise ArtifactError(f"{out}: cannot be written ({error.strerror})") from error


def _agreed(sealed: Path, consent: "Consent", me: str, told: bool, output: Format) -> bool:
    """Show what a contribution agrees to, and ask. told: nobody needs to be asked, because a job
    was given, which says what the file must contain, or --yes."""
    from mpc_train.errors import ArtifactError

    if output is Format.text:
        say(f"{sealed} contains {consent.about}")
        names = ", ".join(consent.recipients)
        say(f"session {consent.sid}; {consent.threshold} of {names} together can open it")
        say(f"With this contribution of {me}, and those of others, {consent.opener} opens it")
    if told:
        return True
    if output is Format.json or not sys.stdin.isatty():
        raise ArtifactError(
            "nothing was written: there is no terminal to ask at; give the job's file with "
            "--job, or --yes"
        )
    return typer.confirm(f"Contribute to the opening by {consent.opener}?", default=False)


def _write_contribution(path: Path, made: bytes, consent: "Consent", output: Format) -> None:
    from mpc_train.errors import ArtifactError
    from parties.files import write_atomic

    try:
        write_atomic(path, made)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written ({error.strerror})") from error
    if output is Format.json:
        emit({"status": "ok", "contribution": str(path), **asdict(consent)})
        return
    say(f"Contribution {path}: send it to {consent.opener}")


def contribution_of(
    sealed: Path, vault: "Vault", roster: "Roster", opener: str, job: "Job | None" = None
) -> "tuple[bytes, Consent]":
    """This recipient's contribution to the opening of `sealed` by `opener`, not yet written.

    Raises ArtifactError, EnvelopeError.
    """
    from mpc_train.node.provenance import verify_sealed
    from mpc_train.results.artifact import MODEL, contents_of
    from mpc_train.results.contribution import contribute

    blob = _read(sealed, MAX_SEALED_BYTES)
    found = verify_sealed(blob, roster)
    return contribute(
        blob,
        me=vault.card.name,
        private=vault,
        cards=found.cards,
        opener=opener,
        subject=None if job is None else contents_of(job, MODEL).subject(job),
    )


def _read(path: Path, most: int) -> bytes:
    from mpc_train.errors import ArtifactError
    from parties.files import read_bounded

    try:
        return bytes(read_bounded(path, min(path.stat().st_size, most)))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ArtifactError(f"{path}: cannot be read ({reason})") from error


def _part(path: Path, most: int) -> bytes:
    """The contribution in this file; raises ArtifactError, which names the file, for another."""
    from mpc_train.errors import ArtifactError
    from protocols.errors import EnvelopeError
    from protocols.sealing.envelope import read_info

    blob = _read(path, most)
    try:
        read_info(blob)
    except EnvelopeError as error:
        raise ArtifactError(
            f"{path}: not a contribution ({error}); --with takes what a recipient's mpc-train open "
            "--contribute wrote"
        ) from error
    return blob


def opened_model(
    sealed: Path,
    vault: "Vault",
    roster: "Roster",
    job: "Job | None" = None,
    parts: Sequence[Path] = (),
) -> "tuple[OpenedModel, dict[str, bytes]]":
    """The model in `sealed`, opened as the identity in `vault`, with the contributions in the files
    `parts`; and its files, with the recipient's signature.

    Raises ArtifactError, EnvelopeError, RosterError, also if a node of the run did not sign its
    results.
    """
    from mpc_train.node.provenance import SIGNATURE_FILE, sign_manifest, verify_sealed
    from mpc_train.results.contribution import MAX_CONTRIBUTION_BYTES
    from mpc_train.results.opening import MANIFEST_FILE, open_model

    blob = _read(sealed, MAX_SEALED_BYTES)
    found = verify_sealed(blob, roster)
    model = open_model(
        blob,
        recipient=vault.card.name,
        private=vault,
        cards=found.cards,
        job=job,
        contributions=[_part(part, MAX_CONTRIBUTION_BYTES) for part in parts],
        record=found.record.to_bytes(),
    )
    signature = sign_manifest(model.files[MANIFEST_FILE], vault)
    return model, {**model.files, SIGNATURE_FILE: signature}


def open_file(
    sealed: Path,
    vault: "Vault",
    roster: "Roster",
    out: Path,
    job: "Job | None" = None,
    parts: Sequence[Path] = (),
) -> "tuple[OpenedModel, Path]":
    """As `opened_model`; write the files to `out`, or nothing; return the model's path."""
    from mpc_train.results.opening import MANIFEST_FILE, MODEL_FILE

    model, files = opened_model(sealed, vault, roster, job, parts)
    _write(out, files, MANIFEST_FILE)
    return model, out / MODEL_FILE


def open_metrics_file(
    sealed: Path, vault: "Vault", roster: "Roster", out: Path, job: "Job | None" = None
) -> "tuple[OpenedMetrics, Path]":
    """As `opened_metrics`; write metrics.json to `out`, and return its path."""
    from mpc_train.results.opening import METRICS_FILE

    metrics = opened_metrics(sealed, vault, roster, job)
    _write(out, metrics.files, METRICS_FILE)
    return metrics, out / METRICS_FILE
