"""All keys of a TOML file that are unknown or of the wrong type, not only the first.

The library that checks types stops at the first fault. The key that it names is removed from the
tree, and it reads again; keys that are missing only for that reason are not faults.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

MAX_SHAPE_FAULTS = 20
MAX_MESSAGE = 2_000
"""The library repeats its whole input."""

_PART = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[\.\.\.\]")
_NAMED = re.compile(r"(unknown|missing required) field `([^`]+)`")

Place = tuple[str | int, ...]


def shape_faults(tree: dict[str, Any], kind: type) -> list[tuple[str, str]]:
    """Keys (like `data.features[3].scale`) with messages that say what is wrong there, for a tree
    that is not a valid `kind`. The tree must not be used afterwards."""
    found: list[tuple[str, str]] = []
    gone: set[Place] = set()
    removed: dict[Place, list[int]] = {}
    while len(found) < MAX_SHAPE_FAULTS:
        try:
            msgspec.convert(tree, kind)
            break
        except msgspec.ValidationError as error:
            said = str(error)
        message, _, key = said.partition(" - at `")
        place = _place(key.rstrip("`"), tree, kind, said)
        named = _NAMED.search(message)
        if named is None or named[1] == "unknown":
            target = place if named is None else (*place, named[2])
            advised = _advised(message[:MAX_MESSAGE], _allowed(kind, place))
            found.append((_spelt(place, removed), advised))
        else:
            if (*place, named[2]) not in gone:
                found.append((_spelt(place, removed), message[:MAX_MESSAGE]))
            target = place
        if not target or not _take_out(tree, target, removed):
            break
        gone.add(target)
    return found


def _advised(message: str, allowed: list[str]) -> str:
    """The library's message, with what was expected: the possible values, or how TOML writes it.

    allowed: the values that this place may have; empty if these are not all.
    """
    if message.startswith("Invalid enum value") and allowed:
        wrong = message.removeprefix("Invalid enum value ")
        from difflib import get_close_matches

        near = get_close_matches(wrong.strip("'"), allowed, 1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        return f"{wrong} is not possible here; write one of {', '.join(allowed)}{meant}"
    if message.startswith("Expected `array"):
        return f'{message}; write a list, like ["…"]'
    if message.startswith(("Expected `int", "Expected `bool")) and message.endswith("got `str`"):
        return f"{message}; write it without quotation marks"
    return message


def _allowed(kind: type, place: Place) -> list[str]:
    """The texts that are possible at a place of a `kind`, if it lists them."""
    found = [inspect.type_info(kind)]
    for part in place:
        found = [inner for outer in found for inner in _within(outer, part)]
    values: list[str] = []
    for each in found:
        for choice in each.types if isinstance(each, inspect.UnionType) else (each,):
            if isinstance(choice, inspect.LiteralType):
                values += [value for value in choice.values if isinstance(value, str)]
            elif isinstance(choice, inspect.EnumType):
                values += [str(member.value) for member in choice.cls]
    return list(dict.fromkeys(values))


def _within(outer: inspect.Type, part: str | int) -> Iterator[inspect.Type]:
    """The types that are possible under a key or an index."""
    if isinstance(outer, inspect.UnionType):
        for choice in outer.types:
            yield from _within(choice, part)
    elif isinstance(outer, inspect.StructType):
        yield from (field.type for field in outer.fields if field.encode_name == part)
    elif isinstance(outer, inspect.DictType):
        yield outer.value_type
    elif isinstance(outer, (inspect.CollectionType, inspect.VarTupleType)):
        yield outer.item_type
    elif isinstance(outer, inspect.TupleType) and isinstance(part, int):
        yield from outer.item_types[part : part + 1]


def _place(key: str, tree: dict[str, Any], kind: type, said: str) -> Place:
    """A path from the library's notation. If it says [...] for a key of a table, the key is
    searched; if it is not found, the path ends there. said: the whole error for `tree` as a
    `kind`."""
    found: list[str | int] = []
    within: Any = tree
    narrowed: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for name, index in _PART.findall(key):
            part: str | int | None = name or (int(index) if index else None)
            if part is None and isinstance(within, dict):
                narrowed.append((within, dict(within)))
                part = _entry(within, tree, kind, said)
            if part is None:
                break
            found.append(part)
            try:
                within = within[part]
            except (LookupError, TypeError):
                within = None
    finally:
        for table, entries in narrowed:
            table.clear()
            table.update(entries)
    return tuple(found)


def _entry(table: dict[str, Any], tree: dict[str, Any], kind: type, said: str) -> str | None:
    """The key of `table`, which is in `tree`, that causes the error. Leaves only that key there, so
    that a deeper [...] is searched in the same entry."""
    for key, value in tuple(table.items()):
        table.clear()
        table[key] = value
        try:
            msgspec.convert(tree, kind)
        except msgspec.ValidationError as error:
            if str(error) == said:
                return key
    return None


def _spelt(place: Place, removed: dict[Place, list[int]]) -> str:
    """The path as it is in the file, from which nothing was removed."""
    key = ""
    for depth, part in enumerate(place):
        if isinstance(part, str):
            key += f".{part}"
            continue
        for index in sorted(removed.get(place[:depth], ())):
            part += index <= part
        key += f"[{part}]"
    return key.removeprefix(".")


def _take_out(tree: Any, place: Place, removed: dict[Place, list[int]]) -> bool:
    """Remove the value at a place; return whether there was one."""
    for part in place[:-1]:
        try:
            tree = tree[part]
        except (LookupError, TypeError):
            return False
    last = place[-1]
    try:
        del tree[last]
    except (LookupError, TypeError):
        return False
    if isinstance(last, int):
        there = removed.setdefault(place[:-1], [])
        for index in sorted(there):
            last += index <= last
        there.append(last)
    return True
