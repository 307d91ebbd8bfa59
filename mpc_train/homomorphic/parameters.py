"""The one set of CKKS parameters, what its noise bounds are, and the check of 128-bit security.

A record's inputs lie in slots, one ciphertext for each input. The server multiplies ciphertexts by
whole numbers (its weights at scale 2^WEIGHT_BITS) and adds: one level, so nothing is rescaled,
rotated or relinearised, and there are no keys for that. Sizes in bits:

    118  INPUT_BITS    scale of an input, whose magnitude is at most 1
     30  WEIGHT_BITS   scale of a weight; magnitudes of an output's weights add up to at most 2^16
     51  NOISE_BITS    bound of a coefficient of an answer's noise before flooding, see below
    123  FLOOD_BITS    bound of the uniform noise that is added to each coefficient
    168  modulus       outputs are below 2^17 at scale 2^148, which leaves 2 bits

Noise before flooding: the errors of fresh ciphertexts, at most 21 in each coefficient (SEAL's
centred binomial), times the weights, 21.5 · 2^16 · 2^30 < 2^50.5; the fresh encryption of zero that
the server adds has less than 2^14. Flooding with whole numbers uniform in [-2^b, 2^b) hides noise
below 2^t up to a statistical distance of n · 2^t / 2^(b+1) = 2^(13 + 51 - 124) = 2^-60 for each
answer, so 2^-40 for a million answers under one key. Each of the 4,096 slots of an answer then
deviates by 2^(123 - 0.8 + 6 - 148) = 2^-19.8 (standard deviation), and after the client has flooded
as well by 2^-19.3: nine of these are less than 2^-16.

Security: table 1 of the Homomorphic Encryption Standard (Albrecht et al., 2018), ternary secrets,
classical attacks. SEAL checks the same table once more.
"""

import msgspec

from mpc_train.errors import ParametersError

DEGREE = 8192
SLOTS = DEGREE // 2
"""Records in one ciphertext."""

PRIMES = (72057594037338113, 72057594037370881, 72057594037616641)
"""The modulus of ciphertexts is their product."""
KEY_PRIME = 1032193
"""SEAL encrypts under a public key modulo this as well, and then divides by it."""

INPUT_BITS, WEIGHT_BITS = 118, 30
OUTPUT_BITS = INPUT_BITS + WEIGHT_BITS
MAX_WEIGHTS = 2.0**16
"""Bound of the sum of magnitudes of an output's weights, and of its intercept."""
NOISE_BITS, FLOOD_BITS = 51, 123
DEVIATION = 2.0**-16
"""By how much an answer may deviate, after both sides have flooded it."""

MAX_COLUMNS, MAX_OUTPUTS = 4096, 128
MAX_PRODUCTS = 1 << 13
"""Columns times outputs of a model: about 4 s of the server's time for a request."""

MAX_BITS = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}
"""By degree of the ring, the largest number of bits of the modulus that gives 128-bit security."""


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What both sides compute with. primes: of ciphertexts, then the key's own."""

    degree: int = DEGREE
    primes: tuple[int, ...] = (*PRIMES, KEY_PRIME)
    input_bits: int = INPUT_BITS
    weight_bits: int = WEIGHT_BITS
    flood_bits: int = FLOOD_BITS


OURS = Parameters()


def check_parameters(given: Parameters) -> None:
    """Raise ParametersError unless these are secure, and those of this release.

    1. The modulus, the key's prime included, is within the standard's table for the degree.
    2. They are exactly the parameters here: noise bounds and sizes rest on them.
    """
    most = MAX_BITS.get(given.degree)
    bits = sum(prime.bit_length() for prime in given.primes)
    if most is None or bits > most or not given.primes:  # 1
        raise ParametersError(
            f"degree {given.degree} with a modulus of {bits} bits is weaker than 128 bits by the "
            "homomorphic-encryption standard, or not in its table",
            "weak-parameters",
        )
    if (given.input_bits, given.weight_bits) != (OURS.input_bits, OURS.weight_bits):  # 2
        raise ParametersError(
            f"scales 2^{given.input_bits} and 2^{given.weight_bits}; this release computes at "
            f"2^{OURS.input_bits} and 2^{OURS.weight_bits}",
            "other-scale",
        )
    if given != OURS:
        raise ParametersError(
            "parameters of another release; run the same release at both ends", "other-parameters"
        )
