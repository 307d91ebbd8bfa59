"""What of the preparation is sealed to the recipients, and what they make of it.

A scale may be any number from about 1 to 2^60, so that it is sealed as a mantissa and an exponent,
inverse = mantissa · 2^exponent: both follow from the scale alone and say nothing more of the rows.
Centers and filled-in means are sealed in cell units (`cells`). An opened model has `center`,
`inverse` and `fill` in the units of the owner's u, float64 (`applied`).

A scale of 0 means that the training rows' values could not be told apart: the input is 0 then. The
recipients, who know the scales, are told which inputs that concerns, of which the declared range is
so wide that they are rounded noticeably, and, by a bit sealed for it, of which there may be a value
too far off for the ring (`remarks`). Nobody else learns it.
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
"""Fractional bits of what is sealed."""
FINE_BITS = 42
"""Beyond a deviation of 2^-42 of the range an input is off by more than 2^-12."""


def opened_parameters(pipeline: Pipeline, sealed: Mapping[str, Reals]) -> dict[str, Reals]:
    """The parameters of `Pipeline.shapes`, in units of u, from what was sealed, decoded."""
    reach, found = reaches(pipeline), {}
    if pipeline.scaled:
        unit = reach[list(pipeline.scaled)]
        exponent = np.rint(sealed[EXPONENT]).astype(np.int64) - unit
        # Whatever evaluators sealed: beyond this a power of two is none of float64.
        found[CENTER] = np.ldexp(sealed[CENTER], unit)
        found[INVERSE] = np.ldexp(sealed[MANTISSA], np.clip(exponent, -1000, 1000))
    if pipeline.filled:
        found[FILL] = np.ldexp(sealed[FILL], reach[list(pipeline.filled)])
    return found


def remarks(pipeline: Pipeline, parameters: Mapping[str, Reals]) -> dict[str, list[str]]:
    """Names of inputs that did not come out as the job asks: `constant`, of which the training
    rows' values could not be told apart, `coarse`, which are rounded noticeably, and `beyond`, of
    which some row's may be wrong; empty lists are left out.

    parameters: as opened, and BEYOND where it is known.
    """
    if not pipeline.scaled:
        return {}
    names = np.array(pipeline.names)[list(pipeline.scaled)]
    inverse = np.ldexp(parameters[INVERSE], reaches(pipeline)[list(pipeline.scaled)])
    found = {"constant": inverse == 0, "coarse": inverse > 2.0**FINE_BITS}
    found["beyond"] = parameters.get(BEYOND, np.zeros(len(names))) != 0
    return {what: names[where].tolist() for what, where in found.items() if where.any()}


def in_words(said: Mapping[str, list[str]]) -> list[str]:
    """`remarks` for people, a line each."""
    words = {
        "constant": "not scaled, the input is 0: the training rows' values are equal, or too close "
        "for the declared range (narrow it)",
        "coarse": "rounded: the declared range is more than 10^12 times as wide as the values "
        "(narrow it)",
        "beyond": "some row's value may be more than 1,000 deviations (or spreads) away from the "
        "training rows', and come out wrong in the metrics (clip it)",
    }
    return [f"{', '.join(names)}: {words[what]}" for what, names in said.items()]
