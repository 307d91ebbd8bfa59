"""A whole run on one machine: the files of all nodes, written into one directory.

Every node gets a file of the same form as one written by hand, its own identity, and its own
process; they share nothing except the directory of their files. `local.toml` beside the job says
where the owners' tables are:

    [data]
    hospital-a = "data/hospital-a.csv"

and without it they are data/<owner>.csv beside the job. The default rules of nodes apply here as
well; for invented tables of a few rows

    [rules]
    least_batch_rows = 2
    least_effective_rows = 1
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mpc_train.admission.rules import MIN_BATCH_ROWS, MIN_ROWS
from mpc_train.base.strict_toml import all_at, load_toml, quoted
from mpc_train.errors import ConfigError, DataError
from mpc_train.jobs.outputs import words_of
from mpc_train.jobs.schedule import held_out_of
from mpc_train.jobs.training import needs_file
from mpc_train.tables.source import Fault, Source, SourceProblem, check_source, resolved

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

LOCAL_FILE, SCRIPT_FILE = "local.toml", "make_data.py"
LOCAL_JOIN_S = 600
"""A node signs when its table is read, which takes minutes for a large one; a node that fails is
noticed at once, because its process is our child."""

LOCAL_RECONNECT_S = 5
"""On one machine a connection breaks because a process ended."""


class LocalRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[rules]`: what all nodes of a local run require of the result of every job."""

    least_batch_rows: int = MIN_BATCH_ROWS
    """The fewest rows of a step."""
    least_effective_rows: int = MIN_ROWS
    """The fewest effective rows of the result."""


DEFAULT_RULES = LocalRules()


class _LocalFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    data: dict[str, str | Source] = {}
    """By owner, the location of its table, as under `[data]` of its own file."""
    warm_start: str = ""
    """The state_dict from which training starts, at the nodes that need it."""
    rules: LocalRules = DEFAULT_RULES
    """What all nodes require, to be relaxed for invented tables of a few rows."""


def local_data(job_path: Path, job: "Job") -> dict[str, Source]:
    """Return each owner's table; raise ConfigError or DataError, which say what to do."""
    folder = job_path.absolute().parent
    sources = {owner: Source(f"data/{owner}.csv") for owner in job.owners if job.data.rows[owner]}
    local = folder / LOCAL_FILE
    if local.exists():
        parsed, text = load_toml(local, _LocalFile, ConfigError)
        faults: list[Fault] = []
        for owner, entry in parsed.data.items():
            if owner not in sources:
                faults.append((f"data.{owner}", "is not an owner of this job"))
                continue
            sources[owner] = Source(entry) if isinstance(entry, str) else entry
            try:
                check_source(sources[owner])
            except SourceProblem as problem:
                faults += problem.under(f"data.{owner}")
        if faults:
            raise all_at(ConfigError, local, text, faults)
    sources = {
        owner: resolved(entry, lambda path: (folder / Path(path).expanduser()).absolute())
        for owner, entry in sources.items()
    }
    for owner, entry in sources.items():
        if entry.file and not Path(entry.file).exists():
            script = folder / SCRIPT_FILE
            advice = (
                f"create it first: python {_short(script)}"
                if script.exists()
                else f"put it there, or give its path in {_short(local)}"
            )
            raise DataError(f"{entry.file}: there is no such file, the data of {owner}; {advice}")
    return sources


def local_start(job_path: Path, job: "Job") -> Path | None:
    """Return the state_dict that the job starts from, None if it starts from random weights."""
    if job.train.warm_start is None:
        return None
    if job.starts_from_shares:
        raise DataError(
            "train.warm_start.source: the nodes of a local run are made for it, and keep no share "
            "of a model; start those that do (mpc-train party, dealer, coordinator)"
        )
    folder = job_path.absolute().parent
    local = folder / LOCAL_FILE
    parsed = load_toml(local, _LocalFile, ConfigError)[0] if local.exists() else _LocalFile()
    path = (folder / Path(parsed.warm_start or "start.safetensors").expanduser()).absolute()
    if not path.exists():
        raise DataError(
            f"{path}: there is no such file, the state_dict that training starts from; put it "
            f"there, or write warm_start = … in {_short(local)}"
        )
    return path


def local_rules(job_path: Path) -> LocalRules:
    """Return the rules in `local.toml`, or the defaults; raise ConfigError."""
    local = job_path.absolute().parent / LOCAL_FILE
    return load_toml(local, _LocalFile, ConfigError)[0].rules if local.exists() else DEFAULT_RULES


def _short(path: Path) -> Path:
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


@dataclass(frozen=True)
class LocalNode:
    """One node of a local run and its own file."""

    name: str
    verb: str
    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / f"{self.verb}.toml"

    @property
    def home(self) -> Path:
        return self.folder / "keys"


def local_nodes(run_dir: Path, job: "Job") -> tuple[LocalNode, list[LocalNode]]:
    """Return the coordinator and the nodes of the job, each with a directory of its own."""
    name = "coordinator"
    while name in job.names:
        name = f"{name}-x"
    nodes = [
        LocalNode(node, "dealer" if node == job.dealer else "party", run_dir / "nodes" / node)
        for node in job.nodes
    ]
    nodes += [LocalNode(name, "owner", run_dir / "nodes" / name) for name in job.visitors]
    return LocalNode(name, "coordinator", run_dir / "nodes" / name), nodes


def coordinator_text(node: LocalNode, roster: Path, job: Path) -> str:
    """The coordinator's file: it listens only on this machine, on a free port."""
    return _toml(
        {
            "node": _node(node, roster),
            "network": {"listen": "tcp://127.0.0.1:*"},
            "run": {"job": str(job)},
            "timeouts": {"join_s": LOCAL_JOIN_S, "return_s": 0, "reconnect_s": LOCAL_RECONNECT_S},
        }
    )


def node_text(
    node: LocalNode,
    roster: Path,
    coordinator: str,
    address: str,
    job: "Job",
    data: dict[str, Source],
    start: Path | None = None,
    rules: LocalRules = DEFAULT_RULES,
) -> str:
    """A party's or dealer's file; its rules allow only this job, if it satisfies `rules`."""
    sections: dict[str, dict[str, object]] = {
        "node": _node(node, roster),
        "coordinator": {"name": coordinator, "address": address},
        "network": {"listen": "tcp://127.0.0.1:*"},
        "rules": {
            "recipients": list(dict.fromkeys((*job.recipients, *job.reveal.metrics_to))),
            "dealers": [job.dealer],
            "evaluators": list(job.evaluators),
            "metrics": words_of(job, "metrics"),
            "disclosures": words_of(job, "disclosures"),
            **_serving(job),
            "models": [job.model.kind],
            "modules": [job.model.module] if job.model.module else [],
            "least_parties": job.federated.least_owners if job.federates else len(job.owners),
            "least_test_rows": job.reveal.least_test_rows,
            "least_group": _least_group(job),
            **msgspec.to_builtins(rules),
            "jobs": [job.digest().hex()],
        },
        "timeouts": {
            "join_s": LOCAL_JOIN_S,
            "peer_s": 60,
            "return_s": 0,
            "reconnect_s": LOCAL_RECONNECT_S,
        },
    }
    if node.name in data:
        sections[f"data.{job.name}"] = msgspec.to_builtins(data[node.name])
    if start is not None and needs_file(job, node.name):
        sections["warm_start"] = {job.name: str(start)}
    return _toml(sections)


def _serving(job: "Job") -> dict[str, object]:
    if job.serve is None:
        return {}
    return {
        "clients": list(job.serve.clients),
        "validators": list(job.serve.validators),
        "answers": [job.serve.answer],
        "max_rows_a_day": job.serve.rows_a_day,
        "max_drift_epsilon": 0.0 if job.drift is None else float(job.drift.epsilon),
    }


def _least_group(job: "Job") -> int:
    """The fewest rows of the job's metrics, including those over an owner's held-out rows."""
    rows = job.data.partition == "rows"
    ours = [len(held_out_of(job, owner)) for owner in job.owners if rows]
    return min([job.reveal.least_group, *filter(None, ours)])


def _node(node: LocalNode, roster: Path) -> dict[str, object]:
    return {
        "name": node.name,
        "home": str(node.home),
        "roster": str(roster),
        "run_dir": str(node.folder / "runs"),
    }


def _toml(sections: dict[str, dict[str, object]]) -> str:
    """Sections of plain values; a table within a table is written with one line for each of its
    keys."""
    lines: list[str] = []
    for title, values in sections.items():
        lines += [f"[{title}]"]
        for key, value in values.items():
            inner = value if isinstance(value, dict) else {None: value}
            for name, entry in inner.items():
                place = key if name is None else f"{key}.{quoted(name)}"
                lines += [f"{place} = {quoted(entry)}"]
        lines += [""]
    return "\n".join(lines)
