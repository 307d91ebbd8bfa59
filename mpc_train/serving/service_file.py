"""The file that says which models in shares a service offers; a coordinator's file names it.

    [service]
    name = "predictions"
    models = ["breast-cancer.model"]    # written by mpc-train model show NAME --out FILE
    clients = ["clinic-a"]              # if omitted: all whom the models' jobs allow

Paths are relative to the file. The order of models of one name is that of their versions.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from mpc_train.base.strict_toml import all_at, load_toml
from mpc_train.errors import ArtifactError, ConfigError, JobError
from mpc_train.serving.service import Agreed
from mpc_train.shared.description import read_description

SECTION = "service"


class _Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    models: tuple[str, ...]
    clients: tuple[str, ...] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    service: _Service


def is_service_file(path: Path) -> bool:
    """Whether this is the file of a service, not of a job. What cannot be read is neither."""
    try:
        return SECTION in tomllib.loads(path.read_text())
    except (OSError, ValueError):
        return False


def load_service_file(path: Path) -> Agreed:
    """Read it and the models' descriptions; raise ConfigError with all faults, by line and key."""
    path = path.absolute()
    parsed, text = load_toml(path, _File, ConfigError)
    service, faults, models = parsed.service, [], []
    if not service.models:
        faults.append((f"{SECTION}.models", "name at least one model's file"))
    for name in service.models:
        file = path.parent / Path(name).expanduser()
        try:
            models.append(read_description(file))
        except ArtifactError as error:
            faults.append((f"{SECTION}.models", str(error)))
    if not faults:
        try:
            return Agreed.of(service.name, models, service.clients)
        except JobError as error:
            faults.append((SECTION, str(error)))
    raise all_at(ConfigError, path, text, faults)
