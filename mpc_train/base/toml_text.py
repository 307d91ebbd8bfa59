"""Structs as the TOML that `strict_toml` reads back: what has its default is left out.

Sections are written as tables of their own, everything below them inline. Not for people to admire,
but to read, change and send on.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from typing import Any

import msgspec

from mpc_train.base.strict_toml import quoted


def toml_text(part: msgspec.Struct) -> str:
    """The struct's fields: first those that are no structs, then a section for each that is, and
    several for each tuple of structs."""
    lines, sections = list[str](), list[str]()
    for name, value in said(part).items():
        if isinstance(value, msgspec.Struct):
            sections += ["", f"[{name}]", *_entries(said(value))]
        elif isinstance(value, tuple) and value and isinstance(value[0], msgspec.Struct):
            for one in value:
                sections += ["", f"[[{name}]]", *_entries(said(one))]
        else:
            lines.append(f"{name} = {inline(value)}")
    return "\n".join([*lines, *sections]).strip() + "\n"


def said(part: msgspec.Struct) -> dict[str, Any]:
    """The fields that have not their default, by name."""
    found = {}
    for field in msgspec.structs.fields(part):
        value, default = getattr(part, field.name), field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        if value is not msgspec.UNSET and value is not None and value != default:
            found[field.name] = value
    return found


def _entries(fields: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {inline(value)}" for name, value in fields.items()]


def inline(value: Any) -> str:
    """A value within one line."""
    if isinstance(value, msgspec.Struct):
        value = said(value)
    if isinstance(value, Mapping):
        inner = (f"{quoted(str(name))} = {inline(one)}" for name, one in value.items())
        return f"{{ {', '.join(inner)} }}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(inline, value))}]"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, date):
        return value.isoformat()
    return quoted(value)
