"""The rounds that an evaluator keeps: so that owners that were away catch up, and a run goes on.

Of each round the first evaluator keeps the masked sum, every other one the key of its pad, 32
bytes: all of them together are the sum, fewer are noise. A round counts as opened when all
evaluators have stored it; what was never opened is computed anew, under other masks, and nobody has
seen the first.
"""

from __future__ import annotations

import threading
from typing import Protocol

from mpc_train.checkpoints.keeper import parts_of, token_of
from mpc_train.errors import ArtifactError, QueryError
from mpc_train.federated.rounds.messages import ROUND, Record, encoded, record_from
from parties.agreement.control import MAX_CHECKPOINTS

CACHED = 2


class Place(Protocol):
    """Where checkpoints lie: `run.phases.shelf.VaultShelf`."""

    def tokens(self) -> tuple[bytes, ...]: ...

    def write(self, token: bytes, data: bytes, rows: bytes = b"") -> None: ...

    def read(self, token: bytes) -> bytes: ...

    def discard(self, token: bytes) -> None: ...


class Memory:
    """For nodes that keep nothing beyond the run."""

    def __init__(self) -> None:
        self._found: dict[bytes, bytes] = {}

    def tokens(self) -> tuple[bytes, ...]:
        return tuple(sorted(self._found))

    def write(self, token: bytes, data: bytes, rows: bytes = b"") -> None:
        self._found[token] = data

    def read(self, token: bytes) -> bytes:
        return self._found[token]

    def discard(self, token: bytes) -> None:
        del self._found[token]


class Kept:
    """The rounds of one job at one evaluator. sid: of this session.

    The desk reads rounds while the node stores the next one.
    """

    def __init__(self, place: Place, sid: bytes) -> None:
        self._place, self._sid = place, sid
        self._tokens: dict[int, bytes] = {}
        self._cache: dict[int, tuple[Record, bytes]] = {}
        self._lock = threading.Lock()
        self.opened = 0

    @property
    def run(self) -> bytes:
        """The session that opened the first round; empty before that."""
        return parts_of(self._tokens[1])[2] if self.opened else b""

    def begin(self) -> None:
        """Begin with the first round: what an earlier session has stored was not opened."""
        for token in self._place.tokens():
            self._place.discard(token)

    def resume(self, token: bytes) -> None:
        """Go on after the round of this token; what was stored beyond it was not opened. Raises
        ArtifactError if a round before it is missing here."""
        last = parts_of(token)[0]
        by_round: dict[int, list[bytes]] = {}
        for one in self._place.tokens():
            by_round.setdefault(parts_of(one)[0], []).append(one)
        for number, tokens in by_round.items():
            if number > last:
                for one in tokens:
                    self._place.discard(one)
        by_round[last] = [token]
        for number in range(1, last + 1):
            found = by_round.get(number, [])
            if len(found) != 1:
                raise ArtifactError(
                    f"round {number} of the run is kept {len(found)} times here, and the run goes "
                    f"on after round {last}; begin anew with --fresh at all nodes"
                )
            self._tokens[number] = found[0]
        self.opened = last

    def store(self, record: Record, content: bytes) -> None:
        """Durable when this returns; not opened yet. Raises ArtifactError."""
        token, said = token_of(record.round, False, self._sid), encoded(record)
        self._place.write(token, ROUND.pack(len(said)) + said + content)
        self._tokens[record.round] = token
        self._remember(record.round, (record, content))

    def release(self, number: int) -> None:
        """All evaluators have stored it."""
        self.opened = number

    def read(self, number: int) -> tuple[Record, bytes]:
        """What is kept of an opened round. Raises ArtifactError."""
        with self._lock:
            found = self._cache.get(number)
        if found is not None:
            return found
        data = memoryview(self._place.read(self._tokens[number]))
        try:
            (length,) = ROUND.unpack(data[: ROUND.size])
            record = record_from("this node", data[ROUND.size : ROUND.size + length])
        except (QueryError, ValueError) as error:
            raise ArtifactError(f"what is kept of round {number} is malformed") from error
        found = record, bytes(data[ROUND.size + length :])
        self._remember(number, found)
        return found

    def _remember(self, number: int, found: tuple[Record, bytes]) -> None:
        """Keep it in memory, and of the others those that were used last."""
        with self._lock:
            self._cache.pop(number, None)
            self._cache[number] = found
            for other in list(self._cache)[:-CACHED]:
                del self._cache[other]


def newest(place: Place | None) -> tuple[bytes, ...]:
    """The names of the newest rounds that are kept, as many as nodes tell one another."""
    return () if place is None else place.tokens()[-MAX_CHECKPOINTS:]
