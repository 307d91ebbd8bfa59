"""Shifts by a secret number of places, for tests of `protocols.functions.magnitude`."""

import numpy as np

from protocols.arrays import Words
from protocols.functions.magnitude import Magnitude, magnitude, shifted
from protocols.shares.arithmetic import remask
from protocols.shares.masked import Masked

BITS = 40


def octave_of(x: Masked) -> Magnitude:
    """Level k: 2^k <= x < 2^(k + 1), and 0 besides; 0 <= x < 2^40."""
    return magnitude(x, [1 << octave for octave in range(1, BITS)])


def shifts(x: Masked) -> list[Masked]:
    """x with its highest bit at 2^39, and at 2^0, by which other bits are rounded off."""
    exponents = [BITS - 1 - octave for octave in range(BITS)], [-octave for octave in range(BITS)]
    return [remask(shifted(x, BITS, octave_of(x), one)) for one in exponents]


def check_shifts(x: Words, outputs: list[np.ndarray]) -> None:
    octave = np.maximum(np.frexp(x.astype(np.float64))[1] - 1, 0)
    np.testing.assert_array_equal(outputs[0], x << BITS - 1 - octave)
    assert set(np.unique(outputs[1] - (x >> octave))) <= {0, 1}
