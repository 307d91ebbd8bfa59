"""The client's key pair, and what it does with it: encrypts inputs, decrypts answers.

The secret key leaves this machine in no form. It is kept in the vault (`stored`). Encryption uses
it too: ciphertexts under a secret key have smaller errors than under the public one, which the
server gets so that it can add a fresh encryption of zero.

**Decrypted numbers are not harmless.** A CKKS answer is its message plus noise that depends on the
secret key. Whoever knows a ciphertext and the exact number to which it decrypts can compute the key
by linear algebra (Li and Micciancio, Eurocrypt 2021). The server knows the ciphertext, and the
noise with which it flooded it. So `decrypt` adds noise of its own before it decodes, as large as
the server's: no number that leaves it says anything about the key, to the server neither (a
statistical distance of 2^-60 for each answer; `parameters`).
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpc_train.errors import ArtifactError, CiphertextError
from mpc_train.homomorphic.parameters import (
    DEVIATION,
    INPUT_BITS,
    MAX_WEIGHTS,
    OUTPUT_BITS,
    SLOTS,
)
from mpc_train.homomorphic.polynomials import (
    ANSWER,
    CIPHERTEXT,
    KEY,
    Entropy,
    flood,
    key_id,
    pack,
    pack_residues,
    size_of,
    unpack,
    unpack_residues,
)
from mpc_train.homomorphic.seal import Seal
from protocols.arrays import Reals

STORED = b"mpc-train he-key 1\n"
"""Then the public key as it is sent, and the residues of the secret key."""


@dataclass(frozen=True, repr=False, eq=False)
class KeyPair:
    """A key pair of this machine. public: as it is sent."""

    seal: Seal
    public: bytes
    ident: bytes
    _secret: Any

    @classmethod
    def generate(cls, seal: Seal) -> "KeyPair":
        secret, public = seal.generate()
        words = seal.words_of(public)
        ident = key_id(words)
        return cls(seal, pack(KEY, ident, words), ident, secret)

    def stored(self) -> bytes:
        """Both keys as an object of the vault, which encrypts it."""
        return STORED + self.public + pack_residues(self.seal.words_of(self._secret))

    @classmethod
    def of(cls, seal: Seal, data: bytes) -> "KeyPair":
        """Undo `stored`. Raises ArtifactError."""
        end = len(STORED) + size_of(KEY)
        if not data.startswith(STORED):
            raise ArtifactError("is not a key of homomorphic encryption of this version")
        public = data[len(STORED) : end]
        try:
            ident, _ = unpack(KEY, public)
            words = unpack_residues(data[end:], 1, seal.primes(of_key=True))
            return cls(seal, public, ident, seal.read_secret(words))
        except CiphertextError as error:
            raise ArtifactError(f"is not a key of homomorphic encryption: {error}") from error

    def encrypt(self, values: Reals) -> bytes:
        """Up to `SLOTS` numbers of magnitude at most 1, then zeros, as they are sent."""
        seal = self.seal
        padded = np.zeros(SLOTS)
        padded[: len(values)] = values
        made = seal.ciphertext()
        plain = seal.encode(padded.tolist(), INPUT_BITS)
        seal.encryptor(self._secret).encrypt_symmetric(plain, made)
        return pack(CIPHERTEXT, self.ident, seal.words_of(made))

    def decrypt(self, answer: bytes, rows: int, entropy: Entropy = os.urandom) -> Reals:
        """The first `rows` slots of an answer, float64[rows], flooded.

        Raises CiphertextError for what is no answer to this key: the rows behind the last one were
        zeros, so all their outputs are the intercept; and no output is beyond its bound.
        """
        _, words = unpack(ANSWER, answer, self.ident)
        seal = self.seal
        # Before the number is known to anybody: see above.
        held = seal.read_ciphertext(flood(words, entropy=entropy), OUTPUT_BITS, in_ntt=False)
        seal.evaluator.transform_to_ntt_inplace(held)
        plain = seal.plaintext()
        seal.decryptor(self._secret).decrypt(held, plain)
        found: Reals = np.array(seal.encoder.decode_double(plain))
        beyond = ~(np.abs(found) <= 2 * MAX_WEIGHTS + 1)
        rest = found[rows:]
        if beyond.any() or (len(rest) and np.ptp(rest) > 4 * DEVIATION):
            raise CiphertextError("the answer does not decrypt under this key", "other-key")
        return found[:rows]

    def __repr__(self) -> str:
        return f"KeyPair({self.ident[:4].hex()}…, private)"
