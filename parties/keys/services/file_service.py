"""A key service in a file: 256-bit keys under a passphrase (Argon2id), on this machine."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from parties.errors import IdentityError, KeyServiceError, PassphraseError
from parties.files import locked, private_directory, read_private, write_atomic
from parties.keys.identity import reason
from parties.keys.keyfile import MAX_FILE_BYTES, open_secret, seal_secret
from parties.keys.services.key_set import KeySetService, decoded, encoded, first_keys

SCHEME = "file"
MAGIC = b"mpc-train vault keys 1\n"
MAX_KEYS = 500


class FileService(KeySetService):
    """`file:PATH`, opened with a passphrase; `create` makes the file."""

    def __init__(self, path: Path, passphrase: bytes) -> None:
        self._path, self._passphrase = path, passphrase
        super().__init__(f"{SCHEME}:{path}", f"{SCHEME}:", MAX_KEYS)

    @classmethod
    def create(cls, path: Path, passphrase: bytes) -> "FileService":
        """Make the file with one key; it never replaces one."""
        content = _sealed(first_keys(), passphrase)
        try:
            private_directory(path.parent)
            write_atomic(path, content, 0o600, replace=False)
        except FileExistsError as error:
            raise KeyServiceError(f"{path}: exists; keys are never overwritten") from error
        except OSError as error:
            raise KeyServiceError(f"{path}: cannot be written: {reason(error)}") from error
        return cls(path, passphrase)

    def check_rotation(self) -> None:
        super().check_rotation()
        if not os.access(self._path.parent, os.W_OK):
            raise KeyServiceError(f"{self._path}: its directory cannot be written")

    @contextmanager
    def _changing(self) -> Iterator[dict[int, bytes]]:
        with ExitStack() as held:
            try:
                held.enter_context(locked(self._path.with_suffix(".lock")))
            except OSError as error:
                raise KeyServiceError(f"{self._path}: cannot be locked: {reason(error)}") from error
            try:
                keys = self._read()
                yield keys
                write_atomic(self._path, _sealed(keys, self._passphrase), 0o600)
                self._keys = keys
            except OSError as error:
                raise KeyServiceError(
                    f"{self._path}: cannot be written: {reason(error)}"
                ) from error

    def _read(self) -> dict[int, bytes]:
        try:
            data = read_private(self._path, MAX_FILE_BYTES)
            _, secret = open_secret(data, self._passphrase, magic=MAGIC)
            return decoded(secret)
        except PassphraseError as error:
            raise PassphraseError(f"{self._path}: {error}") from error
        except (IdentityError, OSError, ValueError) as error:
            raise KeyServiceError(f"{self._path}: {reason(error)}") from error


def _sealed(keys: dict[int, bytes], passphrase: bytes) -> bytes:
    return seal_secret(encoded(keys), passphrase, b"", magic=MAGIC)
