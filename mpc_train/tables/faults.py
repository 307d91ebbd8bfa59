"""All faults of one table, collected while it is read and reported at once.

Faults of one kind in one column are one entry: the first place, then the number of others. An error
lists `MAX_FAULTS` entries, in the order of the table. No entry repeats a cell.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mpc_train.errors import DataError

MAX_FAULTS = 20
MAX_PLACES = 4
"""How many places one entry names."""

_HEADER, _WHOLE = 0, 1 << 62


class CellError(Exception):
    """A fault of the rows `rows` of a chunk, int64[n]; None: of the whole column. `row` is the
    first of them.

    bad: bool[rows of the chunk], at least one of them true.
    """

    def __init__(self, bad: NDArray[np.bool_] | None, what: str) -> None:
        super().__init__(what)
        self.rows = None if bad is None else np.flatnonzero(bad)

    @property
    def row(self) -> int | None:
        return None if self.rows is None else int(self.rows[0])


@dataclass
class _Entry:
    """The places of one kind of fault: the first ones, and their number."""

    places: list[int] = field(default_factory=list)
    count: int = 0

    def add(self, places: Sequence[int] | NDArray[np.int64]) -> None:
        self.count += len(places)
        self.places += [int(place) for place in places[: MAX_PLACES - len(self.places)]]


class Faults:
    """The faults of the table `label`.

    place: what is counted, "line" or "row"; known when the table is open. columns: the titles of
    columns in errors, if they differ from their names. worded: what is said of a cell to somebody
    who has no file.
    """

    def __init__(
        self,
        label: str,
        columns: Mapping[str, str] | None = None,
        worded: Callable[[str], str] = lambda what: what,
    ) -> None:
        self._label, self._columns, self._worded = label, columns or {}, worded
        self.place = "line"
        self.unread = 0
        """Records that could not be parsed, and are not in any chunk."""
        self.faulty: set[str] = set()
        """Columns with a fault: nothing is known about their cells as a whole."""
        self._entries: dict[tuple[int, str, str], _Entry] = {}

    def __bool__(self) -> bool:
        return bool(self._entries)

    def header(self, what: str) -> None:
        """Note a fault that prevents columns from being found."""
        self._entries.setdefault((_HEADER, "", what), _Entry())

    def whole(self, what: str) -> None:
        """Note a fault that only the whole table shows, or that ends the reading."""
        self._entries.setdefault((_WHOLE, "", what), _Entry())

    def column(self, name: str, what: str) -> None:
        """Note a fault of a whole column."""
        self.faulty.add(name)
        self.whole(f"{self.titled(name)}: {what}")

    def cells(self, name: str, places: NDArray[np.int64], what: str) -> None:
        """Note a fault of cells of one column; places: int64[n], the places of their rows."""
        self.faulty.add(name)
        self._add(f"{self.titled(name)}: ", places, self._worded(what))

    def records(self, places: NDArray[np.int64], what: str) -> None:
        """Note records that cannot be parsed."""
        self.unread += len(places)
        self._add("", places, what)

    def titled(self, name: str) -> str:
        """The title of a column in errors."""
        return f"column {self._columns.get(name, repr(name))}"

    def _add(self, where: str, places: NDArray[np.int64], what: str) -> None:
        self._entries.setdefault((1, where, what), _Entry()).add(places)

    def check(self) -> None:
        """Raise DataError with all faults, if any."""
        if not self._entries:
            return
        entries = sorted(
            self._entries.items(), key=lambda item: (item[1].places or [item[0][0]])[0]
        )
        said = [self._said(where, what, entry) for (_, where, what), entry in entries]
        if len(said) == 1:
            raise DataError(f"{self._label}: {said[0]}")
        lines = [f"{self._label}: {len(said)} faults:", *said[:MAX_FAULTS]]
        if len(said) > MAX_FAULTS:
            lines.append(f"and {len(said) - MAX_FAULTS} more")
        raise DataError("\n  ".join(lines))

    def _said(self, where: str, what: str, entry: _Entry) -> str:
        if not entry.places:
            return where + what
        first, *others = entry.places
        said = f"{self.place} {first}: {where}{what}"
        left = entry.count - len(entry.places)
        if not others:
            return said
        named = ", ".join(map(str, others))
        several = len(others) > 1 or left
        more = f" and {left:,} more" if left else ""
        return f"{said} (and {self.place}{'s' if several else ''} {named}{more})"
