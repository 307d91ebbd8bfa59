"""`mpc-train model`: a torch module as data that a job can carry; where a trained model comes
from; models in shares."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import (
    ConfigOption,
    Format,
    FormatOption,
    HomeOption,
    PassphraseFdOption,
    PassphraseFileOption,
    ask_to_destroy,
    check_there,
    emit,
    home_of,
    opened_vault,
    reporting,
)
from mpc_train.errors import ModelError

if TYPE_CHECKING:
    from mpc_train.shared.library import Held

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Of the job that trained it.")]
VersionOption = Annotated[
    int, typer.Option(min=0, help="As `model list` shows it; 0: the newest that is signed.")
]

model = typer.Typer(no_args_is_help=True, help="Networks of your own, and trained models.")


@model.callback()
def _model() -> None:
    """Networks of your own, and trained models."""


@model.command("export")
def model_export(
    factory: Annotated[
        str,
        typer.Argument(
            metavar="PACKAGE.MODULE:FACTORY", help="The function that makes the network."
        ),
    ],
    input_shape: Annotated[str, typer.Option(help="Shape of a row, channels first, like 1,28,28.")],
    seed: Annotated[int, typer.Option(help="Seed of the initial weights.")] = 0,
    output: FormatOption = Format.text,
) -> None:
    """Print a network and its initial weights as one line of JSON, for `[model] graph` of a job."""
    with reporting(output):
        import msgspec

        from mpc_train.networks.carried import made_by

        try:
            shape = tuple(int(size) for size in input_shape.split(","))
        except ValueError:
            raise ModelError(f"--input-shape {input_shape}: write sizes like 1,28,28") from None
        found = msgspec.structs.replace(made_by(factory, shape, seed), source="")
        say(msgspec.json.encode(found).decode())


@model.command("verify")
def model_verify(
    path: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A sealed file, or the folder of an opened one.")
    ],
    cards: Annotated[
        Path | None,
        typer.Option(help="Cards of all whom the job names: a folder or a roster file."),
    ] = None,
    home: HomeOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Check that all nodes of a run signed this model, and say what they signed. Needs no key.

    The cards default to the roster in the home. Exit status 9 if anything does not fit.
    """
    with reporting(output):
        import msgspec

        from mpc_train.commands.open import MAX_SEALED_BYTES
        from mpc_train.node.provenance import read_result, verify_opened, verify_sealed
        from mpc_train.privacy.words import as_json, lines
        from parties.keys.roster import Roster

        check_there(path, "a sealed file, or the folder of an opened one")
        roster = Roster.load(cards if cards is not None else home_of(home) / "roster")
        if path.is_dir():
            found = verify_opened(path, roster)
        else:
            found = verify_sealed(read_result(path, MAX_SEALED_BYTES), roster)
        record, outcome = found.record, found.outcome
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "job": found.job.name,
                    "job_digest": found.job.digest().hex(),
                    "contract": record.contract.digest().hex(),
                    "session": record.statement.sid.hex(),
                    "statement": record.digest().hex(),
                    "signed_by": found.nodes,
                    "recipient": found.recipient,
                    "files": found.files,
                    "unchecked": found.unchecked,
                    "privacy": as_json(found.job),
                    **msgspec.to_builtins(outcome),
                }
            )
            return
        say(f"Job {found.job.name}, digest {found.job.digest().hex()}")
        say(f"Contract {record.contract.digest().hex()}")
        say(f"Statement {record.digest().hex()}, signed by {', '.join(found.nodes)}")
        what = f"opened by {found.recipient}: {', '.join(found.files)}"
        say(f"Model {what if found.files else f'sealed to {found.recipient}'}")
        of = f", of {outcome.initial.owner}" if outcome.initial.owner else ""
        say(f"First weights: {outcome.initial.kind}{of}, {outcome.initial.digest}")
        for one in outcome.openings:
            names = ", ".join(name for name, _ in one.outputs)
            times = "" if one.times == 1 else f", {one.times} times"
            say(f"Opened to {', '.join(one.to)} by {one.clause}{times}: {names}")
        for line in lines(found.job) or ["no differential privacy was promised"]:
            say(f"Privacy {line}")
        for line in found.unchecked:
            say(f"Warning {line}")


@model.command("list")
def model_list(
    config: ConfigOption,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """List the models of which this evaluator keeps a share."""
    with reporting(output):
        from mpc_train.shared.library import held_models

        opening = opened_vault(config, passphrase_file, passphrase_fd, "model list")
        with opening as (store, *_):
            found = [*held_models(store)]
        if output is Format.json:
            emit({"status": "ok", "models": [_record(held) for held in found]})
            return
        for held in found:
            signed = "" if held.is_signed else "  not signed: its run did not end"
            version = held.version or "-"
            times = _refreshed(held)
            job = held.about.job
            say(
                f"{held.name} {version}  {held.created}  {held.about.digest[:16]}  "
                f"{job.model.kind}, with {', '.join(job.evaluators)}; {job.dealer} dealt"
                f"{times}{signed}"
            )
        if not found:
            say("no model in shares is kept here", aside=True)


@model.command("show")
def model_show(
    name: NameArgument,
    config: ConfigOption,
    version: VersionOption = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write what others need to know to serve or measure it: its job, no share.",
        ),
    ] = None,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Say what a model in shares is, and check that all nodes of its run signed it.

    Exit status 9 if they did not.
    """
    with reporting(output):
        from mpc_train.node.provenance import verify_shared
        from mpc_train.privacy.words import as_json
        from mpc_train.results.report import describe
        from mpc_train.shared.description import Description
        from mpc_train.shared.library import find, record_of, share_of
        from parties.files import write_atomic
        from parties.keys.roster import Roster

        opening = opened_vault(config, passphrase_file, passphrase_fd, "model show")
        with opening as (store, _, _, node):
            held = find(store, name, version)
            record = record_of(store, held)
            share_of(store, held)  # each chunk of it is verified
        found = verify_shared(held.about, record, Roster.load(node.place.roster))
        if out is not None:
            write_atomic(out, Description(held.about.job, held.about.public.sid).to_bytes())
        if output is Format.json:
            said = {"signed_by": list(found.nodes), "privacy": as_json(held.about.job)}
            emit({"status": "ok", **_record(held), "training_counts": _counts(held), **said})
            return
        say(describe(held.about.job))
        say(
            f"Model {held.about.digest}, version {held.version} here, kept {held.created}"
            f"{_refreshed(held)}"
        )
        say(f"Statement {found.record.digest().hex()}, signed by {', '.join(found.nodes)}")
        for histogram, bins in (_counts(held) or {}).items():
            counted = ", ".join(f"{one} {count}" for one, count in bins.items())
            say(f"Training rows, with noise, by {histogram}: {counted}")
        if out is not None:
            say(f"What is public of it is in {out}")


@model.command("refresh")
def model_refresh(
    name: NameArgument,
    config: ConfigOption,
    out: Annotated[Path, typer.Option(metavar="JOB.toml", help="The job file to write.")],
    version: VersionOption = 0,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Write the job that gives all evaluators new shares of a model: the old ones, and copies of
    them, are worth nothing from then on.

    Run it like any other, by a coordinator, the evaluators and the dealer. The model stays the
    same, and so do its name, its digest and what was signed about it.
    """
    with reporting(output):
        from mpc_train.shared.description import Description
        from mpc_train.shared.library import find
        from mpc_train.shared.measuring import refreshing_job, write_job

        opening = opened_vault(config, passphrase_file, passphrase_fd, "model refresh")
        with opening as (store, *_):
            held = find(store, name, version)
        described = Description(held.about.job, held.about.public.sid)
        job = write_job(refreshing_job(described, f"refresh-{name}"[:63]), out)
        if output is Format.json:
            emit(
                {
                    "status": "ok",
                    "job_digest": job.digest().hex(),
                    "file": str(out),
                    **_record(held),
                }
            )
            return
        say(f"Job {job.name}, digest {job.digest().hex()}: {out}")
        nodes = ", ".join((*job.evaluators, job.dealer))
        say(f"Give it to a coordinator; {nodes} take part in it")


@model.command("retire")
def model_retire(
    name: NameArgument,
    config: ConfigOption,
    version: VersionOption = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Destroy this evaluator's share of a model: nobody can use or open the model any more.

    Who has a copy of the vault still needs its key: rotate it afterwards.
    """
    with reporting(output):
        from mpc_train.shared.library import find, retire
        from parties.audit.entries import Kind

        opening = opened_vault(config, passphrase_file, passphrase_fd, "model retire")
        with opening as (store, audit, _, node):
            held = find(store, name, version)
            if not yes:
                what = f"this node's share of the model {name}, version {held.version}"
                others = [one for one in held.about.job.evaluators if one != node.place.name]
                ask_to_destroy(
                    f"Destroy {what}? What {', '.join(others)} keep of it is worth nothing then.",
                    output,
                )
            job = held.about.job
            audit.append(
                Kind.MODEL_RETIRED,
                {"model": held.about.digest},
                job=job.name,
                digest=job.digest().hex(),
            )
            retire(store, held)
        if output is Format.json:
            emit({"status": "ok", "name": name, "version": held.version})
            return
        say(f"{name} {held.version}: destroyed")
        if held.about.job.serve is not None:
            say(
                "if mpc-train serve runs on this node, it refuses questions to this model from now "
                "on, and forgets the share when it is started again",
                aside=True,
            )


def _refreshed(held: "Held") -> str:
    """How often this model's shares were renewed, for people."""
    times = held.about.public.refreshed
    return f", refreshed {times} time{'s' if times > 1 else ''}" if times else ""


def _record(held: "Held") -> dict[str, Any]:
    job = held.about.job
    return {
        "name": held.name,
        "version": held.version,
        "digest": held.about.digest,
        "created": held.created,
        "signed": held.is_signed,
        "refreshed": held.about.public.refreshed,
        "kind": job.model.kind,
        "job_digest": job.digest().hex(),
        "session": held.about.public.sid,
        "evaluators": list(job.evaluators),
        "dealer": job.dealer,
        "columns": [feature.name for feature in job.features],
    }


def _counts(held: "Held") -> dict[str, dict[str, int]] | None:
    """The noisy counts of the training rows, by histogram and bin; None: windows of a service are
    compared with the first one, or no drift is watched."""
    from mpc_train.evaluation.histograms import histograms, named

    found = held.about.training_counts
    return None if found is None else named(histograms(held.about.job), found)
