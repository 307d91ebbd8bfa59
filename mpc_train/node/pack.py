"""A folder of files that one node has signed: whole, or one error that names the file.

    MANIFEST.json   node, when, and the SHA-256 of every other file
    MANIFEST.sig    the node's signature over it, base64, purpose "mpc-train/evidence/1"

The folder holds nothing else. It is written beside its place and renamed, so it is there whole or
not at all.
"""

import base64
import json
import os
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from mpc_train.errors import ArtifactError, ConfigError
from parties.files import private_directory, write_atomic
from parties.keys.roster import Roster
from parties.keys.vault import Vault
from protocols.errors import AuthenticationError

PURPOSE = "mpc-train/evidence/1"
MANIFEST, SIGNATURE = "MANIFEST.json", "MANIFEST.sig"
MAX_FILE_BYTES = 1 << 28


def write_pack(folder: Path, files: Mapping[str, bytes], identity: Vault, made: str) -> None:
    """Write and sign. Raises ConfigError if `folder` exists and is not empty."""
    digests = {name: sha256(content).hexdigest() for name, content in sorted(files.items())}
    said = {"version": 1, "node": identity.card.name, "made": made, "files": digests}
    manifest = json.dumps(said, indent=2).encode() + b"\n"
    signature = base64.encodebytes(identity.sign(PURPOSE, manifest))
    draft = folder.with_name(f".{folder.name}-{os.getpid()}.tmp")
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder}: is not empty; choose another directory for the evidence")
        private_directory(draft)
        for name, content in {**files, SIGNATURE: signature, MANIFEST: manifest}.items():
            write_atomic(draft / name, content)
        draft.replace(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def read_pack(folder: Path, roster: Roster) -> tuple[str, dict[str, bytes]]:
    """Who signed the pack, and its files, each as it was signed.

    Raises ArtifactError for a file that is missing, too many or altered, or a signature that does
    not verify; RosterError if the node's card is not there.
    """
    manifest = _read(folder / MANIFEST)
    try:
        said: dict[str, Any] = json.loads(manifest)
        node, listed = str(said["node"]), {str(k): str(v) for k, v in said["files"].items()}
        if said["version"] != 1:
            raise ValueError("another version")
        signature = base64.b64decode(b"".join(_read(folder / SIGNATURE).split()), validate=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{folder}: not evidence of this version: {MANIFEST}") from error
    roster.card(node)
    try:
        roster.signers()[node].verifier().verify(PURPOSE, manifest, signature)
    except AuthenticationError as error:
        raise ArtifactError(f"{folder / MANIFEST}: {node} did not sign it: {error}") from error
    there = {path.name for path in folder.iterdir()} - {MANIFEST, SIGNATURE}
    if more := sorted(there - set(listed)):
        raise ArtifactError(f"{folder / more[0]}: is not part of what {node} signed")
    files = {}
    for name, digest in listed.items():
        if Path(name).name != name:
            raise ArtifactError(f"{folder / MANIFEST}: names a file elsewhere")
        files[name] = _read(folder / name)
        if sha256(files[name]).hexdigest() != digest:
            raise ArtifactError(f"{folder / name}: is not the file that {node} signed")
    return node, files


def _read(path: Path) -> bytes:
    from mpc_train.node.provenance import read_result

    return read_result(path, MAX_FILE_BYTES)
