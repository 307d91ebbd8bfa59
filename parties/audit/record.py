"""The file of an audit log, record by record.

    header   magic ‖ u32 length ‖ origin
    record   head ‖ leaf
    head     u32 length of what follows in the head
             ‖ u64 number ‖ chain (32) ‖ salt (16) ‖ u32 length ‖ public part ‖ sealed entry
    leaf     SHA-256(0x00 ‖ head): the leaf of the Merkle tree, and the chain of the next record

Guarantees that an entry is read only by the holder of the log's key, only at its place, and only
behind exactly the records that it was written behind: number, chain, public part and origin are
authenticated with it. The chain of the first record is the hash of the header. Who has no key can
still check numbers, chain, leaves and root.

The key of a record is HKDF(key of the log; salt), its nonce the number. A salt is drawn whenever a
log is opened for writing, and again after each write that failed. So no pair of key and nonce
occurs twice, whatever a crash or a restored backup has taken back: the record that takes the place
of a lost one has another salt.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from parties.audit.checkpoint import check_origin
from parties.audit.entries import MAX_ENTRY_BYTES
from parties.audit.merkle import HASH_BYTES, leaf_hash
from parties.errors import AuditTamperedError
from protocols.canonical import pack

MAGIC = b"mpc-train audit log 1\n"
SALT_BYTES = 16
MAX_PUBLIC_BYTES = 1 << 18
MAX_ORIGIN_BYTES = 255

_NUMBER = slice(4, 12)
_CHAIN = slice(12, 44)
_SALT = slice(44, 60)
_FIXED = 64
"""Bytes of a head before its public part."""
_TAG_BYTES = 16
MAX_HEAD_BYTES = _FIXED + MAX_PUBLIC_BYTES + MAX_ENTRY_BYTES + _TAG_BYTES


@dataclass(frozen=True)
class Record:
    """One record as it lies on the disk. end: where the next one begins."""

    number: int
    chain: bytes
    salt: bytes
    public: bytes
    head: bytes
    leaf: bytes
    end: int

    @property
    def intact(self) -> bool:
        """Whether its leaf is the hash of its head."""
        return leaf_hash(self.head) == self.leaf

    def opened(self, key: bytes, origin: str) -> bytes:
        """The entry; AuditTamperedError where it is not what was sealed here."""
        start = _FIXED + len(self.public)
        try:
            return AESGCM(_record_key(key, self.salt)).decrypt(
                _nonce(self.number), self.head[start:], _bound(origin, self.head[:start])
            )
        except InvalidTag as error:
            raise AuditTamperedError("does not decrypt: altered, or of another key") from error


class CutOffError(Exception):
    """The file ends before a record does."""


def header(origin: str) -> bytes:
    data = origin.encode()
    return MAGIC + len(data).to_bytes(4, "big") + data


def read_header(data: bytes) -> tuple[str, int]:
    """The origin, and where the records begin; AuditTamperedError for another file."""
    start = len(MAGIC) + 4
    if not data.startswith(MAGIC) or len(data) < start:
        raise AuditTamperedError("is not an audit log of this version: its header is altered")
    length = int.from_bytes(data[len(MAGIC) : start], "big")
    if not 0 < length <= min(MAX_ORIGIN_BYTES, len(data) - start):
        raise AuditTamperedError("its header is altered")
    try:
        origin = data[start : start + length].decode()
    except UnicodeDecodeError as error:
        raise AuditTamperedError("its header is altered") from error
    return check_origin(origin), start + length


def first_chain(origin: str) -> bytes:
    return sha256(header(origin)).digest()


def sealer(key: bytes, salt: bytes) -> Callable[[str, int, bytes, bytes, bytes], bytes]:
    """What makes records under one salt: (origin, number, chain, public part, entry) to bytes."""
    cipher = AESGCM(_record_key(key, salt))

    def sealed(origin: str, number: int, chain: bytes, public: bytes, entry: bytes) -> bytes:
        length = _FIXED - 4 + len(public) + len(entry) + _TAG_BYTES
        before = b"".join(
            (
                length.to_bytes(4, "big"),
                number.to_bytes(8, "big"),
                chain,
                salt,
                len(public).to_bytes(4, "big"),
                public,
            )
        )
        head = before + cipher.encrypt(_nonce(number), entry, _bound(origin, before))
        return head + leaf_hash(head)

    return sealed


def read_record(data: bytes, start: int) -> Record:
    """The record at `start`, intact or not.

    Raises CutOffError where the file ends first, AuditTamperedError where no record can have such a
    length.
    """
    length = int.from_bytes(data[start : start + 4], "big")
    if len(data) - start < 4:
        raise CutOffError
    if not _FIXED + _TAG_BYTES <= length + 4 <= MAX_HEAD_BYTES:
        raise AuditTamperedError("has a length that no entry has")
    end = start + 4 + length + HASH_BYTES
    if end > len(data):
        raise CutOffError
    head = data[start : start + 4 + length]
    public = int.from_bytes(head[60:64], "big")
    if public > len(head) - _FIXED - _TAG_BYTES:
        raise AuditTamperedError("has a public part that is longer than itself")
    return Record(
        int.from_bytes(head[_NUMBER], "big"),
        head[_CHAIN],
        head[_SALT],
        head[_FIXED : _FIXED + public],
        head,
        data[end - HASH_BYTES : end],
        end,
    )


def _record_key(key: bytes, salt: bytes) -> bytes:
    return HKDFExpand(SHA256(), 32, pack(b"mpc-train/audit/1/record", salt)).derive(key)


def opening_key(key: bytes) -> bytes:
    """The key under which opened values are digested."""
    return HKDFExpand(SHA256(), 32, pack(b"mpc-train/audit/1/opening")).derive(key)


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _bound(origin: str, before: bytes) -> bytes:
    return pack(origin.encode(), before)
