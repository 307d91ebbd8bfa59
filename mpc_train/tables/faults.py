"""All that is wrong with one table, gathered while it is read and said at once.

Faults of one kind in one column are one entry: the first place, then how many others there are.
An error lists `MAX_FAULTS` entries, in the order of the table. No entry repeats a cell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mpc_train.errors import DataError

MAX_FAULTS = 20
MAX_PLACES = 4
"""Places that are named of one entry."""

_HEADER, _WHOLE = 0, 1 << 62


@dataclass
class _Entry:
    """Where one kind of fault stands: the first places, and how many there are."""

    places: list[int] = field(default_factory=list)
    count: int = 0

    def add(self, places: Sequence[int] | NDArray[np.int64]) -> None:
        self.count += len(places)
        self.places += [int(place) for place in places[: MAX_PLACES - len(self.places)]]


class Faults:
    """What is wrong with the table `label`.

    place: what is counted, "line" or "row"; known once the table is open. columns: what errors call
    its columns, where that is more than their names.
    """

    def __init__(self, label: str, columns: Mapping[str, str] | None = None) -> None:
        self._label, self._columns = label, columns or {}
        self.place = "line"
        self.unread = 0
        """Records that could not be read as such, and are in no chunk."""
        self.faulty: set[str] = set()
        """Columns with a fault: what the rest of their cells says as a whole is not known."""
        self._entries: dict[tuple[int, str, str], _Entry] = {}

    def __bool__(self) -> bool:
        return bool(self._entries)

    def header(self, what: str) -> None:
        """Something that keeps columns from being found."""
        self._entries.setdefault((_HEADER, "", what), _Entry())

    def whole(self, what: str) -> None:
        """Something that only the whole table shows, or that ends the reading of it."""
        self._entries.setdefault((_WHOLE, "", what), _Entry())

    def column(self, name: str, what: str) -> None:
        """Something about a column as a whole."""
        self.faulty.add(name)
        self.whole(f"{self.titled(name)}: {what}")

    def cells(self, name: str, places: NDArray[np.int64], what: str) -> None:
        """Cells of one column; places: int64[n], where their rows stand."""
        self.faulty.add(name)
        self._add(f"{self.titled(name)}: ", places, what)

    def records(self, places: NDArray[np.int64], what: str) -> None:
        """Whole records that cannot be read."""
        self.unread += len(places)
        self._add("", places, what)

    def titled(self, name: str) -> str:
        """What errors call a column."""
        return f"column {self._columns.get(name, repr(name))}"

    def _add(self, where: str, places: NDArray[np.int64], what: str) -> None:
        self._entries.setdefault((1, where, what), _Entry()).add(places)

    def check(self) -> None:
        """Raise DataError with all that was found, if anything was."""
        if not self._entries:
            return
        entries = sorted(
            self._entries.items(), key=lambda item: (item[1].places or [item[0][0]])[0]
        )
        said = [self._said(where, what, entry) for (_, where, what), entry in entries]
        if len(said) == 1:
            raise DataError(f"{self._label}: {said[0]}")
        lines = [f"{self._label}: {len(said)} things are wrong:", *said[:MAX_FAULTS]]
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
