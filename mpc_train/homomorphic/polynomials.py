"""Polynomials as both sides exchange them, and uniform noise for flooding.

    "HE1" ‖ what it is (1) ‖ key (16) ‖ bits of the scale (2) ‖ residues, 7 bytes each

What it is: `K` a public key, `C` a ciphertext (both as SEAL keeps them, in the number-theoretic
transform), `A` an answer (coefficients). Numbers are big-endian, residues little-endian, ordered by
polynomial, prime and place. `key` begins the SHA-256 of the residues of the public key. Every
object of a kind has the same length, which is checked before anything else, and each residue is
below its prime. Numbers of bytes: a key 458,774, a ciphertext or an answer 344,086.
"""

import hashlib
import os
import struct
from collections.abc import Callable

import numpy as np

from mpc_train.errors import CiphertextError
from mpc_train.homomorphic.parameters import (
    DEGREE,
    FLOOD_BITS,
    INPUT_BITS,
    KEY_PRIME,
    OUTPUT_BITS,
    PRIMES,
)
from mpc_train.homomorphic.seal import Words

KEY, CIPHERTEXT, ANSWER = b"K", b"C", b"A"
KEY_ID_BYTES = 16
RESIDUE_BYTES = 7
"""Every prime has at most 56 bits."""

_MAGIC = b"HE1"
_HEAD = struct.Struct(">3sc16sH")
_BITS = {KEY: 0, CIPHERTEXT: INPUT_BITS, ANSWER: OUTPUT_BITS}
_WORDS = {"K": "a public key", "C": "a ciphertext", "A": "an answer"}

Entropy = Callable[[int], bytes]


def _primes(kind: bytes) -> Words:
    primes = (*PRIMES, KEY_PRIME) if kind == KEY else PRIMES
    return np.array(primes, np.uint64).reshape(1, -1, 1)


def size_of(kind: bytes) -> int:
    """The bytes of an object of this kind."""
    return _HEAD.size + 2 * _primes(kind).size * DEGREE * RESIDUE_BYTES


MAX_BYTES = size_of(KEY)


def pack_residues(words: Words) -> bytes:
    """7 bytes each, little-endian."""
    octets = words.astype("<u8").reshape(-1, 1).view(np.uint8)
    return octets[:, :RESIDUE_BYTES].tobytes()


def unpack_residues(data: bytes, polynomials: int, primes: Words) -> Words:
    """uint64[polynomials, primes, degree]. Raises CiphertextError for another length, or a number
    that is not below its prime."""
    shape = (polynomials, primes.size, DEGREE)
    if len(data) != polynomials * primes.size * DEGREE * RESIDUE_BYTES:
        raise CiphertextError(f"{len(data)} bytes of residues are not those of {shape}", "size")
    octets = np.zeros((polynomials * primes.size * DEGREE, 8), np.uint8)
    octets[:, :RESIDUE_BYTES] = np.frombuffer(data, np.uint8).reshape(-1, RESIDUE_BYTES)
    words = octets.view("<u8").astype(np.uint64).reshape(shape)
    if (words >= primes).any():
        raise CiphertextError("a residue is not below its prime", "ciphertext")
    return words


def key_id(words: Words) -> bytes:
    """What names a public key in everything that is encrypted under it."""
    return hashlib.sha256(pack_residues(words)).digest()[:KEY_ID_BYTES]


def pack(kind: bytes, key: bytes, words: Words) -> bytes:
    return _HEAD.pack(_MAGIC, kind, key, _BITS[kind]) + pack_residues(words)


def unpack(kind: bytes, data: bytes, key: bytes | None = None) -> tuple[bytes, Words]:
    """The key's id and the residues of an object of this kind; key: the id that it must have.

    Raises CiphertextError: another length, kind, scale or key, a residue out of range, a public key
    whose id is not its own.
    """
    what = _WORDS[kind.decode()]
    if len(data) != size_of(kind):
        raise CiphertextError(f"{what} has {len(data)} bytes; expected {size_of(kind)}", "size")
    magic, found, named, bits = _HEAD.unpack_from(data)
    if magic != _MAGIC or found != kind:
        raise CiphertextError(f"expected {what}; this is something else", "ciphertext")
    if bits != _BITS[kind]:
        raise CiphertextError(f"{what} at scale 2^{bits}; expected 2^{_BITS[kind]}", "other-scale")
    if key is not None and named != key:
        raise CiphertextError(f"{what} of another key than this request's", "other-key")
    words = unpack_residues(data[_HEAD.size :], 2, _primes(kind))
    if kind == KEY and key_id(words) != named:
        raise CiphertextError("a public key whose id is that of another", "other-key")
    return named, words


def flood(words: Words, bits: int = FLOOD_BITS, entropy: Entropy = os.urandom) -> Words:
    """Add a whole number uniform in [-2^bits, 2^bits) to each coefficient of the first polynomial.

    words: coefficients of an answer, uint64[2, primes, degree]; returns a copy. The numbers are
    exact: noise from floating-point numbers of this size would be multiples of 2^70, and leave the
    bits below untouched that it has to hide.
    """
    primes = _primes(ANSWER)[0]
    noise = uniform_residues(bits, primes, entropy)
    flooded = words.copy()
    flooded[0] = (words[0] + noise) % primes
    return flooded


def uniform_residues(bits: int, primes: Words, entropy: Entropy = os.urandom) -> Words:
    """Numbers uniform in [-2^bits, 2^bits), modulo each prime: uint64[primes, degree].

    primes: uint64[primes, 1], each below 2^56, so that a residue times 256 and a byte fits.
    """
    width = bits // 8 + 1
    octets = np.frombuffer(entropy(DEGREE * width), np.uint8).reshape(DEGREE, width).copy()
    octets[:, 0] &= (1 << (bits + 1 - 8 * (width - 1))) - 1
    found = np.zeros((len(primes), DEGREE), np.uint64)
    for place in range(width):
        found = (found * np.uint64(256) + octets[:, place].astype(np.uint64)) % primes
    offset = np.array([[(1 << bits) % int(prime)] for prime in primes[:, 0]], np.uint64)
    return (found + primes - offset) % primes
