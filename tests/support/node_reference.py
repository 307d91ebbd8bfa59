"""Writes the reference of a node's own file, and samples that have every key, from the structs.

    .venv/bin/python -m tests.support.node_reference

makes `mpc_train/docs/node-file.md`, `node.toml`, `coordinator.toml` and `policy.toml` anew. A key's
meaning is the docstring that follows it in its struct, its default is the struct's; a key without a
docstring, or one without a default that has no value in `VALUES`, is an error.
`test_node_reference.py` fails when the files are not what comes out here.
"""

import ast
import inspect
import itertools
import sys
import textwrap
import typing
from datetime import date
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

import mpc_train
from mpc_train.admission import policy, rules
from mpc_train.base.strict_toml import quoted
from mpc_train.jobs import outputs
from mpc_train.run import local, node_config
from mpc_train.tables import dates, postgres_url, source
from parties.nodes import coordinator

DOCS = Path(mpc_train.__path__[0]) / "docs"
PAGE, PARTY, COORDINATOR = "node-file.md", "node.toml", "coordinator.toml"
POLICY = "policy.toml"
WIDTH = 100

VALUES: dict[str, object] = {
    "node.name": "hospital-a",
    "node.home": "keys",
    "node.roster": "keys/roster",
    "node.approvals": "keys/approvals",
    "node.passphrase_file": "keys/passphrase",
    "vault.folder": "keys/vault",
    "vault.key": "file:keys/vault.keys",
    "vault.passphrase_file": "keys/vault.passphrase",
    "audit.webhook": "https://alerts.example.org/mpc-train",
    "audit.command": ["/usr/local/bin/page-the-operator"],
    "coordinator.name": "coordinator",
    "coordinator.address": "tcp://study.example.org:7700",
    "network.listen": "tcp://0.0.0.0:7701",
    "network.advertise": "tcp://hospital-a.example.org:7701",
    "network.proxy": "http://hospital-a@proxy.example.org:3128",
    "network.proxy_password_file": "keys/proxy.password",
    "network.no_proxy": [".hospital-a.example.org", "10.0.0.0/8"],
    "run.job": "job.toml",
    "rules.recipients": ["hospital-a", "study-office"],
    "rules.dealers": ["registry-office"],
    "rules.evaluators": ["hospital-a", "hospital-b", "hospital-c"],
    "rules.metrics": ["accuracy", "auc", "cv_accuracy"],
    "rules.disclosures": ["guard", "empty_columns"],
    "rules.clients": ["clinic"],
    "rules.validators": ["hospital-d"],
    "rules.answers": ["class"],
    "rules.max_decimals": 2,
    "rules.max_drift_epsilon": 1.0,
    "rules.modules": ["study_models.networks:small"],
    "rules.purposes": ["tumour-research"],
    "rules.categories": ["health"],
    "rules.jobs": ["0" * 64],
    "rules.approvers": ["board", "data-protection-officer"],
    "rules.operators": ["hospital-a"],
    "rules.auditors": ["auditor"],
    "rules.privacy.max_epsilon": 3,
    "rules.privacy.max_delta": 0.00001,
    "rules.privacy.units": ["row", "patient"],
    "rules.privacy.neighbours": ["zeroed", "replaced"],
    "rules.privacy.budget_epsilon": 10,
    "rules.privacy.budget_delta": 0.0001,
    "policy.file": "policy.toml",
    "policy.signers": ["board", "data-protection-officer"],
    "policy.nodes": ["hospital-a"],
    "policy.number": 1,
    "policy.valid_from": date(2026, 1, 1),
    "policy.valid_until": date(2026, 12, 31),
    "data.file": "data/admissions.csv",
    "data.ignore": ["note"],
    "data.format": "csv",
    "data.delimiter": ";",
    "data.decimal": ",",
    "data.encoding": "cp1252",
    "data.header": ["patient", "born", "admitted", "age", "note"],
    "data.date_format": "%d.%m.%Y",
    "data.date_formats": {"born": "%d.%m.%y"},
    "data.date_pivot": 0,
    "data.array_folder": "data/scans",
    "data.date_pivots": {"born": 1930},
    "data.url": "postgresql://reader@db.example.org/clinic",
    "data.query": "select * from admissions",
    "data.password_file": "keys/pgpass",
}
"""What the samples say, where that is not the default."""

DATABASE_KEYS = ("url", "query", "password_file")
TYPES = {
    str: "text",
    int: "whole number",
    bool: "true or false",
    float: "number",
    Decimal: "number",
    date: "date, YYYY-MM-DD",
}


def docstrings(kind: type | Any) -> dict[str, str]:
    """What stands as text after each field of a class, or after each assignment of a module."""
    tree: Any = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    body = tree.body[0].body if inspect.isclass(kind) else tree.body
    found = {}
    for before, after in itertools.pairwise(body):
        target = getattr(before, "target", None) or (getattr(before, "targets", None) or [None])[0]
        text = after.value if isinstance(after, ast.Expr) else None
        if isinstance(target, ast.Name) and isinstance(text, ast.Constant):
            found[target.id] = " ".join(str(text.value).split())
    return found


def meaning(kind: type, key: str) -> str:
    """A key's docstring; raises LookupError where it has none."""
    try:
        return docstrings(kind)[key]
    except KeyError:
        raise LookupError(f"{kind.__name__}.{key} has no docstring to document it") from None


def spelt(kind: Any) -> str:
    """A field's type as people read it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{toml(choice)}`" for choice in inner)
    if origin is Annotated:
        return spelt(inner[0])
    if origin in (UnionType, typing.Union):
        return " or ".join(spelt(one) for one in inner if one is not type(None))
    if origin is tuple:
        return f"list of {spelt(inner[0])}"
    if origin is dict:
        return f"table of {spelt(inner[1])}"
    if inspect.isclass(kind) and issubclass(kind, msgspec.Struct):
        return "table"
    return TYPES[kind]


def toml(value: object) -> str:
    """A value as a line of TOML has it."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        inner = ", ".join(f"{quoted(key)} = {toml(each)}" for key, each in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml(each) for each in value)}]"
    return quoted(value)


def default(field: msgspec.structs.FieldInfo) -> object:
    """A field's default; `msgspec.NODEFAULT` where it is needed."""
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def rows(kind: type) -> list[str]:
    """The table of a struct's keys, in Markdown."""
    lines = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for field in msgspec.structs.fields(kind):
        value = default(field)
        if value is msgspec.NODEFAULT:
            said = "needed"
        elif isinstance(value, msgspec.Struct):
            said = "see below"
        else:
            said = "none" if value is None or value in ("", (), {}) else f"`{toml(value)}`"
        cells = (f"`{field.encode_name}`", spelt(field.type), said, meaning(kind, field.name))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def section(kind: type) -> list[str]:
    """A struct that is one section: its docstring and its keys."""
    return [docstring(kind), "", *rows(kind), ""]


def limits() -> list[str]:
    """Where the time limits are set."""
    times = node_config.Timeouts()
    week = coordinator.CoordinatorSettings.run_timeout_s / 86400
    table = [
        ("for the coordinator to answer, all nodes to come, a person to answer", "`join_s`"),
        ("for all others to sign, at a node", "twice `join_s`"),
        ("for all to sign, at the coordinator", "`join_s` of its own file"),
        ("for a connected peer that sends nothing", "`peer_s`; longer where records are joined"),
        (
            "for a machine or network that falls silent",
            "`silence_s`",
        ),
        ("for a broken connection", "`reconnect_s` of either end, whichever is smaller"),
        ("for a process that is killed", "`reconnect_s`"),
        ("for a process that ends by itself", "none: it says so"),
        ("for a whole run", f"{week:g} days, not to be set"),
    ]
    return [
        "## Time limits",
        "",
        f"`[timeouts]` is in each node's own file ({times.join_s} s and {times.peer_s} s by "
        "default), and each node keeps its own. Between nodes, and to the coordinator, a heartbeat "
        f"goes out each `heartbeat_s` ({times.heartbeat_s} s by default); a connection that "
        f"answers none for `silence_s` ({times.silence_s} s) counts as broken. It is made again, "
        "and what was lost is sent again; the run ends if that takes longer than `reconnect_s` "
        f"({times.reconnect_s} s).",
        "",
        "| how long a node waits | |",
        "| --- | --- |",
        *(f"| {what} | {how} |" for what, how in table),
        "",
    ]


def formats() -> list[str]:
    """What the keys of `[data]` refer to."""
    endings: dict[str, list[str]] = {}
    for ending, form in source.ENDINGS.items():
        endings.setdefault(form, []).append(ending)
    listed = "; ".join(f"{form}: {', '.join(names)}" for form, names in endings.items())
    of_dates = " ".join((dates.__doc__ or "").split("\n\n")[1].split())
    allowed = ", ".join(f"`{name}`" for name in postgres_url.PARAMETERS)
    return [
        f"Formats by the end of the file's name: {listed}.",
        "",
        f"Dates: {of_dates[0].lower()}{of_dates[1:]}",
        "",
        f"A PostgreSQL URL may end in `?` and the parameters {allowed}.",
        "",
    ]


def page() -> str:
    """`node-file.md`."""
    party, words = docstrings(node_config._PartyFile), docstrings(outputs)
    lines = [
        "# A node's own file: every key",
        "",
        "Each organisation writes one file, and shows it to nobody: `party.toml` or `dealer.toml`, "
        "of the same form, or `coordinator.toml`. Unknown keys are errors; paths are relative to "
        f"the file. [{PARTY}]({PARTY}), [{COORDINATOR}]({COORDINATOR}) and [{POLICY}]({POLICY}) "
        "have every key. This page is made from the code.",
        "",
        "## Parties and dealers",
        "",
        "### `[node]`",
        "",
        *section(node_config._Node),
        "### `[coordinator]`",
        "",
        *section(node_config._Peer),
        "### `[vault]`",
        "",
        *section(node_config._Vault),
        "### `[audit]`",
        "",
        *section(node_config.Audit),
        "### `[network]`",
        "",
        *section(node_config._Network),
        "### `[data]`",
        "",
        without_title(party["data"]),
        "",
        *rows(source.Source),
        "",
        *formats(),
        "### `[rules]`",
        "",
        "What this organisation allows, whatever job is proposed. What is not listed is not "
        "allowed, and the least numbers hold by default: they are 1 or more, and 0 switches "
        f"{', '.join(f'`{key}`' for key in rules.MAY_BE_0)} off.",
        "",
        *rows(rules.Rules),
        "",
        f"Disclosures: {words['Disclosure'][0].lower()}{words['Disclosure'][1:]}",
        "",
        "### `[rules.privacy]`",
        "",
        *section(rules.PrivacyRules),
        "### `[policy]`",
        "",
        *section(node_config.PolicyPlace),
        "### `[warm_start]`",
        "",
        without_title(party["warm_start"]),
        "",
        "### `[timeouts]`",
        "",
        *section(node_config.Timeouts),
        *limits(),
        "## Coordinators",
        "",
        "`[node]`, `[network]` (only `listen`), `[audit]`, `[timeouts]`, and",
        "",
        "### `[run]`",
        "",
        *section(node_config._Run),
        "## Policies",
        "",
        "A policy file, which `[policy]` of a node's file names, has `[rules]` as above, and",
        "",
        "### Its `[policy]`",
        "",
        *section(policy.Terms),
        "## Runs on one machine",
        "",
        f"`{local.LOCAL_FILE}` beside a job says for `mpc-train run` and `launch.py` where the "
        "owners' tables lie; without it they are `data/OWNER.csv`.",
        "",
        *rows(local._LocalFile),
        "",
        "### Its `[rules]`",
        "",
        *section(local.LocalRules),
    ]
    return "\n".join(lines).rstrip() + "\n"


def comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")


def keys(title: str, kind: type, names: list[str] | None = None) -> list[str]:
    """The keys of a struct as a section of a sample has them, each after its meaning."""
    lines = []
    for field in msgspec.structs.fields(kind):
        if names is not None and field.encode_name not in names:
            continue
        value = VALUES.get(f"{title}.{field.encode_name}", default(field))
        if value is msgspec.NODEFAULT or value is None:
            raise LookupError(f"VALUES has nothing for {title}.{field.encode_name}")
        lines += comment(meaning(kind, field.name))
        lines.append(f"{field.encode_name} = {toml(value)}")
    return lines


def party_sample() -> str:
    """`node.toml`."""
    party = docstrings(node_config._PartyFile)
    every = [field.encode_name for field in msgspec.structs.fields(source.Source)]
    of_files = [name for name in every if name not in DATABASE_KEYS]
    lines = [
        "# A party's or dealer's file with every key; most are left out in practice. Made by",
        "# tests/support/node_reference.py.",
        "",
        *comment(docstring(node_config._Node)),
        "[node]",
        *keys("node", node_config._Node),
        "",
        *comment(docstring(node_config._Peer)),
        "[coordinator]",
        *keys("coordinator", node_config._Peer),
        "",
        *comment(docstring(node_config._Vault)),
        "[vault]",
        *keys("vault", node_config._Vault),
        "",
        *comment(docstring(node_config.Audit)),
        "[audit]",
        *keys("audit", node_config.Audit),
        "",
        *comment(docstring(node_config._Network)),
        "[network]",
        *keys("network", node_config._Network),
        "",
        *comment(without_title(party["data"])),
        "[data]",
        'breast-cancer = "data/hospital-a.csv"',
        "",
        "[data.admissions]",
        *keys("data", source.Source, of_files),
        "",
        "[data.clinic]",
        *keys("data", source.Source, list(DATABASE_KEYS)),
        "",
        *comment("What this organisation allows, whatever job is proposed."),
        "[rules]",
        *rules_sample(),
        "",
        *comment(docstring(node_config.PolicyPlace)),
        "# [policy]",
        *(line if line[0] == "#" else f"# {line}" for line in policy_place()),
        "",
        *comment(without_title(party["warm_start"])),
        "[warm_start]",
        'breast-cancer = "start.safetensors"',
        "",
        *comment(docstring(node_config.Timeouts)),
        "[timeouts]",
        *keys("timeouts", node_config.Timeouts),
    ]
    return "\n".join(lines) + "\n"


def rules_sample() -> list[str]:
    """`[rules]` with its table about privacy."""
    names = [field.encode_name for field in msgspec.structs.fields(rules.Rules)]
    return [
        *keys("rules", rules.Rules, [name for name in names if name != "privacy"]),
        "",
        *comment(docstring(rules.PrivacyRules)),
        "[rules.privacy]",
        *keys("rules.privacy", rules.PrivacyRules),
    ]


def policy_place() -> list[str]:
    return keys("policy", node_config.PolicyPlace)


def policy_sample() -> str:
    """`policy.toml`."""
    lines = [
        "# A policy with every key. Made by tests/support/node_reference.py.",
        "",
        *comment(docstring(policy.Terms)),
        "[policy]",
        *keys("policy", policy.Terms),
        "",
        *comment("What this organisation allows, whatever job is proposed."),
        "[rules]",
        *rules_sample(),
    ]
    return "\n".join(lines) + "\n"


def coordinator_sample() -> str:
    """`coordinator.toml`."""
    lines = [
        "# A coordinator's file with every key. Made by tests/support/node_reference.py.",
        "",
        *comment(docstring(node_config._Node)),
        "[node]",
        *[
            line.replace(toml("hospital-a"), toml("coordinator"))
            for line in keys("node", node_config._Node)
        ],
        "",
        *comment(docstring(node_config._Network)),
        "[network]",
        *[
            line.replace("7701", "7700")
            for line in keys("network", node_config._Network, ["listen"])
        ],
        "",
        *comment(docstring(node_config._Run)),
        "[run]",
        *keys("run", node_config._Run),
        "",
        *comment(docstring(node_config.Audit)),
        "[audit]",
        *keys("audit", node_config.Audit),
        "",
        *comment(docstring(node_config.Timeouts)),
        "[timeouts]",
        *keys("timeouts", node_config.Timeouts),
    ]
    return "\n".join(lines) + "\n"


def docstring(kind: type) -> str:
    """A struct's docstring, of which a section's header says the title."""
    return without_title(" ".join((kind.__doc__ or "").split()))


def without_title(text: str) -> str:
    title, mark, rest = text.partition("]`")
    rest = rest.lstrip(":, ") if title.startswith("`[") and mark else text
    return rest[0].upper() + rest[1:]


def files() -> dict[str, str]:
    """What is to stand under `mpc_train/docs`, by file name."""
    return {
        PAGE: page(),
        PARTY: party_sample(),
        COORDINATOR: coordinator_sample(),
        POLICY: policy_sample(),
    }


def main() -> None:
    for name, text in files().items():
        (DOCS / name).write_text(text)
        sys.stdout.write(f"{DOCS / name}\n")


if __name__ == "__main__":
    main()
