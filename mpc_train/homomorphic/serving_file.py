"""The file that says which models a server answers for, and whom.

    listen = "tcp://0.0.0.0:7800"
    [models.mortality]
    model = "runs/study"                # the folder that mpc-train open wrote, or vault:NAME
    clients = ["clinic-a", "clinic-b"]  # names in the roster
    rows_a_day = 40960                  # of each client

Paths are relative to the file. Rows count as 4,096 for each request, because the server does not
know how many of them are used.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mpc_train.base.strict_toml import all_at, load_toml
from mpc_train.errors import ConfigError
from mpc_train.homomorphic.parameters import SLOTS
from protocols.names import NAME

VAULT = "vault:"
MAX_ROWS = 10**12
_ADDRESS = re.compile(r"tcp://(\[[0-9a-fA-F:.%a-z]+\]|[A-Za-z0-9._*-]+):(\d{1,5}|\*)\Z")


class _Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    clients: tuple[str, ...]
    rows_a_day: int


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    listen: str
    models: dict[str, _Model]


@dataclass(frozen=True)
class ModelPlace:
    """path: of an opened model; None: `stored` is its name in the vault."""

    path: Path | None
    stored: str
    clients: tuple[str, ...]
    rows_a_day: int


@dataclass(frozen=True)
class ServingFile:
    path: Path
    listen: str
    models: dict[str, ModelPlace]

    @property
    def clients(self) -> tuple[str, ...]:
        """Everybody who may ask something, sorted."""
        return tuple(sorted({name for each in self.models.values() for name in each.clients}))


def load_serving_file(path: Path) -> ServingFile:
    """Read it; raise ConfigError with all faults, by line and key."""
    path = path.absolute()
    parsed, text = load_toml(path, _File, ConfigError)
    faults: list[tuple[str, str]] = []
    address = _ADDRESS.match(parsed.listen)
    if address is None or (address[2] != "*" and int(address[2]) > 65535):
        faults.append(("listen", "write tcp://host:port, like tcp://0.0.0.0:7800"))
    if not parsed.models:
        faults.append(("models", "name at least one model: [models.NAME]"))
    for name, model in parsed.models.items():
        key = f"models.{name}"
        faults += [
            (each, f"{word!r} is not a name: use a-z, 0-9 and -")
            for each, word in ((key, name), *((f"{key}.clients", who) for who in model.clients))
            if not NAME.match(word)
        ]
        if not model.clients or len(set(model.clients)) < len(model.clients):
            faults.append((f"{key}.clients", "at least one name is needed, and each once"))
        if not SLOTS <= model.rows_a_day <= MAX_ROWS:
            faults.append((f"{key}.rows_a_day", f"from {SLOTS}, one request, to {MAX_ROWS:,}"))
        if not model.model.removeprefix(VAULT):
            faults.append((f"{key}.model", "a folder that mpc-train open wrote, or vault:NAME"))
    if faults:
        raise all_at(ConfigError, path, text, faults)
    return ServingFile(
        path, parsed.listen, {name: _place(path, each) for name, each in parsed.models.items()}
    )


def _place(path: Path, model: _Model) -> ModelPlace:
    stored = model.model.startswith(VAULT)
    return ModelPlace(
        None if stored else (path.parent / Path(model.model).expanduser()).absolute(),
        model.model.removeprefix(VAULT) if stored else "",
        model.clients,
        model.rows_a_day,
    )
