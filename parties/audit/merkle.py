"""The Merkle tree of RFC 6962 (RFC 9162, section 2.1) over SHA-256: roots and consistency proofs.

A root stands for a whole list of leaves. A proof shows that the list of one root begins with that
of another, and nothing else of either list. Leaves are given by their hashes, so that whoever
verifies needs no content.
"""

from collections.abc import Sequence
from hashlib import sha256

HASH_BYTES = 32
MAX_PROOF = 64
"""Hashes in a consistency proof: at most one for each level, and one more, of up to 2^62 leaves."""


def leaf_hash(data: bytes) -> bytes:
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """MTH: the root over these leaf hashes; of none, the hash of nothing."""
    if not leaves:
        return sha256(b"").digest()
    # Complete subtrees from the left, as in a binary counter; merged from the right at the end.
    subtrees: list[bytes] = []
    for count, leaf in enumerate(leaves, 1):
        subtrees.append(leaf)
        for _ in range((count & -count).bit_length() - 1):
            right = subtrees.pop()
            subtrees[-1] = node_hash(subtrees[-1], right)
    found = subtrees.pop()
    while subtrees:
        found = node_hash(subtrees.pop(), found)
    return found


def consistency_proof(leaves: Sequence[bytes], old: int) -> list[bytes]:
    """PROOF: that the tree of these leaves goes on from that of the first `old` of them.

    Empty where nothing has to be shown: no leaf before, or no leaf more. Raises ValueError where
    `old` is more than there are.
    """
    if not 0 <= old <= len(leaves):
        raise ValueError(f"no tree of {old} leaves among {len(leaves)}")
    return _subproof(leaves, old, whole=True) if old else []


def _subproof(leaves: Sequence[bytes], old: int, *, whole: bool) -> list[bytes]:
    if old == len(leaves):
        return [] if whole else [root(leaves)]
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    if old <= split:
        return [*_subproof(leaves[:split], old, whole=whole), root(leaves[split:])]
    return [*_subproof(leaves[split:], old - split, whole=False), root(leaves[:split])]


def is_consistent(
    old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Whether `proof` shows that the tree of `new` leaves goes on from that of `old` leaves."""
    if not 0 <= old <= new:
        return False
    if old in (0, new):
        empty = root(())
        known = old_root == (empty if old == 0 else new_root)
        return not proof and known and (new > 0 or new_root == empty)
    hashes = list(proof) if old & (old - 1) else [old_root, *proof]
    if not hashes:
        return False
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    first = second = hashes[0]
    for each in hashes[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            first, second = node_hash(each, first), node_hash(each, second)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            second = node_hash(second, each)
        at, last = at >> 1, last >> 1
    return last == 0 and first == old_root and second == new_root
