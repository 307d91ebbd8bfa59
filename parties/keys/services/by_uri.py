"""A key service from what a node's file calls it.

identity:                        the node's own identity (the default)
file:PATH                        a file of keys under a passphrase of its own
keyring:SERVICE/NAME             the operating system's keyring
vault://HOST[:PORT]/MOUNT/KEY    HashiCorp Vault, or OpenBao
aws-kms:ARN-OR-ALIAS             AWS KMS
gcp-kms:projects/…/NAME          Google Cloud KMS
pkcs11:token=…;object=…          a hardware module
"""

from collections.abc import Callable
from pathlib import Path

from parties.errors import KeyServiceError
from parties.keys.services import (
    aws_service,
    file_service,
    gcp_service,
    identity_service,
    keyring_service,
    pkcs11_service,
    vault_service,
)
from parties.keys.services.service import KeyService
from parties.keys.vault import Vault


def _parse_identity(rest: str) -> None:
    if rest:
        raise ValueError("identity: is the node's own; nothing stands behind it")


def _parse_file(rest: str) -> None:
    if not rest:
        raise ValueError("file: needs the path of a file of keys")


_PARSERS: dict[str, Callable[[str], object]] = {
    identity_service.SCHEME: _parse_identity,
    file_service.SCHEME: _parse_file,
    keyring_service.SCHEME: keyring_service.parse,
    vault_service.SCHEME: vault_service.parse,
    aws_service.SCHEME: aws_service.parse,
    gcp_service.SCHEME: gcp_service.parse,
    pkcs11_service.SCHEME: pkcs11_service.parse,
}
SCHEMES = tuple(_PARSERS)
MADE_HERE = (file_service.SCHEME, keyring_service.SCHEME, pkcs11_service.SCHEME)
"""Services whose first key this program makes; the others' keys are made where they are kept."""
WITH_SECRET = (file_service.SCHEME, vault_service.SCHEME, pkcs11_service.SCHEME)
"""Services that are opened with a secret of their own: a passphrase, a token, a PIN."""
_LOCAL = (identity_service.SCHEME, file_service.SCHEME, keyring_service.SCHEME)
MAX_URI_CHARS = 1024


def scheme_of(uri: str) -> str:
    """What stands before the first colon."""
    return uri.partition(":")[0]


def check_uri(uri: str) -> str | None:
    """What is wrong with a key's URI, in words; None: nothing that can be told without asking."""
    scheme, sign, rest = uri.partition(":")
    if not sign or scheme not in SCHEMES:
        return f"begins with one of {', '.join(f'{each}:' for each in SCHEMES)}"
    if len(uri) > MAX_URI_CHARS or not uri.isprintable():
        return f"has at most {MAX_URI_CHARS} characters, all printable"
    try:
        _PARSERS[scheme](rest)
    except ValueError as error:
        return str(error)
    return None


def open_service(uri: str, identity: Vault | None, passphrase: Callable[[], bytes]) -> KeyService:
    """The service that `uri` names. passphrase: asked where the service needs one of its own.

    identity: the node's, for identity:. Raises KeyServiceError and PassphraseError.
    """
    scheme, rest = _split(uri)
    if scheme == file_service.SCHEME:
        return file_service.FileService(Path(rest), passphrase())
    if scheme == keyring_service.SCHEME:
        return keyring_service.KeyringService(rest)
    if scheme == vault_service.SCHEME:
        return vault_service.VaultService(rest, passphrase())
    if scheme == aws_service.SCHEME:
        return aws_service.AwsService(rest)
    if scheme == gcp_service.SCHEME:
        return gcp_service.GcpService(rest)
    if scheme == pkcs11_service.SCHEME:
        return pkcs11_service.Pkcs11Service(rest, passphrase())
    if identity is None:
        raise KeyServiceError(f"{uri} is a node's own: name its file with --config")
    return identity_service.IdentityService(identity)


def create_service(uri: str, passphrase: Callable[[], bytes]) -> KeyService:
    """Make the first key of a service that is kept on this machine; it never replaces one."""
    scheme, rest = _split(uri)
    if scheme == file_service.SCHEME:
        return file_service.FileService.create(Path(rest), passphrase())
    if scheme == keyring_service.SCHEME:
        return keyring_service.KeyringService.create(rest)
    if scheme == pkcs11_service.SCHEME:
        return pkcs11_service.Pkcs11Service.create(rest, passphrase())
    raise KeyServiceError(
        f"{uri}: this program makes keys of {', '.join(f'{each}:' for each in MADE_HERE)}; make "
        "this one where it is kept"
    )


def _split(uri: str) -> tuple[str, str]:
    """Scheme and the rest; raises KeyServiceError, which does not repeat a URI that may hold a
    secret by mistake."""
    if problem := check_uri(uri):
        is_remote = scheme_of(uri) in SCHEMES and scheme_of(uri) not in _LOCAL
        raise KeyServiceError(f"{f'{scheme_of(uri)}:…' if is_remote else uri}: {problem}")
    scheme, _, rest = uri.partition(":")
    return scheme, rest
