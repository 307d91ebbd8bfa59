"""A key service from what a node's file calls it.

identity:      the node's own identity (the default)
file:PATH      a file of keys under a passphrase of its own
"""

from collections.abc import Callable
from pathlib import Path

from parties.errors import KeyServiceError
from parties.keys.services import file_service, identity_service
from parties.keys.services.service import KeyService
from parties.keys.vault import Vault

SCHEMES = (identity_service.SCHEME, file_service.SCHEME)


def check_uri(uri: str) -> str | None:
    """What is wrong with a key's URI, in words; None: nothing that can be told without asking."""
    scheme, sign, rest = uri.partition(":")
    if not sign or scheme not in SCHEMES:
        return f"begins with one of {', '.join(f'{each}:' for each in SCHEMES)}"
    if scheme == identity_service.SCHEME and rest:
        return "identity: is the node's own; nothing stands behind it"
    if scheme == file_service.SCHEME and not rest:
        return "file: needs the path of a file of keys"
    return None


def open_service(uri: str, identity: Vault, passphrase: Callable[[], bytes]) -> KeyService:
    """The service that `uri` names. passphrase: asked where the service needs one of its own.

    Raises KeyServiceError and PassphraseError.
    """
    if problem := check_uri(uri):
        raise KeyServiceError(f"{uri}: {problem}")
    scheme, _, rest = uri.partition(":")
    if scheme == file_service.SCHEME:
        return file_service.FileService(Path(rest), passphrase())
    return identity_service.IdentityService(identity)
