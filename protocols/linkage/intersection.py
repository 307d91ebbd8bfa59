"""Private set intersection by Diffie-Hellman: the common items of two or more lists.

Every node that masks has a fresh secret exponent of this session. An item is hashed to a point of
P-256, every such node raises it to its exponent, in any order, and items that are equal, and only
those, end as the same point. Without one of the exponents nobody can tell a masked item from a
random point (decisional Diffie-Hellman, the hash as a random oracle).

* An item travels as the x-coordinate of its point, 32 bytes, fed back in with an even y: the x of
  e·P and of e·(−P) is the same. P-256 has prime order, so there are no points of small order, and
  the point at infinity has no such encoding; anything that is not an x-coordinate of the curve is
  refused.
* The hash has a key to which all holders of lists contribute (`agree_key`) and which nobody else
  knows, so that a node without the key cannot test guessed items. It takes the first of a sequence
  of keyed hashes that is an x-coordinate: two tries on average, independent of each other. The time
  depends on the items only through the number of tries, and is not visible outside the node.
* A list leaves its holder in the order of its masked items, which is independent of its original
  order.

What is sent must be a list of distinct points, as many as the job says: FrameError for another
length, PointError for anything else. `meet` and `meet_shuffled` state who learns what.

Meadows (S&P 1986); Huberman, Franklin, Hogg (EC 1999); Agrawal, Evfimievski, Srikant (SIGMOD
2003). Curve arithmetic: OpenSSL's, through `cryptography`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from protocols.arrays import Octets, Positions
from protocols.canonical import pack
from protocols.channel import Channel
from protocols.errors import DesyncError, FrameError, PointError
from protocols.roles.frames import LABEL, receive_all, send_all

ITEM_BYTES = 32
"""A token, an x-coordinate."""
KEY_BYTES = 32
BATCH = 2048
"""Points that a thread works on at one time: small beside the list, long beside a hand-over."""


_CURVE = ec.SECP256R1()
_EVEN = b"\x02"
_SIZE = LABEL.pack(b"size", 0, 0, 0)
_KEY_LABEL = b"mpc-train intersection key v1"
_POINT_LABEL = b"mpc-train intersection point v1"


class Exponent:
    """One node's secret for one session. threads: how many work at a time."""

    def __init__(self, threads: int = 1) -> None:
        self._secret = ec.generate_private_key(_CURVE)
        self._threads = threads

    def __repr__(self) -> str:
        return "Exponent(redacted)"

    def of_tokens(self, tokens: Octets, key: bytes) -> Octets:
        """Hash tokens uint8[n, 32] to points and mask them: x-coordinates, uint8[n, 32]."""
        return self._masked(tokens, lambda token: _point_of(token, key))

    def of_points(self, points: Octets, sender: str) -> Octets:
        """Mask points that `sender` sent, uint8[n, 32]; raises PointError naming it."""

        def point(x: bytes) -> ec.EllipticCurvePublicKey:
            try:
                return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, _EVEN + x)
            except ValueError as error:
                raise PointError(
                    f"{sender} sent something that is not a point of the curve"
                ) from error

        return self._masked(points, point)

    def _masked(self, items: Octets, point: Callable[[bytes], ec.EllipticCurvePublicKey]) -> Octets:
        out = np.empty((len(items), ITEM_BYTES), np.uint8)

        def work(start: int) -> None:
            secret, exchange = self._secret, ec.ECDH()
            batch = [
                secret.exchange(exchange, point(item.tobytes()))
                for item in items[start : start + BATCH]
            ]
            flat = np.frombuffer(b"".join(batch), np.uint8)
            out[start : start + BATCH] = flat.reshape(-1, ITEM_BYTES)

        starts = range(0, len(items), BATCH)
        if self._threads == 1 or len(items) <= BATCH:
            for start in starts:
                work(start)
        else:  # OpenSSL works outside of the interpreter's lock
            with ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(work, starts))
        return out


def _point_of(token: bytes, key: bytes) -> ec.EllipticCurvePublicKey:
    """The first of H(key; 0, token), H(key; 1, token), … that is an x-coordinate."""
    for number in range(256):
        x = hmac.digest(key, _POINT_LABEL + bytes([number]) + token, "sha256")
        try:
            return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, _EVEN + x)
        except ValueError:
            continue
    raise AssertionError("256 hashes in a row off the curve: once in 2^256")


def agree_key(
    channel: Channel,
    me: str,
    holders: Sequence[str],
    sid: bytes,
    entropy: Callable[[int], bytes] = os.urandom,
) -> bytes:
    """32 bytes that the holders of lists jointly make and nobody else knows; one round."""
    label = LABEL.pack(b"ikey", 0, 0, 0)
    mine = entropy(KEY_BYTES)
    parts = {me: mine}
    for peer in holders:
        if peer != me:
            channel.send(peer, label, mine)
    for peer in holders:
        if peer != me:
            parts[peer] = receive_all(channel, peer, label, KEY_BYTES).tobytes()
    fields = [part for name in holders for part in (name.encode(), parts[name])]
    return hashlib.sha256(pack(_KEY_LABEL, sid, *fields)).digest()


def meet(
    channel: Channel,
    me: str,
    holders: Sequence[str],
    counts: Mapping[str, int],
    tokens: Octets,
    key: bytes,
    exponent: Exponent,
) -> Positions:
    """At each holder: the rows of `tokens` that all holders have, ascending.

    tokens: uint8[counts[me], 32], distinct. Each list goes round all holders and comes back to its
    own in the order in which it left; the other holders get it sorted.

    Learnt by each holder: which of its own items which others have. With more than two holders that
    includes items that only some have, and how many of their items others have in common. Nobody
    else learns anything. Sent: each list once per holder, 32 bytes per item.
    """
    count, place = len(holders), holders.index(me)
    following = holders[(place + 1) % count]
    masked = exponent.of_tokens(tokens, key)
    order = sorted_order(masked)
    _send(channel, following, place, 1, masked[order])
    for hop in range(1, count):
        owner, sender = (place - hop) % count, holders[place - 1]
        received = _receive(channel, sender, owner, hop, counts[holders[owner]])
        masked = exponent.of_points(received, sender)
        if hop + 1 < count:
            _send(channel, following, owner, hop + 1, masked)
            continue
        # The last node sends the list in order to its owner, and sorted to the others.
        _send(channel, holders[owner], owner, count, masked)
        ended = {owner: masked[sorted_order(masked)]}
        for other in range(count):
            if other not in (place, owner):
                _send(channel, holders[other], owner, count, ended[owner])
    for owner in range(count):
        if owner not in ended:
            size = counts[holders[owner]]
            ended[owner] = _receive(channel, holders[owner - 1], owner, count, size)
    mine = np.empty_like(ended[place])
    mine[order] = ended[place]
    ended[place] = mine
    found = common([ended[owner] for owner in range(count)], holders)[place]
    return np.sort(found)


def route(owner: str, evaluators: Sequence[str]) -> list[str]:
    """The route of the list of `owner`, an evaluator: first itself, then all others."""
    return [owner, *(name for name in evaluators if name != owner)]


def meet_shuffled(
    channel: Channel,
    me: str,
    evaluators: Sequence[str],
    holders: Sequence[str],
    counts: Mapping[str, int],
    tokens: Octets | None,
    key: bytes | None,
    exponent: Exponent,
    orders: Mapping[str, Positions] | None,
) -> tuple[Positions, list[Octets]]:
    """At each evaluator: all lists, masked by everybody and in an order that nobody knows.

    holders: some or all of the evaluators; tokens, key: only at a holder, as in `meet`. orders: by
    holder, this evaluator's secret permutation of its list (not of its own); None if no rows follow
    the lists: then each evaluator sorts what it masked. A list goes through all evaluators, first
    its holder (`route`); each masks and permutes it, the last sends it to all.

    Returns the order in which this evaluator sent its own list (empty if it has none), and the
    lists of all holders as they are in the end, for `common` or `repeated`.

    Learnt by each evaluator: how many items are in all lists; with more than two lists, how many
    are in each choice of them. Nobody learns which, unless all evaluators collude: a position
    leads back to a row only through the permutations of all of them. Sent: each list once to the
    next on its way and, at the end, to all, 32 bytes an item.
    """
    mine = np.empty(0, np.int64)
    ended: dict[str, Octets] = {}
    hops = {holder: route(holder, evaluators) for holder in holders}
    for hop in range(len(evaluators)):
        for number, holder in enumerate(holders):
            if hops[holder][hop] != me:
                continue
            if hop == 0:
                if tokens is None or key is None:
                    raise ValueError("a holder needs its tokens and the holders' key")
                masked = exponent.of_tokens(tokens, key)
                mine = sorted_order(masked)
                masked = masked[mine]
            else:
                sender = hops[holder][hop - 1]
                received = _receive(channel, sender, number, hop, counts[holder])
                if orders is None:
                    masked = exponent.of_points(received, sender)
                    masked = masked[sorted_order(masked)]
                else:
                    masked = exponent.of_points(received[orders[holder]], sender)
            if hop + 1 < len(evaluators):
                _send(channel, hops[holder][hop + 1], number, hop + 1, masked)
                continue
            ended[holder] = masked
            for peer in evaluators:
                if peer != me:
                    _send(channel, peer, number, hop + 1, masked)
    for number, holder in enumerate(holders):
        if holder not in ended:
            last = hops[holder][-1]
            ended[holder] = _receive(channel, last, number, len(evaluators), counts[holder])
    return mine, [ended[holder] for holder in holders]


def sorted_order(items: Octets) -> Positions:
    """The order that sorts the rows of uint8[n, 32] as numbers, most significant byte first."""
    words = np.ascontiguousarray(items).view(">u8").astype(np.uint64)
    order: Positions = np.lexsort(tuple(words[:, column] for column in (3, 2, 1, 0)))
    return order


def common(lists: Sequence[Octets], owners: Sequence[str]) -> list[Positions]:
    """By list, the positions of the items that all lists have, in ascending order of the items.

    Raises PointError with the owner of a list that contains an item twice.
    """
    group, place, position = _grouped(lists, owners)
    everywhere = (np.bincount(group) == len(lists))[group]
    return [position[everywhere & (place == number)] for number in range(len(lists))]


def repeated(lists: Sequence[Octets], owners: Sequence[str]) -> int:
    """How many items are in more than one list. Raises PointError like `common`."""
    return int(np.sum(np.bincount(_grouped(lists, owners)[0]) > 1))


def _grouped(
    lists: Sequence[Octets], owners: Sequence[str]
) -> tuple[Positions, Positions, Positions]:
    """All items in ascending order: number of the item, number of its list, position there."""
    items = np.concatenate(lists)
    place = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    position = np.concatenate([np.arange(len(one)) for one in lists])
    order = sorted_order(items)
    items, place, position = items[order], place[order], position[order]
    same = np.all(items[1:] == items[:-1], axis=1)
    # Sorting is stable: equal items keep the order of their lists.
    twice = same & (place[1:] == place[:-1])
    if twice.any():
        owner = owners[int(place[int(np.argmax(twice))])]
        raise PointError(f"the list of {owner} holds an item twice")
    return np.concatenate(([0], np.cumsum(~same))), place, position


def _send(channel: Channel, peer: str, owner: int, hop: int, items: Octets) -> None:
    label = LABEL.pack(b"list", owner, hop, len(items))
    send_all(channel, peer, label, np.ascontiguousarray(items).reshape(-1))


def _receive(channel: Channel, peer: str, owner: int, hop: int, count: int) -> Octets:
    label = LABEL.pack(b"list", owner, hop, count)
    items = receive_all(channel, peer, label, count * ITEM_BYTES)
    return items.reshape(count, ITEM_BYTES)


def tell(channel: Channel, peers: Iterable[str], count: int) -> None:
    """Tell nodes that did not compare lists how many items all lists have in common."""
    for peer in peers:
        channel.send(peer, _SIZE, count.to_bytes(8, "big"))


def told(channel: Channel, peers: Sequence[str], most: int) -> int:
    """The number that all of `peers` tell; DesyncError if they differ, FrameError beyond `most`."""
    sizes = [receive_all(channel, peer, _SIZE, 8).tobytes() for peer in peers]
    if len(set(sizes)) != 1:
        raise DesyncError(f"{', '.join(peers)} sent different numbers of common items")
    size = int.from_bytes(sizes[0], "big")
    if size > most:
        raise FrameError(f"{peers[0]} sent a number beyond the length of the shortest list")
    return size
