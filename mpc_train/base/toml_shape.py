"""All keys of a TOML file that have no place or the wrong type, and not only the first.

The reader of types stops at the first. What it names is taken out of the tree, and it reads again;
what is then missing for that reason alone is no fault.
"""

import re
from typing import Any

import msgspec

MAX_SHAPE_FAULTS = 20
MAX_MESSAGE = 2_000
"""The library repeats what it was given, whole."""

_PART = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[\.\.\.\]")
_NAMED = re.compile(r"(unknown|missing required) field `([^`]+)`")

Place = tuple[str | int, ...]


def shape_faults(tree: dict[str, Any], kind: type) -> list[tuple[str, str]]:
    """Keys (like `data.features[3].scale`) and what is wrong there, in words; of a tree that is no
    `kind`, and is not to be used afterwards."""
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
            found.append((_spelt(place, removed), _advised(message[:MAX_MESSAGE])))
        else:
            if (*place, named[2]) not in gone:
                found.append((_spelt(place, removed), message[:MAX_MESSAGE]))
            target = place
        if not target or not _take_out(tree, target, removed):
            break
        gone.add(target)
    return found


def _advised(message: str) -> str:
    """The library's message, with how TOML writes what was expected where that is what is wrong."""
    if message.startswith("Expected `array"):
        return f'{message}; write a list, like ["…"]'
    if message.startswith(("Expected `int", "Expected `bool")) and message.endswith("got `str`"):
        return f"{message}; write it without quotation marks"
    return message


def _place(key: str, tree: dict[str, Any], kind: type, said: str) -> Place:
    """A path as the library writes it. Where it says [...] for a key of a table, that key is looked
    for; one that is not found ends the path there. said: the whole error of `tree` as a `kind`."""
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
    """The key of `table`, which stands in `tree`, that the error comes from. Leaves only that one
    there, so that a deeper [...] is looked for in the same entry."""
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
    """The path as it stands in the file, where nothing was taken out."""
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
    """Remove what stands at a place; whether there was something."""
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
