"""Writes the reference of a job and of a schema from their structs.

    .venv/bin/python -m tests.support.job_reference

makes `mpc_train/docs/job-keys.md` anew: a key's meaning is the docstring that follows it in its
struct. `test_job_reference.py` fails when the page is not what comes out here.
"""

import inspect
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from mpc_train.jobs.job import Job
from mpc_train.tables.schema import Column
from tests.support.node_reference import DOCS, TYPES, default, docstrings, toml

PAGE = "job-keys.md"
INSIDE = frozenset({"shapes", "joined", "network", "table", "plain", "fold"})
"""Fields that a run fills in: no key of a file."""


def structs_in(kind: Any) -> list[type]:
    """The structs that a field's type names, in order."""
    if inspect.isclass(kind) and issubclass(kind, msgspec.Struct):
        return [kind]
    return [found for each in get_args(kind) for found in structs_in(each)]


def spelt(kind: Any) -> str:
    """A field's type as people read it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{toml(choice)}`" for choice in inner)
    if origin is Annotated:
        return spelt(inner[0])
    if origin in (UnionType, Union):
        left = (one for one in inner if one not in (type(None), msgspec.UnsetType))
        return " or ".join(dict.fromkeys(spelt(one) for one in left))
    if origin is tuple:
        return f"list of {spelt(inner[0])}"
    if origin is dict:
        return f"table of {spelt(inner[1])}"
    if structs_in(kind):
        return "table"
    return TYPES[kind]


def said(value: object) -> str:
    """A default as people read it."""
    if value is msgspec.NODEFAULT:
        return "needed"
    if isinstance(value, msgspec.Struct):
        return "as below"
    if value is None or value is msgspec.UNSET or value in ("", (), {}):
        return "none"
    return f"`{toml(value)}`"


def section(title: str, kind: type) -> list[str]:
    """A table's docstring and keys."""
    words, head = docstrings(kind), " ".join((inspect.getdoc(kind) or "").split())
    lines = [f"## {title}", "", head, "", "| key | value | default | meaning |"]
    lines.append("| --- | --- | --- | --- |")
    for field in msgspec.structs.fields(kind):
        if field.name in INSIDE:
            continue
        cells = (
            f"`{field.encode_name}`",
            spelt(field.type),
            said(default(field)),
            words.get(field.name, ""),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def sections(kind: type, place: str = "") -> list[tuple[str, type]]:
    """Each table of a file once, by its key, the outer ones first."""
    found = []
    for field in msgspec.structs.fields(kind):
        if field.name not in INSIDE:
            for inner in structs_in(field.type):
                found.append((f"{place}{field.encode_name}", inner))
    return found


def page() -> str:
    """`job-keys.md`."""
    lines = [
        "# A job and a schema: every key",
        "",
        "[job.md](job.md), [predictions.md](predictions.md), [shared-model.md](shared-model.md) "
        "and [tables.md](tables.md) explain what they are for. Unknown keys are errors. This page "
        "is made from the code.",
        "",
    ]
    waiting, seen = sections(Job), set[type]()
    while waiting:
        place, kind = waiting.pop(0)
        if kind in seen:
            continue
        seen.add(kind)
        lines += section(f"`{place}`", kind)
        waiting = sections(kind, f"{place}.") + waiting
    lines += section("`columns` of a schema", Column)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    (DOCS / PAGE).write_text(page())
