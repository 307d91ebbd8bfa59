"""Modules of tests as networks that a job carries."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec
from torch import nn

from mpc_train.networks.carried import Carried
from mpc_train.networks.convert import convert


def carried_of(module: nn.Module, shape: tuple[int, ...]) -> Carried:
    """As `mpc-train model export` makes it of a factory. shape: of a row."""
    found = convert(module, shape)
    weights = {
        name: base64.b64encode(words.astype("<i4").tobytes()).decode()
        for name, words in found.initial.items()
    }
    return Carried(found.graph, weights)


def write_carried(path: Path, module: nn.Module, shape: tuple[int, ...]) -> None:
    path.write_bytes(msgspec.json.encode(carried_of(module, shape)))
