"""The Merkle tree against known roots, the RFC's own example, and a naive implementation."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parties.audit.merkle import (
    MAX_PROOF,
    consistency_proof,
    is_consistent,
    leaf_hash,
    node_hash,
    root,
)

INPUTS = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
"""Of the first 1 to 8 inputs: the vectors that implementations of RFC 6962 share."""

LEAVES = [leaf_hash(bytes([number])) for number in range(70)]


def naive_root(leaves: list[bytes]) -> bytes:
    """MTH as RFC 6962, section 2.1, defines it, word by word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_goes_on(leaves: list[bytes], old: int, proof: list[bytes]) -> bool:
    """By the whole list, without looking at how a proof is checked."""
    return proof == naive_proof(leaves, old, True)


def naive_proof(leaves: list[bytes], m: int, b: bool) -> list[bytes]:
    """SUBPROOF of section 2.1.2."""
    if m == len(leaves):
        return [] if b else [naive_root(leaves)]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m <= k:
        return [*naive_proof(leaves[:k], m, b), naive_root(leaves[k:])]
    return [*naive_proof(leaves[k:], m - k, False), naive_root(leaves[:k])]


def test_roots_are_those_that_others_compute() -> None:
    leaves = [leaf_hash(bytes.fromhex(text)) for text in INPUTS]
    assert [root(leaves[: count + 1]).hex() for count in range(8)] == ROOTS
    assert root([]) == sha256(b"").digest()


def test_roots_are_those_of_the_definition() -> None:
    for count in range(len(LEAVES) + 1):
        assert root(LEAVES[:count]) == naive_root(LEAVES[:count])


def test_the_example_of_the_rfc() -> None:
    """Section 2.1.3: seven leaves, and trees of 3, 4 and 6 of them."""
    d = LEAVES[:7]
    g, h, j = node_hash(d[0], d[1]), node_hash(d[2], d[3]), d[6]
    i = node_hash(d[4], d[5])
    k, last = node_hash(g, h), node_hash(i, j)
    assert consistency_proof(d, 3) == [d[2], d[3], g, last]
    assert consistency_proof(d, 4) == [last]
    assert consistency_proof(d, 6) == [i, j, k]


def test_proofs_show_what_is_so_and_nothing_else() -> None:
    for new in range(1, 34):
        for old in range(new + 1):
            proof = consistency_proof(LEAVES[:new], old)
            if old:
                assert naive_goes_on(LEAVES[:new], old, proof)
            roots = root(LEAVES[:old]), root(LEAVES[:new])
            assert is_consistent(old, new, *roots, proof), (old, new)
            other = root([LEAVES[69], *LEAVES[1:old]])
            assert not old or not is_consistent(old, new, other, roots[1], proof)
            assert not old or not is_consistent(old, new, roots[0], LEAVES[69], proof)
            for number in range(len(proof)):
                wrong = [*proof[:number], LEAVES[69], *proof[number + 1 :]]
                assert not is_consistent(old, new, *roots, wrong)
                assert not is_consistent(old, new, *roots, proof[:number] + proof[number + 1 :])
            assert not is_consistent(old, new, *roots, [*proof, LEAVES[69]])
            assert not is_consistent(new + 1, new, *roots, proof)


@given(st.integers(0, 2**62), st.integers(0, 2**62), st.lists(st.binary(min_size=32, max_size=32)))
def test_a_forged_proof_is_no_error(old: int, new: int, proof: list[bytes]) -> None:
    assert not is_consistent(old, new, LEAVES[0], LEAVES[1], proof)


def test_a_proof_has_a_bounded_length() -> None:
    assert MAX_PROOF >= 62 + 1
    with pytest.raises(ValueError, match="no tree of 9 leaves among 8"):
        consistency_proof(LEAVES[:8], 9)
