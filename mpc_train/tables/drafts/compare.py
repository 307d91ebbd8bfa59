"""Compares owners' schemas by digests: nobody has to send a schema.

A digest hides a field's value only if it cannot be guessed: somebody who tries "years" and "months"
learns which of them is used. Names of columns are public.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from mpc_train.errors import JobError
from mpc_train.tables.schema import Schema, load_schema

MAX_DIGEST_BYTES = 64 << 20


class ColumnDigest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """SHA-256 of one column and of each of its fields, hexadecimal."""

    name: str
    digest: str
    fields: dict[str, str]


class SchemaDigest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `mpc-train schema digest` prints."""

    schema: str
    columns: tuple[ColumnDigest, ...]


def digest_of(schema: Schema) -> SchemaDigest:
    return SchemaDigest(
        schema.digest().hex(),
        tuple(
            ColumnDigest(
                column.name,
                column.digest().hex(),
                {field: digest.hex() for field, digest in column.field_digests().items()},
            )
            for column in schema.columns
        ),
    )


def read_digest(path: Path) -> SchemaDigest:
    """The digests of a schema file, or of the output of `schema digest` (`.json`); raises
    JobError."""
    if path.suffix.lower() != ".json":
        return digest_of(load_schema(path))
    try:
        if path.stat().st_size > MAX_DIGEST_BYTES:
            raise JobError(f"{path}: longer than {MAX_DIGEST_BYTES >> 20} MiB")
        found: SchemaDigest = msgspec.json.decode(path.read_bytes(), type=SchemaDigest)
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror})") from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise JobError(f"{path}: not the output of mpc-train schema digest: {error}") from error
    return found


def differences(found: Mapping[str, SchemaDigest]) -> list[str]:
    """Lines with the differences between the first and each other; empty if all are the same."""
    (first, mine), *others = found.items()
    lines: list[str] = []
    for name, theirs in others:
        lines += _between(first, mine, name, theirs)
    return lines


def _between(first: str, mine: SchemaDigest, other: str, theirs: SchemaDigest) -> list[str]:
    if mine.schema == theirs.schema:
        return []
    left = {column.name: column for column in mine.columns}
    right = {column.name: column for column in theirs.columns}
    lines = [
        f"column {name!r} is in {first} but not in {other}" for name in left if name not in right
    ]
    lines += [
        f"column {name!r} is in {other} but not in {first}" for name in right if name not in left
    ]
    for name in left:
        if name in right and left[name].digest != right[name].digest:
            a, b = left[name].fields, right[name].fields
            fields = [field for field in (*a, *(set(b) - set(a))) if a.get(field) != b.get(field)]
            lines.append(f"column {name!r}: {', '.join(fields)} of {first} and {other} differ")
    if not lines and list(left) != list(right):
        name = next(name for name, there in zip(left, right, strict=True) if name != there)
        lines.append(f"column {name!r} has a different place in {other} than in {first}")
    return lines or [f"{first} and {other} have different versions"]
