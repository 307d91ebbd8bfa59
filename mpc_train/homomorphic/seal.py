"""Microsoft SEAL through TenSEAL's `sealapi`: the only module that imports it.

SEAL compresses what it writes and reads what is compressed, without a bound on what comes out. So
nothing that a stranger sent gets there: polynomials travel as plain numbers (`polynomials`), which
are checked here in Python, and SEAL is given streams that this module wrote itself, in the form
that SEAL documents for uncompressed objects:

    SEALHeader (16) ‖ parms_id (32) ‖ members ‖ SEALHeader (16) ‖ u64 number ‖ u64 words

SEAL reads files only; these are in memory where the system has such files, otherwise in a directory
that only this user may enter, and are removed at once. SEAL draws keys and errors from the system's
randomness (BLAKE2x, seeded anew for each object).
"""

import os
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpc_train.errors import CiphertextError, ConfigError
from mpc_train.homomorphic.parameters import OURS, Parameters

Words = NDArray[np.uint64]
"""Residues, uint64[polynomials, primes, degree]."""

_HEADER_BYTES = 16
_FAULTS = (RuntimeError, ValueError, IndexError, MemoryError)
"""What SEAL's exceptions become."""


def load_library() -> Any:
    """TenSEAL's `sealapi`; raises ConfigError where it is not installed."""
    try:
        import tenseal.sealapi as library
    except ImportError as error:
        raise ConfigError(
            "homomorphic encryption needs TenSEAL, which is not installed here: "
            'pip install "mpc-train[he]"'
        ) from error
    return library


class Seal:
    """SEAL with one set of parameters. For one thread. Raises ConfigError."""

    def __init__(self, parameters: Parameters = OURS) -> None:
        self._library = library = load_library()
        self.parameters = parameters
        given = library.EncryptionParameters(library.SCHEME_TYPE.CKKS)
        given.set_poly_modulus_degree(parameters.degree)
        given.set_coeff_modulus([library.Modulus(prime) for prime in parameters.primes])
        # SEAL itself refuses what its table calls weaker than 128 bits.
        self.context = library.SEALContext(given, False, library.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise ConfigError(
                f"SEAL refuses the parameters: {self.context.parameters_error_name()}"
            )
        self.level = self.context.first_parms_id()
        self.key_level = self.context.key_parms_id()
        self.encoder = library.CKKSEncoder(self.context)
        self.evaluator = library.Evaluator(self.context)

    def primes(self, *, of_key: bool = False) -> Words:
        """The primes of ciphertexts, uint64[1, primes, 1]; or with the key's own."""
        primes = self.parameters.primes if of_key else self.parameters.primes[:-1]
        return np.array(primes, np.uint64).reshape(1, -1, 1)

    def plaintext(self) -> Any:
        return self._library.Plaintext()

    def ciphertext(self) -> Any:
        return self._library.Ciphertext()

    def generate(self) -> tuple[Any, Any]:
        """A fresh secret key and its public key."""
        maker = self._library.KeyGenerator(self.context)
        public = self._library.PublicKey()
        maker.create_public_key(public)
        return maker.secret_key(), public

    def encryptor(self, key: Any) -> Any:
        """Encrypts under a public key or, with smaller errors, under a secret one."""
        return self._library.Encryptor(self.context, key)

    def decryptor(self, secret: Any) -> Any:
        return self._library.Decryptor(self.context, secret)

    def encode(self, values: list[float] | float, bits: int) -> Any:
        """Slots, or one number in all slots, at scale 2^bits."""
        made = self.plaintext()
        self.encoder.encode(values, self.level, 2.0**bits, made)
        return made

    def words_of(self, held: Any) -> Words:
        """The residues of a ciphertext, a public key, or a secret key, which has one polynomial."""
        inner = held if isinstance(held, self._library.Ciphertext) else held.data()
        # Bound to a name: what it gives refers to it.
        array = inner.dyn_array()
        size = array.size()
        flat = np.fromiter(map(array.at, range(size)), np.uint64, size)
        of_key = not isinstance(held, self._library.Ciphertext)
        primes = len(self.parameters.primes) - (not of_key)
        return flat.reshape(-1, primes, self.parameters.degree)

    def read_ciphertext(self, words: Words, bits: int, *, in_ntt: bool) -> Any:
        """A ciphertext of two polynomials at scale 2^bits. Raises CiphertextError."""
        made = self.ciphertext()
        self._load(made, self._ciphertext_stream(words, self.level, 2.0**bits, in_ntt))
        return made

    def read_public(self, words: Words) -> Any:
        """Raises CiphertextError."""
        made = self._library.PublicKey()
        self._load(made, self._ciphertext_stream(words, self.key_level, 1.0, True))
        return made

    def read_secret(self, words: Words) -> Any:
        """Raises CiphertextError."""
        made = self._library.SecretKey()
        head = struct.pack("<4QQd", *self.key_level, words.size, 1.0)
        self._load(made, _framed(head + _framed(struct.pack("<Q", words.size) + words.tobytes())))
        return made

    def _ciphertext_stream(
        self, words: Words, level: tuple[int, ...], scale: float, in_ntt: bool
    ) -> bytes:
        polynomials, primes, degree = words.shape
        head = struct.pack("<4Q?QQQdQ", *level, in_ntt, polynomials, degree, primes, scale, 1)
        return _framed(head + _framed(struct.pack("<Q", words.size) + words.tobytes()))

    def _load(self, target: Any, stream: bytes) -> None:
        try:
            _through_file(stream, lambda path: target.load(self.context, path))
        except _FAULTS as error:
            raise CiphertextError("SEAL refuses what was read", "ciphertext") from error


def _framed(content: bytes) -> bytes:
    """With SEAL's header: magic, its length, SEAL's version, no compression, and the length."""
    size = _HEADER_BYTES + len(content)
    return _start() + struct.pack("<BHQ", 0, 0, size) + content


@cache
def _start() -> bytes:
    """The first 5 bytes of a header, which hold the version of this SEAL."""
    library = load_library()
    header = library.Serialization.SEALHeader()
    return struct.pack(
        "<HBBB", header.magic, header.header_size, header.version_major, header.version_minor
    )


def _through_file(content: bytes, use: Callable[[str], None]) -> None:
    """Call `use` with the path of a file that has this content."""
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        descriptor = os.memfd_create("seal", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(content)
            use(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory() as folder:  # mode 0700
        path = Path(folder) / "seal"
        path.write_bytes(content)
        use(str(path))
