"""Parameters: 128-bit by the standard's table, the same at both ends; SEAL agrees."""

from math import log2, prod
from typing import Any

import msgspec
import pytest

from mpc_train.errors import ParametersError
from mpc_train.homomorphic import parameters
from mpc_train.homomorphic.parameters import OURS, Parameters, check_parameters


def test_our_parameters_are_secure_and_large_enough() -> None:
    check_parameters(OURS)
    modulus = log2(prod(parameters.PRIMES))
    largest = 2 * parameters.MAX_WEIGHTS * 2.0**parameters.OUTPUT_BITS
    assert log2(largest + 2 * 2.0**parameters.FLOOD_BITS) < modulus - 1
    # The bound of the noise before flooding, and the distance that flooding leaves.
    fresh = 21.5 * parameters.MAX_WEIGHTS * 2.0**parameters.WEIGHT_BITS
    assert log2(fresh + 2.0**14) < parameters.NOISE_BITS
    distance = log2(parameters.DEGREE) + parameters.NOISE_BITS - parameters.FLOOD_BITS - 1
    assert distance <= -60
    # What both floodings do to a slot.
    deviation = parameters.FLOOD_BITS - log2(3) / 2 + log2(parameters.SLOTS) / 2 + 0.5
    assert 9 * 2.0 ** (deviation - parameters.OUTPUT_BITS) < parameters.DEVIATION


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"degree": 4096}, "weak-parameters"),
        ({"degree": 12}, "weak-parameters"),
        ({"primes": ()}, "weak-parameters"),
        ({"primes": (*OURS.primes, 2**60 - 93)}, "weak-parameters"),
        ({"primes": (2**500,)}, "weak-parameters"),
        ({"input_bits": 40}, "other-scale"),
        ({"weight_bits": 20}, "other-scale"),
        ({"flood_bits": 0}, "other-parameters"),
        ({"degree": 16384}, "other-parameters"),
        ({"primes": OURS.primes[:2]}, "other-parameters"),
    ],
)
def test_other_parameters_are_refused_by_name(change: dict[str, Any], code: str) -> None:
    with pytest.raises(ParametersError) as caught:
        check_parameters(msgspec.structs.replace(OURS, **change))
    assert caught.value.code == code


def test_seal_has_the_same_table() -> None:
    library = pytest.importorskip("tenseal.sealapi", reason="TenSEAL is not installed")
    for degree, bits in parameters.MAX_BITS.items():
        level = library.SEC_LEVEL_TYPE.TC128
        assert library.CoeffModulus.MaxBitCount(degree, level) == bits


def test_seal_refuses_weak_parameters() -> None:
    pytest.importorskip("tenseal", reason="TenSEAL is not installed")
    from mpc_train.errors import ConfigError
    from mpc_train.homomorphic.seal import Seal

    weak = Parameters(degree=4096)
    with pytest.raises(ConfigError, match="SEAL refuses"):
        Seal(weak)
