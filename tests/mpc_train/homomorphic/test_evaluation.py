"""What is computed on ciphertexts equals the plain sum; what is malformed is refused by name; and
how much noise hides what an answer would say besides."""

import os
from math import log2, prod

import numpy as np
import pytest

from mpc_train.errors import ArtifactError, CiphertextError, ModelError
from mpc_train.homomorphic import messages, parameters
from mpc_train.homomorphic.parameters import DEVIATION, FLOOD_BITS, PRIMES, SLOTS
from mpc_train.homomorphic.polynomials import (
    ANSWER,
    CIPHERTEXT,
    KEY,
    flood,
    key_id,
    pack,
    pack_residues,
    size_of,
    uniform_residues,
    unpack,
    unpack_residues,
)

pytest.importorskip("tenseal", reason="TenSEAL is not installed")

from mpc_train.homomorphic.evaluation import Evaluation, Weights
from mpc_train.homomorphic.keys import KeyPair
from tests.support.homomorphic import pair, plain_served, seal

COLUMN = np.array(PRIMES, np.uint64).reshape(-1, 1)


def asked(weights: Weights, values: np.ndarray, **options: object) -> list[bytes]:
    request = Evaluation(weights, pair().public)
    for column in range(values.shape[1]):
        request.take(column, pair().encrypt(values[:, column]))
    return request.answers(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "outputs"), [(1, 1), (100, 3), (SLOTS, 1)])
def test_answers_are_weighted_sums(rows: int, outputs: int) -> None:
    weights, matrix, intercepts = plain_served(4, outputs)
    values = np.random.default_rng(rows).uniform(-1, 1, (rows, 4))
    answers = asked(weights, values)
    found = np.column_stack([pair().decrypt(each, rows) for each in answers])
    np.testing.assert_allclose(found, values @ matrix.T + intercepts, rtol=0, atol=DEVIATION)


def test_weights_at_their_bounds() -> None:
    """No overflow of the modulus, and no more noise than the bound says."""
    most = parameters.MAX_WEIGHTS
    weights = Weights(seal(), np.full((1, 2), most / 2), np.array([most]))
    values = np.ones((SLOTS, 2))
    values[::2] = -1
    found = pair().decrypt(asked(weights, values)[0], SLOTS)
    np.testing.assert_allclose(found, values.sum(axis=1) * most / 2 + most, rtol=0, atol=1e-4)
    for large in ((np.full((1, 2), most), np.zeros(1)), (np.zeros((1, 2)), np.array([1.1 * most]))):
        with pytest.raises(ModelError, match="over shares"):
            Weights(seal(), *large)
    with pytest.raises(ModelError):
        Weights(seal(), np.full((1, 2), np.nan), np.zeros(1))


def test_weights_of_zero_are_computed_like_others() -> None:
    weights = Weights(seal(), np.zeros((1, 2)), np.zeros(1))
    found = pair().decrypt(asked(weights, np.ones((5, 2)))[0], 5)
    assert np.abs(found).max() < DEVIATION


def test_an_answer_is_flooded() -> None:
    """The noise in the slots has the size that the bound of flooding promises; without flooding it
    is smaller than floating-point numbers show."""
    weights, matrix, intercepts = plain_served(2)
    values = np.random.default_rng(1).uniform(-1, 1, (SLOTS, 2))
    plain = values @ matrix[0] + intercepts[0]
    server_only = pair().decrypt(asked(weights, values)[0], SLOTS, entropy=zeros)
    client_only = pair().decrypt(asked(weights, values, entropy=zeros)[0], SLOTS)
    neither = pair().decrypt(asked(weights, values, entropy=zeros)[0], SLOTS, entropy=zeros)
    for found in (server_only, client_only):
        assert (found - plain).std() == pytest.approx(2.0**SLOT_BITS, rel=0.1)
    # Rounded weights remain, of which all bits below 2^-30 are gone.
    rounded = np.rint(matrix[0] * 2.0**30) / 2.0**30
    assert np.abs(neither - (values @ rounded + intercepts[0])).max() < 2.0**-44


SLOT_BITS = FLOOD_BITS - log2(3) / 2 + log2(SLOTS) / 2 - parameters.OUTPUT_BITS
"""Of the standard deviation of flooding in a slot."""


def zeros(count: int) -> bytes:
    """Entropy that makes flooding add 0: the middle of the interval."""
    width = FLOOD_BITS // 8 + 1
    top = 1 << (FLOOD_BITS - 8 * (width - 1))
    return (bytes([top]) + bytes(width - 1)) * (count // width)


def test_flooding_is_uniform_in_every_bit() -> None:
    """Noise that is a multiple of some power of two would show what lies below it."""
    residues = uniform_residues(FLOOD_BITS, COLUMN)
    modulus = prod(PRIMES)
    parts = [modulus // prime for prime in PRIMES]
    inverses = [pow(part, -1, prime) for part, prime in zip(parts, PRIMES, strict=True)]
    numbers = []
    for place in range(0, residues.shape[1], 4):
        value = sum(
            int(residues[index, place]) * inverses[index] % PRIMES[index] * parts[index]
            for index in range(len(PRIMES))
        )
        value %= modulus
        numbers.append(value - modulus if value > modulus // 2 else value)
    assert min(numbers) >= -(2**FLOOD_BITS) and max(numbers) < 2**FLOOD_BITS
    assert min(numbers) < -0.99 * 2**FLOOD_BITS and max(numbers) > 0.99 * 2**FLOOD_BITS
    for bit in range(FLOOD_BITS + 1):
        ones = sum((number + 2**FLOOD_BITS) >> bit & 1 for number in numbers)
        assert abs(ones - len(numbers) / 2) < 6 * (len(numbers) / 4) ** 0.5, bit


def test_two_answers_to_one_question_share_nothing() -> None:
    weights, _, _ = plain_served(1)
    given = pair().encrypt(np.ones(3))
    words = []
    for _ in range(2):
        request = Evaluation(weights, pair().public)
        request.take(0, given)
        words.append(unpack(ANSWER, request.answers(entropy=zeros)[0])[1])
    # Also without flooding: a fresh encryption of zero is in it.
    assert (words[0] != words[1]).mean() > 0.999


def test_a_key_pair_survives_the_vault() -> None:
    again = KeyPair.of(seal(), pair().stored())
    weights, matrix, intercepts = plain_served(1)
    request = Evaluation(weights, again.public)
    request.take(0, again.encrypt(np.ones(3)))
    found = pair().decrypt(request.answers()[0], 3)
    np.testing.assert_allclose(found, matrix[0, 0] + intercepts[0], rtol=0, atol=DEVIATION)
    assert "private" in repr(again) and again.ident.hex()[:8] in repr(again)
    for wrong in (b"", pair().stored()[:-1], pair().stored() + b"x", b"x" + pair().stored()[1:]):
        with pytest.raises(ArtifactError):
            KeyPair.of(seal(), wrong)


def test_an_answer_of_another_key_is_noticed() -> None:
    weights, _, _ = plain_served(1)
    other = KeyPair.generate(seal())
    request = Evaluation(weights, other.public)
    request.take(0, other.encrypt(np.ones(3)))
    answer = request.answers()[0]
    with pytest.raises(CiphertextError, match="another key"):
        pair().decrypt(answer, 3)
    _, words = unpack(ANSWER, answer)
    with pytest.raises(CiphertextError, match="does not decrypt"):
        pair().decrypt(pack(ANSWER, pair().ident, words), 3)


def spoilt(data: bytes, place: int, value: bytes) -> bytes:
    return data[:place] + value + data[place + len(value) :]


def test_malformed_ciphertexts_are_refused_by_name() -> None:
    weights, _, _ = plain_served(2)
    good = pair().encrypt(np.ones(3))
    cases = [
        (good[:-1], "size"),
        (good + b"\0", "size"),
        (b"", "size"),
        (spoilt(good, 0, b"X"), "ciphertext"),
        (spoilt(good, 3, b"A"), "ciphertext"),
        (spoilt(good, 4, bytes(16)), "other-key"),
        (spoilt(good, 20, b"\0\x28"), "other-scale"),
        (spoilt(good, 22, b"\xff" * 7), "ciphertext"),
        (good[:22] + bytes(len(good) - 22), "ciphertext"),
    ]
    for data, code in cases:
        with pytest.raises(CiphertextError) as caught:
            Evaluation(weights, pair().public).take(0, data)
        assert caught.value.code == code
    request = Evaluation(weights, pair().public)
    with pytest.raises(CiphertextError, match="column 2"):
        request.take(1, good)
    request.take(0, good)
    with pytest.raises(CiphertextError):
        request.take(0, good)
    with pytest.raises(CiphertextError, match="1 columns came"):
        request.answers()
    request.take(1, good)
    with pytest.raises(CiphertextError):
        request.take(2, good)


def test_ciphertexts_that_cancel_are_refused_by_name() -> None:
    """A sum that hides nothing is one that SEAL does not compute; a client that knows the weights
    can bring it about."""
    weights = Weights(seal(), np.array([[1.0, -1.0]]), np.zeros(1))
    request = Evaluation(weights, pair().public)
    same = pair().encrypt(np.ones(3))
    request.take(0, same)
    with pytest.raises(CiphertextError) as caught:
        request.take(1, same)
    assert caught.value.code == "ciphertext"


def test_malformed_keys_are_refused_by_name() -> None:
    weights, _, _ = plain_served(1)
    good = pair().public
    words = unpack(KEY, good)[1]
    for data, code in (
        (good[:-7], "size"),
        (spoilt(good, 4, bytes(16)), "other-key"),
        (spoilt(good, 30, b"\x01"), "other-key"),
        (spoilt(good, 22, b"\xff" * 7), "ciphertext"),
        (pack(CIPHERTEXT, bytes(16), words), "ciphertext"),
    ):
        with pytest.raises(CiphertextError) as caught:
            Evaluation(weights, data)
        assert caught.value.code == code, code


def test_formats_are_pinned() -> None:
    """A change here is one of the format: raise the number in the magic."""
    words = np.arange(2 * 3 * 8192, dtype=np.uint64).reshape(2, 3, 8192) * np.uint64(65537)
    packed = pack(CIPHERTEXT, bytes(range(16)), words)
    assert packed[:43].hex() == (
        "48453143"
        + bytes(range(16)).hex()
        + "0076"
        + "00" * 7
        + "01000100000000"
        + "02000200000000"
    )
    assert key_id(words).hex() == "aae3b7567f36f5674e04573aafa6ff17"
    assert (
        messages.encode(messages.Show("risk"))[0].hex() == "82a174a473686f77a56d6f64656ca47269736b"
    )
    assert messages.encode(messages.Give(3), b"")[0].hex() == "82a174a467697665a6636f6c756d6e03"


def test_residues_travel_unchanged() -> None:
    words = np.frombuffer(os.urandom(3 * 8192 * 8), np.uint64).reshape(1, 3, 8192) % COLUMN
    assert (unpack_residues(pack_residues(words), 1, COLUMN[None]) == words).all()
    doubled = np.concatenate([words, words])
    flooded = flood(doubled, entropy=zeros)
    assert (flooded == doubled).all()
    assert size_of(CIPHERTEXT) == 344_086 and size_of(KEY) == 458_774
