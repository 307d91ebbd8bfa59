"""Shamir's secret sharing: of n shares of a key any k give the key, and fewer say nothing of it.

Guarantees that k-1 shares are independent of the secret, whatever it is (Shamir, How to share a
secret, CACM 1979). Leaves to the caller: to notice a wrong share, which gives another secret
(`envelope` commits to each), and to draw nothing else from the secret's bytes.

    field     whole numbers modulo 2^256 + 297, the smallest prime above all secrets of 32 bytes
    secret    f(0) of a polynomial of degree k-1 whose other coefficients are drawn uniformly
    share i   f(i), i from 1 to n, as 33 bytes, big endian

No well-kept library for Python shares 32 bytes: PyCryptodome's shares are of 16. Python's numbers
are not constant-time: a node shares a key that it drew itself once, and a recipient combines once.
"""

import secrets
from collections.abc import Callable, Mapping

from protocols.errors import EnvelopeError

PRIME = (1 << 256) + 297
SECRET_BYTES, SHARE_BYTES = 32, 33
MAX_SHARES = 255


def split_secret(
    secret: bytes,
    threshold: int,
    count: int,
    draw: Callable[[int], int] = secrets.randbelow,
) -> tuple[bytes, ...]:
    """`count` shares of a secret of 32 bytes, of which any `threshold` give it back.

    draw: a uniform number below its argument. Raises ValueError for another length or number.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes")
    if not 1 <= threshold <= count <= MAX_SHARES:
        raise ValueError(f"a threshold is 1 to the number of shares, at most {MAX_SHARES}")
    coefficients = [int.from_bytes(secret, "big"), *(draw(PRIME) for _ in range(threshold - 1))]

    def value(place: int) -> int:
        total = 0
        for coefficient in reversed(coefficients):
            total = (total * place + coefficient) % PRIME
        return total

    return tuple(value(place).to_bytes(SHARE_BYTES, "big") for place in range(1, count + 1))


def combine_shares(shares: Mapping[int, bytes]) -> bytes:
    """The secret from as many shares as its threshold, by their numbers, which count from 1.

    Raises EnvelopeError for bytes that are no share, and for shares of no secret of 32 bytes; other
    wrong shares give another secret.
    """
    values = {place: int.from_bytes(share, "big") for place, share in shares.items()}
    if not values or any(len(share) != SHARE_BYTES for share in shares.values()):
        raise EnvelopeError(f"a share of a key has {SHARE_BYTES} bytes")
    if any(not 1 <= place <= MAX_SHARES for place in values):
        raise EnvelopeError("a share of a key with an impossible number")
    if any(value >= PRIME for value in values.values()):
        raise EnvelopeError("a share of a key that is outside the field")
    total = 0
    for place, value in values.items():
        top, bottom = 1, 1
        for other in values:
            if other != place:
                top = top * other % PRIME
                bottom = bottom * (other - place) % PRIME
        total = (total + value * top * pow(bottom, -1, PRIME)) % PRIME
    if total >= 1 << (8 * SECRET_BYTES):
        raise EnvelopeError("the shares of a key do not fit together")
    return total.to_bytes(SECRET_BYTES, "big")
