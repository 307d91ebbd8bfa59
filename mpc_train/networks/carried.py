"""A network in a job: as data with its initial weights, or as installed code.

`[model] graph = "model.json"` carries graph and weights; nodes need none of the researcher's code.
`[model] module = "package.module:factory"` carries the graph and a digest of the code; every node
calls the factory itself, under the job's seed, and refuses unless graph and digest match. A node
calls only factories that its own rules list, because the name comes from elsewhere.

Initial weights are integers at scale 2^WEIGHT_BITS, four bytes each, and are rounded to a job's
scale here, by shifts.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib
import importlib.util
import re
import sys
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from mpc_train.errors import ModelError
from mpc_train.networks.graph import WEIGHT_BITS, Graph, GraphError, check_graph
from protocols.arrays import Words

if TYPE_CHECKING:
    import torch

MAX_MODEL_BYTES = 64 << 20
REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")


class Carried(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """weights: by name, base64 of little-endian int32 at scale 2^WEIGHT_BITS; or none, with the
    SHA-256 of the source that makes them."""

    graph: Graph
    weights: dict[str, str] = {}
    source: str = ""


def read_model(path: Path) -> Carried:
    """A model file, checked; raises ModelError."""
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise ModelError(f"{path}: longer than {MAX_MODEL_BYTES >> 20} MiB")
        found = msgspec.json.decode(path.read_bytes(), type=Carried)
        check_carried(found)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: {error}; write it with mpc-train model export") from error
    return found


def check_carried(carried: Carried) -> None:
    """Raise GraphError unless the graph is valid and has every weight that it needs."""
    check_graph(carried.graph)
    if not carried.source:
        for name, shape in carried.graph.named("parameter", "frozen", "statistic"):
            _decoded(name, carried.weights.get(name, ""), shape)


def made_by(reference: str, input_shape: tuple[int, ...], seed: int) -> Carried:
    """The network of `package.module:factory`, with its weights. Raises ModelError."""
    graph, weights, source = _made(reference, tuple(input_shape), seed)
    return Carried(graph, {name: _encoded(words) for name, words in weights.items()}, source)


def weights_of(carried: Carried, reference: str, seed: int, fraction_bits: int) -> dict[str, Words]:
    """The initial weights at scale 2^fraction_bits; from the factory if the job does not carry
    them."""
    graph = carried.graph
    if reference:
        made, words, source = _made(reference, graph.input_shape, seed)
        if source != carried.source:
            raise ModelError(
                f"model.module: the source of {reference} here differs from the job's; install "
                "the same version everywhere"
            )
        if made != graph:
            raise ModelError(f"model.module: {reference} makes a different network here")
    else:
        words = {
            name: _decoded(name, carried.weights[name], shape)
            for name, shape in graph.named("parameter", "frozen", "statistic")
        }
    return {name: _rounded(value, fraction_bits) for name, value in words.items()}


def _rounded(words: Words, fraction_bits: int) -> Words:
    shift = WEIGHT_BITS - fraction_bits
    if shift <= 0:
        return words << -shift
    return (words + (1 << (shift - 1))) >> shift


def _encoded(words: Words) -> str:
    return base64.b64encode(words.astype("<i4").tobytes()).decode()


def _decoded(name: str, text: str, shape: tuple[int, ...]) -> Words:
    try:
        octets = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise GraphError(f"{name}: the weights are not base64") from error
    if len(octets) != 4 * prod(shape):
        raise GraphError(f"{name}: {len(octets)} bytes of weights for {list(shape)}")
    return np.frombuffer(octets, "<i4").astype(np.int64).reshape(shape)


def module_of(reference: str, seed: int) -> torch.nn.Module:
    """What `package.module:factory` makes here under this seed. Raises ModelError."""
    if not REFERENCE.match(reference):
        raise ModelError(f"model.module: {reference!r} is not package.module:factory")
    place, _, name = reference.partition(":")
    if place.partition(".")[0] in sys.stdlib_module_names:
        # Somebody else may have written the job: http.server:test would serve this folder.
        raise ModelError(f"model.module: {reference} belongs to Python, and makes no network")
    # torch and the researcher's code are loaded only if a job needs them.
    import torch

    try:
        factory = getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"model.module: {reference} is not installed here ({error}); install it, or let the "
            "job carry the network: mpc-train model export"
        ) from error
    except Exception as error:  # the code may raise anything when it is loaded
        raise ModelError(f"model.module: {place} cannot be loaded: {error!r}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = factory()
        except Exception as error:
            raise ModelError(f"model.module: {reference}() fails: {error}") from error
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"model.module: {reference}() is not a torch.nn.Module")
    return module


@lru_cache(maxsize=4)
def _made(
    reference: str, input_shape: tuple[int, ...], seed: int
) -> tuple[Graph, dict[str, Words], str]:
    module = module_of(reference, seed)
    from mpc_train.networks.convert import ConversionError, convert

    try:
        found = convert(module, input_shape)
    except ConversionError as error:
        lines = "\n  ".join(error.problems)
        raise ModelError(f"model.module: {reference} cannot be trained:\n  {lines}") from error
    return found.graph, found.initial, source_digest(reference.partition(":")[0])


def source_digest(module: str) -> str:
    """SHA-256 of the Python source of a module's whole top-level package."""
    top = importlib.util.find_spec(module.partition(".")[0])
    if top is None or not top.origin:
        raise ModelError(f"model.module: the source of {module} is not a file")
    origin = Path(top.origin)
    files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(origin.parent).as_posix()
        body = file.read_bytes()
        digest.update(f"{len(name)} {name} {len(body)} ".encode() + body)
    return digest.hexdigest()
