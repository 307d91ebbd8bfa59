"""`mpc-train open`: a recipient turns a sealed model into an ordinary one."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    open_vault,
    reporting,
)

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.results.contribution import Consent
    from mpc_train.results.opening import OpenedMetrics, OpenedModel
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
    with reporting(output):
        from mpc_train.admission.load import load_job
        from mpc_train.errors import ArtifactError
        from mpc_train.results.report import metric
        from parties.keys.roster import Roster

        expected = load_job(job) if job is not None else None
        folder = home_of(home)
        me = find_name(folder, name)
        known = Roster.load(roster or folder / "roster")
        vault = open_vault(folder, me, passphrase_file, passphrase_fd)
        if opener is not None:
            _contribute(sealed, vault, known, opener, out, expected, yes=yes, output=output)
            return
        if is_metrics(sealed):
            if parts:
                raise ArtifactError("each reader opens metrics alone; leave out --with")
            place = out or sealed.parent
            _show_metrics(*open_metrics_file(sealed, vault, known, place, expected), output)
            return
        model, path = open_file(sealed, vault, known, out or sealed.parent, expected, parts or ())
        table = model.results
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "model": str(path),
                    "manifest": str(path.with_name("manifest.json")),
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
        say(f"Model {path}")


def _show_metrics(opened: "OpenedMetrics", path: Path, output: Format) -> None:
    from mpc_train.results.report import metric

    warnings = [f"{name} has no possible value" for name in opened.impossible]
    if output is Format.json:
        emit(
            {
                "status": "ok",
                "metrics_file": str(path),
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
    say(f"Metrics {path}")


def is_metrics(sealed: Path) -> bool:
    """Whether a sealed file says that it contains metrics. Raises ArtifactError, EnvelopeError."""
    from mpc_train.results.artifact import METRICS
    from mpc_train.results.opening import sealed_title

    return sealed_title(_read(sealed, MAX_SEALED_BYTES)) == METRICS


def open_metrics_file(
    sealed: Path, vault: "Vault", roster: "Roster", out: Path, job: "Job | None" = None
) -> "tuple[OpenedMetrics, Path]":
    """Open sealed metrics as the identity in `vault`; write metrics.json to `out`, return its path.

    Raises ArtifactError, EnvelopeError; nothing is written unless all checks succeed.
    """
    from mpc_train.node.provenance import verify_sealed
    from mpc_train.results.opening import METRICS_FILE, open_metrics

    blob = _read(sealed, MAX_SEALED_BYTES)
    found = verify_sealed(blob, roster)
    opened = open_metrics(
        blob, recipient=vault.card.name, private=vault, cards=found.cards, job=job
    )
    _write(out, opened.files, METRICS_FILE)
    return opened, out / METRICS_FILE


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


def _contribute(
    sealed: Path,
    vault: "Vault",
    roster: "Roster",
    opener: str,
    out: Path | None,
    job: "Job | None",
    *,
    yes: bool,
    output: Format,
) -> None:
    """Show what a contribution agrees to, ask, and write it. Nobody is asked about a job that was
    given: it says what the file must contain."""
    from mpc_train.errors import ArtifactError
    from parties.files import write_atomic

    made, consent = contribution_of(sealed, vault, roster, opener, job)
    me, names = vault.card.name, ", ".join(consent.recipients)
    if output is Format.text:
        say(f"{sealed} contains {consent.about}")
        say(f"session {consent.sid}; {consent.threshold} of {names} together can open it")
        say(f"With this contribution of {me}, and those of others, {consent.opener} opens it")
    if not (yes or job is not None):
        if output is Format.json or not sys.stdin.isatty():
            raise ArtifactError(
                "nothing was written: there is no terminal to ask at; give the job's file with "
                "--job, or --yes"
            )
        if not typer.confirm(f"Contribute to the opening by {consent.opener}?", default=False):
            raise ArtifactError("nothing was written")
    path = out or sealed.with_name(f"{sealed.stem}-{me}-for-{opener}.part")
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


def open_file(
    sealed: Path,
    vault: "Vault",
    roster: "Roster",
    out: Path,
    job: "Job | None" = None,
    parts: Sequence[Path] = (),
) -> "tuple[OpenedModel, Path]":
    """Open `sealed` as the identity in `vault`, with the contributions in the files `parts`; write
    its files to `out`; return the model's path.

    Raises ArtifactError, EnvelopeError, RosterError, also if a node of the run did not sign its
    results; nothing is written unless all checks succeed.
    """
    from mpc_train.node.provenance import SIGNATURE_FILE, sign_manifest, verify_sealed
    from mpc_train.results.contribution import MAX_CONTRIBUTION_BYTES
    from mpc_train.results.opening import MANIFEST_FILE, MODEL_FILE, open_model

    blob = _read(sealed, MAX_SEALED_BYTES)
    found = verify_sealed(blob, roster)
    model = open_model(
        blob,
        recipient=vault.card.name,
        private=vault,
        cards=found.cards,
        job=job,
        contributions=[_read(part, MAX_CONTRIBUTION_BYTES) for part in parts],
        record=found.record.to_bytes(),
    )
    signature = sign_manifest(model.files[MANIFEST_FILE], vault)
    _write(out, {**model.files, SIGNATURE_FILE: signature}, MANIFEST_FILE)
    return model, out / MODEL_FILE
