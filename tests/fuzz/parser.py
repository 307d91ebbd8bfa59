"""One parser of bytes from elsewhere, as the table of `tests.fuzz.table` lists it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

PIECES = (b"\x1b[31m", b"\x00", b"9" * 400, b"1e999999", b"[" * 300, b"-1", b'"', b"\n", b"\xff")


@dataclass(frozen=True)
class Parser:
    """parse: gives a value or one of `errors`. made: what is whole, each of which it reads, unless
    `unread`. reads: the modules whose parsing this is. costly: so slow that few examples are
    tried."""

    parse: Callable[[bytes], Any]
    made: Callable[[], Sequence[bytes]]
    errors: tuple[type[Exception], ...]
    reads: tuple[str, ...]
    unread: bool = False
    costly: bool = False
    cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def seeds(self) -> Sequence[bytes]:
        if "seeds" not in self.cache:
            self.cache["seeds"] = list(self.made())
        return list(self.cache["seeds"])


def mutated(whole: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Cut, doubled, with bytes altered, put in or taken out; or of another making altogether."""

    def alter(parts: tuple[bytes, list[tuple[int, bytes]], int]) -> bytes:
        data, edits, end = parts
        for place, piece in edits:
            at = place % (len(data) + 1)
            data = data[:at] + piece + data[at + len(piece) // 2 :]
        return data[: end % (len(data) + 1)] if end else data

    pieces = st.binary(max_size=9) | st.sampled_from(PIECES)
    edits = st.lists(st.tuples(st.integers(0, 100_000), pieces), max_size=4)
    altered = st.tuples(st.sampled_from(whole), edits, st.integers(0, 100_000)).map(alter)
    return st.binary(max_size=400) | altered | st.sampled_from(whole).map(lambda data: data * 2)
