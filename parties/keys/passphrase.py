"""Where a passphrase comes from: a file, a descriptor or a prompt.

Never a command-line argument, which every user of the machine can list, and never an environment
variable, which children inherit and crash reports quote.
"""

import getpass
import os
import warnings
from pathlib import Path

from parties.errors import PassphraseError
from parties.files import read_private
from parties.keys.identity import reason
from parties.keys.keyfile import MAX_PASSPHRASE_BYTES


def read_passphrase(
    *,
    file: Path | str | None = None,
    fd: int | None = None,
    prompt: str | None = None,
    confirm: bool = False,
) -> bytes:
    """The passphrase from `file`, else from descriptor `fd`, else from the terminal.

    One line end after the passphrase is not part of it. `confirm` asks twice at a terminal: for a
    new identity, because a typing error would lose the keys. The descriptor is read to its end and
    closed. Raises PassphraseError, also for a file that others may read; it names the source and
    never the passphrase.
    """
    if file is not None and fd is not None:
        raise PassphraseError("give a passphrase file or a descriptor, not both")
    if file is not None:
        return _checked(_from_file(file), f"passphrase file {file}")
    if fd is not None:
        return _checked(_from_descriptor(fd), f"passphrase descriptor {fd}")
    return _from_prompt(prompt or "Passphrase: ", confirm)


def _from_file(path: Path | str) -> bytes:
    try:
        return read_private(path, MAX_PASSPHRASE_BYTES + 2)
    except (OSError, ValueError) as error:
        raise PassphraseError(f"passphrase file {path}: {reason(error)}") from error


def _from_descriptor(fd: int) -> bytes:
    if not 0 <= fd < 1 << 31:
        raise PassphraseError(f"passphrase descriptor {fd}: not a descriptor")
    try:
        with os.fdopen(fd, "rb") as stream:
            return stream.read(MAX_PASSPHRASE_BYTES + 3)
    except (OSError, ValueError) as error:
        raise PassphraseError(f"passphrase descriptor {fd}: {reason(error)}") from error


def _from_prompt(prompt: str, confirm: bool) -> bytes:
    """Ask at the terminal, without echo.

    Without a terminal getpass falls back to reading with echo. That is refused, so that a
    passphrase is never shown, and a node without a terminal does not wait for one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)
            first = _checked(getpass.getpass(prompt).encode(), "the prompt")
            if confirm and getpass.getpass("Once more: ").encode() != first:
                raise PassphraseError("the two passphrases differ")
            return first
    except (getpass.GetPassWarning, EOFError, OSError, UnicodeError) as error:
        raise PassphraseError(
            "no terminal to ask for the passphrase: use --passphrase-file or --passphrase-fd"
        ) from error


def _checked(text: bytes, source: str) -> bytes:
    passphrase = text.removesuffix(b"\n").removesuffix(b"\r")
    if not 1 <= len(passphrase) <= MAX_PASSPHRASE_BYTES:
        raise PassphraseError(f"{source}: a passphrase has 1 to {MAX_PASSPHRASE_BYTES} bytes")
    return passphrase
