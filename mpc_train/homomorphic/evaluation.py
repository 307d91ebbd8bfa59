"""What the server computes on ciphertexts: weighted sums of a client's inputs.

Ciphertexts are added as they arrive, so memory does not grow with their number. At the end each sum
gets the intercept, a fresh encryption of zero under the client's public key, and flooding noise.
Then an answer says nothing but its outputs, even to the client: without the encryption of zero the
client, which knows what it sent, could read each weight from the second polynomial; without the
noise, sums of weights from the first.

That does not hide a model: outputs are linear, and a client that may ask about as many records as
there are inputs, and one more, can compute all weights. Nor does it bind a client that deviates: a
public key of its choice, all zeros for example, makes an encryption of zero that hides nothing.
"""

import os
from typing import Any

import numpy as np

from mpc_train.errors import CiphertextError, ModelError
from mpc_train.homomorphic.parameters import (
    FLOOD_BITS,
    INPUT_BITS,
    MAX_WEIGHTS,
    OUTPUT_BITS,
    WEIGHT_BITS,
)
from mpc_train.homomorphic.polynomials import (
    ANSWER,
    CIPHERTEXT,
    KEY,
    Entropy,
    flood,
    pack,
    unpack,
)
from mpc_train.homomorphic.seal import Seal
from protocols.arrays import Reals


class Weights:
    """A model's weights and intercepts, for any number of requests.

    weights: float64[outputs, columns], intercepts: float64[outputs]. Raises ModelError for
    magnitudes beyond the bound on which the noise bounds rest.
    """

    def __init__(self, seal: Seal, weights: Reals, intercepts: Reals) -> None:
        sizes = np.abs(weights).sum(axis=1)
        if not (sizes <= MAX_WEIGHTS).all() or not (np.abs(intercepts) <= MAX_WEIGHTS).all():
            raise ModelError(
                f"the weights of an output, for inputs scaled to 1, add up to more than "
                f"{MAX_WEIGHTS:.0f}: too large for homomorphic encryption; serve the model over "
                "shares instead (mpc-train serve)"
            )
        self.seal = seal
        unit = 2.0**-WEIGHT_BITS
        # SEAL refuses to multiply by 0, and leaving the product out would show by the time which
        # weights are 0: such a weight counts as its smallest unit.
        encodable = np.where(np.rint(weights / unit) == 0, unit, weights)
        # Encoded when they are used: an encoded one takes 200 kB.
        self.columns_of: list[list[float]] = encodable.T.tolist()
        self.intercepts: list[float] = intercepts.tolist()

    @property
    def columns(self) -> int:
        return len(self.columns_of)

    @property
    def outputs(self) -> int:
        return len(self.intercepts)

    def __repr__(self) -> str:
        return f"Weights({self.outputs}, {self.columns}, private)"


class Evaluation:
    """One request: `take` each column in order, then `answers`. public: the client's key, as sent.

    Raises CiphertextError for a malformed key.
    """

    def __init__(self, weights: Weights, public: bytes) -> None:
        self.weights = weights
        self.ident, words = unpack(KEY, public)
        self._public = weights.seal.read_public(words)
        self._sums: list[Any] = []
        self.taken = 0

    def take(self, number: int, data: bytes) -> None:
        """Add the ciphertext of column `number`. Raises CiphertextError."""
        weights, seal = self.weights, self.weights.seal
        if number != self.taken or number >= weights.columns:
            raise CiphertextError(
                f"column {number + 1} came; expected {self.taken + 1} of {weights.columns}", "count"
            )
        _, words = unpack(CIPHERTEXT, data, self.ident)
        given = seal.read_ciphertext(words, INPUT_BITS, in_ntt=True)
        for place, weight in enumerate(weights.columns_of[number]):
            product = seal.ciphertext()
            try:
                encoded = seal.encode(weight, WEIGHT_BITS)
                seal.evaluator.multiply_plain(given, encoded, product)
                if number:
                    seal.evaluator.add(self._sums[place], product, self._sums[place])
            except RuntimeError as error:  # a ciphertext that hides nothing, for example
                raise CiphertextError("SEAL refuses a ciphertext", "ciphertext") from error
            if not number:
                self._sums.append(product)
        self.taken += 1

    def answers(self, bits: int = FLOOD_BITS, entropy: Entropy = os.urandom) -> list[bytes]:
        """An answer for each output. Raises CiphertextError before all columns came."""
        weights, seal = self.weights, self.weights.seal
        if self.taken != weights.columns:
            raise CiphertextError(f"{self.taken} columns came; expected {weights.columns}", "count")
        encryptor, found = seal.encryptor(self._public), []
        for total, intercept in zip(self._sums, weights.intercepts, strict=True):
            zero = seal.ciphertext()
            encryptor.encrypt_zero(seal.level, zero)
            zero.scale = 2.0**OUTPUT_BITS
            seal.evaluator.add(total, zero, zero)
            seal.evaluator.add_plain_inplace(zero, seal.encode(intercept, OUTPUT_BITS))
            seal.evaluator.transform_from_ntt_inplace(zero)
            words = flood(seal.words_of(zero), bits, entropy)
            found.append(pack(ANSWER, self.ident, words))
        self._sums = []
        return found
