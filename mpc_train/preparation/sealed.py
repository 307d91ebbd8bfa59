"""The parameters of the preparation that are sealed to the recipients, and their decoding.

A scale may be any number from about 1 to 2^60, so it is sealed as a mantissa and an exponent,
inverse = mantissa · 2^exponent: both follow from the scale alone and say nothing more about the
rows. Centers and filled-in means are sealed in cell units (`cells`). An opened model has `center`,
`inverse` and `fill` in the units of the owner's u, float64 (`applied`).

A scale of 0 means that the training rows' values could not be distinguished: the input is then 0.
The recipients, who know the scales, are told which inputs are 0, which are rounded noticeably
because their declared range is very wide, and, by a sealed bit, which may have a value too far away
for the ring (`remarks`). Nobody else learns this.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mpc_train.jobs.pipeline import Pipeline
from mpc_train.jobs.sealed import BEYOND, CENTER, EXPONENT, FILL, INVERSE, MANTISSA
from mpc_train.owners.cells import CELL_BITS, reaches
from protocols.arrays import Reals
from protocols.ring.rational import MANTISSA_BITS

BITS = {CENTER: CELL_BITS, MANTISSA: MANTISSA_BITS, EXPONENT: 0, BEYOND: 0, FILL: CELL_BITS}
"""Fractional bits of the sealed parameters."""
FINE_BITS = 42
"""If the deviation is below 2^-42 of the range, an input has an error above 2^-12."""


def opened_parameters(pipeline: Pipeline, sealed: Mapping[str, Reals]) -> dict[str, Reals]:
    """The parameters of `Pipeline.shapes`, in units of u, decoded from the sealed ones."""
    found: dict[str, Reals] = {}
    if pipeline.scaled:
        unit = reaches(pipeline, pipeline.scaled)
        exponent = np.rint(sealed[EXPONENT]).astype(np.int64) - unit
        # Whatever evaluators sealed: beyond this, float64 cannot represent a power of two.
        found[CENTER] = np.ldexp(sealed[CENTER], unit)
        found[INVERSE] = np.ldexp(sealed[MANTISSA], np.clip(exponent, -1000, 1000))
    if pipeline.filled:
        found[FILL] = np.ldexp(sealed[FILL], reaches(pipeline, pipeline.filled))
    return found


def remarks(
    pipeline: Pipeline, parameters: Mapping[str, Reals], least_deviation: float = 0.0
) -> dict[str, list[str]]:
    """Names of inputs that are not what the job asks for: `constant`, whose training values could
    not be distinguished, `coarse`, which are rounded noticeably, `beyond`, which may be wrong for
    some row, and `narrow`, whose variance with noise was less than the least one; empty lists are
    omitted.

    parameters: as opened, with BEYOND if it is known. least_deviation: of a job whose sums have
    noise, in halves of the declared range.
    """
    if not pipeline.scaled:
        return {}
    names = np.array(pipeline.names)[list(pipeline.scaled)]
    inverse = np.ldexp(parameters[INVERSE], reaches(pipeline, pipeline.scaled))
    found = {"constant": inverse == 0, "coarse": inverse > 2.0**FINE_BITS}
    found["narrow"] = inverse * least_deviation > 1 - 2.0**-10
    found["beyond"] = parameters.get(BEYOND, np.zeros(len(names))) != 0
    return {what: names[where].tolist() for what, where in found.items() if where.any()}


def in_words(said: Mapping[str, list[str]]) -> list[str]:
    """`remarks` for people, a line each."""
    words = {
        "constant": "not scaled, the input is 0: the training rows' values are equal, or too close "
        "for the declared range (narrow it)",
        "coarse": "rounded: the declared range is more than 10^12 times as wide as the values "
        "(narrow it)",
        "narrow": "scaled by the least deviation that the job allows: the training rows' variance "
        "with its noise is not above its square; narrow the declared range, or give the statistics "
        "more of the budget (privacy.statistics)",
        "beyond": "some row's value may be more than 1,000 deviations (or spreads) away from the "
        "training rows', and come out wrong in the metrics (clip it)",
    }
    return [f"{', '.join(names)}: {words[what]}" for what, names in said.items()]
