"""The statistics of a model that somebody has opened, as its private input: with them, and with its
tensors (`training.warm_start`), the model is kept in shares again.

An opened model has center, inverse and fill of its inputs in preparation.safetensors
(`preparation.sealed`), float64 in the units of the owners' u. Kept in shares are the words by which
rows are multiplied and what is subtracted (`preparation.fitted`): whole numbers modulo 2^64, which
the owner computes exactly and secret-shares in two halves, since an owner's input is a number below
2^62. The others learn only their number, which the job contains.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from mpc_train.errors import DataError
from mpc_train.jobs.sealed import CENTER, FILL, INVERSE
from mpc_train.owners.cells import CELL_BITS, WORD_BITS
from mpc_train.preparation.fitted import Factors, Parameters, filled_places, input_bits
from mpc_train.shared.share import COARSE, FINE, INSTEAD, OFFSET, PREPARE, expected_shapes
from mpc_train.shared.share import FILL as DECLARED
from protocols.arrays import Reals, Words
from protocols.crypten_tensor.tensor import Source, crypten
from protocols.ring.fixed_point import encode

if TYPE_CHECKING:
    from mpc_train.jobs.job import Job

PREPARATION_FILE = "preparation.safetensors"
INPUT_BITS = input_bits(1)
"""Fractional bits of a scaled input before its truncation."""
_HALF_BITS = 32
MAX_FILE_BYTES = 1 << 26


def statistics_shapes(job: Job) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the words, in the order in which they are shared."""
    shapes = expected_shapes(job)
    return {name: shapes[name] for name in sorted(shapes) if name.startswith(PREPARE)}


def statistics_size(job: Job) -> int:
    """The number of all words."""
    return sum(prod(shape) for shape in statistics_shapes(job).values())


def load_statistics(model: Path, job: Job) -> Words:
    """The words of all statistics, concatenated; from the file beside that of the model's tensors.

    Raises DataError, which names the file and the tensor, never a value.
    """
    path = Path(model).with_name(PREPARATION_FILE)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path}: longer than {MAX_FILE_BYTES >> 20} MiB")
        found = load_tensors(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); it belongs beside the tensors of the "
            "model, as mpc-train open writes them"
        ) from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a safetensors file of floating-point tensors") from error
    shapes = job.pipeline.shapes
    if {name: x.shape for name, x in found.items()} != shapes:
        said = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise DataError(f"{path}: [prepare] of this job needs exactly {said}")
    opened = {name: _checked(path, name, x) for name, x in found.items()}
    places = {CENTER: job.pipeline.scaled, FILL: job.pipeline.filled}
    for name in opened.keys() & places.keys():
        most = np.array([job.pipeline.terms[place].bound for place in places[name]])
        if not (np.abs(opened[name]) <= most * (1 + 1e-9)).all():
            raise DataError(
                f"{path}: {name} has an entry that lies outside the declared range of its column; "
                "write [data] and [prepare] as in the model's training"
            )
    return statistics_words(job, opened)


def _checked(path: Path, name: str, values: NDArray[Any]) -> Reals:
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        raise DataError(f"{path}: {name} has an entry that is not a finite number")
    return values.astype(np.float64)


def statistics_words(job: Job, opened: Mapping[str, Reals]) -> Words:
    """The words from an opened model's parameters, which have the shapes of `Pipeline.shapes`."""
    pipeline, found = job.pipeline, dict[str, list[int]]()
    both, declared = filled_places(pipeline)
    units = {place: pipeline.terms[place].reach - CELL_BITS for place in pipeline.scaled}
    factors: dict[int, tuple[int, int]] = {}

    def summed(place: int, value: float) -> int:
        """number · inverse · 2^bits, for a number in units of u."""
        cell = round(_exact(value) / Fraction(2) ** units[place])
        high = round(Fraction(cell, 1 << WORD_BITS))
        coarse, fine = factors[place]
        return high * coarse + (cell - (high << WORD_BITS)) * fine

    if pipeline.scaled:
        for place, value in zip(pipeline.scaled, opened[INVERSE].tolist(), strict=True):
            inverse = _exact(value) * Fraction(2) ** units[place]
            factors[place] = (
                round(inverse * (1 << INPUT_BITS + WORD_BITS)),
                round(inverse * (1 << INPUT_BITS)),
            )
        found[COARSE] = [factors[place][0] for place in pipeline.scaled]
        found[FINE] = [factors[place][1] for place in pipeline.scaled]
        centers = zip(pipeline.scaled, opened[CENTER].tolist(), strict=True)
        found[OFFSET] = [summed(place, value) for place, value in centers]
    if both:
        filled = [(pipeline.filled[k], float(opened[FILL][k])) for k in both]
        found[INSTEAD] = [summed(place, value) for place, value in filled]
    if declared:
        found[DECLARED] = encode(opened[FILL][declared], job.fraction_bits).tolist()
    words = [word for name in statistics_shapes(job) for word in found[name]]
    return np.array([_wrapped(word) for word in words], np.int64)


def _exact(value: float) -> Fraction:
    return Fraction(value)


def _wrapped(word: int) -> int:
    """Modulo 2^64, as int64."""
    return (word + (1 << 63)) % (1 << 64) - (1 << 63)


def in_two(words: Words) -> Reals:
    """Words as numbers that an owner can share: first the high halves, then the low ones."""
    low = words & ((1 << _HALF_BITS) - 1)
    return np.concatenate([words >> _HALF_BITS, low]).astype(np.float64)


def shared_statistics(job: Job, source: Source, words: Words | None) -> Parameters:
    """The parameters at every computing node. words: at their owner, if that computes."""
    shapes, size = statistics_shapes(job), statistics_size(job)
    if not size:
        return Parameters()
    mine = None if words is None else in_two(words)
    both = crypten.cryptensor(mine, src=source, shape=(2 * size,), bits=0).masked()
    whole = both.select(slice(0, size)).scale(1 << _HALF_BITS) + both.select(slice(size, None))
    found, start = {}, 0
    for name, shape in shapes.items():
        found[name] = whole.select(slice(start, start + prod(shape)))
        start += prod(shape)
    factors = None
    if COARSE in found:
        factors = Factors(found[COARSE], found[FINE], WORD_BITS, INPUT_BITS)
    return Parameters(
        factors=factors,
        offset=found.get(OFFSET),
        instead=found.get(INSTEAD),
        fill=found.get(DECLARED),
    )
