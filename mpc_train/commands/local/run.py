"""`mpc-train run`: all nodes of a job as processes on this machine. `launch.py` calls this."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpc_train.base.printing import say
from mpc_train.commands.common import (
    Format,
    FormatOption,
    LiveOption,
    VerboseOption,
    emit,
    reporting,
)
from mpc_train.commands.local.children import (
    SETTLE_S,
    Logs,
    failure,
    fresh_folder,
    identities,
    last_record,
    own_code,
    ready,
    record_of,
)
from mpc_train.errors import NodeFailedError

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job
    from mpc_train.run.local import LocalNode
    from mpc_train.tables.source import Source
    from parties.keys.vault import FileVault

OWN_ORDER = (
    "nobody can repeat the order of the joined rows, so it holds out and batches other rows "
    "than the run did: the results differ by chance, not only by rounding"
)


def run_command(
    job_path: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")],
    output: FormatOption = Format.text,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Afterwards train in the clear on all owners' rows, and compare."
        ),
    ] = False,
    vault: Annotated[
        bool,
        typer.Option(
            "--vault", help="First keep each owner's table in its node's vault, and use it there."
        ),
    ] = False,
    run_dir: Annotated[
        Path | None, typer.Option(help="Directory of the run; default: runs/JOB-TIME.")
    ] = None,
    verbose: VerboseOption = False,
    live: LiveOption = None,
) -> None:
    """Run a whole job on this machine: each node is a process with its own keys.

    A rehearsal ends when a node is killed, and begins anew; nodes that are started one by one go on
    from their checkpoints (examples/three_machines).
    """
    with reporting(output):
        from mpc_train.admission.load import load_job
        from mpc_train.estimates.estimate import memory_needs
        from mpc_train.jobs.training import drops
        from mpc_train.live.board import Board
        from mpc_train.live.server import on_page
        from mpc_train.node.consent import roles_of
        from mpc_train.node.places import check_memory_together
        from mpc_train.results.report import beware, describe, outcome
        from mpc_train.run.local import local_data
        from mpc_train.run.progress import ProgressView
        from parties.agreement.contract import describe_trust
        from parties.stop import sigterm_interrupts

        job = load_job(job_path)
        data = local_data(job_path, job)
        check_memory_together(job, memory_needs(job))
        folder = fresh_folder(run_dir, job.name)
        view = ProgressView(enabled=output is Format.text)
        view.say("\n".join([describe(job), *beware(job), ""]))
        board = Board(job.nodes)

        def shown(kind: str, fields: dict[str, Any]) -> None:
            view.event(kind, fields)
            board.event(kind, fields)

        def page(url: str) -> None:
            view.say(f"Live at {url}  (in a terminal: mpc-train watch {url})")

        with sigterm_interrupts():
            with view.shown(), on_page(board, live, page):
                result, weights = _run(
                    job, job_path.absolute(), data, folder, shown, vault=vault, verbose=verbose
                )
            if compare:
                view.say(
                    "comparing: the same training in the clear, on pooled data (a local "
                    "demonstration: real organisations never pool)"
                    + (f"; {OWN_ORDER}" if own_order(job) else "")
                )
                if job.federates and job.privacy:
                    view.say("it adds no noise, so weights differ by that of the run")
                if not job.federates and drops(job) and job.train.dropout_mask == "hidden":
                    view.say("it draws its own dropout masks, so weights differ")
                result |= _compare(job, job_path, data, weights)
        if output is Format.json:
            emit(result)
            return
        trust = describe_trust(roles_of(job))
        say(f"\n{outcome(result, private=bool(job.privacy))}\n\n{trust}")
        say(
            "All nodes ran on this machine under one user: this was a rehearsal. What the "
            "statement says holds when each organisation runs its node itself."
        )


def own_order(job: "Job") -> bool:
    """Whether a run orders its rows in a way that only all its nodes together could repeat."""
    return job.data.join is not None and job.data.join.membership == "nobody"


def passing(
    coordinator: str, shown: Callable[[str, dict[str, Any]], None]
) -> Callable[[str, str], None]:
    """What passes on the events in a node's lines: all of the coordinator's, and of other nodes the
    training losses, which the coordinator does not learn; here one user is all nodes."""

    def told(name: str, line: str) -> None:
        record = record_of(line)
        if record is None or "event" not in record:
            return
        if (record["event"] == "loss") == (name != coordinator):
            shown(record.pop("event"), record)

    return told


def _run(
    job: "Job",
    job_path: Path,
    data: "dict[str, Source]",
    folder: Path,
    shown: Callable[[str, dict[str, Any]], None],
    *,
    vault: bool,
    verbose: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    from mpc_train.admission.load import resolved
    from mpc_train.commands.open import contribution_of, open_file, open_metrics_file
    from mpc_train.jobs.sealed import regression_shapes
    from mpc_train.node.collect import found_by
    from mpc_train.preparation.sealed import in_words
    from mpc_train.run.local import (
        coordinator_text,
        local_nodes,
        local_rules,
        local_start,
        node_text,
    )
    from parties.files import write_atomic
    from parties.keys.roster import Roster
    from parties.nodes.supervisor import ChildSpec, Supervisor

    coordinator, nodes = local_nodes(folder, job)
    outsiders = [name for name in job.names if name not in {node.name for node in nodes}]
    homes = {node.name: node.home for node in (coordinator, *nodes)}
    homes |= {name: folder / "recipients" / name / "keys" for name in outsiders}
    with identities(homes) as (vaults, passphrases):
        if vault:
            data = {
                node.name: _into_vault(node, vaults[node.name], job.name, data[node.name])
                for node in nodes
                if node.name in data
            }
        roster_path = folder / "roster.toml"
        Roster.of(vault.card for vault in vaults.values()).save(roster_path)

        def spec(node: "LocalNode", *more: str) -> ChildSpec:
            argv = [sys.executable, "-m", "mpc_train", node.verb, "--config", str(node.config)]
            argv += [str(job_path)] if node.verb == "owner" else []
            argv += ["--passphrase-fd", "{secret_fd}", "--format", "json", *more]
            argv += ["--verbose"] if verbose else []
            return ChildSpec(node.name, argv, passphrases[node.name], own_code())

        told = passing(coordinator.name, shown)
        logs = Logs(folder, (coordinator.name, job.evaluators[0]), told)
        with Supervisor(logs, settle_s=SETTLE_S) as supervisor:
            coordinator.config.write_text(coordinator_text(coordinator, roster_path, job_path))
            child = supervisor.start(spec(coordinator, "--report-fd", "{report_fd}"))
            address = ready(supervisor, child)
            for node in nodes:
                node.config.write_text(
                    node_text(
                        node,
                        roster_path,
                        coordinator.name,
                        address,
                        job,
                        data,
                        local_start(job_path, job),
                        local_rules(job_path),
                    )
                )
                supervisor.start(spec(node))
            statuses = supervisor.wait()
            if any(statuses.values()):
                raise failure(supervisor)
            records = {name: last_record(child) for name, child in supervisor.children.items()}
            result = records[coordinator.name] | found_by(job, records)
            result["warnings"] = _warnings(records, job)
        for node in nodes:
            if records[node.name].get("own_metrics"):
                _write_own_metrics(node, vaults[node.name], job)
        roster = Roster.load(roster_path)
        if result.get("joined_rows"):
            job = resolved(job, result["joined_rows"])
        for place in result["sealed_metrics"][:1]:
            reader = job.reveal.metrics_to[0]
            read, _ = open_metrics_file(Path(place), vaults[reader], roster, folder, job)
            result["metrics"], result["unavailable"] = read.metrics, read.unavailable
        if job.stays_shared:
            result["kept"] = {name: records[name]["kept_digest"] for name in job.evaluators}
            return result, _added_up(job, nodes, vaults)
        if job.federates:
            from safetensors.torch import load_file

            result["model"] = records[job.owners[0]]["model"]
            tensors = load_file(result["model"])
            return result, {name: tensors[name].numpy() for name, _ in job.plain.tensors}
        if not job.seals_model:
            return result, {}
        recipient = job.recipients[0]
        sealed = {Path(path).stem: Path(path) for path in result["sealed"]}
        if recipient not in sealed:
            raise NodeFailedError(
                "ArtifactError", "artifact", f"nothing was sealed to {recipient}", 9
            )
        parts = []
        for name in job.recipients[1 : job.reveal.threshold]:
            part, _ = contribution_of(sealed[name], vaults[name], roster, recipient, job)
            parts.append(folder / f"{name}-for-{recipient}.part")
            write_atomic(parts[-1], part)
        opened, path = open_file(sealed[recipient], vaults[recipient], roster, folder, job, parts)
        result["model"] = str(path)
        result["preparation"] = opened.remarks
        result["warnings"] += in_words(opened.remarks)
        if opened.results is not None:
            result["coefficients"] = str(path.with_name("coefficients.csv"))
            result["converged"] = opened.results.converged
            result["separated"] = opened.results.separated
            result["warnings"] += opened.results.warnings
        said = regression_shapes(job)
        return result, {name: w for name, w in opened.weights.items() if name not in said}


def _into_vault(node: "LocalNode", identity: "FileVault", name: str, source: "Source") -> "Source":
    """Keep a table in its node's vault, as `mpc-train vault import` does; return what the node's
    file names then. A database stays where it is."""
    import msgspec

    from mpc_train.node.imports import import_table
    from mpc_train.tables.source import Source
    from parties.keys.services.identity_service import IdentityService
    from parties.vault.store import Store

    if not source.file:
        return source
    store = Store(node.home / "vault", node.name, IdentityService(identity))
    plain = Source()
    own = {key: getattr(source, key) for key in ("rename", "recode", "drop_rows")}
    nothing = {key: getattr(plain, key) for key in own}
    import_table(store, name, msgspec.structs.replace(source, **nothing))
    return Source(f"vault:{name}", array_folder=str(source.folder_of_arrays), **own)


def _added_up(
    job: "Job", nodes: "list[LocalNode]", identities: "dict[str, FileVault]"
) -> dict[str, Any]:
    """The weights of a model that stays in shares, to compare them with the twin's: here one user
    is all evaluators."""
    import numpy as np

    from mpc_train.shared.library import find, share_of
    from mpc_train.shared.share import TENSOR
    from parties.keys.services.identity_service import IdentityService
    from parties.vault.store import Store
    from protocols.ring.fixed_point import decode

    shares = []
    for node in nodes:
        if node.name in job.evaluators:
            keys = IdentityService(identities[node.name])
            store = Store(node.home / "vault", node.name, keys)
            shares.append(share_of(store, find(store, job.name)))
    constants = {entry.name for entry in shares[0].about.public.entries if entry.constant}
    weights = {}
    for name in job.shapes:
        parts = [share.parts[TENSOR + name] for share in shares]
        together = parts[0] if TENSOR + name in constants else np.sum(parts, axis=0)
        weights[name] = decode(together, job.fraction_bits)
    return weights


def _write_own_metrics(node: "LocalNode", identity: "FileVault", job: "Job") -> None:
    """Write what only this node learnt beside its runs: here its identity, which alone opens its
    vault, ends with the run."""
    from mpc_train.node.storage import METRICS
    from parties.files import write_atomic
    from parties.keys.services.identity_service import IdentityService
    from parties.vault.store import Store

    store = Store(node.home / "vault", node.name, IdentityService(identity))
    with store.open(METRICS, job.name) as content:
        write_atomic(node.folder / "own-metrics.json", content.reader.read())


def _warnings(records: dict[str, dict[str, Any]], job: "Job") -> list[str]:
    """What each owner's node told only its owner; here one user is all of them."""
    return [f"{name}: {said}" for name in job.owners for said in records[name].get("warnings", ())]


def _compare(
    job: "Job", job_path: Path, data: "dict[str, Source]", weights: dict[str, Any]
) -> dict[str, Any]:
    """Train the plaintext twin on pooled data; return how it differs."""
    from mpc_train.owners.table import load_table
    from mpc_train.run.local import local_start
    from mpc_train.training.first_weights import initial_weights
    from mpc_train.training.warm_start import load_start, start_words
    from mpc_train.twin.join import joined
    from mpc_train.twin.preparation import raw_terms
    from mpc_train.twin.training import max_weight_difference, train_twin

    if job.federates:
        return _compare_federated(job, data, weights)
    tables = [load_table(data[owner], job, owner, raw=raw_terms) for owner in job.owners]
    if job.data.join is not None:
        job, table = joined(job, tables)
        tables = [table]
    path = local_start(job_path, job)
    initial = initial_weights(job) if path is None else start_words(job, load_start(path, job))
    twin = train_twin(job, tables, initial)
    return {
        "twin_metrics": twin.metrics,
        "max_weight_difference": max_weight_difference(
            {name: weights[name] for name in job.shapes}, twin.state
        ),
    }


def _compare_federated(
    job: "Job", data: "dict[str, Source]", weights: dict[str, Any]
) -> dict[str, Any]:
    """The same rounds without shares, clipping included; how the model differs."""
    import numpy as np

    from mpc_train.federated.local import Owner
    from mpc_train.federated.plain import plain_rounds
    from mpc_train.owners.table import load_table

    any_rows = job.federated.sizes == "secret"
    tables = {name: load_table(data[name], job, name, any_rows=any_rows) for name in job.owners}
    owners = {name: Owner(job, name, table) for name, table in tables.items()}
    model = plain_rounds(job, owners)
    state = next(iter(owners.values())).tensors(model.weights)
    differences = [
        float(np.abs(weights[name] - state[name].numpy()).max()) for name, _ in job.plain.tensors
    ]
    return {"max_weight_difference": max(differences)}
