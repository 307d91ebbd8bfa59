"""How a table comes into a node's vault: read once, encrypted before anything else touches it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from mpc_train.errors import ConfigError, DataError
from mpc_train.node.storage import TABLE, token_key
from mpc_train.tables.loading.load import Report, header_faults, open_table, reporting
from mpc_train.tables.readers.staged import stage
from mpc_train.tables.readers.tokenised import Tokenised, there_are
from mpc_train.tables.source import Source, label_of
from parties.keys.services.service import KeyService
from parties.vault.store import Store
from protocols.sealing.stored import ObjectInfo


@dataclass(frozen=True)
class Imported:
    """protected: by the name of a key, the columns that lie under it."""

    info: ObjectInfo
    rows: int
    columns: tuple[str, ...]
    protected: Mapping[str, tuple[str, ...]]


def import_table(
    store: Store,
    name: str,
    source: Source,
    *,
    tokenise: Sequence[str] = (),
    protect: Sequence[str] = (),
    key_of: Callable[[str], KeyService] | None = None,
    progress: Report | None = None,
) -> Imported:
    """Keep a file as the newest version of the table `name`, all columns but those it ignores.

    tokenise: columns whose identifiers become tokens. protect: texts COLUMN=KEY; key_of: opens the
    key of a name. Raises DataError and ConfigError; then nothing was kept.
    """
    label = label_of(source)
    # The table is closed, and compared with what was read, before the object is there.
    with (
        store.writing(TABLE, name) as out,
        ExitStack() as held,
        open_table(source) as opened,
    ):
        if faults := header_faults(opened, source.ignore):
            raise DataError("\n  ".join(f"{label}: {fault}" for fault in faults))
        columns = tuple(column for column in opened.names if column not in source.ignore)
        if not columns:
            raise DataError(f"{label}: no column is left; ignore fewer")
        protected = _protection(protect, columns)
        parts = {
            key: (each, held.enter_context(store.under(key_of(key), key).writing_part(out.info)))
            for key, each in protected.items()
            if key_of is not None
        }
        told = reporting(opened, progress)
        try:
            named = Tokenised(opened, tokenise, token_key(store)) if tokenise else opened
            rows = stage(named, source, out, told, parts=parts, tokenised=tokenise)
        except DataError as error:
            raise DataError(f"{label}: {str(error).removeprefix(f'{label}: ')}") from error
    return Imported(out.info, rows, columns, protected)


def _protection(asked: Sequence[str], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The columns to protect by the name of their key, from texts COLUMN=KEY.

    names: the table's columns. Raises ConfigError with all that is wrong.
    """
    found: dict[str, str] = {}
    faults = []
    for text in asked:
        column, sign, key = text.rpartition("=")
        if not sign or not column or not key:
            faults.append(f"--protect {text!r}: write COLUMN=KEY, a key under [vault.columns]")
        elif column not in names:
            faults.append(f"--protect {text!r}: there is no column {column!r}; {there_are(names)}")
        elif found.setdefault(column, key) != key:
            faults.append(f"--protect {text!r}: {column!r} has the key {found[column]!r} already")
    if faults:
        raise ConfigError("\n  ".join(faults))
    keys = dict.fromkeys(found.values())
    return {key: tuple(name for name in names if found.get(name) == key) for key in keys}
