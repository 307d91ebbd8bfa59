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
_NAMED = re.compile(r"(unknown|missing required) field `([^`]*)`")

Place = tuple[str | int, ...]


def shape_faults(tree: dict[str, Any], kind: type) -> list[tuple[str, str]]:
    """Keys (like `data.features[3].scale`) with messages that say what is wrong there, for a tree
    that is not a valid `kind`. The tree must not be used afterwards."""
    found: list[tuple[str, str]] = []
    gone: set[str] = set()
    removed: dict[str, list[int]] = {}
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
            if named is None:
                target, advised = place, _advised(message[:MAX_MESSAGE], _allowed(kind, place))
            else:
                target = (*place, named[2])
                meant = _near(named[2], _keys(kind, place))
                advised = f"unknown key; remove it or correct its spelling{_asked(meant)}"
                gone.add(_spelt((*place, meant), removed))
            found.append((_spelt(target, removed), advised))
        else:
            # Nothing else is wrong in this table: its missing keys come last.
            for key, what in _missing(tree, kind, place, named[2]):
                if (spelt := _spelt((*place, key), removed)) not in gone:
                    found.append((spelt, what))
            target = place
        gone.add(_spelt(target, removed))
        if not target or not _take_out(tree, target, removed):
            break
    return found


def _advised(message: str, allowed: list[str]) -> str:
    """The library's message, with what was expected: the possible values, or how TOML writes it.

    allowed: the values that this place may have; empty if these are not all.
    """
    if message.startswith("Invalid enum value") and allowed:
        wrong = message.removeprefix("Invalid enum value ")
        meant = _asked(_near(wrong.strip("'"), allowed))
        return f"{wrong} is not possible here; write one of {', '.join(allowed)}{meant}"
    if message == "Invalid decimal string":
        return "a text is not a number; write it without quotation marks, like 0.5"
    if message.startswith("Expected `array"):
        return f'{message}; write a list, like ["…"]'
    if message.startswith(("Expected `int", "Expected `bool")) and message.endswith("got `str`"):
        return f"{message}; write it without quotation marks"
    return message


def _allowed(kind: type, place: Place) -> list[str]:
    """The texts that are possible at a place of a `kind`, if it lists them."""
    return list(dict.fromkeys(text for each in _types(kind, place) for text in _texts(each)))


def _texts(kind: inspect.Type) -> list[str]:
    """The texts that a type lists."""
    if isinstance(kind, inspect.LiteralType):
        return [value for value in kind.values if isinstance(value, str)]
    if isinstance(kind, inspect.EnumType):
        return [str(member.value) for member in kind.cls]
    return []


def _near(wrong: str, possible: list[str]) -> str:
    """What may have been meant; empty if nothing is like it."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(wrong, possible, 1)), "")


def _asked(meant: str) -> str:
    return f"; did you mean {meant!r}?" if meant else ""


def _keys(kind: type, place: Place) -> list[str]:
    """The keys of the table at a place."""
    structs = [each for each in _types(kind, place) if isinstance(each, inspect.StructType)]
    return [field.encode_name for each in structs for field in each.fields]


def _missing(
    tree: dict[str, Any], kind: type, place: Place, first: str
) -> Iterator[tuple[str, str]]:
    """All keys that the table at a place needs and does not have, with what to write. first: the
    one that the library named."""
    table: Any = tree
    for part in place:
        table = table[part]
    for each in _types(kind, place):
        if isinstance(each, inspect.StructType):
            needed = [field for field in each.fields if field.required]
            if first in [field.encode_name for field in needed]:
                for field in needed:
                    if field.encode_name not in table:
                        yield field.encode_name, _wanted(field, place)
                return
    yield first, "missing; this key is needed"


def _wanted(field: inspect.Field, place: Place) -> str:
    """What to write for a key that is missing."""
    name, kind, words = field.encode_name, field.type, dict[str, Any]()
    if isinstance(kind, inspect.Metadata):
        words = kind.extra_json_schema or {}
        kind = kind.type
    return f"missing; write {_written(name, kind, place, words)}"


def _written(name: str, kind: inspect.Type, place: Place, words: dict[str, Any]) -> str:
    """How TOML says it. words: an example and a description of this key (`msgspec.Meta`)."""
    if isinstance(kind, inspect.UnionType):
        # The short form, where there is one: label = "…" for a table.
        kind = next((one for one in kind.types if isinstance(one, inspect.StrType)), kind.types[0])
    texts = [f'"{text}"' for text in _texts(kind)]
    if texts:
        return f"{name} = {' or '.join(texts)}"
    if isinstance(kind, (inspect.IntType, inspect.DecimalType, inspect.FloatType)):
        what = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
        if "examples" in words:
            return f"{what}, like {name} = {words['examples'][0]}"
        return f"{what}: {name} = …"
    if isinstance(kind, inspect.StructType):
        section = ".".join(str(part) for part in (*place, name))
        return f"a section [{section}]"
    if isinstance(kind, inspect.StrType):
        return f'{name} = "…"'
    if isinstance(kind, inspect.DictType):
        return f"{name} = {{ NAME = … }}"
    if isinstance(kind, (inspect.CollectionType, inspect.VarTupleType, inspect.TupleType)):
        inner = kind.item_types[0] if isinstance(kind, inspect.TupleType) else kind.item_type
        if isinstance(inner, inspect.StructType):
            return f"a section [[{name}]] for each"
        entry = '"…"' if isinstance(inner, inspect.StrType) else "…"
        count = len(kind.item_types) if isinstance(kind, inspect.TupleType) else 1
        meant = f": {words['description']}" if "description" in words else ""
        return f"{name} = [{', '.join([entry] * count)}]{meant}"
    return f"{name} = …"


def _types(kind: type, place: Place) -> list[inspect.Type]:
    """The types that are possible at a place of a `kind`."""
    found = [inspect.type_info(kind)]
    for part in place:
        found = [inner for outer in found for inner in _within(outer, part)]
    found = [each.type if isinstance(each, inspect.Metadata) else each for each in found]
    return [
        choice
        for each in found
        for choice in (each.types if isinstance(each, inspect.UnionType) else (each,))
    ]


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


def _spelt(place: Place, removed: dict[str, list[int]]) -> str:
    """The path as it is in the file, from which nothing was removed. removed: by the path of a list
    in the file, the indices there of what is gone."""
    key = ""
    for part in place:
        if isinstance(part, str):
            key = f"{key}.{part}".removeprefix(".")
            continue
        for index in sorted(removed.get(key, ())):
            part += index <= part
        key += f"[{part}]"
    return key


def _take_out(tree: Any, place: Place, removed: dict[str, list[int]]) -> bool:
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
        there = removed.setdefault(_spelt(place[:-1], removed), [])
        for index in sorted(there):
            last += index <= last
        there.append(last)
    return True
