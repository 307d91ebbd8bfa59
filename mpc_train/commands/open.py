"""`mpc-train open`: a recipient turns a sealed model into an ordinary one."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from mpc_train.results.opening import OpenedModel
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
        Path | None, typer.Option(help="Directory for the model; default: beside the sealed file.")
    ] = None,
    roster: Annotated[
        Path | None, typer.Option(help="Cards of the evaluators; default: roster in the home.")
    ] = None,
    home: HomeOption = None,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Open a sealed model that all nodes of its run signed: write model.safetensors and a signed
    manifest.json, or nothing."""
    with reporting(output):
        from mpc_train.admission.load import load_job
        from mpc_train.results.report import metric
        from parties.keys.roster import Roster

        expected = load_job(job) if job is not None else None
        folder = home_of(home)
        me = find_name(folder, name)
        known = Roster.load(roster or folder / "roster")
        vault = open_vault(folder, me, passphrase_file, passphrase_fd)
        model, path = open_file(sealed, vault, known, out or sealed.parent, expected)
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


def open_file(
    sealed: Path, vault: "Vault", roster: "Roster", out: Path, job: Any = None
) -> "tuple[OpenedModel, Path]":
    """Open `sealed` as the identity in `vault`; write its files to `out`; return the model's path.

    Raises ArtifactError, EnvelopeError, RosterError, also if a node of the run did not sign its
    results; nothing is written unless all checks succeed.
    """
    from mpc_train.errors import ArtifactError
    from mpc_train.node.provenance import (
        SIGNATURE_FILE,
        read_result,
        sign_manifest,
        verify_sealed,
    )
    from mpc_train.results.opening import MANIFEST_FILE, MODEL_FILE, open_model
    from parties.files import private_directory, write_atomic
    from protocols.sealing.bundle import unpack_bundle

    blob = read_result(sealed, MAX_SEALED_BYTES)
    found = verify_sealed(blob, roster)
    record, envelopes = unpack_bundle(blob)
    model = open_model(
        envelopes,
        recipient=vault.card.name,
        private=vault,
        cards=found.cards,
        job=job,
        record=record,
    )
    manifest = model.files[MANIFEST_FILE]
    try:
        private_directory(out)
        # The manifest is written last: if it exists, so does the model that it describes.
        for name, content in model.files.items():
            if name != MANIFEST_FILE:
                write_atomic(out / name, content)
        write_atomic(out / SIGNATURE_FILE, sign_manifest(manifest, vault))
        write_atomic(out / MANIFEST_FILE, manifest)
    except OSError as error:
        raise ArtifactError(f"{out}: cannot be written ({error.strerror})") from error
    return model, out / MODEL_FILE
