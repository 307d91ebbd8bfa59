"""Noise on a sum that nobody may know exactly: each node adds its own part, nobody has the whole.

Where a sum is held as summands (`Additive`), each node adds a number of its own to what it holds:
an evaluator to its summand, the dealer to its own, which goes into the correction that it sends
anyway. No round, and no byte more. What others open afterwards is under a fresh mask, so nobody
learns anything of a part of the noise but its own.

**Whose noise, and what is left of it.** For a variance V, in words, the dealer draws from
N_Z(0, V) and each of N evaluators from N_Z(0, V / N), independently in every element:

    who works together                      noise that they do not know
    recipients alone                        2 V
    the dealer with recipients              V           (N parts of V / N)
    N − 1 evaluators with recipients        V + V / N

The dealer with an evaluator can read everything anyway. `mpc_train.privacy.accounting` counts V,
the least, and says how far the sum of several parts is from a discrete Gaussian.

**The grid.** Noise is a whole number of the words' own unit. A sum that is a multiple of a coarser
grid would show its low bits through noise on that grid, and noise that is coarser than the words
would leave theirs bare: so noise is added before anything is rounded. Rounding afterwards
(`arithmetic.round_off`) is a function of the noisy sum and of randomness that does not depend on
the data, so that nothing more is lost by it, also to those who know that randomness.

**Used once.** Noise comes from a key that a node draws in each session and keeps nowhere
(`Role.own`), also where a step's noise follows that of steps before (`banded`). A step that is
repeated after a break gets fresh noise; two noisy versions of one sum then exist in shares, one of
which is forgotten with its session. Nobody can average them: of both sessions only the last weights
are ever revealed, and those follow from one version.
"""

from __future__ import annotations

from fractions import Fraction
from math import prod

import numpy as np

from protocols.arrays import Shape, Words
from protocols.noise import gaussian
from protocols.noise.banded import Past, spread
from protocols.roles.role import Role
from protocols.shares.masked import Additive


def part_of(role: Role, variance: Fraction) -> Fraction:
    """The variance of what this node adds."""
    return variance if role.is_dealer else variance / role.evaluators


def noisy(z: Additive, variance: Fraction, past: Past | None = None) -> Additive:
    """z with noise of all nodes, in every element; variance: what the weakest coalition does not
    know, in squared words. past: this node's noise of the steps before, which this one follows;
    None if steps are independent. No communication.

    RangeError for a variance that does not fit (`gaussian.table`).
    """
    role = z.role
    role.issue("noise", prod(z.shape))
    words = own_part(role, prod(z.shape), variance).reshape(z.shape)
    if past is not None:
        words = past.follow(words)
    return _with(z, words)


def noisy_first(z: Additive, variance: Fraction) -> Additive:
    """z [blocks, ...], whose blocks are parts of one sum, with noise in the first of them.

    As `noisy` for that block: what is rounded block by block and then added up has the noise of one
    block, and the noise is there before anything is rounded with it.
    """
    role, count = z.role, prod(z.shape[1:])
    role.issue("noise", count)
    return _with(z, _in_first(own_part(role, count, variance).reshape(z.shape[1:]), z.shape))


def noisy_first_symmetric(z: Additive, variance: Fraction) -> Additive:
    """The same for symmetric matrices, z [blocks, n, n], with symmetric noise: independent numbers
    on and above the diagonal, mirrored below it.

    variance: on the diagonal; elsewhere half of it. In the coordinates m_ii and √2·m_ij (i < j), in
    which the length of a vector is the Frobenius norm of the matrix, every number has `variance`.
    """
    role, size = z.role, z.shape[-1]
    above = np.triu_indices(size, 1)
    role.issue("symmetric noise", size)
    words = np.diag(own_part(role, size, variance))
    if size > 1:
        upper = np.zeros_like(words)
        upper[above] = own_part(role, len(above[0]), variance / 2)
        words = words + upper + upper.T
    return _with(z, _in_first(words, z.shape))


def _in_first(words: Words, shape: Shape) -> Words:
    found = np.zeros(shape, np.int64)
    found[0] = words
    return found


def _with(z: Additive, words: Words) -> Additive:
    """z and what this node adds."""
    role = z.role
    if role.is_dealer:
        dealt = words if z.dealt is None else z.dealt + words
        return Additive(role, z.shape, z.part, dealt, True)
    part = z.part.map(lambda mine: mine + words)
    return Additive(role, z.shape, part, None, True)


def own_part(role: Role, count: int, variance: Fraction) -> Words:
    """int64[count] of this node's noise."""
    return gaussian.numbers(part_of(role, variance), count, role.own)


def largest(evaluators: int, variance: Fraction, bands: int = 1) -> Fraction:
    """No sum of all nodes' noise is larger in magnitude, whatever is drawn."""
    dealer = gaussian.table(variance).most
    drawn = dealer + evaluators * gaussian.table(variance / evaluators).most
    return spread(bands) * (drawn + Fraction(evaluators + 1, 2))
